"""The claims that the experiment is for, named before its first run; all others of its tables are secondary."""

from __future__ import annotations

from benchmarks.papers.claims import Claim

SOFT_ABOVE_TRUTH = Claim(
    text="stored soft labels above the ground truth",
    above="FKD ms 5",
    below="ground truth",
    paper=0.24,
    primary=True,
)
"""FKD's, in fine-tuning: FerKD Table 9."""
CALIBRATION = Claim(
    text="FerKD at Table 1's shares above FKD",
    above="FerKD, shares",
    below="FKD ms 5",
    paper=0.44,
    primary=True,
)
"""FerKD's, in fine-tuning: FerKD Table 9."""
SELFMIX = Claim(
    text="SelfMix above none", above="FKD, SelfMix", below="FKD ms 5", paper=None, primary=True
)
"""FerKD Table 2, on a ConvNet: an order, read from a figure."""
TAIL = Claim(
    text="3 kept classes and the image's tail are nearer to the teacher than 5",
    above="FKD ms 5", below="FKD ms 3, image tail", paper=None, of="kl", unit="nats", primary=True,
)  # fmt: skip
"""This project's own: the tail of an image is worth more than two more classes."""
TWO_TEACHERS = Claim(
    text="two teachers above one",
    above="lite0 + lite2",
    below="FKD ms 5 | lite2",
    paper=0.4,
    primary=True,
)
"""FerKD Table 6."""

PRIMARY = (SOFT_ABOVE_TRUTH, CALIBRATION, SELFMIX, TAIL, TWO_TEACHERS)
