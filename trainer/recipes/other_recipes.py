"""Recipes that FKD and FerKD compare with, and others for stored labels: ReLabel, FunMatch, distilled data sets."""

from __future__ import annotations

from trainer.recipes.recipe import Said, ours, recipe, said
from trainer.recipes.shared_settings import HALD, RELABEL, RELABEL_LABELS, SRE2L


@recipe(RELABEL, RELABEL_LABELS)
def relabel_resnet50() -> None:
    """ResNet-50 on label maps, pooled over each crop.

    Paper: ReLabel (CVPR 2021), settings of its release: Nesterov, lighting noise, a cosine over the 295 epochs after
        warm-up that moves with every step. FKD Table 12 prints the same row without these.
    Expected: top-1 78.9 %.
    Hardware: 4 V100 (the release's README); 762 s per epoch on 8 V100 (FKD's).
    Labels: EfficientNet-L2-ns-475 over whole images, --compression labelmap, K=5.
    Command: trainer run --recipe relabel_resnet50 --data imagenet --store in1k.labels --output runs/relabel
    """


@recipe(
    {
        **RELABEL,
        **said("ReLabel yaml (cutmix):12", optimizer="adamp"),
        **said("ReLabel yaml (cutmix):17", lr=2e-3),
        **said("ReLabel yaml (cutmix):25", weight_decay=1e-2),
        **said("ReLabel optimizers.py:27 (yaml:23)", betas=(0.9, 0.999)),
        **said("ReLabel yaml (cutmix):5-6", mixing="cutmix", mixing_prob=1.0, cutmix_alpha=1.0),
        **said("ReLabel yaml (cutmix):7, train.py:132-133", mixing_off_epochs=5),
    },
    RELABEL_LABELS,
)
def relabel_resnet50_cutmix() -> None:
    """The same with CutMix and AdamP.

    Paper: ReLabel, with CutMix: its release trains this run with AdamP, another rate and decay, and without CutMix in
        the last 5 epochs; the rest as relabel_resnet50.
    Expected: top-1 80.2 %.
    Hardware: 4 V100 (the release's README).
    Labels: as relabel_resnet50.
    Command: trainer run --recipe relabel_resnet50_cutmix --data imagenet --store in1k.labels --output runs/relabel
    """


@recipe(
    {
        **said("big_vision bit_i1k.py:58-63", labels="teacher"),
        **said(
            "big_vision bit_i1k.py:58-63",
            teacher="timm:resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k",
        ),
        "model": Said(
            "resnetv2_50x1_bit", "big_vision bit_i1k.py:55-56", "torchvision:resnet50", "FKD 4.1"
        ),
        **said("FKD 4.1 (iii), FerKD Table 8", epochs=300),
        **said("big_vision bit_i1k.py:44", batch_size=4096),
        **ours("a batch of the release holds an image once", crops_per_image=1),
        **said("big_vision bit_i1k.py:84-85", optimizer="adamw", betas=(0.9, 0.999)),
        **said("big_vision bit_i1k.py:87", lr=0.03),
        **said(
            "big_vision bit_i1k.py:88, optax.py:130-149 (3e-4 beside the rate: 3e-4 / 0.03)",
            weight_decay=0.01,
        ),
        **said("big_vision bit_i1k.py:83", clip_grad=1.0),
        **said("big_vision bit_i1k.py:89", scheduler="cosine"),
        **said(
            "big_vision bit_i1k.py:89 (5,000 steps of 4,096 of 1,281,167 images)",
            warmup_epochs=15.985,
        ),
        **said(
            "big_vision utils.py:1113-1137",
            warmup_lr=0.0,
            min_lr=0.0,
            warmup_prefix=True,
            serrated=False,
        ),
        **said("big_vision bit_i1k.py:76, utils.py:1149", mixing="mixup", mixup_alpha=1.0),
        **ours("the release mixes every batch", mixing_prob=1.0),
        **said("big_vision bit_i1k.py:79-80", soft_loss="kl", temperature=1.0),
        **said("big_vision bit_i1k.py:71", input_size=224),
        **said(
            "big_vision pp/ops_image.py:199-201",
            scale=(0.05, 1.0),
            ratio=(0.75, 1.33),
            interpolation="bilinear",
        ),
        **said("big_vision bit_i1k.py:71 (flip_lr)", flip_prob=0.5),
        **said("big_vision bit_i1k.py:66 (-1 to 1)", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        **said("big_vision bit_i1k.py:74 (224 of 256)", crop_pct=0.875),
    }
)
def funmatch_resnet50() -> None:
    """BiT's ResNet-50x1 matching a teacher that sees the same mixed crops, without stored labels.

    Paper: FunMatch (CVPR 2022), settings of big_vision's bit_i1k.py, with 300 of its epochs as in FKD's comparison. Its
        decay is not multiplied by the rate: 3e-4 there is 0.01 of AdamW at 0.03. Not repeated are its moments in bf16,
        resizing without antialiasing, the 2 % of the images that it leaves out, and a last layer that begins at zero.
    Expected: top-1 80.5 % at 300 epochs (FKD's comparison), 82.8 % after 9,600 of the paper.
    Hardware: 20 days on 8 V100, against 2 days with stored labels (FKD); 15 hours on 32 TPU v3 (the release).
    Labels: none; the teacher runs in every step.
    Command: trainer run --recipe funmatch_resnet50 --data imagenet --output runs/funmatch
    """


@recipe({**SRE2L, **ours("the release labels mixed images", mixing="cutmix")})
def sre2l_resnet18() -> None:
    """ResNet-18 on 50 distilled images per class, labels of our own making.

    Paper: SRe2L (NeurIPS 2023), 50 images per class; settings of its release, which labels images that CutMix has
        mixed. Here stored labels of plain crops are mixed as the pixels are: a starting point, not the paper's.
    Expected: top-1 46.8 % with the release's own labels (as LPLD's table has it); no figure for these.
    Hardware: one GPU, hours (a guess); the release names one RTX 4090 with 4 accumulation steps.
    Labels: ResNet-18 of torchvision, --compression logits, M = 300 crops, over the distilled images.
    Command: trainer run --recipe sre2l_resnet18 --train distilled --val imagenet/val --store ipc50.labels
        --output runs/sre2l
    """


@recipe(SRE2L)
def sre2l_resnet18_recorded() -> None:
    """ResNet-18 on SRe2L's distilled images and its own labels, mixed again as these were.

    Paper: SRe2L (NeurIPS 2023), 50 images per class; every setting is the release's. Its batches and their order are
        not: crops are drawn in another order, each with its recorded partner.
    Expected: top-1 46.8 % (as LPLD's table has it).
    Hardware: one GPU, hours (a guess); the release names one RTX 4090 with 4 accumulation steps.
    Labels: the release's 300 epochs of batch files: labelstore import sre2l; recorded CutMix is replayed.
    Command: trainer run --recipe sre2l_resnet18_recorded --train distilled --val imagenet/val --store ipc50.labels
        --output runs/sre2l
    """


@recipe(
    {
        **SRE2L,
        **said("LPLD LPLD_in1k_[4k].yaml:4", batch_size=128),
        **said("LPLD LPLD_in1k_[4k].yaml:5", epochs=300),
        **said("LPLD LPLD_in1k_[4k].yaml:25", temperature=20.0),
        "model": Said(
            "torchvision:resnet18",
            "LPLD train_FKD_label_pruning_batch.py:348",
            "resnet18",
            "timm",
        ),
    }
)
def lpld_resnet18() -> None:
    """The same with a fortieth of the labels: eight crops per image, drawn again and again.

    Paper: LPLD (NeurIPS 2024), labels pruned by 40, 50 images per class. B = 128, 300 epochs and T = 20 are its
        release's, what else there is SRe2L's. LPLD prunes whole batches, and so not the same number of every image's
        crops.
    Expected: top-1 46.7 % (its release's table; 46.8 % with all labels).
    Hardware: one GPU, hours (a guess).
    Labels: labelstore import lpld with the release's files, which replays their CutMix; of your own making: as
        sre2l_resnet18 with M = 8, and --mixing cutmix.
    Command: trainer run --recipe lpld_resnet18 --train distilled --val imagenet/val --store ipc50.labels
        --output runs/lpld
    """


@recipe(HALD)
def hald_resnet18() -> None:
    """ResNet-18 on few soft labels: 75 epochs of these, 150 of the ground truth, 75 of the soft labels again.

    Paper: HALD (arXiv 2512.15647), 10 distilled images per class, 10 labelled crops of each; every setting is the
        release's. Its soft epochs draw whole batches of all its files at random, so that an image may come twice in an
        epoch or not at all; here each comes once, and CutMix of the hard phase pairs images at random where timm's
        pairs the first with the last. A rate of 1e-3 with eta 2 is for 1 to 40 images per class, eta 1 for 50.
    Expected: top-1 41.8 % with 285 MB of labels (the abstract, which does not say of how many images and crops).
    Hardware: one GPU, hours (a guess).
    Labels: the release's files: labelstore import hald, which replays their CutMix; of your own making: ResNet-18 of
        torchvision, M = 10 crops, --compression logits, and CutMix in the soft phases too.
    Command: trainer run --recipe hald_resnet18 --train distilled --val imagenet/val --store ipc10.labels
        --output runs/hald
    """
