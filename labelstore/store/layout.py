"""Which arrays a store has: their fields, shapes, shards and chunks, and the format version.

A group is a folder of arrays that are written together: "crops/PLAN", "labels/NAME" or "masks/NAME".
Image rows are cut into image blocks of `images_per_shard`, crops into shards of `crops_per_shard`, and
each shard into chunk columns of `crops_per_chunk`; a chunk is as high as its shard, so that the crops of
one pass are a slab: one chunk column of every image block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, gcd, log
from typing import Any

from labelstore.arrays.array_spec import ArraySpec
from labelstore.catalogue import FORMAT_VERSION
from labelstore.catalogue.metadata_files import ArrayRows
from labelstore.catalogue.records import LabelSetRow, MaskRow, PlanRow
from labelstore.codecs import codec_from_record, in_short, is_map
from labelstore.codecs.base import Field
from labelstore.errors import UsageError

__all__ = ["FORMAT_VERSION", "Layout", "choose_layout", "label_layout", "specs"]

MAX_CROPS = 100_000
"""Largest M: the papers store 200 to 500."""
MAX_IMAGES_PER_SHARD = 1024
MIN_IMAGES_PER_SHARD = 64
MOST_IMAGES_PER_SHARD = 1 << 20
"""Largest --images-per-shard: a store that says more is not opened."""
MAX_SHARD_BYTES = 256 << 20
"""Raw bytes of one shard: what a worker holds in memory before it commits."""
BLOCKS_WANTED = 8
"""A small data set is cut into about this many image blocks, so that a stop loses little and workers can share."""

BOX = Field(
    name="box", dtype="<u2", shape=(4,), dimensions=("edge",), fill=65535, row_axes_first=True
)
FLIP = Field(name="flip", dtype="u1", fill=255)
PLAN_FIELDS = (BOX, FLIP)
MIX_FIELDS = (
    Field(name="mix_image", dtype="<u4", fill=2**32 - 1),
    replace(BOX, name="mix_from"),
    replace(FLIP, name="mix_flip"),
    Field(name="mix_share", dtype="<f4", fill=float("nan")),
    replace(BOX, name="mix_box"),
)
"""What crops were mixed with before the teacher saw them (imported ones, and those of `crop_mixing`): the other
image's row, its box and flip, this crop's share (1: not mixed), and the box in pixels of the teacher's input that
was pasted (no height: blended as a whole)."""
REGION = Field(name="region", dtype="u1", fill=255, shuffle="noshuffle", level=1)


def plan_fields(parameters: Mapping[str, Any]) -> tuple[Field, ...]:
    """The arrays of a crop plan."""
    return PLAN_FIELDS + MIX_FIELDS if parameters.get("mixed") else PLAN_FIELDS


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How image rows and crops are cut into shards and chunks; the same for every group on a plan."""

    num_rows: int
    num_crops: int
    images_per_shard: int
    crops_per_shard: int
    crops_per_chunk: int

    def __post_init__(self) -> None:
        if self.num_crops < 1:
            raise UsageError(f"num_crops is {self.num_crops}: store at least one crop per image")
        if self.images_per_shard < 1:
            raise UsageError(f"images_per_shard is {self.images_per_shard}: at least 1")
        if self.num_crops % self.crops_per_shard or self.crops_per_shard % self.crops_per_chunk:
            raise UsageError(
                f"{self.num_crops} crops do not divide into shards of {self.crops_per_shard} and chunks of "
                f"{self.crops_per_chunk}: crops_per_shard divides M and is a multiple of crops_per_chunk"
            )

    @classmethod
    def of(cls, plan: PlanRow, num_rows: int) -> Layout:
        """The layout of a registered plan with so many image rows."""
        return cls(
            num_rows=num_rows,
            num_crops=plan.num_crops,
            images_per_shard=plan.images_per_shard,
            crops_per_shard=plan.crops_per_shard,
            crops_per_chunk=plan.crops_per_chunk,
        )

    def plan_row(self, name: str, *, stored: bool, parameters: Mapping[str, Any]) -> PlanRow:
        """The catalogue row of a plan with this layout: see `of`."""
        return PlanRow(
            name=name,
            num_crops=self.num_crops,
            images_per_shard=self.images_per_shard,
            crops_per_shard=self.crops_per_shard,
            crops_per_chunk=self.crops_per_chunk,
            stored=stored,
            parameters=parameters,
        )

    @classmethod
    def of_images(cls, plan: PlanRow, num_rows: int) -> Layout:
        """The layout of arrays with one row per image (label maps): the plan's image blocks, one shard each."""
        return cls(
            num_rows=num_rows,
            num_crops=1,
            images_per_shard=plan.images_per_shard,
            crops_per_shard=1,
            crops_per_chunk=1,
        )

    @property
    def num_blocks(self) -> int:
        """Image blocks."""
        return ceil(self.num_rows / self.images_per_shard)

    @property
    def num_crop_shards(self) -> int:
        """Shards along the crop axis."""
        return self.num_crops // self.crops_per_shard

    @property
    def num_columns(self) -> int:
        """Chunk columns over all M crops."""
        return self.num_crops // self.crops_per_chunk

    @property
    def columns_per_shard(self) -> int:
        """Chunk columns in one shard."""
        return self.crops_per_shard // self.crops_per_chunk

    def rows(self, block: int) -> range:
        """Image rows of one block, without padding."""
        first = block * self.images_per_shard
        return range(first, min(first + self.images_per_shard, self.num_rows))

    def split(self, columns: range | None) -> Iterator[tuple[int, range]]:
        """(crop shard, chunk columns inside it) for a range of chunk columns over all M crops."""
        columns = range(self.num_columns) if columns is None else columns
        per = self.columns_per_shard
        start = columns.start
        while start < columns.stop:
            shard = start // per
            stop = min(columns.stop, (shard + 1) * per)
            yield shard, range(start - shard * per, stop - shard * per)
            start = stop


def label_layout(row: LabelSetRow, plan: PlanRow, num_rows: int) -> Layout:
    """How the arrays of a label set are cut: as its plan's crops are, or by image where its codec keeps maps."""
    return (Layout.of_images if is_map(row.codec) else Layout.of)(plan, num_rows)


def check_num_crops(num_crops: int) -> None:
    """UsageError unless M is something that a store can hold."""
    if num_crops < 1:
        raise UsageError(f"`num_crops={num_crops}`: store at least one crop per image")
    if num_crops > MAX_CROPS:
        raise UsageError(f"`num_crops={num_crops}`: a store holds at most {MAX_CROPS:,} per image")


def choose_layout(
    num_images: int,
    num_crops: int,
    bytes_per_crop: float,
    *,
    images_per_shard: int | None = None,
    crops_per_shard: int | None = None,
) -> Layout:
    """The layout for so many images and crops: chunks of about 20 crops, shards of at most 100 crops.

    `bytes_per_crop` is the raw size of one crop's rows over all arrays of the label set. Shards of at most
    100 crops let a store of 200 crops grow to 500 without rewriting anything.
    """
    check_num_crops(num_crops)
    divisors = [d for d in range(1, num_crops + 1) if num_crops % d == 0]
    if crops_per_shard is None:
        chunk = min(divisors, key=lambda d: abs(log(d / 20)))
        crops_per_shard = max(
            (d for d in divisors if d % chunk == 0 and d <= max(100, chunk)), default=chunk
        )
    else:
        if crops_per_shard < 1 or num_crops % crops_per_shard:
            raise UsageError(
                f"`crops_per_shard={crops_per_shard}` does not divide `num_crops={num_crops}`: "
                f"choose one of {', '.join(map(str, divisors))}"
            )
        chunk = gcd(crops_per_shard, min(divisors, key=lambda d: abs(log(d / 20))))
    if images_per_shard is None:
        images_per_shard = MAX_IMAGES_PER_SHARD
        while (
            images_per_shard > MIN_IMAGES_PER_SHARD
            and num_images < images_per_shard * BLOCKS_WANTED
        ):
            images_per_shard //= 2
        # a worker holds all crop shards of an image block while it labels them
        while (
            images_per_shard > 1 and images_per_shard * num_crops * bytes_per_crop > MAX_SHARD_BYTES
        ):
            images_per_shard //= 2
    elif not 1 <= images_per_shard <= MOST_IMAGES_PER_SHARD:
        raise UsageError(f"`images_per_shard={images_per_shard}`: 1 to {MOST_IMAGES_PER_SHARD:,}")
    return Layout(
        num_rows=num_images,
        num_crops=num_crops,
        images_per_shard=images_per_shard,
        crops_per_shard=crops_per_shard,
        crops_per_chunk=chunk,
    )


def specs(
    group: str, fields: Sequence[Field], layout: Layout, attributes: Mapping[str, Any] | None = None
) -> tuple[ArraySpec, ...]:
    """The arrays of one group as they lie on disk."""
    return tuple(_spec(group, field, layout, dict(attributes or {})) for field in fields)


def _spec(group: str, field: Field, layout: Layout, attributes: dict[str, Any]) -> ArraySpec:
    height = layout.images_per_shard
    if field.per == "crop":
        shape = (layout.num_rows, layout.num_crops, *field.shape)
        shard = (height, layout.crops_per_shard, *field.shape)
        chunk = (height, layout.crops_per_chunk, *field.shape)
        dimensions = ("image", "crop", *field.dimensions)
    else:
        # one row per image and crop shard: the second axis holds the rows of all crop shards side by side
        length, *more = field.shape
        shape = (layout.num_rows, layout.num_crop_shards * length, *more)
        shard = chunk = (height, *field.shape)
        dimensions = ("image", *field.dimensions)
    return ArraySpec(
        path=f"{group}/{field.name}",
        dtype=field.dtype,
        shape=shape,
        shard=shard,
        chunk=chunk,
        dimensions=dimensions,
        fill=field.fill,
        shuffle=field.shuffle,
        row_axes_first=field.row_axes_first and len(shape) > 2,
        may_be_empty=field.may_be_empty,
        level=field.level,
        attributes=attributes,
    )


GroupSpecs = tuple[tuple[ArraySpec, ...], Layout]


def plan_specs(plan: PlanRow, num_rows: int) -> GroupSpecs:
    """The arrays of stored crops, and how they are cut."""
    about = {"plan": dict(plan.parameters)}
    return _group_specs(f"crops/{plan.name}", about, Layout.of(plan, num_rows))


def label_specs(row: LabelSetRow, plan: PlanRow, num_rows: int) -> GroupSpecs:
    """The arrays of a label set whose codec is settled, and how they are cut."""
    about = {"teacher": row.teacher, "plan": row.plan, "codec": dict(row.codec)}
    layout = label_layout(row, plan, num_rows)
    return _group_specs(f"labels/{row.name}", about, layout, row.num_classes)


def mask_specs(mask: MaskRow, plan: PlanRow, num_rows: int) -> GroupSpecs:
    """The array of a mask, and how it is cut."""
    about = {"plan": mask.plan, "rule": dict(mask.rule)}
    # the crops that it was made for: a plan may have grown since
    layout = Layout.of(replace(plan, num_crops=mask.num_crops), num_rows)
    return _group_specs(f"masks/{mask.name}", about, layout)


def _group_specs(
    group: str, about: Mapping[str, Any], layout: Layout, num_classes: int = 0
) -> GroupSpecs:
    return _made_once(group, json.dumps(about), layout, num_classes), layout


@lru_cache(maxsize=512)
def _made_once(group: str, about: str, layout: Layout, num_classes: int) -> tuple[ArraySpec, ...]:
    """Every change of one array's metadata, and every commit, asks for the arrays of all groups."""
    attributes = json.loads(about)
    fields: tuple[Field, ...] = (REGION,)
    if "codec" in attributes:
        fields = codec_from_record(attributes["codec"]).fields(num_classes)
        attributes["codec"] = in_short(attributes["codec"])
    elif "rule" not in attributes:
        fields = plan_fields(attributes["plan"])
    return specs(group, fields, layout, attributes)


def all_specs(rows: ArrayRows) -> tuple[ArraySpec, ...]:
    """Every array of a store, as one state of the catalogue has it."""
    groups = [plan_specs(plan, rows.num_rows) for plan in rows.plans.values() if plan.stored]
    groups += [
        label_specs(row, rows.plans[row.plan], rows.num_rows)
        for row in rows.label_sets.values()
        # its arrays are not decided before the first shard
        if row.is_settled
    ]
    groups += [
        mask_specs(mask, rows.plans[mask.plan], rows.num_rows) for mask in rows.masks.values()
    ]
    return tuple(spec for group, _ in groups for spec in group)
