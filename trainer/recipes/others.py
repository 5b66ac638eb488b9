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
        {
            **FKD_CNN,
            "labels": "labelmap",
            "model": "resnet50",
            "crops_per_image": 1,
            "single_crop_last": 0,
        },
        settings,
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
    """ResNet-18 on 50 distilled images per class, labels of our own making.

    Paper: SRe2L (NeurIPS 2023), 50 images per class; settings of its release, which labels images that CutMix has
    mixed.
        Here stored labels of plain crops are mixed as the pixels are: a starting point, not the paper's.
    Expected: top-1 46.8 % with the release's own labels (as LPLD's table has it); no figure for these.
    Hardware: one GPU, hours (a guess); the release names one RTX 4090 with 4 accumulation steps.
    Labels: ResNet-18 of torchvision, --compression logits, M = 300 crops, over the distilled images.
    Command: trainer run --recipe sre2l_resnet18 --train distilled --val imagenet/val --store ipc50.labels
        --output runs/sre2l
    """
    return config_of({**SRE2L, "model": "resnet18", "mixing": "cutmix"}, settings)


def sre2l_resnet18_recorded(**settings: object) -> TrainConfig:
    """ResNet-18 on SRe2L's distilled images and its own labels, mixed again as these were.

    Paper: SRe2L (NeurIPS 2023), 50 images per class; every setting is the release's. Its batches and their order are
        not: crops are drawn in another order, each with its recorded partner.
    Expected: top-1 46.8 % (as LPLD's table has it).
    Hardware: one GPU, hours (a guess); the release names one RTX 4090 with 4 accumulation steps.
    Labels: the release's 300 epochs of batch files: labelstore import sre2l; recorded CutMix is replayed.
    Command: trainer run --recipe sre2l_resnet18_recorded --train distilled --val imagenet/val --store ipc50.labels
        --output runs/sre2l
    """
    return config_of({**SRE2L, "model": "resnet18"}, settings)


def lpld_resnet18(**settings: object) -> TrainConfig:
    """The same with a fortieth of the labels: eight crops per image, drawn again and again.

    Paper: LPLD (NeurIPS 2024), labels pruned by 40, 50 images per class. B = 128, 300 epochs and T = 20 are its
    release's,
        what else there is SRe2L's. LPLD prunes whole batches, and so not the same number of every image's crops.
    Expected: within a point or two of sre2l_resnet18_recorded; its table is not in this project's papers.
    Hardware: one GPU, hours (a guess).
    Labels: labelstore import lpld with the release's files, which replays their CutMix; of your own making: as
        sre2l_resnet18 with M = 8, and --mixing cutmix.
    Command: trainer run --recipe lpld_resnet18 --train distilled --val imagenet/val --store ipc50.labels
        --output runs/lpld
    """
    return config_of({**SRE2L, "model": "resnet18", "batch_size": 128}, settings)
