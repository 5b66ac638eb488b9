"""What a choice of thresholds would discard and calibrate, before a mask is made (`calibrate --dry-run`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.shipping import MapBlocks
from labelstore.blocks.slabs import slabs
from labelstore.blocks.threads import map_in_threads
from labelstore.calibration.probability import (
    Criterion,
    check_calibratable,
    check_unmixed,
    probabilities,
)
from labelstore.calibration.quantiles import exact_quantiles
from labelstore.calibration.queries import RegionQuery
from labelstore.calibration.regions import Region, RegionQuantiles, RegionThresholds, Rule
from labelstore.store.coverage import covered_labels

if TYPE_CHECKING:
    from labelstore.store import LabelSet

NOTABLE_GAP = 0.01
"""A share that ties keep this far from what was asked for is said in words."""


@dataclass(frozen=True, kw_only=True)
class RegionCounts:
    """Crops of each region, and images that would be left out."""

    too_hard: int
    hard: int
    important: int
    too_easy: int
    missing: int
    """Crops without a label: not in `num_crops` and in no share."""
    images: int
    """Images with any labelled crop."""
    images_without_crop: int
    """Images whose labelled crops are all discarded: a run leaves them out."""

    @property
    def num_crops(self) -> int:
        """Labelled crops."""
        return self.too_hard + self.hard + self.important + self.too_easy

    @property
    def usable(self) -> int:
        """Crops that would be drawn: hard and important."""
        return self.hard + self.important

    def share(self, count: int) -> float:
        """A count as a share of the labelled crops."""
        return count / self.num_crops if self.num_crops else 0.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One rule and what it would do."""

    title: str
    """Where the rule comes from: "FerKD 4.2", "quantiles 5/15/90 %"."""
    rule: RegionThresholds | RegionQuery
    quantiles: RegionQuantiles | None
    """The shares that the thresholds were found from."""
    counts: RegionCounts
    notes: tuple[str, ...] = ()
    """What a reader should know: shares that ties made smaller than asked."""

    def to_record(self) -> dict[str, Any]:
        """JSON values: rule, counts, and shares of the labelled crops."""
        counts = self.counts
        regions = ("too_hard", "hard", "important", "too_easy", "usable")
        return {
            "title": self.title,
            "rule": self.rule.to_record(),
            "quantiles": self.quantiles.to_record() if self.quantiles else None,
            "counts": asdict(counts) | {"crops": counts.num_crops, "usable": counts.usable},
            "shares": {name: counts.share(getattr(counts, name)) for name in regions},
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Several choices for one label set, counted over all its committed crops."""

    label_set: str
    teacher: str
    num_images: int
    """Image rows of the store."""
    num_crops: int
    """M."""
    is_complete: bool
    """False: some image blocks have no labels yet, and count nowhere."""
    choices: tuple[Choice, ...]

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "label_set": self.label_set,
            "teacher": self.teacher,
            "num_images": self.num_images,
            "num_crops": self.num_crops,
            "is_complete": self.is_complete,
            "choices": [choice.to_record() for choice in self.choices],
        }


def usual_choices(
    criterion: Criterion = "max_probability", epsilon: float = 0.1
) -> dict[str, RegionThresholds | RegionQuantiles]:
    """Choices worth comparing: the paper's thresholds, its shares, 5/15/90 %, and calibrating only.

    0.15 / 0.30 / 0.95 lie at 0.9, 2.6 and 99.7 % of the paper's teacher's crops (FerKD Table 1; 0.15 by
    halving its bin). On a teacher that is sharper the same thresholds can discard most crops.
    """
    about: dict[str, Any] = {"criterion": criterion, "epsilon": epsilon}
    return {
        "FerKD 4.2": RegionThresholds(**about),
        "FerKD's shares 0.9/2.6/99.7 %": RegionQuantiles(
            low=0.009, middle=0.026, top=0.997, **about
        ),
        "quantiles 5/15/90 %": RegionQuantiles(**about),
        "calibrate only": RegionThresholds(low=0.0, middle=0.30, top=1.0, **about),
    }


def preview(
    labels: LabelSet,
    rules: Mapping[str, RegionThresholds | RegionQuantiles | RegionQuery] | None = None,
    *,
    map_blocks: MapBlocks = map_in_threads,
) -> Preview:
    """What each rule (by title; `usual_choices` if none are given) would do to the committed crops.

    RejectedInput for crops that were mixed with other images, as `calibrate`.

    Writes nothing. All quantiles are found in one or two walks over the labels, all counts in one more. While the
    growth of a plan is unfinished these are its first crops, as in `calibrate`.
    """
    check_unmixed(labels)
    is_complete = labels.is_complete
    labels = covered_labels(labels) if labels.covered_crops else labels
    rules = usual_choices() if rules is None else rules
    for rule in rules.values():
        if isinstance(rule, RegionQuantiles):
            check_calibratable(labels, rule.criterion, calibrates=rule.low < rule.middle)
        else:
            rule.check(labels)
    settled = _thresholds(labels, list(rules.values()), map_blocks)
    counts = np.zeros((len(settled), 7), np.int64)
    for block_counts in map_blocks(partial(_count_block, labels, settled), labels.blocks):
        counts += block_counts
    choices = []
    for (title, asked), rule, row in zip(rules.items(), settled, counts, strict=True):
        found = RegionCounts(
            too_hard=int(row[0]),
            hard=int(row[1]),
            important=int(row[2]),
            too_easy=int(row[3]),
            missing=int(row[4]) - labels.num_free,
            images=int(row[5]),
            images_without_crop=int(row[6]),
        )
        quantiles = asked if isinstance(asked, RegionQuantiles) else None
        with_notes = quantiles is not None and isinstance(rule, RegionThresholds)
        notes = _notes(quantiles, rule, found) if with_notes else ()  # type: ignore[arg-type]
        notes += _emptied(found)
        choices.append(
            Choice(title=title, rule=rule, quantiles=quantiles, counts=found, notes=notes)
        )
    return Preview(
        label_set=labels.name,
        teacher=labels.row.teacher,
        num_images=labels.store.num_images,
        num_crops=labels.num_crops,
        is_complete=is_complete,
        choices=tuple(choices),
    )


def _thresholds(
    labels: LabelSet,
    rules: Sequence[RegionThresholds | RegionQuantiles | RegionQuery],
    map_blocks: MapBlocks,
) -> list[RegionThresholds | RegionQuery]:
    values: dict[tuple[Criterion, float], float] = {}
    for criterion in {rule.criterion for rule in rules if isinstance(rule, RegionQuantiles)}:
        shares = sorted(
            {
                share
                for rule in rules
                if isinstance(rule, RegionQuantiles) and rule.criterion == criterion
                for share in rule.shares
            }
        )
        if shares:
            found = exact_quantiles(labels, shares, criterion=criterion, map_blocks=map_blocks)
            values |= {(criterion, q): value for q, value in zip(shares, found, strict=True)}
    return [
        rule.at([values[rule.criterion, q] for q in rule.shares])
        if isinstance(rule, RegionQuantiles)
        else rule
        for rule in rules
    ]


def _count_block(labels: LabelSet, rules: Sequence[Rule], block: int) -> NDArray[np.int64]:
    """One row per rule: crops of the four regions, missing crops, images, images without a usable crop."""
    counts = np.zeros((len(rules), 7), np.int64)
    num_rows = len(labels.layout.rows(block))
    labelled = np.zeros((len(rules), num_rows), bool)
    usable = np.zeros((len(rules), num_rows), bool)
    for columns in slabs(labels):
        read = {
            criterion: probabilities(labels, criterion, block, columns)
            for criterion in {r.criterion for r in rules if isinstance(r, RegionThresholds)}
        }
        for i, rule in enumerate(rules):
            codes = (
                rule.regions(read[rule.criterion])
                if isinstance(rule, RegionThresholds)
                else rule.block_regions(labels, block, columns)
            )
            for region in (Region.TOO_HARD, Region.HARD, Region.IMPORTANT, Region.TOO_EASY):
                counts[i, region] += np.count_nonzero(codes == region)
            counts[i, 4] += np.count_nonzero(codes == Region.MISSING)
            labelled[i] |= (codes != Region.MISSING).any(axis=1)
            usable[i] |= ((codes == Region.HARD) | (codes == Region.IMPORTANT)).any(axis=1)
    counts[:, 5] = labelled.sum(axis=1)
    counts[:, 6] = (labelled & ~usable).sum(axis=1)
    return counts


def too_many_left_out(left_out: int, images: int) -> bool:
    """Whether so many of the images have no crop to draw that a run wants it said on purpose: more than 1 %."""
    return left_out > images / 100


def _emptied(counts: RegionCounts) -> tuple[str, ...]:
    """What a run with this mask would say at once."""
    if counts.num_crops and not counts.usable:
        return ("every crop is discarded: nothing is left to train on",)
    if too_many_left_out(counts.images_without_crop, counts.images):
        left = f"{counts.images_without_crop:,} of {counts.images:,} images have no crop left"
        return (f"{left}: a run refuses that without allow_empty_images",)
    return ()


def _notes(asked: RegionQuantiles, rule: RegionThresholds, counts: RegionCounts) -> tuple[str, ...]:
    def gap(what: str, wanted: float, count: int, value: float, instead: str) -> str | None:
        got = counts.share(count)
        if wanted - got < NOTABLE_GAP:
            return None
        return (
            f"{what} {got:.1%} instead of {wanted:.1%}: many crops share probability {value:.6g}, "
            f"and crops of equal probability are not split; {instead}"
        )

    found = (
        gap("too hard", asked.low, counts.too_hard, rule.low, "ask for a larger low quantile"),
        gap(
            "too hard or hard",
            asked.middle,
            counts.too_hard + counts.hard,
            rule.middle,
            "ask for a larger middle quantile",
        ),
        gap(
            "too easy",
            1 - asked.top,
            counts.too_easy,
            rule.top,
            f"a top threshold just below {rule.top:.6g} would discard all of them",
        ),
    )
    return tuple(note for note in found if note)
