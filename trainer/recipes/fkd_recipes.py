"""FKD (ECCV 2022): Tables 3, 5 and 8 from scratch, Table 4 (MEAL V2) from pretrained weights, Table 9 (S2-BNN).

Networks are part of a recipe. train_FKD.py makes torchvision's, whose residual branches begin with their last batch
norm at 1; train_ViT_FKD.py makes timm's, which begin at 0.
"""

from __future__ import annotations

from trainer.recipes.recipe import Said, ours, recipe, said
from trainer.recipes.shared_settings import (
    EFFICIENTNET_L2_LABELS,
    FKD_ADAMW,
    FKD_CNN,
    FKD_PLAIN,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MEAL_V2_COSINE,
    MEAL_V2_STEP,
    SSL,
)

RESNET50 = {"model": Said("torchvision:resnet50", "FKD train_FKD.py:187", "resnet50", "timm")}
RESNET101 = {"model": Said("torchvision:resnet101", "FKD train_FKD.py:187", "resnet101", "timm")}
TIMM_RESNET50 = {
    "model": Said(
        "resnet50",
        "FKD README.md:96, train_ViT_FKD.py:227",
        "torchvision:resnet50",
        "FKD train_FKD.py:187",
    )
}


@recipe(
    {
        **FKD_PLAIN,
        **RESNET50,
        **said("FKD Table 7 (vanilla)", labels="ground-truth"),
        **said("FKD 4 (ablations)", warmup_epochs=0.0, color_jitter=(0.0, 0.0, 0.0, 0.0)),
        **ours("torchvision's usual crops", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip_prob=0.5),
    }
)
def vanilla_resnet50() -> None:
    """ResNet-50 on the ground truth alone, four crops of an image per batch.

    Paper: FKD Table 7, the vanilla row (m=4): no warm-up and no colour jitter, as in all ablations (FKD 4); the rest is
        Table 12's. No script of it is published: network and last passes are those of train_FKD.py.
    Expected: top-1 78.14 %.
    Hardware: 8 GPUs (the release reports 8 V100); the paper's batch is 1,024.
    Labels: none.
    Command: trainer run --recipe vanilla_resnet50 --data imagenet --output runs/vanilla
    """


@recipe(
    {
        **FKD_CNN,
        **RESNET50,
        "lr": Said(0.2, "FKD README.md:93 (0.1 B / 512)", 0.1, "FKD Table 12"),
    },
    EFFICIENTNET_L2_LABELS,
)
def fkd_resnet50() -> None:
    """ResNet-50 from scratch on stored soft labels.

    Paper: FKD Table 3, settings of Table 12 (supplement Table 1). The table prints a rate of 0.1; the release's README
        says 0.1 B / 512 = 0.2 of the run of 80.1 %, and 0.2 is taken (0.1: --set lr=0.1). It also calls the run's
        other settings ReLabel's: where FKD's own script differs from ReLabel's, the script is taken.
    Expected: top-1 80.1 %, top-5 94.8 %.
    Hardware: 8 V100, 487 s per epoch of the release against 762 s of ReLabel's.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops of 0.08 to 0.936 of the image (79.7 % with 100
        crops).
    Command: trainer run --recipe fkd_resnet50 --data imagenet --store in1k.labels --output runs/fkd
    """


@recipe({**FKD_PLAIN, **RESNET50}, EFFICIENTNET_L2_LABELS)
def fkd_resnet50_plain() -> None:
    """ResNet-50 from scratch on stored soft labels, without warm-up and colour jitter.

    Paper: FKD Table 3, row "w/o warmup&colorj"; also m=4 of Table 7 (79.76 %). The release's train_FKD.py and its
        command are this run.
    Expected: top-1 79.8 %, top-5 94.6 %.
    Hardware: 8 V100.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops of 0.08 to 0.936 of the image.
    Command: trainer run --recipe fkd_resnet50_plain --data imagenet --store in1k.labels --output runs/fkd
    """


@recipe({**FKD_CNN, **RESNET101}, EFFICIENTNET_L2_LABELS)
def fkd_resnet101() -> None:
    """ResNet-101 from scratch on stored soft labels.

    Paper: FKD Table 3, settings of Table 12, which the release's README names for this run without another rate.
    Expected: top-1 81.9 %, top-5 95.7 %.
    Hardware: 8 V100.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops of 0.08 to 0.936 of the image.
    Command: trainer run --recipe fkd_resnet101 --data imagenet --store in1k.labels --output runs/fkd101
    """


@recipe({**FKD_PLAIN, **RESNET101}, EFFICIENTNET_L2_LABELS)
def fkd_resnet101_plain() -> None:
    """ResNet-101 from scratch on stored soft labels, without warm-up and colour jitter.

    Paper: FKD Table 3, row "w/o warmup&colorj"; the release's train_FKD.py and its command are this run.
    Expected: top-1 81.7 %, top-5 95.6 %.
    Hardware: 8 V100.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops of 0.08 to 0.936 of the image.
    Command: trainer run --recipe fkd_resnet101_plain --data imagenet --store in1k.labels --output runs/fkd101
    """


@recipe({**FKD_ADAMW, **TIMM_RESNET50}, EFFICIENTNET_L2_LABELS)
def fkd_resnet50_adamw() -> None:
    """ResNet-50 from scratch on stored soft labels, with the transformers' settings.

    Paper: the release's README (80.5 %), settings of FKD Table 13; FerKD Tables 7 and 8 compare with it. The script is
        train_ViT_FKD.py, and so the network is timm's. Drop path as fkd_deit_tiny.
    Expected: top-1 80.5 %.
    Hardware: 8 GPUs.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops of 0.08 to 0.936 of the image.
    Command: trainer run --recipe fkd_resnet50_adamw --data imagenet --store in1k.labels --output runs/fkd
    """


@recipe(
    {
        **FKD_ADAMW,
        **TIMM_RESNET50,
        "mixing": Said(
            "cutmix", "FKD 4.1 (iii)", "mixup-cutmix", "FKD train_ViT_FKD.py:141-150 (its default)"
        ),
        **said("FKD train_ViT_FKD.py:145-148", cutmix_alpha=1.0, mixing_prob=1.0),
    },
    EFFICIENTNET_L2_LABELS,
)
def fkd_resnet50_adamw_cutmix() -> None:
    """The same with CutMix.

    Paper: FKD 4.1 (iii), "after employing CutMix". It prints no optimiser: AdamW's 80.5 % is the run that it improves
        on. The script's own switch takes Mixup or CutMix in turn; the paper's word is CutMix.
    Expected: top-1 80.9 % (FunMatch 80.5 %).
    Hardware: 8 V100, 2 days (FunMatch 20).
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops of 0.08 to 0.936 of the image.
    Command: trainer run --recipe fkd_resnet50_adamw_cutmix --data imagenet --store in1k.labels --output runs/fkd
    """


@recipe({**FKD_ADAMW, **said("FKD Table 5", model="deit_tiny_patch16_224")}, EFFICIENTNET_L2_LABELS)
def fkd_deit_tiny() -> None:
    """ViT-T/16 from scratch on stored soft labels, without the augmentation that DeiT needs.

    Paper: FKD Table 5, settings of Table 13 (supplement Table 2), passes, warm-up and last rate of the release's
        train_ViT_FKD.py. The table prints a stochastic depth of 0.1, which the script reads and never passes on: its
        networks have none, and none is taken (the table's: --set model_kwargs='{drop_path_rate: 0.1}'). SReT-LT of that
        table is not in timm.
    Expected: top-1 75.2 % (DeiT-T with distillation 74.5 %).
    Hardware: 8 GPUs; 0.15 of the cost of distilling online.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops of 0.08 to 0.936 of the image.
    Command: trainer run --recipe fkd_deit_tiny --data imagenet --store in1k.labels --output runs/deit
    """


@recipe({**FKD_ADAMW, **said("FKD Table 8", model="fbnetc_100")}, EFFICIENTNET_L2_LABELS)
def fkd_fbnetc() -> None:
    """FBNet-C100 from scratch on stored soft labels.

    Paper: FKD Table 8, settings of Table 13; the rest, drop path too, as fkd_deit_tiny.
    Expected: top-1 77.13 %.
    Hardware: 8 GPUs.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops of 0.08 to 0.936 of the image.
    Command: trainer run --recipe fkd_fbnetc --data imagenet --store in1k.labels --output runs/fbnet
    """


@recipe(
    {**FKD_ADAMW, **said("FKD README.md:123", model="tf_efficientnetv2_b0")}, EFFICIENTNET_L2_LABELS
)
def fkd_efficientnetv2_b0() -> None:
    """EfficientNetV2-B0 from scratch on stored soft labels.

    Paper: FKD Table 8, settings of Table 13; the rest, drop path too, as fkd_deit_tiny.
    Expected: top-1 79.94 %.
    Hardware: 8 GPUs.
    Labels: EfficientNet-L2-ns-475, marginal smoothing K=5, 500 crops of 0.08 to 0.936 of the image.
    Command: trainer run --recipe fkd_efficientnetv2_b0 --data imagenet --store in1k.labels --output runs/effnet
    """


@recipe({**MEAL_V2_STEP, **said("FKD footnote 6 (timm <= 0.4.12)", model="resnet50.ram_in1k")})
def meal_v2_resnet50() -> None:
    """ResNet-50 on from timm's pretrained weights, MEAL V2's way.

    Paper: FKD Table 4, "MEAL V2 w/ FKD": "the same protocol and hyper-parameters as original MEAL V2", here from its
        release (train.py): 180 epochs, one tenth of the rate from epoch 101 on, and a discriminator, which is shown
        probabilities as in the release's script for stored labels (FKD_train.py). That script's command has 200 epochs,
        m=8 and drops at 100 and 180: see --sources. m=2 is Table 7's row of 80.70 %. The weights are timm's up to
        0.4.12 (footnote 6), 79.04 %.
    Expected: top-1 80.70 %, top-5 95.13 % (MEAL V2 itself 80.67 %).
    Hardware: 0.3 of MEAL V2's cost.
    Labels: SENet-154 and ResNet-152 v1s (timm:senet154.gluon_in1k, timm:resnet152s.gluon_in1k), a label set each on one
        plan, marginal smoothing K=5; the run averages them.
    Command: trainer run --recipe meal_v2_resnet50 --data imagenet --store in1k.labels
        --label-set senet154,resnet152_v1s --output runs/meal
    """


@recipe({**MEAL_V2_COSINE, **said("FKD footnote 6 (timm <= 0.4.12)", model="resnet50.ram_in1k")})
def meal_v2_resnet50_cosine() -> None:
    """The same with a cosine and 1.5 times the epochs.

    Paper: FKD Table 4, the row with a heart; the rest as meal_v2_resnet50.
    Expected: top-1 80.91 %, top-5 95.39 %.
    Hardware: 0.5 of MEAL V2's cost.
    Labels: as meal_v2_resnet50.
    Command: trainer run --recipe meal_v2_resnet50_cosine --data imagenet --store in1k.labels
        --label-set senet154,resnet152_v1s --output runs/meal
    """


@recipe({**MEAL_V2_COSINE, **said("MEAL V2 README.md:118", model="tf_mobilenetv3_small_075.in1k")})
def meal_v2_mobilenetv3_075() -> None:
    """MobileNetV3-Small 0.75 on from pretrained weights.

    Paper: FKD Table 4, the row with a heart; the rest as meal_v2_resnet50. MEAL V2's release takes TensorFlow's weights
        (README) but not their mean and deviation of 0.5: as every network there, this one sees ImageNet's
        (imagenet.py).
    Expected: top-1 67.83 %, top-5 87.35 % (MEAL V2 67.60 %).
    Hardware: 0.4 of MEAL V2's cost.
    Labels: as meal_v2_resnet50.
    Command: trainer run --recipe meal_v2_mobilenetv3_075 --data imagenet --store in1k.labels
        --label-set senet154,resnet152_v1s --output runs/mnv3
    """


@recipe({**MEAL_V2_COSINE, **said("MEAL V2 README.md:123", model="tf_mobilenetv3_small_100.in1k")})
def meal_v2_mobilenetv3_100() -> None:
    """MobileNetV3-Small 1.0 on from pretrained weights.

    Paper: FKD Table 4, the row with a heart; the rest, mean and deviation too, as meal_v2_mobilenetv3_075.
    Expected: top-1 69.94 %, top-5 88.82 % (MEAL V2 69.65 %).
    Hardware: 0.4 of MEAL V2's cost.
    Labels: as meal_v2_resnet50.
    Command: trainer run --recipe meal_v2_mobilenetv3_100 --data imagenet --store in1k.labels
        --label-set senet154,resnet152_v1s --output runs/mnv3
    """


@recipe(
    {
        **SSL,
        **said("S2-BNN main_moco.py:166", model="trainer.models.reactnet:reactnet_a"),
        **said("S2-BNN README.md:93 (--mlp), moco/builder.py:29-31, :119", projection_head=True),
        **said("S2-BNN README.md:93", temperature=0.2, batch_size=256, lr=3e-4, weight_decay=0.0),
        **said("S2-BNN main_moco.py:342, kd_loss.py:18-29", temperature_squared=False),
        **said("S2-BNN kd_loss.py:28-30", soft_loss="cross-entropy"),
        **said("S2-BNN main_moco.py:46, FKD Table 9", epochs=200),
        **said("S2-BNN main_moco.py:214", optimizer="adam"),
        **said("S2-BNN main_moco.py:413 (--cos is a linear fall)", scheduler="linear", min_lr=0.0),
        **said("S2-BNN main_moco.py:299", serrated=True),
        **said("S2-BNN main_moco.py:256-257", mean=IMAGENET_MEAN, std=IMAGENET_STD),
        **said("S2-BNN main_moco.py:261", input_size=224, interpolation="bilinear"),
        **said("S2-BNN main_moco.py:263", color_jitter=(0.4, 0.4, 0.4, 0.1)),
        **said("S2-BNN main_moco.py:264", color_jitter_prob=0.6),
        **said("S2-BNN main_moco.py:265", grayscale_prob=0.2),
        **said("S2-BNN main_moco.py:266", blur_prob=0.2, blur_sigma=(0.1, 2.0)),
    }
)
def s2_bnn_reactnet() -> None:
    """Binary ReActNet-A on a self-supervised teacher's outputs, then a linear probe.

    Paper: FKD Table 9 (S2-BNN's task), settings of S2-BNN's release. In it teacher and student see the same jittered,
        grey or blurred crop; with stored labels only the student does. m is ours, and its two-step training of binary
        weights is one step here.
    Expected: linear evaluation 61.7 % (S2-BNN 61.5 %): `trainer probe`.
    Hardware: 0.4 of S2-BNN's cost.
    Labels: MoCo v2 (800 epochs), its 128 outputs scaled to unit length (--compression logits). FKD does not print its
        crops; S2-BNN's are of 0.2 to 1 of the image (--scale 0.2,1).
    Command: trainer run --recipe s2_bnn_reactnet --data imagenet --store in1k.labels --output runs/s2bnn
    """


@recipe(
    {
        **SSL,
        **said("S2-BNN README.md:24, FKD Table 9", epochs=100, batch_size=512),
        **ours("S2-BNN's ResNets are torchvision's", model="torchvision:resnet50"),
        **ours("SwAV's temperature", temperature=0.1),
        **ours("as s2_bnn_reactnet", temperature_squared=False),
        **ours("not printed", optimizer="sgd", lr=0.1, weight_decay=1e-4, scheduler="cosine"),
    }
)
def ssl_resnet50() -> None:
    """ResNet-50 on a self-supervised teacher's outputs, then a linear probe.

    Paper: FKD Table 9, the row of SwAV. S2-BNN's release has a result and its batch, but no settings: the plain last
        layer, optimiser and rate are ours, T = 0.1 is SwAV's.
    Expected: linear evaluation 68.8 % in the paper (68.7 % without stored labels), of a student whose head is not
        printed; no figure for these settings: `trainer probe`.
    Hardware: 0.3 of the cost of two branches.
    Labels: SwAV (R50-w4), 3,000 outputs before softmax (--compression logits).
    Command: trainer run --recipe ssl_resnet50 --data imagenet --store in1k.labels --output runs/ssl
    """
