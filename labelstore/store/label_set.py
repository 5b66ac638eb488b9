"""A label set: one teacher's labels in one codec for every crop of a plan, read block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow, PlanRow
from labelstore.codecs import LabelMap, codec_from_record
from labelstore.codecs.base import LabelCodec, SparseLabels
from labelstore.errors import UsageError
from labelstore.schema import Layout
from labelstore.store.group import Group

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.store.store import Store

Images = Sequence[int] | Sequence[str] | NDArray[np.integer]


class LabelSet:
    """Labels, boxes and flips of one label set.

    Reading goes by image block and by chunk column (`columns`, a range over all M crops; None = all M),
    because that is how bytes lie on disk. Crops of images that were left out as bad are NaN.
    """

    def __init__(self, store: Store, row: LabelSetRow, plan: PlanRow) -> None:
        self.store = store
        self.row = row
        self.plan = plan
        self.codec: LabelCodec = codec_from_record(row.codec)
        self.layout = Layout.of(plan, store.num_rows)
        self._labels = store.group(f"labels/{row.name}")
        self._crops: Group | None = store.group(f"crops/{plan.name}") if plan.stored else None

    def __getstate__(self) -> dict[str, Any]:
        # a worker process opens its own handles
        return {"store": self.store, "name": self.row.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["store"].label_set(state["name"]).__dict__)

    @property
    def name(self) -> str:
        """Name of the label set."""
        return self.row.name

    @property
    def num_classes(self) -> int:
        """C."""
        return self.row.num_classes

    @cached_property
    def outputs_are_classes(self) -> bool:
        """False for a projection head: its outputs are no classes of the data set."""
        return self.codec.takes != "outputs" or self.num_classes == len(self.store.class_names)

    @cached_property
    def listed(self) -> int | None:
        """K, classes that every recovered label lists at most; None where labels are dense.

        Of label maps, found by looking at all of them.
        """
        kept = self.codec.kept(self.num_classes)
        if not isinstance(self.codec, LabelMap):
            return kept
        found = [
            self.codec.listed(part, self.num_classes)
            for block in self.blocks
            for part in self._labels.parts(block, None, ["map_class"])
        ]
        return max(found, default=kept)

    @property
    def num_crops(self) -> int:
        """M, crops stored per image."""
        return self.plan.num_crops

    @property
    def blocks(self) -> tuple[int, ...]:
        """Image blocks that are committed."""
        return self._labels.blocks

    @property
    def is_complete(self) -> bool:
        """True when every image block is committed."""
        return len(self.blocks) == self.layout.num_blocks

    def block_rows(self, block: int) -> range:
        """Image rows of a block."""
        return self.layout.rows(block)

    @cached_property
    def ground_truth(self) -> NDArray[np.int32]:
        """(rows,) class of every image row, -1 where there is none."""
        return self.store.image_columns["class_id"].astype(np.int32)

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """(rows,) True where labels are committed and the image was not left out as bad."""
        present = np.zeros(self.layout.num_rows, bool)
        for block in self.blocks:
            present[list(self.block_rows(block))] = True
        return present & ~self.store.bad

    @property
    def num_free(self) -> int:
        """Crops of free rows in the committed blocks: they are nobody's, and count as missing nowhere."""
        free = self.store.free
        if not free.any():
            return 0
        rows = (free[list(self.block_rows(block))] for block in self.blocks)
        return sum(map(int, map(np.count_nonzero, rows))) * self.num_crops

    def sparse(
        self, block: int, columns: range | None = None, temperature: float = 1.0
    ) -> SparseLabels:
        """Recovered labels of one image block as (ids, probabilities, rest): (n, m, K), (n, m, K), (n, m)."""
        parts = [
            self.codec.decode(part, self.num_classes, temperature)
            for part in self._parts(block, columns)
        ]
        if len(parts) == 1:
            return parts[0]
        return SparseLabels(
            class_ids=np.concatenate([p.class_ids for p in parts], axis=1),
            probs=np.concatenate([p.probs for p in parts], axis=1),
            rest=np.concatenate([p.rest for p in parts], axis=1),
        )

    def dense(
        self, block: int, columns: range | None = None, temperature: float = 1.0
    ) -> NDArray[np.float32]:
        """Recovered labels of one image block, dense: (n, m, C) float32, each summing to one."""
        parts = [
            self.codec.recover(part, self.num_classes, temperature)
            for part in self._parts(block, columns)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def max_probability(self, block: int, columns: range | None = None) -> NDArray[np.float32]:
        """Largest entry of every recovered label of one image block: (n, m), NaN where missing."""
        fields = self.codec.max_probability_fields(self.num_classes)
        parts = [
            self.codec.max_probability(part, self.num_classes)
            for part in self._parts(block, columns, fields, stored_order=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def ground_truth_probability(
        self, block: int, columns: range | None = None
    ) -> NDArray[np.float32]:
        """What every recovered label gives the image's ground truth: (n, m), NaN where missing."""
        if not self.outputs_are_classes:
            raise UsageError(
                f"label set {self.name} has {self.num_classes} outputs that are not the data set's "
                f"{len(self.store.class_names)} classes: its crops have no ground truth among them"
            )
        truth = self.ground_truth[list(self.block_rows(block))][:, None, None]
        if self.codec.kept(self.num_classes) is None:
            dense = self.dense(block, columns)
            inside = np.clip(truth, 0, self.num_classes - 1)
            return np.take_along_axis(dense, inside, axis=-1)[..., 0]
        labels = self.sparse(block, columns)
        listed = labels.class_ids == truth
        return np.where(
            listed.any(axis=-1), (labels.probs * listed).sum(axis=-1), labels.rest
        ).astype(np.float32)

    def crops(
        self, block: int, columns: range | None = None
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (n, m, 4) uint16 pixels and flips (n, m) of one image block.

        Boxes of images left out as bad are 65,535.
        """
        if self._crops is None or (self.codec.takes == "map" and block not in self._crops.blocks):
            # maps do not wait for crops: where a plan has grown, boxes follow from its parameters
            return self._computed_crops(block, columns)
        boxes = self._crops.read(block, columns, "box")
        return boxes, self._crops.read(block, columns, "flip") == 1

    def recover(
        self,
        images: Images,
        crops: Sequence[Sequence[int]] | NDArray[np.integer] | None = None,
        temperature: float = 1.0,
    ) -> NDArray[np.float32]:
        """Dense labels of chosen crops: float32 (len(images), m, C); `crops` None takes all M.

        `images` are image rows or keys; `crops` is (len(images), m) crop numbers.
        """
        rows = self.store.image_rows(images)
        wanted = self._crop_numbers(crops, len(rows))
        out = np.empty((len(rows), wanted.shape[1], self.num_classes), np.float32)
        for i, (block, offset) in enumerate(self._places(rows)):
            columns = wanted[i] // self.plan.crops_per_chunk
            asked = range(int(columns.min()), int(columns.max()) + 1)
            shift = asked.start * self.plan.crops_per_chunk
            at = wanted[i] - shift
            start = 0
            # one image of many: the others are not brought into C order
            for part in self._parts(block, asked, stored_order=True):
                one = {name: array[offset : offset + 1] for name, array in part.items()}
                dense = self.codec.recover(one, self.num_classes, temperature)[0]
                here = (at >= start) & (at < start + len(dense))
                out[i, here] = dense[at[here] - start]
                start += len(dense)
        return out

    def boxes(self, images: Images) -> NDArray[np.uint16]:
        """Boxes (top, left, height, width) in pixels of the original image: uint16 (n, M, 4)."""
        places = self._places(self.store.image_rows(images))
        return np.stack([self._crop_field("box", block, offset) for block, offset in places])

    def flips(self, images: Images) -> NDArray[np.bool_]:
        """Whether each crop is mirrored left to right: bool (n, M)."""
        places = self._places(self.store.image_rows(images))
        return np.stack([self._crop_field("flip", block, offset) for block, offset in places])

    def crop_table(self, image: int | str) -> pd.DataFrame:
        """One image's crops, one row each: crop, box, flip, max_probability, top class, class ids, probs."""
        import pandas as pd

        rows = self.store.image_rows([image] if isinstance(image, str) else [int(image)])
        ((block, offset),) = self._places(rows)
        boxes, flips = self.crops(block)
        labels = self.sparse(block)
        classes = np.asarray(self.store.class_names, dtype=object)
        box, ids, probs = boxes[offset], labels.class_ids[offset], labels.probs[offset]
        order = np.argmax(probs, axis=-1)
        top = np.take_along_axis(ids, order[:, None], axis=-1)[:, 0]
        named = classes[top] if len(classes) == self.num_classes else top
        table = {
            "crop": np.arange(self.num_crops),
            **{name: box[:, i] for i, name in enumerate(("top", "left", "height", "width"))},
            "flip": flips[offset],
            "max_probability": probs.max(axis=-1),
            "top1": named,
            "class_ids": list(ids),
            "probs": list(probs),
        }
        return pd.DataFrame(table)

    def _crop_field(self, field: str, block: int, offset: int) -> NDArray[Any]:
        """Boxes or flips of one image: only the array that is asked for is read."""
        if self._crops is None or self.codec.takes == "map":
            boxes, flips = self.crops(block)
            return np.asarray(boxes[offset] if field == "box" else flips[offset])
        parts = self._crops.parts(block, None, [field], stored_order=True)
        whole = np.concatenate([part[field][offset] for part in parts])
        return whole if field == "box" else np.equal(whole, 1)

    def _parts(
        self,
        block: int,
        columns: range | None,
        fields: Sequence[str] | None = None,
        *,
        stored_order: bool = False,
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """What the codec decodes: arrays of the asked crops, or whole maps with the boxes of these crops."""
        if self.codec.takes != "map":
            yield from self._labels.parts(block, columns, fields, stored_order=stored_order)
            return
        (maps,) = self._labels.parts(block, None, fields)
        yield {**maps, "box": self._relative_boxes(block, columns)}

    def _relative_boxes(self, block: int, columns: range | None) -> NDArray[np.float32]:
        """Boxes (n, m, 4) in shares of the image's height and width, NaN where it was left out as bad."""
        boxes, _ = self.crops(block, columns)
        rows = self.block_rows(block)
        facts = self.store.image_columns
        height, width = (
            facts[name][rows.start : rows.stop].astype(np.float64) for name in ("height", "width")
        )
        missing = ~self.present[rows.start : rows.stop] | (height <= 0)
        size = np.stack([height, width, height, width], axis=1)
        size[missing] = np.nan
        return (boxes / size[:, None]).astype(np.float32)

    def _crop_numbers(
        self, crops: Sequence[Sequence[int]] | NDArray[np.integer] | None, n: int
    ) -> NDArray[np.int64]:
        if crops is None:
            return np.broadcast_to(np.arange(self.num_crops), (n, self.num_crops)).astype(np.int64)
        wanted = np.asarray(crops, np.int64)
        if wanted.ndim != 2 or len(wanted) != n:
            raise UsageError(
                f"crops has shape {wanted.shape}: give one row of crop numbers per image, ({n}, m)"
            )
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.num_crops):
            raise UsageError(
                f"crop {int(wanted.max() if wanted.max() >= self.num_crops else wanted.min())} asked for: "
                f"this plan has crops 0-{self.num_crops - 1}"
            )
        return wanted

    def _places(self, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
        height = self.layout.images_per_shard
        return [(int(row) // height, int(row) % height) for row in rows]

    def _computed_crops(
        self, block: int, columns: range | None
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Seeded crops: boxes are a pure function of seed, key, image size and crop number."""
        self._labels.shard(block, 0)
        columns = range(self.layout.num_columns) if columns is None else columns
        per = self.plan.crops_per_chunk
        crops = np.arange(columns.start * per, columns.stop * per)
        rows = self.block_rows(block)
        facts = self.store.image_columns
        inside = slice(rows.start, rows.stop)
        sizes = np.stack([facts["height"][inside], facts["width"][inside]], axis=1)
        known = np.flatnonzero(sizes.min(axis=1) > 0)
        boxes = np.full((len(rows), len(crops), 4), 65535, np.uint16)
        flips = np.zeros((len(rows), len(crops)), bool)
        keys = [facts["key"][rows.start + int(i)] for i in known]
        boxes[known], flips[known] = self.store.crop_plan(self.plan.name).crops_of_images(
            keys, sizes[known], np.broadcast_to(crops, (len(known), len(crops)))
        )
        return boxes, flips
