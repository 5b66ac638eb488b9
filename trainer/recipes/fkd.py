"""FKD (ECCV 2022): Tables 3, 5 and 8 from scratch, Table 4 (MEAL V2) from pretrained weights, Table 9 (S2-BNN)."""

from __future__ import annotations

from trainer.config import TrainConfig
from trainer.recipes.card import config_of
from trainer.recipes.settings import FKD_ADAMW, FKD_CNN, MEAL_V2


def vanilla_resnet50(**settings: object) -> TrainConfig:
    """ResNet-50 on the ground truth alone, four crops of an image per batch.

    Paper: FKD Table 7, the vanilla row (m=4): no warm-up and no colour jitter, as in all ablations (FKD 4); the rest is
        Table 12's. No script of it is published: the last passes are those of train_FKD.py.
    Expected: top-1 78.14 %.
    Hardware: 8 GPUs (the release reports 8 V100); the paper's batch is 1,024.
    Labels: none.
    Command: trainer run --recipe vanilla_resnet50 --data imagenet --output runs/vanilla
    """
    return config_of(
        {
            **FKD_CNN,
            "labels": "ground-truth",
            "model": "resnet50",
            "warmup_epochs": 0.0,
            "color_jitter": (0, 0, 0, 0),
        },
        settings,
    )


def fkd_resnet50(**settings: object) -> TrainConfig:
    """ResNet-50 from scratch on stored soft labels.

    Paper: FKD Table 3, settings of Table 12 (supplement Table 1); the release scales the rate to 0.1 B / 512.
    Expected: top-1 80.1 %, top-5 94.8 %.
    Hardware: 8 V100, 487 s per epoch of the release against 762 s of ReLabel's.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops (79.7 % with 100).
    Command: trainer run --recipe fkd_resnet50 --data imagenet --store in1k.labels --output runs/fkd
    """
    return config_of({**FKD_CNN, "model": "resnet50"}, settings)


def fkd_resnet50_plain(**settings: object) -> TrainConfig:
    """ResNet-50 from scratch on stored soft labels, without warm-up and colour jitter.

    Paper: FKD Table 3, row "w/o warmup&colorj"; also m=4 of Table 7 (79.76 %).
    Expected: top-1 79.8 %, top-5 94.6 %.
    Hardware: 8 V100.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops.
    Command: trainer run --recipe fkd_resnet50_plain --data imagenet --store in1k.labels --output runs/fkd
    """
    return config_of(
        {**FKD_CNN, "model": "resnet50", "warmup_epochs": 0.0, "color_jitter": (0, 0, 0, 0)},
        settings,
    )


def fkd_resnet101(**settings: object) -> TrainConfig:
    """ResNet-101 from scratch on stored soft labels.

    Paper: FKD Table 3, settings of Table 12.
    Expected: top-1 81.9 %.
    Hardware: 8 V100.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops.
    Command: trainer run --recipe fkd_resnet101 --data imagenet --store in1k.labels --output runs/fkd101
    """
    return config_of({**FKD_CNN, "model": "resnet101"}, settings)


def fkd_deit_tiny(**settings: object) -> TrainConfig:
    """ViT-T/16 from scratch on stored soft labels, without the augmentation that DeiT needs.

    Paper: FKD Table 5, settings of Table 13 (supplement Table 2), passes and last rate of the release's
        train_ViT_FKD.py. SReT-LT of that table is not in timm.
    Expected: top-1 75.2 % (DeiT-T with distillation 74.5 %).
    Hardware: 8 GPUs; 0.15 of the cost of distilling online.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops.
    Command: trainer run --recipe fkd_deit_tiny --data imagenet --store in1k.labels --output runs/deit
    """
    return config_of({**FKD_ADAMW, "model": "deit_tiny_patch16_224"}, settings)


def fkd_fbnetc(**settings: object) -> TrainConfig:
    """FBNet-C100 from scratch on stored soft labels.

    Paper: FKD Table 8, settings of Table 13.
    Expected: top-1 77.13 %.
    Hardware: 8 GPUs.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops.
    Command: trainer run --recipe fkd_fbnetc --data imagenet --store in1k.labels --output runs/fbnet
    """
    return config_of({**FKD_ADAMW, "model": "fbnetc_100"}, settings)


def fkd_efficientnetv2_b0(**settings: object) -> TrainConfig:
    """EfficientNetV2-B0 from scratch on stored soft labels.

    Paper: FKD Table 8, settings of Table 13.
    Expected: top-1 79.94 %.
    Hardware: 8 GPUs.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops.
    Command: trainer run --recipe fkd_efficientnetv2_b0 --data imagenet --store in1k.labels --output runs/effnet
    """
    return config_of({**FKD_ADAMW, "model": "tf_efficientnetv2_b0"}, settings)


_MEAL_V2_COSINE: dict[str, object] = {**MEAL_V2, "scheduler": "cosine", "epochs": 270}


def meal_v2_resnet50(**settings: object) -> TrainConfig:
    """ResNet-50 on from timm's pretrained weights, MEAL V2's way.

    Paper: FKD Table 4, "MEAL V2 w/ FKD": MEAL V2's own settings, here from its release (train.sh, opts.py), without its
        discriminator. m=2 is Table 7's row of 80.70 %. The weights are timm's up to 0.4.12 (footnote 6), 79.04 %.
    Expected: top-1 80.70 %, top-5 95.13 % (MEAL V2 itself 80.67 %).
    Hardware: 0.3 of MEAL V2's cost.
    Labels: SENet-154 and ResNet-152 v1s (timm:senet154.gluon_in1k, timm:resnet152s.gluon_in1k), a label set each on one
        plan, marginal smoothing K=5; the run averages them.
    Command: trainer run --recipe meal_v2_resnet50 --data imagenet --store in1k.labels
        --label-set senet154,resnet152_v1s --output runs/meal
    """
    return config_of({**MEAL_V2, "model": "resnet50.ram_in1k"}, settings)


def meal_v2_resnet50_cosine(**settings: object) -> TrainConfig:
    """The same with a cosine and 1.5 times the epochs.

    Paper: FKD Table 4, the row with a heart; the rest as meal_v2_resnet50.
    Expected: top-1 80.91 %, top-5 95.39 %.
    Hardware: 0.5 of MEAL V2's cost.
    Labels: as meal_v2_resnet50.
    Command: trainer run --recipe meal_v2_resnet50_cosine --data imagenet --store in1k.labels
        --label-set senet154,resnet152_v1s --output runs/meal
    """
    return config_of({**_MEAL_V2_COSINE, "model": "resnet50.ram_in1k"}, settings)


def meal_v2_mobilenetv3_075(**settings: object) -> TrainConfig:
    """MobileNetV3-Small 0.75 on from pretrained weights.

    Paper: FKD Table 4, the row with a heart; the rest as meal_v2_resnet50. MEAL V2's release takes TensorFlow's weights
        (train.sh) but not their mean and deviation of 0.5: as every network there, this one sees ImageNet's
        (imagenet.py).
    Expected: top-1 67.83 %, top-5 87.35 % (MEAL V2 67.60 %).
    Hardware: 0.4 of MEAL V2's cost.
    Labels: as meal_v2_resnet50.
    Command: trainer run --recipe meal_v2_mobilenetv3_075 --data imagenet --store in1k.labels
        --label-set senet154,resnet152_v1s --output runs/mnv3
    """
    return config_of({**_MEAL_V2_COSINE, "model": "tf_mobilenetv3_small_075.in1k"}, settings)


def meal_v2_mobilenetv3_100(**settings: object) -> TrainConfig:
    """MobileNetV3-Small 1.0 on from pretrained weights.

    Paper: FKD Table 4, the row with a heart; the rest, mean and deviation too, as meal_v2_mobilenetv3_075.
    Expected: top-1 69.94 %, top-5 88.82 % (MEAL V2 69.65 %).
    Hardware: 0.4 of MEAL V2's cost.
    Labels: as meal_v2_resnet50.
    Command: trainer run --recipe meal_v2_mobilenetv3_100 --data imagenet --store in1k.labels
        --label-set senet154,resnet152_v1s --output runs/mnv3
    """
    return config_of({**_MEAL_V2_COSINE, "model": "tf_mobilenetv3_small_100.in1k"}, settings)


SSL: dict[str, object] = {"labels": "ssl", "crops_per_image": 4, "temperature_squared": False}
"""FKD Table 9 prints epochs and numbers of outputs; m is the one of its supervised runs."""


def s2_bnn_reactnet(**settings: object) -> TrainConfig:
    """Binary ReActNet-A on a self-supervised teacher's outputs, then a linear probe.

    Paper: FKD Table 9 (S2-BNN's task). Projection head, unit outputs, T, Adam, rate, decay and batch are those of
    S2-BNN's
        release (its --cos is a linear fall); m is ours, and its two-step training of binary weights is one step here.
    Expected: linear evaluation 61.7 % (S2-BNN 61.5 %): `trainer probe`.
    Hardware: 0.4 of S2-BNN's cost.
    Labels: MoCo v2 (800 epochs), its 128 outputs scaled to unit length (--compression logits). FKD does not print
    its crops;
        S2-BNN's are of 0.2 to 1 of the image (--scale 0.2,1), with more augmentation.
    Command: trainer run --recipe s2_bnn_reactnet --data imagenet --store in1k.labels --output runs/s2bnn
    """
    return config_of(
        {
            **SSL,
            "model": "trainer.models.reactnet:reactnet_a",
            "projection_head": True,
            "temperature": 0.2,
            "epochs": 200,
            "batch_size": 256,
            "optimizer": "adam",
            "lr": 3e-4,
            "weight_decay": 0.0,
            "scheduler": "linear",
        },
        settings,
    )


def ssl_resnet50(**settings: object) -> TrainConfig:
    """ResNet-50 on a self-supervised teacher's outputs, then a linear probe.

    Paper: FKD Table 9, the row of SwAV. S2-BNN's release has a result and its batch, but no settings: the plain
    last layer,
        optimiser and rate are ours, T = 0.1 is SwAV's.
    Expected: linear evaluation 68.8 % in the paper (68.7 % without stored labels), of a student whose head is not
        printed; no figure for these settings: `trainer probe`.
    Hardware: 0.3 of the cost of two branches.
    Labels: SwAV (R50-w4), 3,000 outputs before softmax (--compression logits).
    Command: trainer run --recipe ssl_resnet50 --data imagenet --store in1k.labels --output runs/ssl
    """
    return config_of(
        {**SSL, "model": "resnet50", "epochs": 100, "batch_size": 512, "temperature": 0.1}, settings
    )
