"""What FKD and FerKD compare with, and what else learns from stored labels: ReLabel, FunMatch, distilled data sets."""

from __future__ import annotations

from trainer.config import TrainConfig
from trainer.recipes.card import config_of
from trainer.recipes.settings import FKD_CNN, SRE2L


def relabel_resnet50(**settings: object) -> TrainConfig:
    """ResNet-50 on label maps, pooled over each crop.

    Paper: ReLabel (CVPR 2021), settings of FKD Table 12; its row in FKD Table 3.
    Expected: top-1 78.9 %.
    Hardware: 8 V100, 762 s per epoch of the release.
    Labels: EfficientNet-L2-ns-475 over whole images, --compression labelmap, K=5.
    Command: trainer run --recipe relabel_resnet50 --data imagenet --store in1k.labels --output runs/relabel
    """
    return config_of(
        {**FKD_CNN, "labels": "labelmap", "model": "resnet50", "crops_per_image": 1}, settings
    )


def relabel_resnet50_cutmix(**settings: object) -> TrainConfig:
    """The same with CutMix.

    Paper: ReLabel, with CutMix.
    Expected: top-1 80.2 %.
    Hardware: 8 V100.
    Labels: as relabel_resnet50.
    Command: trainer run --recipe relabel_resnet50_cutmix --data imagenet --store in1k.labels --output runs/relabel
    """
    return relabel_resnet50(**{"mixing": "cutmix", **settings})


def funmatch_resnet50(**settings: object) -> TrainConfig:
    """ResNet-50 matching a teacher that sees the same mixed crops, without stored labels.

    Paper: FunMatch (CVPR 2022); its row beside FKD's. Rate and decay are ours, FKD prints none.
    Expected: top-1 80.5 % at 300 epochs (FKD's comparison), 82.8 % after 9,600 of the paper.
    Hardware: 20 days on 8 V100, against 2 days with stored labels.
    Labels: none; the teacher runs in every step.
    Command: trainer run --recipe funmatch_resnet50 --data imagenet --output runs/funmatch
    """
    return config_of(
        {
            "labels": "teacher",
            "teacher": "timm:resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k",
            "model": "resnet50",
            "epochs": 300,
            "batch_size": 1024,
            "crops_per_image": 1,
            "optimizer": "adamw",
            "lr": 0.003,
            "weight_decay": 0.03,
            "clip_grad": 1.0,
            "warmup_epochs": 5.0,
            "mixing": "mixup",
            "mixup_alpha": 1.0,
            "soft_loss": "kl",
            "interpolation": "bilinear",
        },
        settings,
    )


def sre2l_resnet18(**settings: object) -> TrainConfig:
    """ResNet-18 on 50 distilled images per class, relabelled by a ResNet-18.

    Paper: SRe2L (NeurIPS 2023), 50 images per class. Its teacher labels images that CutMix has mixed; here labels
        are mixed as the pixels are.
    Expected: top-1 46.8 %.
    Hardware: one GPU, hours.
    Labels: ResNet-18 of torchvision, --compression logits, M = 300 crops, over the distilled images.
    Command: trainer run --recipe sre2l_resnet18 --train distilled --val imagenet/val --store ipc50.labels
        --output runs/sre2l
    """
    return config_of({**SRE2L, "model": "resnet18"}, settings)


def lpld_resnet18(**settings: object) -> TrainConfig:
    """The same with a fortieth of the labels: eight crops per image, drawn again and again.

    Paper: LPLD (NeurIPS 2024), labels pruned by 40, 50 images per class.
    Expected: within a point or two of sre2l_resnet18; its table is not in this project's papers.
    Hardware: one GPU, hours.
    Labels: as sre2l_resnet18, but M = 8.
    Command: trainer run --recipe lpld_resnet18 --train distilled --val imagenet/val --store ipc50.labels
        --output runs/lpld
    """
    return config_of({**SRE2L, "model": "resnet18", "batch_size": 128}, settings)
