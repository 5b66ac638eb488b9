"""What rules would discard and calibrate before a mask is made, and what a mask does that was made.

`calibrate --dry-run`, `advise`, `mask --dry-run` and the report page all count with `preview`. Rules of thresholds are
counted by `ThresholdCounts`, any number of them in one walk; conditions and masks by their region codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.blocks.crop_slab import slabs
from labelstore.calibration.criterion import Criterion, check_calibratable, check_unmixed
from labelstore.calibration.quantiles import exact_quantiles
from labelstore.calibration.queries import RegionQuery, rule_from_record
from labelstore.calibration.regions import RegionQuantiles, RegionThresholds
from labelstore.calibration.threshold_counts import (
    RegionCounts,
    ThresholdCounts,
    count_thresholds,
)
from labelstore.store import Mask
from labelstore.store.region_mask import Region, is_usable
from labelstore.store.unfinished import covered_labels

if TYPE_CHECKING:
    from labelstore.store import LabelSet

AnyRule: TypeAlias = RegionThresholds | RegionQuantiles | RegionQuery

NOTABLE_GAP = 0.01
"""A note says where ties make a share this much smaller than what was asked for."""


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
    tables: Mapping[Criterion, ThresholdCounts] = field(
        default_factory=dict, compare=False, repr=False
    )
    """Counts by class and threshold that the choices of thresholds were counted with."""

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
) -> dict[str, AnyRule]:
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
    rules: Mapping[str, AnyRule] | None = None,
    *,
    values: Sequence[float] = (),
    map_blocks: MapBlocks = map_in_threads,
) -> Preview:
    """Count what each rule (by title; `usual_choices` if none are given) would do to the committed crops.

    Refuses what `calibrate` refuses: UsageError for labels that a rule cannot judge, RejectedInput for crops that were
    mixed with other images. While the growth of a plan is unfinished these are its first crops, as in `calibrate`.
    `values` and `map_blocks` are as in `count_rules`.
    """
    check_unmixed(labels)
    rules = usual_choices() if rules is None else rules
    for rule in rules.values():
        if isinstance(rule, RegionQuantiles):
            check_calibratable(labels, rule.criterion, calibrates=rule.low < rule.middle)
        else:
            rule.check(labels)
    return count_rules(labels, rules, values=values, map_blocks=map_blocks)


def count_rules(
    labels: LabelSet,
    rules: Mapping[str, AnyRule],
    *,
    values: Sequence[float] = (),
    map_blocks: MapBlocks = map_in_threads,
) -> Preview:
    """`preview` without its checks: rules may be counted that `calibrate` would refuse.

    Quantiles are found in one or two walks over the labels; all thresholds of one criterion are counted in one more,
    and with them the crops below and above `values` of the largest probability; all conditions in another.
    """
    is_complete = labels.is_complete
    labels = covered_labels(labels) if labels.covered_crops else labels
    settled = _settled(labels, rules, map_blocks)
    asked: dict[Criterion, list[RegionThresholds]] = {"max_probability": []} if values else {}
    for rule in settled.values():
        if isinstance(rule, RegionThresholds):
            asked.setdefault(rule.criterion, []).append(rule)
    tables = {
        criterion: count_thresholds(
            labels,
            [
                *(values if criterion == "max_probability" else ()),
                *(value for rule in own for value in (rule.low, rule.middle, rule.top)),
            ],
            pairs=[(rule.low, rule.top) for rule in own],
            criterion=criterion,
            map_blocks=map_blocks,
        )
        for criterion, own in asked.items()
    }
    conditions = [rule for rule in settled.values() if isinstance(rule, RegionQuery)]
    by_codes = iter(_count_codes(labels, conditions, map_blocks))
    choices = []
    for title, rule in settled.items():
        counts = (
            tables[rule.criterion].counts(rule)
            if isinstance(rule, RegionThresholds)
            else next(by_codes)
        )
        choices.append(_choice(title, rule, counts, rules[title]))
    return _preview(labels, is_complete, choices, tables)


def preview_of(labels: LabelSet, mask: Mask, *, map_blocks: MapBlocks = map_in_threads) -> Preview:
    """Count what a mask of these labels does, from its region codes: no label is decoded."""
    is_complete = labels.is_complete
    labels = covered_labels(labels) if labels.covered_crops else labels
    (counts,) = _count_codes(labels, [mask], map_blocks)
    rule = rule_from_record(mask.rule)
    return _preview(labels, is_complete, [_choice(mask.name, rule, counts)], {})


def _preview(
    labels: LabelSet,
    is_complete: bool,
    choices: Sequence[Choice],
    tables: Mapping[Criterion, ThresholdCounts],
) -> Preview:
    return Preview(
        label_set=labels.name,
        teacher=labels.row.teacher,
        num_images=labels.store.num_images,
        num_crops=labels.num_crops,
        is_complete=is_complete,
        choices=tuple(choices),
        tables=tables,
    )


def _choice(
    title: str,
    rule: RegionThresholds | RegionQuery,
    counts: RegionCounts,
    asked: AnyRule | None = None,
) -> Choice:
    quantiles = asked if isinstance(asked, RegionQuantiles) else None
    notes: tuple[str, ...] = ()
    if quantiles is not None and isinstance(rule, RegionThresholds):
        notes = _notes(quantiles, rule, counts)
    return Choice(
        title=title, rule=rule, quantiles=quantiles, counts=counts, notes=notes + _emptied(counts)
    )


def _settled(
    labels: LabelSet, rules: Mapping[str, AnyRule], map_blocks: MapBlocks
) -> dict[str, RegionThresholds | RegionQuery]:
    """The rules with thresholds instead of quantiles; all quantiles of one criterion are found together."""
    by_quantiles = [rule for rule in rules.values() if isinstance(rule, RegionQuantiles)]
    found: dict[tuple[Criterion, float], float] = {}
    for criterion in dict.fromkeys(rule.criterion for rule in by_quantiles):
        own = (rule.shares for rule in by_quantiles if rule.criterion == criterion)
        shares = sorted({share for each in own for share in each})
        at = exact_quantiles(labels, shares, criterion=criterion, map_blocks=map_blocks)
        found |= {(criterion, share): value for share, value in zip(shares, at, strict=True)}
    return {
        title: rule.at([found[rule.criterion, share] for share in rule.shares])
        if isinstance(rule, RegionQuantiles)
        else rule
        for title, rule in rules.items()
    }


def _count_codes(
    labels: LabelSet, sources: Sequence[RegionQuery | Mask], map_blocks: MapBlocks
) -> list[RegionCounts]:
    if not sources:
        return []
    total = np.zeros((len(sources), 7), np.int64)
    for counts in map_blocks(partial(_count_block, labels, sources), labels.blocks):
        total += counts
    return [RegionCounts(**dict(zip(_FIELDS, row, strict=True))) for row in total.tolist()]


_FIELDS = (
    "too_hard", "hard", "important", "too_easy", "missing", "images", "images_without_crop",
)  # fmt: skip


def _count_block(
    labels: LabelSet, sources: Sequence[RegionQuery | Mask], block: int
) -> NDArray[np.int64]:
    """One row of `RegionCounts` per source: conditions, or a mask with its codes."""
    counts = np.zeros((len(sources), 7), np.int64)
    rows = labels.block_rows(block)
    is_image = ~labels.store.free[rows.start : rows.stop]
    labelled, usable = (np.zeros((len(sources), len(rows)), bool) for _ in range(2))
    for columns in slabs(labels):
        # of a mask these columns only: it may cover fewer crops than the plan has by now
        those = range(labels.layout.num_columns) if columns is None else columns
        for i, source in enumerate(sources):
            codes = (
                source.regions(block, those)
                if isinstance(source, Mask)
                else source.block_regions(labels, block, columns)
            )
            counts[i, :4] += np.bincount(codes.reshape(-1), minlength=256)[:4]
            counts[i, 4] += np.count_nonzero(codes[is_image] == Region.MISSING)
            labelled[i] |= (codes != Region.MISSING).any(axis=1)
            usable[i] |= is_usable(codes).any(axis=1)
    counts[:, 5] = labelled.sum(axis=1)
    counts[:, 6] = (labelled & ~usable).sum(axis=1)
    return counts


def too_many_left_out(left_out: int, images: int) -> bool:
    """Whether so many of the images have no crop to draw that a run wants it said on purpose: more than 1 %."""
    return left_out > images / 100


def _emptied(counts: RegionCounts) -> tuple[str, ...]:
    """A note where a run would refuse the mask."""
    if counts.num_crops and not counts.usable:
        return ("every crop is discarded: nothing is left to train on",)
    if too_many_left_out(counts.images_without_crop, counts.images):
        left = f"{counts.images_without_crop:,} of {counts.images:,} images have no crop left"
        return (f"{left}: a run refuses that unless it is told to allow empty images",)
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
