"""What the page's sliders move: crops below and above every step, by class, and what the usual choices would do.

Of a store with very many crops some chunk columns are counted: as many crops of every image, which were drawn alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.analysis.histogram import TABLE_1_EDGES, bins_of
from labelstore.analysis.threshold_counts import ThresholdCounts, count_thresholds
from labelstore.blocks.shipping import MapBlocks
from labelstore.blocks.threads import map_in_threads
from labelstore.calibration import (
    Choice,
    RegionQuantiles,
    RegionThresholds,
    preview,
    rule_from_record,
    usual_choices,
)
from labelstore.calibration.probability import check_calibratable

if TYPE_CHECKING:
    from labelstore.store import LabelSet

STEPS = 200
"""Thresholds of the sliders: 0, 0.005, ..., 1."""
VALUES = tuple(step / STEPS for step in range(STEPS + 1))
CLASS_CELLS = 500_000
"""Classes x thresholds beyond which the sliders move the totals only."""


def counted_columns(labels: LabelSet, most: int | None, *, seed: int) -> range | None:
    """Neighbouring chunk columns with about `most` crops, chosen by `seed`; None for all of them."""
    layout, images = labels.layout, int(labels.present.sum())
    if most is None or images * labels.num_crops <= most:
        return None
    together = max(1, most // (images * layout.crops_per_chunk))
    if together >= layout.num_columns:
        return None
    last = layout.num_columns - together
    start = int(np.random.default_rng([seed, 4]).integers(last, endpoint=True))
    return range(start, start + together)


def counts(
    labels: LabelSet,
    rules: Mapping[str, RegionThresholds],
    *,
    columns: range | None = None,
    map_blocks: MapBlocks = map_in_threads,
) -> ThresholdCounts:
    """Crops below and above every step of the sliders and the thresholds of `rules`.

    UsageError where the codec keeps no probabilities.
    """
    check_calibratable(labels, "max_probability", calibrates=False)
    more = [value for rule in rules.values() for value in (rule.low, rule.middle, rule.top)]
    return count_thresholds(labels, [*VALUES, *more], columns=columns, map_blocks=map_blocks)


def thresholds(found: ThresholdCounts) -> dict[str, Any]:
    """Counts at every step of the sliders: over all committed crops what `calibrate` would count."""
    at = [found.values.index(value) for value in VALUES]
    below, above = found.below[:, at], found.above[:, at]
    record = {
        "steps": STEPS,
        "labelled": int(found.labelled.sum()),
        "below": below.sum(axis=0).tolist(),
        "above": above.sum(axis=0).tolist(),
        "class_labelled": found.labelled.tolist(),
        "class_images": found.images.tolist(),
        "classes": None,
    }
    if below.size <= CLASS_CELLS:
        # differences are short to write; crops just at a threshold are few
        equal = found.labelled[:, None] - below - above
        ties = [np.flatnonzero(row) for row in equal]
        record["classes"] = [
            {
                "below": np.diff(row, prepend=0).tolist(),
                "equal": [[int(i), int(own[i])] for i in where],
            }
            for row, own, where in zip(below, equal, ties, strict=True)
        ]
    return record


def table_1(found: ThresholdCounts) -> list[dict[str, Any]]:
    """FerKD Table 1 of the crops that were counted: its edges are steps of the sliders."""
    below = found.below.sum(axis=0)
    inner = [int(below[found.values.index(edge)]) for edge in TABLE_1_EDGES[1:-1]]
    return [asdict(row) for row in bins_of(inner, int(found.labelled.sum()))]


def choices(
    labels: LabelSet, mask: str | None = None, *, map_blocks: MapBlocks = map_in_threads
) -> list[dict[str, Any]]:
    """What the mask and the usual choices do to all committed crops, exactly, images left out with it."""
    rules: dict[str, Any] = {}
    if mask is not None:
        rules[f"mask {mask}"] = rule_from_record(labels.store.mask(mask).row.rule)
    found = preview(labels, rules | usual_choices(), map_blocks=map_blocks)
    return [_described(choice) for choice in found.choices]


def sampled_rules(
    labels: LabelSet, mask: str | None, probability: NDArray[np.float32]
) -> dict[str, RegionThresholds]:
    """The mask's rule, where it is one of thresholds, and the usual ones, with quantiles of a sample of crops."""
    rules: dict[str, Any] = dict(usual_choices())
    if mask is not None:
        rules = {f"mask {mask}": rule_from_record(labels.store.mask(mask).row.rule)} | rules
    known = probability[~np.isnan(probability)]
    found = {}
    for title, rule in rules.items():
        if isinstance(rule, RegionQuantiles) and len(known):
            shares = [rule.low, rule.middle, rule.top]
            low, middle, top = np.quantile(known, shares, method="inverted_cdf").tolist()
            found[title] = RegionThresholds(low=low, middle=middle, top=top, epsilon=rule.epsilon)
        elif isinstance(rule, RegionThresholds) and rule.criterion == "max_probability":
            found[title] = rule
    return found


def sampled_choices(
    found: ThresholdCounts, rules: Mapping[str, RegionThresholds]
) -> list[dict[str, Any]]:
    """What each rule does to the crops that were counted; which images it leaves out is not known."""
    records = []
    for title, rule in rules.items():
        regions = found.regions(rule)
        record = _described(Choice(title=title, rule=rule, quantiles=None, counts=regions))
        record["counts"]["images_without_crop"] = None
        records.append(record)
    return records


def _described(choice: Choice) -> dict[str, Any]:
    return {**choice.to_record(), "described": choice.rule.describe()}
