"""Calibration of a whole label set: one region code per crop, committed block by block through the ledger.

A mask belongs to a teacher on a plan: all label sets of that teacher there may use it. What is committed
is not computed again, several processes share the blocks, and a killed one leaves nothing half done.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.calibration.criterion import check_unmixed
from labelstore.calibration.queries import rule_from_record
from labelstore.calibration.regions import RegionQuantiles, RegionThresholds, Rule
from labelstore.catalogue.block_leases import mask_identity
from labelstore.catalogue.records import MaskRow
from labelstore.commit.block_jobs import BlockSource, LeasedBlock, MadeBlock
from labelstore.commit.label_set_rows import origin_mark, refuse_dropped_origin
from labelstore.commit.lease_keeper import Progress
from labelstore.commit.staging import BlockArrays
from labelstore.commit.worker import work_through
from labelstore.errors import ConflictError, IncompleteError, UsageError
from labelstore.store import Mask
from labelstore.store.region_mask import Region
from labelstore.store.unfinished import covered_labels

if TYPE_CHECKING:
    from labelstore.store import LabelSet, Store


def calibrate(
    labels: LabelSet,
    rule: Rule | RegionQuantiles | None = None,
    *,
    name: str,
    map_blocks: MapBlocks = map_in_threads,
    progress: Progress | None = None,
) -> Mask:
    """A mask of region codes for every committed crop of `labels`; FerKD's thresholds if no rule is given.

    It looks at the labels at T0, the temperature that they were made at, and the mask's rule records which one that is
    where it is not 1. RejectedInput for crops that were mixed with other images: training takes no mask of these.

    Called again with the same name and rule it resumes, or finds everything done; with another rule, and where
    the label set was dropped and created again since, it raises ConflictError. Quantiles are turned into thresholds
    once, over all crops, and kept with the mask; they need a complete label set (IncompleteError). With
    thresholds the mask covers what is committed and a later call adds the rest. While the growth of a plan is
    unfinished it is of the first crops, which all images have, and `update` extends it. `progress` is told crops
    done and crops in all.
    """
    store = labels.store
    labels, settled, row = _wanted(labels, rule, name, map_blocks)
    store.catalogue.masks.add(row)
    store.finish_metadata()
    _fill(labels, settled, row, progress, map_blocks)
    store.refresh(images=False)
    return store.mask(name)


def check_calibrate(
    labels: LabelSet,
    rule: Rule | RegionQuantiles | None = None,
    *,
    name: str,
    map_blocks: MapBlocks = map_in_threads,
) -> None:
    """Raise what `calibrate` would raise before it writes anything."""
    labels.store.catalogue.masks.check(_wanted(labels, rule, name, map_blocks)[2])


def _wanted(
    labels: LabelSet, rule: Rule | RegionQuantiles | None, name: str, map_blocks: MapBlocks
) -> tuple[LabelSet, Rule, MaskRow]:
    """The labels that the mask is of, its rule with thresholds, and its row."""
    check_unmixed(labels)
    store = labels.store
    held = next((mask for mask in store.catalogue.masks.all() if mask.name == name), None)
    if labels.covered_crops and (held is None or held.num_crops < labels.num_crops):
        labels = covered_labels(labels)
    rule = RegionThresholds() if rule is None else rule
    settled, record = _settled(labels, rule, held, map_blocks)
    settled.check(labels)
    row = MaskRow(
        name=name,
        plan=labels.plan.name,
        teacher=labels.row.teacher,
        label_set=labels.name,
        num_crops=labels.num_crops,
        rule=record | _looked_at(labels, held),
    )
    if held is not None and held == replace(row, num_crops=held.num_crops) != row:
        raise ConflictError(
            f"mask {name} covers {held.num_crops} of {row.num_crops} crops, the plan has grown: "
            f"extend it with `labelstore.calibration.update(labelstore.open({str(store.path)!r}), name={name!r})`"
        )
    if held is not None:
        refuse_dropped_origin(store, row)
    return labels, settled, row


def update(
    store: Store,
    name: str,
    labels: LabelSet | None = None,
    *,
    map_blocks: MapBlocks = map_in_threads,
    progress: Progress | None = None,
) -> Mask:
    """Extend a mask to the crops that its plan has grown by, with the thresholds that it has; nothing is rewritten.

    Computed from the label set that the mask was made from, or from `labels` of the same teacher and plan.
    IncompleteError where that is not grown yet.
    """
    row = store.mask(name).row
    labels = check_update(store, name, labels)
    rule = rule_from_record(row.rule)
    if row.num_crops != labels.num_crops:
        with store.catalogue.transaction() as connection:
            store.catalogue.masks.change(connection, name, num_crops=labels.num_crops)
    store.finish_metadata()
    store.refresh(images=False)  # also where another process wrote it: the arrays have grown
    _fill(labels, rule, row, progress, map_blocks)
    store.refresh(images=False)
    return store.mask(name)


def check_update(store: Store, name: str, labels: LabelSet | None = None) -> LabelSet:
    """The label set that `update` computes from; UsageError or IncompleteError where it cannot.

    ConflictError where it has the name of the one that the mask was made from, which was dropped.
    """
    row = store.mask(name).row
    if labels is None and row.label_set not in store.label_sets:
        raise UsageError(
            f"label set {row.label_set}, which mask {name} was made from, is not in {store.path}: "
            f"choose another one of {row.teacher} with `label_set`"
        )
    labels = store.label_set(row.label_set) if labels is None else labels
    if (labels.row.teacher, labels.plan.name) != (row.teacher, row.plan):
        raise UsageError(
            f"label set {labels.name} is of {labels.row.teacher} on {labels.plan.name}, mask {name} of "
            f"{row.teacher} on {row.plan}: choose a label set of the same teacher with `label_set`"
        )
    check_unmixed(labels)
    made_at = store.mask(name).temperature
    if made_at not in (None, labels.temperature):
        raise UsageError(
            f"label set {labels.name} was made at T={labels.temperature:g}, mask {name} from labels at T={made_at:g}: "
            "choose a label set made at that temperature with `label_set`"
        )
    rule_from_record(row.rule).check(labels)
    if labels.name == row.label_set:
        refuse_dropped_origin(store, row)
    if row.num_crops != labels.num_crops and not labels.is_complete:
        raise IncompleteError(
            f"label set {labels.name} has {len(labels.blocks)} of {labels.layout.num_blocks} image "
            f"blocks with {labels.num_crops} crops: finish it with `labelstore.grow` first"
        )
    return labels


def _fill(
    labels: LabelSet, rule: Rule, row: MaskRow, progress: Progress | None, map_blocks: MapBlocks
) -> None:
    """Commit the region codes of every committed block."""
    made_from = {held.name: held.uuid for held in labels.store.catalogue.label_sets.all()}
    made_from[labels.name] = labels.row.uuid
    job = _Calibrating(
        store=labels.store,
        group=f"masks/{row.name}",
        identity=mask_identity(row, made_from.get(row.label_set, "")),
        layout=labels.layout,
        blocks=labels.blocks,
        map_blocks=map_blocks,
        labels=labels,
        rule=rule,
    )
    work_through(job, progress=progress or (lambda done, total: None))


def _settled(
    labels: LabelSet, rule: Rule | RegionQuantiles, held: MaskRow | None, map_blocks: MapBlocks
) -> tuple[Rule, dict[str, Any]]:
    """The rule with its thresholds, and the record that the mask keeps; `held` is the mask as it was begun earlier."""
    if not isinstance(rule, RegionQuantiles):
        return rule, rule.to_record()
    asked = {"quantiles": rule.to_record()}
    if held is not None and held.rule.get("quantiles") == asked["quantiles"]:
        # the crops that it was computed from then are what the quantiles mean
        settled = RegionThresholds.from_record(dict(held.rule))
        if (settled.criterion, settled.epsilon) == (rule.criterion, rule.epsilon):
            return settled, settled.to_record() | asked
    if not labels.is_complete:
        raise IncompleteError(
            f"label set {labels.name} has {len(labels.blocks)} of {labels.layout.num_blocks} image blocks: "
            "quantiles need all of them; finish it with `labelstore.generate`, or give thresholds"
        )
    settled = rule.thresholds(labels, map_blocks=map_blocks)
    return settled, settled.to_record() | asked


def _looked_at(labels: LabelSet, held: MaskRow | None) -> dict[str, float]:
    """T0 of the labels, for the mask's rule; a mask that was begun without it looked at the same labels."""
    begun_without = held is not None and "temperature" not in held.rule
    return {} if begun_without or labels.temperature == 1 else {"temperature": labels.temperature}


@dataclass(kw_only=True)
class _Calibrating(BlockSource):
    """The blocks of a mask: region codes of a label set's crops."""

    labels: LabelSet
    rule: Rule

    def arrays(self, leased: LeasedBlock) -> MadeBlock:
        """Compute the missing crop shards of one block."""
        started = time.monotonic()
        codes = self._codes(leased.block)
        width = self.layout.crops_per_shard
        shards = [
            BlockArrays(
                group=self.group,
                crop_shard=shard,
                arrays={"region": codes[:, shard * width : (shard + 1) * width]},
            )
            for shard in leased.missing
        ]
        return MadeBlock(
            leased=leased,
            shards=lambda: shards,
            num_images=int((codes != Region.MISSING).any(axis=1).sum()),
            seconds=time.monotonic() - started,
            device=origin_mark(self.labels.row),
        )

    def _codes(self, block: int) -> NDArray[np.uint8]:
        codes = np.empty((len(self.layout.rows(block)), self.layout.num_crops), np.uint8)
        start = 0
        for found in self.rule.slabs(self.labels, block):
            codes[:, start : start + found.shape[1]] = found
            start += found.shape[1]
        return codes
