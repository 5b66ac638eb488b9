"""Calibration of a whole label set: one region code per crop, committed block by block through the ledger.

A mask belongs to a teacher on a plan: all label sets of that teacher there may use it. What is committed
is not computed again, several processes share the blocks, and a killed one leaves nothing half done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.calibration.probability import MapBlocks, check_calibratable, probabilities
from labelstore.calibration.regions import Region, RegionQuantiles, RegionThresholds, Rule
from labelstore.catalogue.records import Lease, MaskRow
from labelstore.errors import IncompleteError
from labelstore.store import BlockArrays, Mask, write_block
from labelstore.store.block_work import fill_blocks
from labelstore.store.leases import Progress
from labelstore.store.slabs import slabs

if TYPE_CHECKING:
    from labelstore.store import LabelSet

def calibrate(
    labels: LabelSet,
    rule: Rule | RegionQuantiles | None = None,
    *,
    name: str,
    map_blocks: MapBlocks = map,
    progress: Progress | None = None,
) -> Mask:
    """A mask of region codes for every committed crop of `labels`; FerKD's thresholds if no rule is given.

    Called again with the same name and rule it resumes, or finds everything done; with another rule it
    raises ConflictError. Quantiles are turned into thresholds once, over all crops, and kept with the mask;
    they need a complete label set (IncompleteError). With thresholds the mask covers what is committed and
    a later call adds the rest. `progress` is told crops done and crops in all.
    """
    store = labels.store
    rule = RegionThresholds() if rule is None else rule
    settled, record = _settled(labels, rule, name, map_blocks)
    check_calibratable(labels, settled.criterion, calibrates=settled.calibrates)
    row = MaskRow(
        name=name,
        plan=labels.plan.name,
        teacher=labels.row.teacher,
        label_set=labels.name,
        num_crops=labels.num_crops,
        rule=record,
    )
    is_new = name not in store.masks
    store.catalogue.add_mask(row)
    if is_new:
        store.write_metadata()
    group = f"masks/{name}"
    job = _Job(labels, settled, group)
    told = progress or (lambda done, total: None)
    fill_blocks(store, group, labels.blocks, labels.layout, job.mask, told)
    store.refresh()
    return store.mask(name)


def _settled(
    labels: LabelSet, rule: Rule | RegionQuantiles, name: str, map_blocks: MapBlocks
) -> tuple[Rule, dict[str, Any]]:
    """The rule with its thresholds, and the record that the mask keeps."""
    if not isinstance(rule, RegionQuantiles):
        return rule, rule.to_record()
    asked = {"quantiles": rule.to_record()}
    for held in labels.store.catalogue.masks():
        # begun earlier: the crops that it was computed from then are what the quantiles mean
        if held.name == name and held.rule.get("quantiles") == asked["quantiles"]:
            settled = RegionThresholds.from_record(dict(held.rule))
            if (settled.criterion, settled.epsilon) == (rule.criterion, rule.epsilon):
                return settled, settled.to_record() | asked
    if not labels.is_complete:
        raise IncompleteError(
            f"label set {labels.name} has {len(labels.blocks)} of {labels.layout.num_blocks} image blocks: "
            "quantiles need all of them; finish it with `labelstore create`, or give thresholds"
        )
    settled = rule.thresholds(labels, map_blocks=map_blocks)
    return settled, settled.to_record() | asked


class _Job:
    """One process's share of a mask."""

    def __init__(self, labels: LabelSet, rule: Rule, group: str) -> None:
        self.labels, self.rule, self.group = labels, rule, group
        self.layout = labels.layout
        self.columns = slabs(labels)

    def mask(self, lease: Lease, missing: Sequence[int]) -> None:
        """Compute and commit the missing crop shards of one leased block."""
        started = time.monotonic()
        codes = self._codes(lease.block)
        width = self.layout.crops_per_shard
        shards = [
            BlockArrays(
                group=self.group,
                crop_shard=shard,
                arrays={"region": codes[:, shard * width : (shard + 1) * width]},
            )
            for shard in missing
        ]
        write_block(
            self.labels.store,
            lease,
            shards,
            num_images=int((codes != Region.MISSING).any(axis=1).sum()),
            seconds=time.monotonic() - started,
        )

    def _codes(self, block: int) -> NDArray[np.uint8]:
        codes = np.empty((len(self.layout.rows(block)), self.layout.num_crops), np.uint8)
        start = 0
        for columns in self.columns:
            found = self.rule.regions(
                probabilities(self.labels, self.rule.criterion, block, columns)
            )
            codes[:, start : start + found.shape[1]] = found
            start += found.shape[1]
        return codes
