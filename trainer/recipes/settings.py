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
    "single_crop_last": 4,
    "warmup_epochs": 5.0,
    "color_jitter": (0.4, 0.4, 0.4, 0.0),
}
"""FKD Table 12 (supplement Table 1). "Color jittering: yes" comes without strengths: 0.4 each is torchvision's
usual one. The last m epochs are single-crop passes, as in the release's train_FKD.py."""

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

FKD_ADAMW: dict[str, object] = {
    **ADAMW,
    "labels": "fkd",
    "single_crop_first": 5,
    "single_crop_last": 3,
    "min_lr": 1e-5,
    "model_kwargs": {"drop_path_rate": 0.1},
}
"""FKD Table 13 as the release's train_ViT_FKD.py has it: warm-up in single-crop passes, then 73 passes of 4 crops,
and what is left of 300 epochs crop by crop; the rate ends at 1e-5. FerKD's training script is not published: its
recipes have ADAMW alone."""

FERKD_FINETUNE: dict[str, object] = {
    "labels": "ferkd",
    "mask": "ferkd",
    "epochs": 15,
    "batch_size": 512,
    "crops_per_image": 2,
    "single_crop_last": 1,
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
"""FerKD supplement Table 2. Resampling is timm's for both networks; one single-crop pass makes 15 epochs of passes
of 2 crops."""

MEAL_V2: dict[str, object] = {
    "labels": "ensemble",
    "pretrained": True,
    "epochs": 180,
    "batch_size": 512,
    "crops_per_image": 2,
    "optimizer": "sgd",
    "lr": 0.01,
    "weight_decay": 0.0,
    "scheduler": "step",
    "decay_epochs": 100.0,
}
"""MEAL V2's release, which FKD Table 4 follows: batch and epochs of its README, SGD with momentum 0.9, rate and
weight decay of opts.py, one tenth of the rate from epoch 100 on (model_factory.py); pixels are resampled
bilinearly and normalised with ImageNet's mean and deviation for every network. Its discriminator is not part of
it. m = 2 is FKD Table 7's."""

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
"""SRe2L's training on relabelled images, every value as its release has it (train_FKD.py and the command that it
prints): no warm-up, KL at T = 20 without the factor T^2, a rate that is constant within an epoch."""
