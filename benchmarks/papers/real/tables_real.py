"""The arms: students fine-tuned from one common start on labels of a real ImageNet teacher."""

from __future__ import annotations

from typing import Any

from benchmarks.papers.claims import Claim
from benchmarks.papers.real import primary_claims
from benchmarks.papers.runs import Arm
from benchmarks.papers.tables import Table, stored

THRESHOLDS = "0.15-0.30-0.95"
"""FerKD 4.2's final ones."""
SHARES = "q0.009-0.026-0.9967"
"""Of EfficientNet-L2's crops that lie below 0.15 and 0.3, and up to 0.95 (FerKD Table 1; its 0.15 lies half way in its row)."""
FIGURES = {
    "agreement": "agreement with teacher, %",
    "kl": "KL to teacher, nats",
    "top1_low top1_middle top1_high": "top-1 where the teacher is < 0.3 / to 0.9 / above",
    "agreement_low agreement_middle agreement_high": "agreement there",
    "kl_low kl_middle kl_high": "KL there",
}


def _stored(
    name: str, label_set: str = "ms5", labels: str = "fkd", *, on: str = "anywhere", **given: Any
) -> Arm:
    where = "own" if on == "own" else "anywhere"
    return stored(
        name, label_set, labels, store=on, needs_train=f"train:{where}", needs_initial_checkpoint=f"student:{where}", **given
    )  # fmt: skip


def _calibrated(name: str, rule: str, *, on: str = "anywhere", **given: Any) -> Arm:
    # thresholds of a surer teacher may leave an image without a crop
    return _stored(
        name,
        labels="ferkd",
        on=on,
        needs_mask=f"mask:{on}/ms5/{rule}",
        allow_empty_images=True,
        **given,
    )


FKD = _stored("FKD ms 5")

METHODS = Table(
    name="real",
    title="One real teacher: labels, calibration, SelfMix",
    arms=(
        _stored("ground truth", ground_truth_weight=1.0),
        FKD,
        _calibrated("FerKD, shares", SHARES),
        _stored("FKD, SelfMix", mixing="selfmix"),
        _stored("FKD ms 3, image tail", "ms3-tail"),
        _stored("FKD full", "full"),
        _stored("FKD ms 5, 8-bit", "ms5-uint8"),
        _calibrated("FerKD, thresholds", THRESHOLDS),
        _calibrated("FerKD, shares, SelfMix", SHARES, mixing="selfmix"),
    ),
    claims=(
        primary_claims.SOFT_ABOVE_TRUTH,
        primary_claims.CALIBRATION,
        primary_claims.SELFMIX,
        primary_claims.TAIL,
        Claim(text="ms 5 above full", above="FKD ms 5", below="FKD full", paper=0.03),
        Claim(text="ms 5 further from the teacher than full", above="FKD ms 5", below="FKD full", paper=None, of="kl", unit="nats"),
        Claim(text="8 bits above float16 (ours; no loss expected)", above="FKD ms 5, 8-bit", below="FKD ms 5", paper=None),
        Claim(text="ms 3 with the image's tail above ms 5 (ours)", above="FKD ms 3, image tail", below="FKD ms 5", paper=None),
        Claim(text="FerKD at its thresholds above FKD", above="FerKD, thresholds", below="FKD ms 5", paper=0.44),
        Claim(text="calibration and SelfMix above FKD", above="FerKD, shares, SelfMix", below="FKD ms 5", paper=0.45),
        Claim(text="soft labels agree with the teacher more than the ground truth", above="FKD ms 5", below="ground truth", paper=None, of="agreement"),
    ),
    here="fine-tuning, m=2 in batches of 64 for every arm, the ground truth too; each stored crop is drawn twice",
    figures=FIGURES,
)  # fmt: skip

ONLINE = Table(
    name="real-online",
    title="Stored labels against a teacher beside the student",
    arms=(
        _stored("stored, m=1", "full", crops_per_image=1),
        _stored("online teacher", "full", on="fresh", crops_per_image=1),
        _stored("FKD full", "full"),
    ),
    claims=(
        Claim(text="stored labels above the online teacher", above="stored, m=1", below="online teacher", paper=0.03),
    ),
    here=(
        "the online arm draws every crop once, alone and with all probabilities: what a teacher beside the student gives (that the two "
        "are equal, step by step, is a test), without running it again for each seed"
    ),
    figures=FIGURES,
)  # fmt: skip

TEACHERS = Table(
    name="real-teachers",
    title="FerKD Table 6: one teacher or two",
    arms=(
        FKD,
        _stored("lite2", "lite2-ms5", on="anywhere+lite2"),
        _stored("lite0 + lite2", "ms5,lite2-ms5", "ensemble", on="anywhere+lite2"),
    ),
    claims=(primary_claims.TWO_TEACHERS,),
    here="tf_efficientnet_lite0 and lite2 (75.1 and 77.6 % on ImageNet); agreement and KL are with lite0",
    figures=FIGURES,
)

CONTEXT = Table(
    name="real-context",
    title="FerKD where surroundings say something of the class",
    arms=(
        _stored("own: FKD ms 5", on="own"),
        _calibrated("own: FerKD, shares", SHARES, on="own"),
        _calibrated("own: FerKD, thresholds", THRESHOLDS, on="own"),
    ),
    claims=(
        Claim(text="own surroundings: FerKD at Table 1's shares above FKD", above="own: FerKD, shares", below="own: FKD ms 5", paper=0.44),
        Claim(text="own surroundings: FerKD at its thresholds above FKD", above="own: FerKD, thresholds", below="own: FKD ms 5", paper=0.44),
    ),
    here="70 % of the objects stand in front of a place of their class's kind: water, grass, forest, leaves, sky, stone, house",
    figures=FIGURES,
)  # fmt: skip

HALD = (
    {"labels": "fkd", "epochs": 25},
    {"labels": "fkd", "epochs": 50, "mixing": "cutmix", "ground_truth_weight": 1.0},
    {"labels": "fkd", "epochs": 25},
)
PHASES = Table(
    name="real-phases",
    title="HALD's phases with four stored crops of an image",
    arms=(
        _stored("M=4, soft alone", on="four"),
        _stored("M=4, soft, hard, soft", on="four", phases=HALD),
    ),
    claims=(
        Claim(text="phases above soft labels alone", above="M=4, soft, hard, soft", below="M=4, soft alone", paper=None),
    ),
    here=(
        "HALD's shares: a quarter of the epochs on soft labels, half on the ground truth with CutMix, a quarter on soft labels. The middle "
        "half learns on the stored crops (HALD: on new ones), because fresh ground truth has 61 outputs here and the teacher 1,000"
    ),
    figures=FIGURES,
)  # fmt: skip

TABLES = (METHODS, ONLINE, TEACHERS, CONTEXT, PHASES)
