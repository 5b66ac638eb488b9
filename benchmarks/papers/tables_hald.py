"""HALD (Cui et al. 2025, arXiv 2512.15647): few stored crops, with the ground truth between two soft phases or without."""

from __future__ import annotations

from benchmarks.papers.claims import Claim
from benchmarks.papers.runs import Arm
from benchmarks.papers.tables import Table, stored

STORED_CROPS = (2, 4, 8, 48)
PHASES = ("fkd:25", "ground-truth:50:cutmix", "fkd:25")
"""Shares of the epochs in percent: 75, 150 and 75 of the paper's 300."""


def _arm(num_crops: int, **phases: object) -> Arm:
    name = f"M={num_crops}" + (", phases" if phases else ", soft only")
    return stored(name, "ms5", store=f"crops-{num_crops}", crops_per_image=1, **phases)


HALD = Table(
    name="hald-phases",
    title="HALD: few stored crops, with the ground truth between two soft phases",
    arms=tuple(
        arm
        for m in STORED_CROPS
        for arm in (_arm(m), _arm(m, phases=PHASES, label_smoothing=0.8))
    ),
    claims=(
        *(
            Claim(text=f"{m} stored crops: phases above soft labels only", above=f"M={m}, phases", below=f"M={m}, soft only", paper=None)
            for m in STORED_CROPS
        ),
        Claim(text="soft labels only: 48 stored crops above 2", above="M=48, soft only", below="M=2, soft only", paper=None),
    ),
    here=(
        "the data are pictures and not distilled ones, 32 epochs instead of 300 (8 soft, 16 hard, 8 soft), labels at T = 1; "
        "as in the paper each batch holds an image once, and the hard phase has CutMix and label smoothing 0.8"
    ),
)  # fmt: skip

TABLES = (HALD,)
