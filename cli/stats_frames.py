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
    rows: list[dict[str, object]] = []
    for profile in found:
        for measure in profile.measures:
            figures = asdict(measure)
            del figures["edges"], figures["counts"]
            rows.append({"label_set": profile.label_set, "measure": figures.pop("name"), **figures})
        rows += [
            {
                "label_set": profile.label_set,
                "measure": name,
                "crops": profile.crops,
                "mean": getattr(profile, name),
            }
            for name in ("top1", "top5", "flip_rate")
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
    """One row per pair of label sets: the two names and teachers first, then every measure."""
    rows = []
    for pair in found.pairs:
        record = asdict(pair)
        first, second = record.pop("label_sets")
        own, other = record.pop("teachers")
        names = {"first": first, "second": second, "first_teacher": own, "second_teacher": other}
        rows.append(names | record)
    return pd.DataFrame(rows)
