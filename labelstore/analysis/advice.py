"""What calibration would do for a grid of thresholds and quantiles: overall, by class, and with examples.

Thresholds do not carry over between teachers: the same ones discard nothing of one and most of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.analysis.walk import CropQuery, join, read
from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.calibration import (
    Choice,
    Criterion,
    Preview,
    RegionQuantiles,
    RegionThresholds,
    count_rules,
)
from labelstore.calibration.criterion import check_calibratable, probabilities
from labelstore.errors import UsageError, check_seed

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.store import LabelSet

LOW, MIDDLE, TOP = (0.0, 0.10, 0.15, 0.20), (0.20, 0.30, 0.40), (0.90, 0.95, 1.0)
"""Thresholds tried, as far as they are in order: the paper's and its neighbours (FerKD 4.2, Table 4)."""
QUANTILES = ((0.0, 0.05, 1.0), (0.01, 0.05, 0.99), (0.05, 0.15, 0.90), (0.10, 0.25, 0.80))
"""Shares tried: low, middle, top."""
MAX_RULES = 2000
EXAMPLE_BLOCKS = 32
"""Image blocks that are looked at for example crops."""


@dataclass(frozen=True, kw_only=True)
class ClassEffect:
    """What one rule does to the crops of one class."""

    name: str
    """Class of the ground truth; empty for images without one."""
    title: str
    """What that class is, in words for people."""
    crops: int
    too_hard: int
    hard: int
    important: int
    too_easy: int

    @property
    def discarded_share(self) -> float:
        """Share of the class's crops that would never be drawn."""
        return (self.too_hard + self.too_easy) / self.crops if self.crops else 0.0

    @property
    def calibrated_share(self) -> float:
        """Share of the class's crops that would get the ground truth."""
        return self.hard / self.crops if self.crops else 0.0

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **asdict(self),
            "discarded_share": self.discarded_share,
            "calibrated_share": self.calibrated_share,
        }


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A grid of rules and what each would do to all committed crops of a label set."""

    criterion: Criterion
    preview: Preview
    """What each rule would do, and the counts by class and threshold that it follows from."""
    class_names: tuple[str, ...]
    class_titles: tuple[str, ...]

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The rules, in the order of the grid."""
        return self.preview.choices

    def by_class(self, choice: Choice) -> tuple[ClassEffect, ...]:
        """Count what a choice does to each class that has crops, in the order of class ids."""
        names, titles = (*self.class_names, ""), (*self.class_titles, "")
        counts = self.preview.tables[self.criterion].by_class(_thresholds(choice)).tolist()
        return tuple(
            ClassEffect(
                name=name,
                title=title,
                crops=sum(row),
                too_hard=row[0],
                hard=row[1],
                important=row[2],
                too_easy=row[3],
            )
            for name, title, row in zip(names, titles, counts, strict=True)
            if sum(row)
        )

    def hit_hardest(self, choice: Choice, number: int = 5) -> tuple[ClassEffect, ...]:
        """The classes that lose the largest share of their crops to a choice, discarded and calibrated together."""
        effects = self.by_class(choice)
        by_loss = sorted(effects, key=lambda e: (-(e.discarded_share + e.calibrated_share), e.name))
        return tuple(e for e in by_loss[:number] if e.discarded_share + e.calibrated_share > 0)

    def to_record(self, *, hardest: int = 5, per_class: bool = False) -> dict[str, Any]:
        """JSON values; `per_class` lists every class of every choice."""
        record = self.preview.to_record() | {"criterion": self.criterion}
        for entry, choice in zip(record["choices"], self.choices, strict=True):
            entry["hit_hardest"] = [e.to_record() for e in self.hit_hardest(choice, hardest)]
            if per_class:
                entry["classes"] = [e.to_record() for e in self.by_class(choice)]
        return record


def advise(
    labels: LabelSet,
    *,
    low: Sequence[float] = LOW,
    middle: Sequence[float] = MIDDLE,
    top: Sequence[float] = TOP,
    quantiles: Sequence[tuple[float, float, float]] = QUANTILES,
    criterion: Criterion = "max_probability",
    epsilon: float = 0.1,
    map_blocks: MapBlocks = map_in_threads,
) -> Advice:
    """Count what every combination of thresholds that is in order, and every triple of quantiles, would do.

    Nothing is written. Counts are exact and equal to those of `calibrate` with the same rule; one walk over the
    labels, and one or two before it for quantiles.
    """
    about: dict[str, Any] = {"criterion": criterion, "epsilon": epsilon}
    rules: dict[str, RegionThresholds | RegionQuantiles] = {}
    for name, values in (("low", low), ("middle", middle), ("top", top)):
        if wrong := [value for value in values if not 0 <= value <= 1]:
            raise UsageError(f"{name} {wrong[0]:g}: a threshold is a probability, 0 to 1")
    for asked in product(*(sorted(set(map(float, values))) for values in (low, middle, top))):
        if asked[0] <= asked[1] <= asked[2]:
            rules["thresholds " + " / ".join(f"{v:g}" for v in asked)] = RegionThresholds(
                low=asked[0], middle=asked[1], top=asked[2], **about
            )
    if not rules and low and middle and top:
        raise UsageError(
            f"no combination of low {_listed(low)}, middle {_listed(middle)} and top {_listed(top)} is in order: give "
            "some with low <= middle <= top"
        )
    for shares in quantiles:
        rules["quantiles " + " / ".join(f"{100 * v:g}" for v in shares) + " %"] = RegionQuantiles(
            low=shares[0], middle=shares[1], top=shares[2], **about
        )
    if not rules:
        raise UsageError("no rule to try: give thresholds with low <= middle <= top, or quantiles")
    if len(rules) > MAX_RULES:
        raise UsageError(f"{len(rules)} rules to try: at most {MAX_RULES}, give fewer thresholds")
    check_calibratable(labels, criterion, calibrates=False)
    return Advice(
        criterion=criterion,
        preview=count_rules(labels, rules, map_blocks=map_blocks),
        class_names=labels.store.class_names,
        class_titles=labels.class_titles,
    )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def example_crops(
    labels: LabelSet, rule: RegionThresholds, *, per_region: int = 3, seed: int = 0
) -> pd.DataFrame:
    """A few crops of every region under a rule, from images drawn by the seed: key, class, crop, box, p, region.

    Found in at most 32 image blocks: a region that is rare may have fewer.
    """
    import pandas as pd

    from labelstore.analysis.arrow_batches import crop_frame

    columns = ("image", "key", "class", "crop", "top", "left", "height", "width")
    check_seed(seed)
    truth = ["ground_truth_probability"] if labels.outputs_are_classes else []
    query = CropQuery.of(labels, [*columns, "max_probability", *truth, "top1", "top1_name"])
    rng = np.random.default_rng(seed)
    examples: dict[int, list[Any]] = {code: [] for code in range(4)}
    for block in rng.permutation(labels.blocks)[:EXAMPLE_BLOCKS].tolist():
        column = int(rng.integers(labels.layout.num_columns))
        part = read(query, block, range(column, column + 1))
        codes = rule.regions(
            probabilities(labels, rule.criterion, block, range(column, column + 1))
        )
        present = labels.present[list(labels.block_rows(block))]
        flat: NDArray[np.uint8] = codes[present].reshape(-1)
        for code, parts in examples.items():
            lacking = per_region - sum(len(p.position) for p in parts)
            places = np.flatnonzero(flat == code)
            if lacking > 0 and len(places):
                parts.append(part.take(rng.permutation(places)[:lacking]))
        if all(sum(len(p.position) for p in parts) >= per_region for parts in examples.values()):
            break
    frames = []
    for code, name in enumerate(("TOO_HARD", "HARD", "IMPORTANT", "TOO_EASY")):
        if examples[code]:
            frames.append(crop_frame(join(examples[code]).columns).assign(region=name))
    empty = pd.DataFrame(columns=[*query.columns, "region"])
    return pd.concat(frames, ignore_index=True) if frames else empty


def _thresholds(choice: Choice) -> RegionThresholds:
    assert isinstance(choice.rule, RegionThresholds)
    return choice.rule
