"""The central noun. It opens, names and finds things; nothing here computes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.array_spec import ArraySpec
from labelstore.arrays.backend import ArrayBackend
from labelstore.catalogue import Catalogue
from labelstore.catalogue.image_blocks import ImageColumns, is_given
from labelstore.catalogue.records import LabelSetRow, MaskRow, PlanRow, TeacherRow
from labelstore.cropping.crop_plan import CropPlan, PlannedCrops, is_imported
from labelstore.errors import ConflictError, NotGenerated, UsageError
from labelstore.store.chosen_images import image_rows
from labelstore.store.group import Group
from labelstore.store.label_set import Images, LabelSet
from labelstore.store.layout import Layout, all_specs, label_specs, mask_specs, plan_specs
from labelstore.store.metadata import replace_metadata
from labelstore.store.plan_crops import StoredCrops
from labelstore.store.region_mask import Mask
from labelstore.store.user_cache import image_columns

if TYPE_CHECKING:
    import pandas as pd
    import xarray


SHARD_COLUMNS = [
    "group", "block", "crop_shard", "num_images", "bytes", "seconds", "device", "committed",
]  # fmt: skip
"""Columns of `Store.shards`, also where there is no shard yet."""

Row = TypeVar("Row", PlanRow, LabelSetRow, TeacherRow, MaskRow)


class Store:
    """One store: a catalogue, and arrays beside it. Make one with `labelstore.open` or `.create`."""

    def __init__(
        self,
        path: Path,
        catalogue: Catalogue,
        arrays: ArrayBackend,
        *,
        location: str | None = None,
    ) -> None:
        self.path = path
        self.location: str | Path = location or path
        """Where the store is, as given: its folder, or a URL, of which `path` is the cache."""
        self.catalogue = catalogue
        self.arrays = arrays
        self._groups: dict[str, Group] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # a worker process opens its own handles
        return {
            # a worker may have another working directory
            "path": self.location if isinstance(self.location, str) else self.path.absolute(),
            "readonly": self.catalogue.readonly,
            "uuid": self.uuid,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        from labelstore.store.opening import open_store

        opened = open_store(state["path"], readonly=state["readonly"])
        if opened.uuid != state["uuid"]:
            raise ConflictError(
                f"{state['path']} is another store ({opened.uuid}) than the one to be worked on "
                f"({state['uuid']}): every worker needs the same folder under this path"
            )
        self.__dict__.update(opened.__dict__)

    def __repr__(self) -> str:
        return (
            f"Store({str(self.location)!r}, images={self.num_images}, label_sets={self.label_sets})"
        )

    def close(self) -> None:
        """Close the catalogue."""
        self.catalogue.close()

    @property
    def is_remote(self) -> bool:
        """Whether its arrays lie in object storage."""
        return isinstance(self.location, str)

    @property
    def uuid(self) -> str:
        """Identity of the store."""
        return self.catalogue.uuid

    @cached_property
    def image_columns(self) -> ImageColumns:
        """The images table as columns, one entry per image row: key, class_id, width, height, digest, bad, ..."""
        # what was added since belongs to the next refresh: rows are never renumbered
        return image_columns(self.catalogue).first(self.num_rows)

    @cached_property
    def row_of_key(self) -> dict[str, int]:
        """Image rows by key; free rows have none."""
        return {key: row for row, key in enumerate(self.image_columns["key"].tolist()) if key}

    @cached_property
    def bad(self) -> NDArray[np.bool_]:
        """(rows,) True for images that were left out because they cannot be used, and for free rows."""
        return is_given(self.image_columns["bad"])

    def refresh(self, *, images: bool = True) -> None:
        """Forget what was read: other workers may have committed since.

        `images` False keeps the images, which take seconds to read again, after work that changes none.
        """
        if images:
            self.__dict__.pop("image_columns", None)
            self.__dict__.pop("row_of_key", None)
            self.__dict__.pop("bad", None)
            self.__dict__.pop("_counts", None)
        self._groups.clear()

    @property
    def num_rows(self) -> int:
        """Image rows: N, and those that are free."""
        return self._counts[1]

    @property
    def num_images(self) -> int:
        """N."""
        return self._counts[0]

    @cached_property
    def _counts(self) -> tuple[int, int]:
        # not from `free`, which reads every image
        return self.catalogue.images.counts()

    @property
    def free(self) -> NDArray[np.bool_]:
        """(rows,) True for rows that no image has: images that are added begin a new image block."""
        return self.image_columns["free"]

    @property
    def num_crops(self) -> int:
        """M of the store's plan."""
        return self.plan().num_crops

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the data set, in the order of ground-truth ids."""
        return self.catalogue.classes()

    @property
    def label_sets(self) -> tuple[str, ...]:
        """Names of the label sets."""
        return tuple(row.name for row in self.catalogue.label_sets.all())

    @property
    def masks(self) -> tuple[str, ...]:
        """Names of the masks."""
        return tuple(row.name for row in self.catalogue.masks.all())

    def plan(self, name: str | None = None) -> PlanRow:
        """The row of a crop plan: the only one, if no name is given."""
        return _pick(self.catalogue.plans.all(), name, "crop plan", "plan")

    def crop_plan(self, name: str | None = None) -> CropPlan:
        """The function that gives every crop's box and flip."""
        return CropPlan.from_record(self.plan(name).parameters)

    def planned_crops(self, plan: PlanRow | None = None) -> PlannedCrops:
        """Every crop's box and flip: computed, or read where they came with imported labels."""
        plan = self.plan() if plan is None else plan
        if is_imported(plan.parameters):
            return StoredCrops(self, plan)
        return CropPlan.from_record(plan.parameters)

    def label_set_row(
        self, name: str | None = None, *, parameter: str = "label_set"
    ) -> LabelSetRow:
        """The row of a label set: the only one, if no name is given; `parameter` is what the caller takes it from."""
        return _pick(self.catalogue.label_sets.all(), name, "label set", parameter)

    def find_label_set(self, name: str) -> LabelSetRow | None:
        """The row of a label set, or None where there is none of this name."""
        return next((row for row in self.catalogue.label_sets.all() if row.name == name), None)

    def teacher(self, name: str) -> TeacherRow:
        """The row of a teacher."""
        return _pick(self.catalogue.teachers.all(), name, "teacher", "teacher")

    def label_set(self, name: str | None = None) -> LabelSet:
        """A label set: the only one, if no name is given."""
        row = self.label_set_row(name)
        if not row.is_settled:
            raise NotGenerated(
                f"label set {row.name} has no labels yet; run the same `labelstore.generate` again to make them"
            )
        plan = self.plan(row.plan)
        self._forget_others(f"labels/{row.name}")
        self._forget_others(f"crops/{plan.name}")
        return LabelSet(self, row, plan)

    def mask(self, name: str | None = None) -> Mask:
        """A mask: the only one, if no name is given."""
        row = _pick(self.catalogue.masks.all(), name, "mask", "mask")
        self._forget_others(f"masks/{row.name}")
        return Mask(self, row)

    def images(self) -> pd.DataFrame:
        """One row per image: image, key, class, width, height, bad."""
        import pandas as pd

        rows = np.flatnonzero(~self.free)
        columns = {name: column[rows] for name, column in self.image_columns.items()}
        names = np.asarray((*self.class_names, None), dtype=object)
        return pd.DataFrame(
            {
                "image": rows,
                "key": columns["key"],
                "class": names[columns["class_id"]],
                "width": columns["width"],
                "height": columns["height"],
                "bad": columns["bad"],
            }
        )

    def teachers(self) -> pd.DataFrame:
        """One row per teacher."""
        import pandas as pd

        names = [field.name for field in fields(TeacherRow)]
        return pd.DataFrame([vars(row) for row in self.catalogue.teachers.all()], columns=names)

    def shards(self) -> pd.DataFrame:
        """One row per committed shard: group, block, crop_shard, images, bytes, seconds, device, committed."""
        import pandas as pd

        rows = [
            {
                "group": row.group,
                "block": row.block,
                "crop_shard": row.crop_shard,
                "num_images": row.num_images,
                "bytes": sum(file.size for file in row.files),
                "seconds": row.seconds,
                "device": row.device,
                "committed": row.committed,
            }
            for name in self.group_names()
            for row in self.catalogue.ledger.shards(name)
        ]
        return pd.DataFrame(rows, columns=SHARD_COLUMNS)

    def to_xarray(self) -> xarray.DataTree:
        """The store as a tree of lazy arrays over (image, crop): see `labelstore.store.xarray_view`."""
        from labelstore.store.xarray_view import to_xarray

        return to_xarray(self)

    def image_rows(self, images: Images) -> NDArray[np.int64]:
        """Image rows of rows or keys; UsageError for one that the store does not hold."""
        return image_rows(self, images)

    def image_digest(self, image: int) -> bytes | None:
        """The digest of an image's bytes as they were when it was first decoded; None where it has not been."""
        columns = self.image_columns
        digest: bytes | None = columns["digest"][image].tobytes()
        return digest if columns["has_digest"][image] else None

    def num_images_in(self, rows: range) -> int:
        """How many of consecutive image rows are an image's: growth leaves rows that are not."""
        return len(rows) - int(np.count_nonzero(self.free[rows.start : rows.stop]))

    def group_names(self) -> tuple[str, ...]:
        """Every group of arrays that the catalogue knows."""
        return (
            *(f"crops/{row.name}" for row in self.catalogue.plans.all() if row.stored),
            *(f"labels/{row.name}" for row in self.catalogue.label_sets.all()),
            *(f"masks/{row.name}" for row in self.catalogue.masks.all()),
        )

    def group(self, name: str) -> Group:
        """The committed shards of one group."""
        group = self._groups.get(name)
        if group is None:
            identity = self.catalogue.groups.identity(name)
            group_specs, layout = self.group_specs(name)
            group = Group(name, group_specs, layout, self.catalogue, self.arrays, identity=identity)
            self._groups[name] = group
        return group

    def _forget_others(self, name: str) -> None:
        """Forget a group that was dropped since it was read, and whose name was given again."""
        group = self._groups.get(name)
        if group is not None and group.identity != self.catalogue.groups.identity(name):
            del self._groups[name]

    def group_specs(self, name: str) -> tuple[tuple[ArraySpec, ...], Layout]:
        """The arrays of one group and how they are cut."""
        kind, _, owner = name.partition("/")
        if kind == "crops":
            return plan_specs(self.plan(owner), self.num_rows)
        if kind == "labels":
            row = self.label_set_row(owner)
            return label_specs(row, self.plan(row.plan), self.num_rows)
        mask: MaskRow = _pick(self.catalogue.masks.all(), owner, "mask", "mask")
        return mask_specs(mask, self.plan(mask.plan), self.num_rows)

    def write_metadata(self, damaged: Collection[str] = ()) -> None:
        """Write the arrays' metadata where the catalogue says another (reliability: intent, write, drop).

        Files known as `damaged` are written, too.
        """
        replace_metadata(
            self.catalogue,
            self.arrays,
            lambda rows: (all_specs(rows), {"": {"uuid": self.uuid}}),
            damaged=damaged,
        )
        self._groups.clear()

    def finish_metadata(self) -> None:
        """Write the arrays' metadata where somebody who had to was killed, or is about to."""
        if not self.catalogue.readonly and self.catalogue.metadata.pending():
            self.write_metadata()

    def settle_codec(
        self, label_set: str, record: Mapping[str, Any], *, uuid: str | None = None
    ) -> Mapping[str, Any]:
        """Fix how a label set stores class ids, once: the first worker decides, the others get its decision.

        ConflictError where the label set of that name has another `uuid`: it was created again meanwhile.
        """
        with self.catalogue.transaction() as connection:
            row = self.find_label_set(label_set)
            if row is None or (uuid is not None and row.uuid != uuid):
                raise ConflictError(
                    f"label set {label_set} of {self.path} was {'created again' if row else 'dropped'} while this "
                    "process was at work on it: what it made since is not committed; run the command again if it is "
                    "still wanted"
                )
            settled = row.codec if row.is_settled else record
            if not row.is_settled:
                self.catalogue.label_sets.change(connection, label_set, codec=record)
        self.write_metadata()
        return settled


def _pick(rows: Sequence[Row], name: str | None, what: str, parameter: str) -> Row:
    names = [row.name for row in rows]
    if name is None and len(rows) == 1:
        return rows[0]
    if name in names:
        return rows[names.index(name)]
    known = ", ".join(names) if names else "none"
    if name is None:
        advice = f"choose one with `{parameter}`" if names else "make one first"
        raise UsageError(f"this store holds {len(names)} {what}s ({known}): {advice}")
    raise UsageError(f"no {what} named {name!r}: this store holds {known}")
