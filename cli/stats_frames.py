"""What `labelstore stats` found as DataFrames: rows of FerKD Table 1, of measures, of classes, of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from labelstore.analysis.comparison import Comparisons
    from labelstore.analysis.histogram import Histogram
    from labelstore.analysis.profile import Profile


def histogram_rows(found: Sequence[Histogram]) -> pd.DataFrame:
    """One row per label set and bin."""
    return pd.DataFrame(
        [
            {"label_set": histogram.label_set, "criterion": histogram.criterion, **asdict(row)}
            for histogram in found
            for row in histogram.bins
        ]
    )


def measure_rows(found: Sequence[Profile]) -> pd.DataFrame:
    """One row per label set and figure: mean, standard deviation, least, most; of a share only its mean."""
    rows = []
    for profile in found:
        rows += [
            {
                "label_set": profile.label_set,
                "measure": measure.name,
                "crops": measure.crops,
                "mean": measure.mean,
                "std": measure.std,
                "least": measure.least,
                "most": measure.most,
            }
            for measure in profile.measures
        ]
        rows += [
            {"label_set": profile.label_set, "measure": name, "crops": profile.crops, "mean": share}
            for name, share in (
                ("top1", profile.top1),
                ("top5", profile.top5),
                ("flip_rate", profile.flip_rate),
            )
        ]
    return pd.DataFrame(rows)


def class_rows(found: Sequence[Profile]) -> pd.DataFrame:
    """One row per label set and class."""
    return pd.DataFrame(
        [
            {"label_set": profile.label_set, **asdict(row)}
            for profile in found
            for row in profile.classes
        ]
    )


def pair_rows(found: Comparisons) -> pd.DataFrame:
    """One row per pair of label sets."""
    names = ("first", "second")
    return pd.DataFrame(
        [
            {
                **dict(zip(names, pair.label_sets, strict=True)),
                **{f"{n}_teacher": t for n, t in zip(names, pair.teachers, strict=True)},
                **{
                    name: value
                    for name, value in asdict(pair).items()
                    if name not in ("label_sets", "teachers")
                },
            }
            for pair in found.pairs
        ]
    )
