"""What the page's sliders move: crops below and above every step, by class, and what the usual choices would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from labelstore.analysis import count_thresholds
from labelstore.calibration import preview, rule_from_record, usual_choices
from labelstore.calibration.probability import check_calibratable
from labelstore.parallel import MapBlocks
from labelstore.store.threads import map_in_threads

if TYPE_CHECKING:
    from labelstore.store import LabelSet

STEPS = 200
"""Thresholds of the sliders: 0, 0.005, ..., 1."""
CLASS_CELLS = 500_000
"""Classes x thresholds beyond which the sliders move the totals only."""


def thresholds(labels: LabelSet, *, map_blocks: MapBlocks = map_in_threads) -> dict[str, Any]:
    """Crops below and above every step of the sliders, over all committed crops: what `calibrate` would count.

    UsageError where the codec keeps no probabilities.
    """
    check_calibratable(labels, "max_probability", calibrates=False)
    values = [step / STEPS for step in range(STEPS + 1)]
    found = count_thresholds(labels, values, map_blocks=map_blocks)
    below, above = found.below, found.above
    record = {
        "steps": STEPS,
        "labelled": int(found.labelled.sum()),
        "missing": found.missing - labels.num_free,
        "below": below.sum(axis=0).tolist(),
        "above": above.sum(axis=0).tolist(),
        "class_labelled": found.labelled.tolist(),
        "class_images": found.images.tolist(),
        "classes": None,
    }
    if below.size <= CLASS_CELLS:
        # differences are short to write; crops just at a threshold are few
        equal = found.labelled[:, None] - below - above
        at = [np.flatnonzero(row) for row in equal]
        record["classes"] = [
            {
                "below": np.diff(row, prepend=0).tolist(),
                "equal": [[int(i), int(ties[i])] for i in where],
            }
            for row, ties, where in zip(below, equal, at, strict=True)
        ]
    return record


def choices(
    labels: LabelSet, mask: str | None = None, *, map_blocks: MapBlocks = map_in_threads
) -> list[dict[str, Any]]:
    """What the mask and the usual choices do to all committed crops, exactly, images left out with it."""
    rules: dict[str, Any] = {}
    if mask is not None:
        rules[f"mask {mask}"] = rule_from_record(labels.store.mask(mask).row.rule)
    found = preview(labels, rules | usual_choices(), map_blocks=map_blocks)
    return [{**choice.to_record(), "described": choice.rule.describe()} for choice in found.choices]
