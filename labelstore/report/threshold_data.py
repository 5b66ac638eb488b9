"""Counts behind the page's sliders: crops below and above every step, by class, and the usual choices' regions.

Of a store with very many crops some chunk columns are counted: as many crops of every image, which were drawn alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.analysis.histogram import bins_of
from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.calibration import (
    Choice,
    Preview,
    RegionQuantiles,
    RegionThresholds,
    ThresholdCounts,
    count_thresholds,
    preview,
    rule_from_record,
    usual_choices,
)
from labelstore.calibration.criterion import check_calibratable

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


def whole(
    labels: LabelSet, mask: str | None = None, *, map_blocks: MapBlocks = map_in_threads
) -> Preview:
    """Count all committed crops under the mask's rule and the usual choices, and at the sliders' steps."""
    return preview(labels, _rules(labels, mask), values=VALUES, map_blocks=map_blocks)


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
    return [asdict(row) for row in bins_of(found)]


def _rules(labels: LabelSet, mask: str | None) -> dict[str, Any]:
    own = (
        {} if mask is None else {f"mask {mask}": rule_from_record(labels.store.mask(mask).row.rule)}
    )
    return own | usual_choices()


def sampled_rules(
    labels: LabelSet, mask: str | None, probability: NDArray[np.float32]
) -> dict[str, RegionThresholds]:
    """The mask's rule, where it is one of thresholds, and the usual ones, with quantiles of a sample of crops."""
    known = probability[~np.isnan(probability)]
    found = {}
    for title, rule in _rules(labels, mask).items():
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
    """Regions of the counted crops under each rule; the images that it leaves out are not known."""
    records = []
    for title, rule in rules.items():
        regions = found.regions(rule)
        record = described(Choice(title=title, rule=rule, quantiles=None, counts=regions))
        record["counts"]["images_without_crop"] = None
        records.append(record)
    return records


def described(choice: Choice) -> dict[str, Any]:
    """A choice as JSON values, with its rule in words."""
    return {**choice.to_record(), "described": choice.rule.describe()}
