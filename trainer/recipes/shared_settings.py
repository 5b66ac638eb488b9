"""Training settings that several rows of the papers' tables share, each with its source."""

from __future__ import annotations

from trainer.recipes.recipe import Said, ours, said

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

FKD_PLAIN: dict[str, Said] = {
    **said("FKD Table 12", epochs=300, batch_size=1024, weight_decay=1e-4, scheduler="cosine"),
    **said("FKD Table 12, train_FKD.py:224", optimizer="sgd"),
    "lr": Said(0.1, "FKD Table 12, README.md:49, :95", 0.2, "FKD README.md:93 (0.1 B / 512)"),
    **said("FKD Table 3 (w/o warmup&colorj), train_FKD.py:519-521", warmup_epochs=0.0),
    **said("FKD Table 3 (w/o warmup&colorj), train_FKD.py:262-268", color_jitter=(0, 0, 0, 0)),
    **said("FKD appendix B, README.md:49", crops_per_image=4),
    **said("FKD train_FKD.py:58", momentum=0.9),
    **said("FKD train_FKD.py:255-256", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    **said("FKD train_FKD.py:263-264", input_size=224, interpolation="bilinear"),
    **said("FKD train_FKD.py:296-297 (224 of 256)", crop_pct=0.875),
    **said("FKD train_FKD.py:317-325", single_crop_last=4),
    **said("FKD train_FKD.py:521", min_lr=0.0),
    **said("FKD 3.3, train_FKD.py:315", serrated=True),
    **said("FKD train_FKD.py:404, utils_FKD.py:20-27", soft_loss="cross-entropy"),
    **said("FKD README.md:49", temperature=1.0),
    **said("FKD train_FKD.py:404", labels="fkd"),
}
"""The release's train_FKD.py as it is, which is FKD Table 12 (supplement Table 1) without warm-up and jitter."""

FKD_CNN: dict[str, Said] = {
    **FKD_PLAIN,
    "optimizer": Said("sgd", "FKD Table 12, train_FKD.py:224", "nesterov", "ReLabel yaml:22"),
    **said("FKD Table 12", warmup_epochs=5.0),
    **said('FKD Table 12 ("same as ReLabel": ReLabel base.yaml:21)', warmup_lr=0.0),
    "warmup_prefix": Said(False, "FKD train_FKD.py:521", True, "ReLabel optimizers.py:46-53"),
    "serrated": Said(True, "FKD 3.3, train_FKD.py:315", False, "ReLabel train.py:113-121"),
    **said(
        'FKD Table 12 ("same as ReLabel": ReLabel data_loader.py:44)',
        color_jitter=(0.4, 0.4, 0.4, 0.0),
    ),
    "lighting": Said(0.0, "FKD Table 12 (none)", 0.1, "ReLabel utils.py:13"),
}
"""FKD Table 12: the release's script with warm-up and jitter, which are ReLabel's. Where ReLabel's script does more
than the table says (Nesterov, lighting, a rate that moves with every step), FKD's own script is taken."""

_VIT_SCRIPT: dict[str, Said] = {
    **said(
        "FKD train_ViT_FKD.py:123, :355",
        warmup_lr=1e-5,
        warmup_serrated=True,
        warmup_prefix=False,
        serrated=True,
    ),
    **said("FKD train_ViT_FKD.py:125", min_lr=1e-5),
    **said("FKD train_ViT_FKD.py:348-355", single_crop_first=5),
    **said("FKD train_ViT_FKD.py:377-389 (295 = 73 x 4 + 3)", single_crop_last=3),
    **said("FKD train_ViT_FKD.py:109 (none: the optimiser's own)", betas=(0.9, 0.999)),
    **said("FKD train_ViT_FKD.py:295-296", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    **said("FKD train_ViT_FKD.py:303-304", input_size=224, interpolation="bilinear"),
    **said("FKD train_ViT_FKD.py:336-337 (224 of 256)", crop_pct=0.875),
    **said("FKD train_ViT_FKD.py:468, utils_FKD.py:20-27", soft_loss="cross-entropy"),
}

FKD_ADAMW: dict[str, Said] = {
    **_VIT_SCRIPT,
    **said(
        "FKD Table 13",
        epochs=300,
        batch_size=1024,
        optimizer="adamw",
        lr=0.002,
        scheduler="cosine",
        weight_decay=0.05,
        warmup_epochs=5.0,
    ),
    **said("FKD appendix B", crops_per_image=4),
    "model_kwargs": Said(
        {},
        "FKD train_ViT_FKD.py:101, :227 (read, not passed on)",
        {"drop_path_rate": 0.1},
        "FKD Table 13 (stochastic depth)",
    ),
    "mixing": Said("none", "FKD Table 13", "mixup-cutmix", "FKD FKD_ViT/README.md:20"),
    **said("FKD README.md:128", temperature=1.0),
    **said("FKD train_ViT_FKD.py:468", labels="fkd"),
}
"""FKD Table 13 as the release's train_ViT_FKD.py has it: warm-up in five single-crop passes, one stair each, then 73
passes of 4 crops, and what is left of 300 epochs crop by crop. The script sets the last three rates one epoch early,
which moves them by less than 3 %: that is not repeated here."""

FERKD_SCRATCH: dict[str, Said] = {
    **{
        name: Said(each.value, f"FerKD supplement A: {each.source}")
        for name, each in _VIT_SCRIPT.items()
    },
    **said(
        "FerKD supplement Table 1",
        epochs=300,
        batch_size=1024,
        optimizer="adamw",
        lr=0.002,
        scheduler="cosine",
        weight_decay=0.05,
        warmup_epochs=5.0,
        crops_per_image=4,
        rand_augment=0.0,
        erasing_prob=0.0,
    ),
    **said("FerKD 4", temperature=1.0),
}
"""FerKD supplement Table 1. No script of FerKD is published: the supplement says that it follows FKD's training of
ViT, DeiT and SReT, and its README that it follows FKD's training code; that is train_ViT_FKD.py."""

FERKD_FINETUNE: dict[str, Said] = {
    **said(
        "FerKD supplement Table 2",
        epochs=15,
        batch_size=512,
        crops_per_image=2,
        optimizer="adamw",
        betas=(0.9, 0.999),
        lr=3e-5,
        layer_decay=0.95,
        weight_decay=0.05,
        scheduler="cosine",
        warmup_epochs=2.0,
        input_size=336,
        crop_pct=1.0,
        rand_augment=9.0,
        rand_augment_std=0.5,
        erasing_prob=0.0,
        mixing="selfmix",
        mixing_prob=1.0,
        ema_decay=0.9999,
    ),
    **said("FerKD 3.2, 4.2", labels="ferkd"),
    **ours("the card's name of the mask", mask="ferkd"),
    **said("FerKD 4.4", pretrained=True),
    **said("FerKD 4", temperature=1.0),
    **ours("15 epochs are 7 passes of 2 crops and one", single_crop_last=1),
    **ours("not printed", warmup_lr=0.0, min_lr=0.0),
    **ours(
        "the weights' own (timm)", interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
}
"""FerKD supplement Table 2."""

MEAL_V2: dict[str, Said] = {
    **said("MEAL V2 README.md:11 (average of the teachers)", labels="ensemble"),
    **said("MEAL V2 models/model_factory.py:16, :34", pretrained=True),
    **said("MEAL V2 README.md:103", batch_size=512),
    "crops_per_image": Said(
        2, "FKD Table 7 (the row of Table 4's 80.70 %)", 8, "MEAL V2 README.md:38"
    ),
    **said("MEAL V2 train.py:207-212", optimizer="sgd"),
    **said("MEAL V2 opts.py:63", momentum=0.9),
    **said("MEAL V2 models/model_factory.py:69", lr=0.01),
    **said("MEAL V2 opts.py:65", weight_decay=0.0),
    **said("MEAL V2 train.py:252-254", warmup_epochs=0.0),
    **said("MEAL V2 imagenet.py:51-52", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    **said("MEAL V2 imagenet.py:58", input_size=224),
    **said("MEAL V2 imagenet.py:26-27", interpolation="bilinear"),
    **said("MEAL V2 imagenet.py:67 (224 of 256)", crop_pct=0.875),
    **said("MEAL V2 extensions/kd_loss.py:32-42", soft_loss="cross-entropy", temperature=1.0),
    "discriminator": Said(True, "MEAL V2 train.py:144, FKD_train.py:166-173 (probabilities)"),
}
"""MEAL V2's release (train.py), which FKD Table 4 follows, without its schedule."""

MEAL_V2_STEP: dict[str, Said] = {
    **MEAL_V2,
    "epochs": Said(180, "MEAL V2 README.md:103, FerKD Table 8", 200, "MEAL V2 README.md:35"),
    **said("MEAL V2 models/model_factory.py:69", scheduler="multistep", decay_rate=0.1),
    "milestones": Said(
        (101,), "MEAL V2 models/model_factory.py:69", (100, 180), "MEAL V2 README.md:40"
    ),
}

MEAL_V2_COSINE: dict[str, Said] = {
    **MEAL_V2,
    **said("FKD Table 4 (cosine, 1.5 x 180 epochs)", epochs=270),
    **said("FKD Table 4, MEAL V2 FKD_train.py:103", scheduler="cosine", min_lr=0.0),
    **said("FKD 3.3, MEAL V2 FKD_train.py:288-289", serrated=True),
}

RELABEL: dict[str, Said] = {
    **said(
        "ReLabel yaml:11-25",
        epochs=300,
        batch_size=1024,
        lr=0.1,
        scheduler="cosine",
        warmup_lr=0.0,
        warmup_epochs=5.0,
        momentum=0.9,
        weight_decay=1e-4,
        label_smoothing=0.0,
    ),
    **said("ReLabel yaml:12, :22", optimizer="nesterov"),
    **said("ReLabel optimizers.py:46-53", warmup_prefix=True, min_lr=0.0),
    **said("ReLabel train.py:113-121", serrated=False),
    **said("ReLabel data_loader.py:44", color_jitter=(0.4, 0.4, 0.4, 0.0)),
    **said("ReLabel utils.py:13", lighting=0.1),
    **said("ReLabel data_loader.py:37-41", crops_per_image=1, single_crop_last=0),
    **said("ReLabel base.yaml:6, :8", input_size=224, crop_pct=0.875),
    **said("ReLabel data_loader.py:38 (torchvision's default)", interpolation="bilinear"),
    **said("ReLabel utils.py:7-9", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    **said("ReLabel loss.py:5-8", soft_loss="cross-entropy", temperature=1.0),
    **said("ReLabel data_loader.py:103-128", labels="labelmap"),
    "model": Said("torchvision:resnet50", "ReLabel train.py:46-47", "resnet50", "timm"),
}
"""ReLabel's release; yaml is configs/relabel_train_resnet50.yaml, the other files lie in configs and utils."""

SSL: dict[str, Said] = {
    **said("FKD 3.4", labels="ssl"),
    **ours("FKD does not print it; 4 is that of its supervised runs", crops_per_image=4),
}

SRE2L: dict[str, Said] = {
    **said("SRe2L train_FKD.py:31, :37", epochs=300),
    **said("SRe2L train_FKD.sh:7", batch_size=1024),
    **said("SRe2L train_FKD.py:227-228", labels="fkd"),
    **ours("the release's batches hold an image once", crops_per_image=1),
    **said("SRe2L train_FKD.py:157-159", optimizer="adamw"),
    **said("SRe2L train_FKD.py:59", lr=1e-3),
    **said("SRe2L train_FKD.py:61", weight_decay=0.01),
    **said("SRe2L train_FKD.py:157 (none: the optimiser's own)", betas=(0.9, 0.999)),
    **said("SRe2L train_FKD.py:161-163, train_FKD.sh:10", scheduler="cosine", min_lr=0.0),
    **said("SRe2L train_FKD.py:163", warmup_epochs=0.0),
    **said("SRe2L train_FKD.py:190", serrated=True),
    **said("SRe2L train_FKD.sh:12", temperature=20.0),
    **said("SRe2L train_FKD.py:216", soft_loss="kl"),
    **said("SRe2L train_FKD.py:251", temperature_squared=False),
    **said("SRe2L train_FKD.py:102-103", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    **said("SRe2L train_FKD.py:111-113", input_size=224, interpolation="bilinear"),
    **said("SRe2L train_FKD.py:135-136 (224 of 256)", crop_pct=0.875),
    "model": Said("torchvision:resnet18", "SRe2L train_FKD.py:147", "resnet18", "timm"),
}
"""SRe2L's training on relabelled images, every value as its release has it: no warm-up, KL at T = 20 without the factor
T^2, a rate that is constant within an epoch."""

HALD: dict[str, Said] = {
    **said(
        "HALD train_fkd.py:128, :155-157, train.sh:25-26",
        phases=("fkd:75:none", "ground-truth:150:cutmix", "fkd:75:none"),
    ),
    **said("HALD train_fkd.py:626-641 (stored soft labels)", labels="fkd"),
    **said("HALD train_fkd.py:142, train.sh:25-26", epochs=300),
    **said("HALD train.sh:16, train_fkd.py:131", batch_size=16),
    **ours("the release's batches hold an image once", crops_per_image=1),
    **said("HALD train_fkd.py:432", optimizer="adamw"),
    **said("HALD hyper.yaml:87 (10 images per class)", lr=1e-3),
    "cosine_eta": Said(
        2.0,
        "HALD hyper.yaml:87, train_fkd.py:438",
        1.0,
        "HALD hyper.yaml:91 (50 images per class)",
    ),
    **said("HALD train_fkd.py:109", weight_decay=0.01),
    **said("HALD train_fkd.py:432 (none: the optimiser's own)", betas=(0.9, 0.999)),
    **said("HALD train_fkd.py:438, train.sh:58", scheduler="cosine", min_lr=0.0),
    **said("HALD train_fkd.py:438", warmup_epochs=0.0),
    **said("HALD train_fkd.py:503", serrated=True),
    **said("HALD train_fkd.py:675, relabel_slc.py:46", temperature=20.0),
    **said("HALD train_fkd.py:618", soft_loss="kl"),
    **said("HALD train_fkd.py:676", temperature_squared=False),
    **said("HALD train_fkd.py:133, :452", label_smoothing=0.8),
    **said("HALD train_fkd.py:451", cutmix_alpha=1.0),
    **ours("timm's Mixup mixes every batch", mixing_prob=1.0),
    **said(
        "HALD train_fkd.py:402 (torchvision's usual ones)", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
    ),
    **said("HALD train_fkd.py:403", flip_prob=0.5),
    **said("HALD hyper.yaml:79-80", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    **said("HALD hyper.yaml:82", input_size=224),
    **said("HALD train_fkd.py:308, :402", interpolation="bilinear"),
    **said("HALD utils_validate.py:313-314 (224 of 256)", crop_pct=0.875),
    "model": Said("torchvision:resnet18", "HALD train_fkd.py:230", "resnet18", "timm"),
}
"""HALD's training on 10 distilled images per class and 10 crops of each, every value as its release has it."""

EFFICIENTNET_L2_LABELS: dict[str, Said] = {
    **said("FKD SLG/README.md:59", teacher="timm:tf_efficientnet_l2.ns_jft_in1k_475"),
    **said("FKD SLG/README.md:63", num_crops=500),
    "scale": Said(
        "0.08,0.936",
        "FKD SLG/README.md:49, :61-62, generate_soft_label.py:70-73",
        "0.08,1",
        "torchvision's usual one",
    ),
    **said("FKD SLG/README.md:67", compression="ms", k=5),
}
"""The crop plan and the labels of EfficientNet-L2-ns-475, as options of `labelstore create`."""

FINETUNE_LABELS: dict[str, Said] = {
    **EFFICIENTNET_L2_LABELS,
    **said("FerKD supplement Table 2 (random resized crop)", scale="0.08,1"),
}
"""The same for fine-tuning, whose table prints another area."""

RELABEL_LABELS: dict[str, Said] = {
    **said("FKD Table 12", teacher="timm:tf_efficientnet_l2.ns_jft_in1k_475"),
    **ours("a crop for each of 300 epochs; the teacher runs once per image", num_crops=300),
    **said("ReLabel base.yaml:7, data_loader.py:39", scale="0.08,1"),
    **said("ReLabel relabel_functions.py:15-27", compression="labelmap"),
    **said("FKD Table 2 (top-5)", k=5),
}
"""ReLabel's label maps."""
