"""What `labelstore advise` found as DataFrames: one row per choice, for people or for programs, or per choice and
class."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd

from cli.output import percent, size
from labelstore.calibration import RegionThresholds
from labelstore.store.label_outputs import short

if TYPE_CHECKING:
    from labelstore.analysis.advice import Advice
    from labelstore.analysis.scatter import Scatter


def choice_rows(found: Advice, *, hardest: int) -> pd.DataFrame:
    """One row per choice: thresholds, crops and shares of the labelled crops as numbers."""
    regions = ("too_hard", "hard", "important", "too_easy", "usable")
    rows = []
    for choice in found.choices:
        rule, counts = choice.rule, choice.counts
        assert isinstance(rule, RegionThresholds)
        rows.append(
            {
                "choice": choice.title,
                **{name: getattr(rule, name) for name in ("low", "middle", "top")},
                "crops": counts.num_crops,
                **{name: getattr(counts, name) for name in regions},
                "discarded_share": counts.share(counts.too_hard + counts.too_easy),
                "calibrated_share": counts.share(counts.hard),
                "kept_share": counts.share(counts.important),
                "usable_share": counts.share(counts.usable),
                "images": counts.images,
                "images_without_crop": counts.images_without_crop,
                "hit_hardest": ", ".join(e.name for e in found.hit_hardest(choice, hardest)),
            }
        )
    return pd.DataFrame(rows)


def shown_rows(found: Advice, *, hardest: int) -> pd.DataFrame:
    """The same to be read: shares in percent, and how much of the classes hit hardest is lost."""
    rows = []
    for choice in found.choices:
        counts = choice.counts
        rows.append(
            {
                "choice": choice.title,
                "low / middle / top": choice.rule.describe(),
                **{
                    name: percent(counts.share(count))
                    for name, count in (
                        ("too hard", counts.too_hard),
                        ("too easy", counts.too_easy),
                        ("calibrated", counts.hard),
                        ("kept", counts.important),
                        ("usable", counts.usable),
                    )
                },
                "usable crops": counts.usable,
                "images left out": counts.images_without_crop,
                "hit hardest": ", ".join(
                    f"{short(effect.title, 24)} {effect.discarded_share + effect.calibrated_share:.0%}"
                    for effect in found.hit_hardest(choice, hardest)
                ),
            }
        )
    return pd.DataFrame(rows)


def class_rows(found: Advice) -> pd.DataFrame:
    """One row per choice and class."""
    return pd.DataFrame(
        [
            {"choice": choice.title, **effect.to_record()}
            for choice in found.choices
            for effect in found.by_class(choice)
        ]
    )


def drift_rows(found: Scatter) -> pd.DataFrame:
    """One row per number of crops, to be read."""
    return pd.DataFrame(
        {
            "crops per image": each.num_crops,
            "drift": f"{each.drift:.3g}",
            "bytes": size(each.bytes),
        }
        for each in found.drifts
    )


def bought_rows(found: Scatter, *, to_read: bool) -> pd.DataFrame:
    """One row per form of the labels; numbers for programs, or texts to be read."""
    if not to_read:
        return pd.DataFrame(asdict(each) for each in found.bought)
    return pd.DataFrame(
        {
            "form": each.form,
            "bytes are": each.basis,
            "bytes per crop": f"{each.bytes_per_crop:.1f}",
            "crops per image": each.num_crops,
            "drift": "-" if each.drift is None else f"{each.drift:.3g}",
        }
        for each in found.bought
    )
