"""What labels cost in teacher time, and whether they have paid off, from the ledger and the runs that were registered.

A teacher that is asked during training looks at every crop that a student sees: N crops per epoch. Stored labels cost
N x M crops once. They are ahead from the M-th epoch on, counted over all students together; what is saved from there
on is whole teacher passes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from labelstore.catalogue.records import is_without_teacher
from labelstore.store.layout import label_layout

if TYPE_CHECKING:
    from labelstore.catalogue.records import LabelSetRow, RunRow, ShardRow
    from labelstore.store import Store


@dataclass(frozen=True, kw_only=True)
class ShardCost:
    """One committed shard, from the ledger."""

    block: int
    crop_shard: int
    device: str
    seconds: float
    crops: int
    crops_per_second: float | None
    """None where no time was recorded."""
    images_per_second: float | None
    """Images with all their M crops."""


@dataclass(frozen=True, kw_only=True)
class DeviceCost:
    """All shards that one kind of device made."""

    device: str
    seconds: float
    crops: int
    crops_per_second: float | None
    images_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class LabelSetCost:
    """One label set."""

    label_set: str
    teacher: str
    derived: bool
    """Made from another label set, or imported: no teacher looked at a crop for it here."""
    seconds: float
    crops: int
    devices: tuple[DeviceCost, ...]
    shards: tuple[ShardCost, ...]


@dataclass(frozen=True, kw_only=True)
class TeacherCost:
    """All label sets of one teacher on one plan, and the students that learnt from any of them."""

    teacher: str
    plan: str
    label_sets: tuple[str, ...]
    seconds: float
    """The teacher's time: label sets that were derived or imported take none."""
    crops: int
    """That the teacher looked at here."""
    students: tuple[str, ...]
    """Runs in the catalogue."""
    seconds_per_student: float | None
    epochs_to_break_even: float
    """Student epochs, all students together, after which an online teacher would have looked at more crops."""
    epochs_so_far: float
    """Student epochs of which the catalogue has a result."""
    seconds_saved: float | None
    """Teacher seconds that an online teacher would have cost beyond what was spent; negative before break-even."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost ledger of a store."""

    seconds: float
    teachers: tuple[TeacherCost, ...]
    label_sets: tuple[LabelSetCost, ...]


def cost(store: Store) -> Cost:
    """Return the seconds that every label set cost, by shard and device, and what it costs per student so far."""
    rows = store.catalogue.label_sets.all()
    label_sets = {row.name: _label_set_cost(store, row) for row in rows}
    runs = store.catalogue.runs.all()
    epochs: dict[str, int] = defaultdict(int)
    for result in store.catalogue.results.all():
        epochs[result.run] = max(epochs[result.run], result.epoch)
    images = max(store.num_rows - int(store.bad.sum()), 1)
    teachers = []
    for teacher, plan in dict.fromkeys((row.teacher, row.plan) for row in rows):
        own = [row.name for row in rows if (row.teacher, row.plan) == (teacher, plan)]
        teachers.append(
            _teacher_cost(teacher, plan, [label_sets[name] for name in own], runs, epochs, images)
        )
    return Cost(
        seconds=sum(part.seconds for part in label_sets.values()),
        teachers=tuple(teachers),
        label_sets=tuple(label_sets.values()),
    )


def _teacher_cost(
    teacher: str,
    plan: str,
    parts: Sequence[LabelSetCost],
    runs: Sequence[RunRow],
    epochs: dict[str, int],
    images: int,
) -> TeacherCost:
    names = {part.label_set for part in parts}
    asked = [part for part in parts if not part.derived]
    crops = sum(part.crops for part in asked)
    seconds = sum(part.seconds for part in asked)
    students = [run.name for run in runs if names & set(run.label_sets)]
    so_far = sum(epochs[name] for name in students)
    saved = None
    if crops and seconds:
        saved = so_far * images * seconds / crops - seconds
    return TeacherCost(
        teacher=teacher,
        plan=plan,
        label_sets=tuple(part.label_set for part in parts),
        seconds=seconds,
        crops=crops,
        students=tuple(students),
        seconds_per_student=seconds / len(students) if students else None,
        epochs_to_break_even=crops / images,
        epochs_so_far=so_far,
        seconds_saved=saved,
    )


def _label_set_cost(store: Store, row: LabelSetRow) -> LabelSetCost:
    layout = label_layout(row, store.plan(row.plan), store.num_rows)
    shards = store.catalogue.ledger.shards(f"labels/{row.name}")
    per = layout.crops_per_shard
    by_device: dict[str, list[ShardRow]] = defaultdict(list)
    for shard in shards:
        by_device[shard.device].append(shard)
    return LabelSetCost(
        label_set=row.name,
        teacher=row.teacher,
        derived=bool(shards) and all(is_without_teacher(shard.device) for shard in shards),
        seconds=sum(shard.seconds for shard in shards),
        crops=sum(shard.num_images for shard in shards) * per,
        devices=tuple(
            DeviceCost(device=device, **_rates(made, per, layout.num_crops))
            for device, made in sorted(by_device.items())
        ),
        shards=tuple(
            ShardCost(
                block=shard.block,
                crop_shard=shard.crop_shard,
                device=shard.device,
                **_rates([shard], per, layout.num_crops),
            )
            for shard in shards
        ),
    )


class _Rates(TypedDict):
    seconds: float
    crops: int
    crops_per_second: float | None
    images_per_second: float | None


def _rates(shards: Sequence[ShardRow], crops_per_shard: int, num_crops: int) -> _Rates:
    seconds = sum(shard.seconds for shard in shards)
    crops = sum(shard.num_images for shard in shards) * crops_per_shard
    rate = crops / seconds if seconds > 0 else None
    return {
        "seconds": seconds,
        "crops": crops,
        "crops_per_second": rate,
        "images_per_second": None if rate is None else rate / num_crops,
    }
