"""Several teachers as one: the mean of their recovered, calibrated labels over one crop plan (FerKD 3.4).

Of every crop: recover each teacher's label at one temperature, calibrate it under the teacher's own mask, then average,
with weights, over the teachers that keep the crop. A crop that all of them discard has no label and is not drawn.
Sparse labels stay sparse: the mean of labels of K_1, K_2, ... classes lists K_1 + K_2 + ... classes at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.calibration import (
    Region,
    is_usable,
    rule_from_record,
)
from labelstore.codecs import SparseLabels, densify, over_union, relative_temperature
from labelstore.codecs.base import missing_id
from labelstore.errors import UsageError
from labelstore.store.chosen_images import crop_numbers
from labelstore.store.label_outputs import check_same_outputs
from labelstore.store.random_batch import (
    Crops,
    LabelBatch,
    RecordSource,
    as_batch,
    asked_crops,
    recovered_at,
    regions_at,
)
from labelstore.store.region_mask import calibrated, without_discarded

if TYPE_CHECKING:
    from labelstore.store import LabelSet, Mask, Store
    from labelstore.store.label_set import Images
    from labelstore.store.unpacked import Unpacked

SparseOrDense: TypeAlias = SparseLabels | NDArray[np.float32]
Regions: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One teacher's labels, with what calibrates them and what they weigh."""

    labels: LabelSet
    mask: Mask | None
    weight: float
    """Share of the sum of all weights."""


def ensemble(
    labels: Sequence[LabelSet],
    masks: Sequence[Mask | None] | None = None,
    weights: Sequence[float] | None = None,
) -> Ensemble:
    """The mean of label sets on one crop plan; `masks` and `weights` have one entry per label set.

    UsageError for label sets of different stores, plans or numbers of classes, for a mask of another teacher or
    plan, and for weights that are not above 0.

    >>> ensemble([])
    Traceback (most recent call last):
    ...
    labelstore.errors.UsageError: an ensemble of no label sets: give one or more
    """
    if not labels:
        raise UsageError("an ensemble of no label sets: give one or more")
    masks = [None] * len(labels) if masks is None else masks
    weights = [1.0] * len(labels) if weights is None else weights
    for what, given in (("masks", masks), ("weights", weights)):
        if len(given) != len(labels):
            raise UsageError(
                f"{len(given)} {what} for {len(labels)} label sets: give one for each, in the same order"
            )
    if not all(np.isfinite(weight) and weight > 0 for weight in weights):
        raise UsageError(f"weights {list(weights)}: each must be a number above 0")
    first = labels[0]
    for one, mask in zip(labels, masks, strict=True):
        _check_alike(first, one)
        if mask is not None:
            check_mask(one, mask)
    total = float(sum(weights))
    members = [
        Member(labels=one, mask=mask, weight=float(weight) / total)
        for one, mask, weight in zip(labels, masks, weights, strict=True)
    ]
    return Ensemble(members)


def check_mask(labels: LabelSet, mask: Mask) -> None:
    """UsageError for a mask of another teacher or plan than the label set's.

    RejectedInput for one that gives crops the ground truth, where the label set's outputs are no classes.
    """
    mask.check_matches(labels)
    if rule_from_record(mask.row.rule).calibrates:
        _ = labels.true_output


class Ensemble:
    """Labels of several teachers read as one label set: by image block and chunk columns, or crop by crop."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        first = self.members[0].labels
        self.store: Store = first.store
        self.plan, self.layout = first.plan, first.layout
        self.num_classes, self.num_crops = first.num_classes, first.num_crops
        self.ground_truth = first.ground_truth
        self.outputs, self.outputs_are_classes = first.outputs, first.outputs_are_classes

    @property
    def name(self) -> str:
        """Names of the label sets, joined by commas."""
        return ",".join(member.labels.name for member in self.members)

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """Image blocks that every label set and mask covers."""
        covered = [set(member.labels.blocks) for member in self.members]
        covered += [set(member.mask.blocks) for member in self.members if member.mask is not None]
        return tuple(sorted(set.intersection(*covered)))

    @property
    def is_complete(self) -> bool:
        """True when every image block is covered."""
        return len(self.blocks) == self.layout.num_blocks

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """(rows,) True where every label set has labels."""
        everywhere = np.ones(self.layout.num_rows, bool)
        for member in self.members:
            everywhere &= member.labels.present
        return everywhere

    @property
    def covered_crops(self) -> int:
        """The first crops that every begun image has in all label sets: fewer than M while the plan grows."""
        return min(member.labels.covered_crops for member in self.members)

    def first_crops(self, num_crops: int) -> Ensemble:
        """The same labels as if there were no crops but the first, a whole number of crop shards."""
        return Ensemble(
            [
                replace(member, labels=member.labels.first_crops(num_crops))
                for member in self.members
            ]
        )

    @property
    def true_output(self) -> NDArray[np.int32]:
        """(rows,) the output that is the ground truth of every image row, -1 where there is none.

        RejectedInput where outputs are no classes of the data set.
        """
        return self.members[0].labels.true_output

    @property
    def has_masks(self) -> bool:
        """Whether some crops may have no label."""
        return any(member.mask is not None for member in self.members)

    @cached_property
    def listed(self) -> int | None:
        """Classes that every label lists at most; None where labels are dense."""
        kept = [member.labels.listed for member in self.members]
        total = sum(k or 0 for k in kept)
        return None if None in kept or total > self.num_classes else total

    def temperature_in_force(self, temperature: float | None = None) -> float:
        """The temperature T that was asked for, or the T0 at which all labels were made.

        UsageError where none is asked for and T0 differs between the label sets, and where one of them cannot be
        brought to T.
        """
        made_at = {member.labels.temperature for member in self.members}
        if temperature is None and len(made_at) > 1:
            each = ", ".join(f"{m.labels.name} at T={m.labels.temperature:g}" for m in self.members)
            raise UsageError(
                f"label sets made at different temperatures ({each}): give the temperature to bring them to"
            )
        in_force = made_at.pop() if temperature is None else temperature
        for member in self.members:
            relative_temperature(member.labels.codec, in_force, member.labels.temperature)
        return in_force

    def block_rows(self, block: int) -> range:
        """Image rows of a block."""
        return self.layout.rows(block)

    def crops(
        self, block: int, columns: range | None = None
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (n, m, 4) uint16 pixels and flips (n, m) of one image block: the plan's."""
        return self.members[0].labels.crops(block, columns)

    def boxes(self, images: Images) -> NDArray[np.uint16]:
        """Boxes (top, left, height, width) in pixels of the original image: uint16 (n, M, 4)."""
        return self.members[0].labels.boxes(images)

    def flips(self, images: Images) -> NDArray[np.bool_]:
        """Whether each crop is mirrored left to right: bool (n, M)."""
        return self.members[0].labels.flips(images)

    def usable(self, block: int, columns: range | None = None) -> NDArray[np.bool_]:
        """(n, m) crops of one image block that at least one teacher keeps."""
        return is_usable(self.regions(block, columns))

    def regions(self, block: int, columns: range | None = None) -> Regions:
        """(n, m) region codes: IMPORTANT where a teacher finds a crop so, HARD where those that keep it all do.

        A crop that none keeps is TOO_HARD if one says so, otherwise TOO_EASY; without masks all are IMPORTANT.
        """
        return _together(self._member_regions(block, columns))

    def labels(
        self, block: int, columns: range | None = None, temperature: float | None = None
    ) -> tuple[SparseOrDense, Regions]:
        """Final labels (n, m, ...), sparse or dense as `listed` says, and region codes (n, m).

        Each label set is brought to `temperature_in_force`. Labels are NaN for crops that no teacher keeps, and for
        images that were left out as bad.
        """
        temperature = self.temperature_in_force(temperature)
        regions = self._member_regions(block, columns)
        rows = self.block_rows(block)
        truth = self._hardened[rows.start : rows.stop, None]
        found = [
            _calibrated(
                member, _recovered(member.labels, block, columns, temperature), codes, truth
            )
            for member, codes in zip(self.members, regions, strict=True)
        ]
        return self._mean(found, regions), _together(regions)

    def _mean(
        self, calibrated: Sequence[SparseOrDense], regions: Sequence[Regions]
    ) -> SparseOrDense:
        """One label (..., K) or (..., C) of every crop: the members', by what each weighs where it keeps the crop."""
        if len(calibrated) == 1:
            (only,) = calibrated
            return without_discarded(only, _together(regions)) if self.has_masks else only
        shares = self._shares(regions)
        if self.listed is None:
            return _mean_dense(calibrated, shares, self.num_classes)
        return _mean_sparse(calibrated, shares, self.num_classes)

    def batch(
        self, images: Images, crops: Crops | None = None, *, temperature: float | None = None
    ) -> LabelBatch:
        """The mean of chosen crops' labels, as `LabelSet.batch` gives them; each label set has its own mask.

        Where they are wider than C together, or one is dense, all C classes are listed.
        """
        return self._batch(
            [member.labels.chunk_source for member in self.members], images, crops, temperature
        )

    def unpacked(self, scratch: Path | str) -> UnpackedEnsemble:
        """The label sets laid out flat in a scratch folder, with the same `batch`; see `LabelSet.unpacked`."""
        return UnpackedEnsemble(self, [member.labels.unpacked(scratch) for member in self.members])

    def _batch(
        self,
        sources: Sequence[RecordSource],
        images: Images,
        crops: Crops | None,
        temperature: float | None,
    ) -> LabelBatch:
        temperature = self.temperature_in_force(temperature)
        rows, wanted = asked_crops(self.members[0].labels, images, crops)
        pairs = list(zip(self.members, sources, strict=True))
        regions = [regions_at(source, member.mask, rows, wanted) for member, source in pairs]
        parts = [recovered_at(source, rows, wanted, temperature) for source in sources]
        truth = self._hardened[rows][:, None]
        found = [
            _calibrated(member, part[0], codes, truth)
            for member, part, codes in zip(self.members, parts, regions, strict=True)
        ]
        _, boxes, flips = parts[0]
        mean = self._mean(found, regions)
        return as_batch(mean, boxes, flips, _together(regions), self.num_classes)

    @cached_property
    def num_tail_classes(self) -> int:
        """L of a single label set with tails of images; 0 otherwise: a mean of several lists all classes itself."""
        return self.members[0].labels.num_tail_classes if len(self.members) == 1 else 0

    def tailed(
        self, block: int, columns: range | None = None, temperature: float | None = None
    ) -> tuple[SparseLabels, Regions, NDArray[np.float32]]:
        """As `labels`, of one label set with tails of images, and the scale (n, m) of the tails: `LabelSet.tailed`."""
        (member,), (codes,) = self.members, self._member_regions(block, columns)
        labels, scale = member.labels.tailed(block, columns, temperature)
        if member.mask is None:
            return labels, codes, scale
        rows = self.block_rows(block)
        truth = self._hardened[rows.start : rows.stop, None]
        found = without_discarded(_calibrated(member, labels, codes, truth), codes)
        assert isinstance(found, SparseLabels)
        return found, codes, np.where(codes == Region.HARD, np.float32(0), scale)

    def sparse(
        self, block: int, columns: range | None = None, temperature: float | None = None
    ) -> SparseLabels:
        """Labels of one image block as (ids, probabilities, rest); UsageError where they are dense."""
        labels, _ = self.labels(block, columns, temperature)
        if not isinstance(labels, SparseLabels):
            raise UsageError(f"the mean of {self.name} is dense: recover dense labels instead")
        return labels

    def dense(
        self, block: int, columns: range | None = None, temperature: float | None = None
    ) -> NDArray[np.float32]:
        """Labels of one image block, dense: (n, m, C) float32, each summing to one."""
        labels, _ = self.labels(block, columns, temperature)
        return densify(labels, self.num_classes) if isinstance(labels, SparseLabels) else labels

    def max_probability(
        self, block: int, columns: range | None = None, temperature: float | None = None
    ) -> NDArray[np.float32]:
        """(n, m) how sure the teachers are: the mean, over those that keep a crop, of their largest probability.

        Before calibration, at `temperature_in_force`; NaN where there is no label.
        """
        temperature = self.temperature_in_force(temperature)
        if len(self.members) == 1 and not self.has_masks:
            return self.members[0].labels.max_probability(block, columns, temperature)
        shares = self._shares(self._member_regions(block, columns))
        mean = np.zeros(shares[0].shape, np.float32)
        for member, share in zip(self.members, shares, strict=True):
            mean += share * member.labels.max_probability(block, columns, temperature)
        return mean

    def recover(
        self,
        images: Images,
        crops: Sequence[Sequence[int]] | NDArray[np.integer] | None = None,
        temperature: float | None = None,
    ) -> NDArray[np.float32]:
        """Dense labels of chosen crops: float32 (len(images), m, C); `crops` None takes all M. NaN where none
        keeps it."""
        temperature = self.temperature_in_force(temperature)
        rows = self.store.image_rows(images)
        recovered = [member.labels.recover(images, crops, temperature) for member in self.members]
        wanted = crop_numbers(crops, len(rows), self.num_crops)
        regions = [
            regions_at(member.labels.chunk_source, member.mask, rows, wanted)
            for member in self.members
        ]
        truth = self._hardened[rows][:, None]
        calibrated = [
            _calibrated(member, dense, codes, truth)
            for member, dense, codes in zip(self.members, recovered, regions, strict=True)
        ]
        return _mean_dense(calibrated, self._shares(regions), self.num_classes)

    @cached_property
    def _hardened(self) -> NDArray[np.int32]:
        """(rows,) the output that a HARD crop's label becomes; where no mask has such crops, it is not looked at."""
        masks = [member.mask for member in self.members if member.mask is not None]
        hardens = any(rule_from_record(mask.row.rule).calibrates for mask in masks)
        return self.true_output if hardens else self.ground_truth

    def _member_regions(self, block: int, columns: range | None) -> list[Regions]:
        rows = self.block_rows(block)
        # a mask may cover more crops than these
        columns = range(self.layout.num_columns) if columns is None else columns
        width = len(columns) * self.plan.crops_per_chunk
        everything = np.full((len(rows), width), Region.IMPORTANT, np.uint8)
        return [
            everything if member.mask is None else member.mask.regions(block, columns)
            for member in self.members
        ]

    def _shares(self, regions: Sequence[Regions]) -> list[NDArray[np.float32]]:
        """Per member its share (n, m) of each crop's label; NaN where no member keeps the crop."""
        weights = [
            np.where(is_usable(codes), member.weight, 0.0)
            for member, codes in zip(self.members, regions, strict=True)
        ]
        total = np.sum(weights, axis=0)
        total[total == 0] = np.nan
        return [(weight / total).astype(np.float32) for weight in weights]


class UnpackedEnsemble:
    """An ensemble whose label sets are laid out flat; each process of a node maps the same files."""

    def __init__(self, ensemble: Ensemble, sources: Sequence[Unpacked]) -> None:
        self.ensemble, self.sources = ensemble, tuple(sources)

    def batch(
        self, images: Images, crops: Crops | None = None, *, temperature: float | None = None
    ) -> LabelBatch:
        """As `Ensemble.batch`, from the files."""
        return self.ensemble._batch(self.sources, images, crops, temperature)

    def close(self) -> None:
        """Give the files up; they stay for the next process."""
        for source in self.sources:
            source.close()


def _check_alike(first: LabelSet, other: LabelSet) -> None:
    if other.store.uuid != first.store.uuid:
        raise UsageError(
            f"label sets {first.name} and {other.name} are in different stores: an ensemble is over one crop plan"
        )
    if other.plan.name != first.plan.name:
        raise UsageError(
            f"label set {first.name} is on crop plan {first.plan.name} and {other.name} on {other.plan.name}: their "
            "labels are of different crops; choose label sets of one plan"
        )
    if other.num_classes != first.num_classes:
        raise UsageError(
            f"label set {first.name} has {first.num_classes} classes and {other.name} {other.num_classes}: "
            "choose teachers with the same classes"
        )
    check_same_outputs(first, other)


def _recovered(
    labels: LabelSet, block: int, columns: range | None, temperature: float
) -> SparseOrDense:
    if labels.listed is None:
        return labels.dense(block, columns, temperature)
    return labels.sparse(block, columns, temperature)


def _calibrated(
    member: Member, labels: SparseOrDense, regions: Regions, truth: NDArray[np.integer]
) -> SparseOrDense:
    if member.mask is None:
        return labels
    return calibrated(labels, member.mask, regions, truth, member.labels.num_classes)


def _together(regions: Sequence[Regions]) -> Regions:
    if len(regions) == 1:
        return regions[0]
    stacked = np.stack(regions)

    def somebody(region: Region) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (stacked == region).any(axis=0)
        return found

    codes = np.full(regions[0].shape, Region.MISSING, np.uint8)
    # the later, the stronger
    for region in (Region.TOO_EASY, Region.TOO_HARD, Region.HARD, Region.IMPORTANT):
        codes[somebody(region)] = region
    return codes


def _mean_dense(
    labels: Sequence[SparseOrDense], shares: Sequence[NDArray[np.float32]], num_classes: int
) -> NDArray[np.float32]:
    mean: NDArray[np.float32] | None = None
    for one, share in zip(labels, shares, strict=True):
        part = densify(one, num_classes) if isinstance(one, SparseLabels) else one
        part = part * share[..., None]
        mean = part if mean is None else mean + part
    assert mean is not None
    return mean


def _mean_sparse(
    labels: Sequence[SparseOrDense], shares: Sequence[NDArray[np.float32]], num_classes: int
) -> SparseLabels:
    sparse = [one for one in labels if isinstance(one, SparseLabels)]
    ids, found = over_union(sparse, num_classes)
    probs, rest = np.zeros(ids.shape, np.float32), np.zeros(ids.shape[:-1], np.float32)
    for one, own, share in zip(sparse, found, shares, strict=True):
        probs += own * share[..., None]
        rest += one.rest * share
    _largest_first(ids, probs)
    ids[np.isnan(rest)] = missing_id(ids.dtype)
    return SparseLabels(class_ids=ids, probs=probs, rest=rest)


def _largest_first(ids: NDArray[Any], probs: NDArray[np.float32]) -> None:
    """Exchange each row's most probable class with its first, in place; the others stay in no order."""
    best, at = probs[..., 0].copy(), np.zeros(probs.shape[:-1], np.int64)
    for rank in range(1, probs.shape[-1]):
        better = probs[..., rank] > best
        np.copyto(best, probs[..., rank], where=better)
        np.copyto(at, rank, where=better)
    for values in (ids, probs):
        chosen = np.take_along_axis(values, at[..., None], -1)
        np.put_along_axis(values, at[..., None], values[..., :1].copy(), -1)
        values[..., :1] = chosen
