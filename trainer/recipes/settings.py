"""Training settings that several tables of the papers share."""

from __future__ import annotations

FKD_CNN: dict[str, object] = {
    "labels": "fkd",
    "epochs": 300,
    "batch_size": 1024,
    "crops_per_image": 4,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 1e-4,
    "scheduler": "cosine",
    "warmup_epochs": 5.0,
    "color_jitter": (0.4, 0.4, 0.4, 0.0),
}
"""FKD Table 12 (supplement Table 1). "Color jittering: yes" comes without strengths: 0.4 each is torchvision's usual one."""

ADAMW: dict[str, object] = {
    "epochs": 300,
    "batch_size": 1024,
    "crops_per_image": 4,
    "optimizer": "adamw",
    "lr": 0.002,
    "weight_decay": 0.05,
    "scheduler": "cosine",
    "warmup_epochs": 5.0,
}
"""FKD Table 13 (supplement Table 2) and FerKD supplement Table 1, without what differs between networks."""

FERKD_FINETUNE: dict[str, object] = {
    "labels": "ferkd",
    "mask": "ferkd",
    "epochs": 15,
    "batch_size": 512,
    "crops_per_image": 2,
    "optimizer": "adamw",
    "lr": 3e-5,
    "layer_decay": 0.95,
    "weight_decay": 0.05,
    "scheduler": "cosine",
    "warmup_epochs": 2.0,
    "warmup_lr": 0.0,
    "input_size": 336,
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "pretrained": True,
    "rand_augment": 9.0,
    "rand_augment_std": 0.5,
    "mixing": "selfmix",
    "ema_decay": 0.9999,
}
"""FerKD supplement Table 2. Resampling is timm's for both networks."""

SRE2L: dict[str, object] = {
    "labels": "fkd",
    "epochs": 300,
    "batch_size": 1024,
    "crops_per_image": 1,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "scheduler": "cosine",
    "temperature": 20.0,
    "soft_loss": "kl",
    "temperature_squared": False,
}
"""SRe2L's training on relabelled images, every value as its release has it (train_FKD.py and the command that it prints): no
warm-up, KL at T = 20 without the factor T^2, a rate that is constant within an epoch."""
