"""A label set: one teacher's labels in one codec for every crop of a plan, read block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow, PlanRow
from labelstore.codecs import (
    LabelMap,
    MarginalSmoothing,
    RawOutputs,
    codec_from_record,
    relative_temperature,
)
from labelstore.codecs.base import LabelCodec, SparseLabels
from labelstore.codecs.image_tail import tail_fields
from labelstore.errors import NotGenerated, UsageError
from labelstore.store.chosen_images import crop_numbers, spans
from labelstore.store.group import Group
from labelstore.store.label_outputs import (
    Outputs,
    class_titles,
    output_names,
    output_titles,
    refusal_of,
)
from labelstore.store.layout import BOX, FLIP, Layout
from labelstore.store.plan_crops import CropReader
from labelstore.store.random_batch import ChunkSource, Crops, LabelBatch, batch_of

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.store.region_mask import Mask
    from labelstore.store.store import Store
    from labelstore.store.unpacked import Unpacked

Images = Sequence[int] | Sequence[str] | NDArray[np.integer]


class LabelSet:
    """Labels, boxes and flips of one label set.

    Reading goes by image block and by chunk column (`columns`, a range over all M crops; None = all M),
    because that is how bytes lie on disk. Crops of images that were left out as bad are NaN.

    A `temperature` T is the one of the teacher's logits: labels p that were made at T0 are p^(T0/T), scaled to sum to
    one. None keeps them at T0 (`temperature`). UsageError where the codec keeps too little for another T.
    """

    def __init__(self, store: Store, row: LabelSetRow, plan: PlanRow) -> None:
        self.store = store
        self.row = row
        self.plan = plan
        self.codec: LabelCodec = codec_from_record(row.codec)
        self.layout = Layout.of(plan, store.num_rows)
        self._labels = store.group(f"labels/{row.name}")
        self._crops = CropReader(store, plan, self._labels, whole_images=self.codec.takes == "map")

    def __getstate__(self) -> dict[str, Any]:
        # a worker process opens its own handles
        return {"store": self.store, "name": self.row.name, "num_crops": self.num_crops}

    def __setstate__(self, state: dict[str, Any]) -> None:
        found: LabelSet = state["store"].label_set(state["name"])
        if state["num_crops"] < found.num_crops:
            found = found.first_crops(state["num_crops"])
        self.__dict__.update(found.__dict__)

    @property
    def name(self) -> str:
        """Name of the label set."""
        return self.row.name

    @property
    def num_classes(self) -> int:
        """C."""
        return self.row.num_classes

    @property
    def temperature(self) -> float:
        """T0, the temperature of the teacher's softmax in these labels; 1 for outputs before softmax and maps."""
        return self.row.temperature

    @cached_property
    def outputs(self) -> Outputs:
        """What the C outputs are: the classes of the data set, a teacher's outputs with a map, or no classes."""
        return Outputs.of(self.row, len(self.store.class_names))

    @property
    def outputs_are_classes(self) -> bool:
        """Whether every class of the data set has an output, so that labels can be compared with the ground truth."""
        return self.outputs.are_classes

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """(C,) the class folder's name of each output that is a class of the data set, its number of the others."""
        return output_names(self.outputs, self.store.class_names, self.num_classes)

    @cached_property
    def output_titles(self) -> tuple[str, ...]:
        """(C,) what each output is, in words for people: of its class, of the teacher, or its number."""
        teacher = self.store.teacher(self.row.teacher)
        return output_titles(self.store.class_names, self.row, teacher, self.outputs)

    @cached_property
    def class_titles(self) -> tuple[str, ...]:
        """(classes,) what each class of the data set is, in words for people."""
        teacher = self.store.teacher(self.row.teacher)
        return class_titles(self.store.class_names, self.row, teacher, self.outputs)

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

    @property
    def covered_crops(self) -> int:
        """The first crops that every image has whose labels were begun: fewer than M while the plan grows; 0 for
        none."""
        if self.codec.takes == "map":
            return self.num_crops if self.blocks else 0
        return self._labels.covered_shards * self.plan.crops_per_shard

    def first_crops(self, num_crops: int) -> LabelSet:
        """The label set as if there were no crops but its first, a whole number of crop shards."""
        narrowed = LabelSet(self.store, self.row, replace(self.plan, num_crops=num_crops))
        if self.codec.takes != "map":
            narrowed._labels = self._labels.first_crops(num_crops)
        narrowed._crops = self._crops.first_crops(narrowed.plan, narrowed._labels)
        return narrowed

    def block_rows(self, block: int) -> range:
        """Image rows of a block."""
        return self.layout.rows(block)

    @cached_property
    def ground_truth(self) -> NDArray[np.int32]:
        """(rows,) class of the data set of every image row, -1 where there is none."""
        return self.store.image_columns["class_id"].astype(np.int32)

    @cached_property
    def true_output(self) -> NDArray[np.int32]:
        """(rows,) the output that is the ground truth of every image row, -1 where there is none.

        What labels are compared with. RejectedInput where outputs are no classes of the data set, or nothing says
        that they are.
        """
        if not self.outputs.are_classes:
            raise refusal_of(self)
        return self.outputs.of_truth(self.ground_truth).astype(np.int32)

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """(rows,) True where labels are committed and the image was not left out as bad."""
        present = np.zeros(self.layout.num_rows, bool)
        for block in self.blocks:
            rows = self.block_rows(block)
            present[rows.start : rows.stop] = True
        return present & ~self.store.bad

    @property
    def num_free(self) -> int:
        """Crops of free rows in the committed blocks: they belong to no image and are never counted as missing."""
        free = self.store.free
        if not free.any():
            return 0
        rows = map(self.block_rows, self.blocks)
        return sum(int(np.count_nonzero(free[r.start : r.stop])) for r in rows) * self.num_crops

    def sparse(
        self, block: int, columns: range | None = None, temperature: float | None = None
    ) -> SparseLabels:
        """Recovered labels of one image block as (ids, probabilities, rest): (n, m, K), (n, m, K), (n, m)."""
        relative = self._relative(temperature)
        parts = self._parts(block, columns)
        return SparseLabels.joined(
            [self.codec.decode(part, self.num_classes, relative) for part in parts]
        )

    @cached_property
    def num_tail_classes(self) -> int:
        """L, classes of each image's table of how its crops' tails are spread; 0 where labels have none."""
        if not isinstance(self.codec, MarginalSmoothing):
            return 0
        return self.codec.num_tail_classes(self.num_classes)

    def tailed(
        self, block: int, columns: range | None = None, temperature: float | None = None
    ) -> tuple[SparseLabels, NDArray[np.float32]]:
        """As `sparse` without the images' tables: labels (n, m, K), and the scale (n, m) of their tails.

        With `tail_tables` they say the same as `sparse`; see `labelstore.codecs.image_tail`.
        """
        assert isinstance(self.codec, MarginalSmoothing)
        relative = self._relative(temperature)
        parts = [
            self.codec.decode_tailed(part, self.num_classes, relative)
            for part in self._parts(block, columns)
        ]
        return SparseLabels.joined([p.labels for p in parts]), _joined([p.scale for p in parts])

    def tail_tables(self, block: int, crop_shard: int) -> dict[str, NDArray[Any]]:
        """The images' tables of one crop shard of one image block, (n, ...) each, by field."""
        fields = tail_fields(self.num_tail_classes, self.num_classes)
        first = crop_shard * self.layout.columns_per_shard
        (found,) = self._labels.parts(block, range(first, first + 1), [f.name for f in fields])
        return found

    def dense(
        self, block: int, columns: range | None = None, temperature: float | None = None
    ) -> NDArray[np.float32]:
        """Recovered labels of one image block, dense: (n, m, C) float32, each summing to one."""
        relative = self._relative(temperature)
        parts = [
            self.codec.recover(part, self.num_classes, relative)
            for part in self._parts(block, columns)
        ]
        return _joined(parts)

    def raw_outputs(self, block: int, columns: range | None = None) -> NDArray[np.float32]:
        """The teacher's outputs before softmax of one image block, (n, m, D) float32, NaN where missing.

        UsageError for labels that are probabilities.
        """
        codec = self.codec
        if not isinstance(codec, RawOutputs):
            raise UsageError(
                f"label set {self.name} holds {codec.name} labels, which are probabilities: outputs before softmax are "
                "kept by `compression=logits` and pq"
            )
        parts = [codec.outputs(part, self.num_classes) for part in self._parts(block, columns)]
        return _joined(parts)

    def max_probability(
        self, block: int, columns: range | None = None, temperature: float | None = None
    ) -> NDArray[np.float32]:
        """Largest entry of every recovered label of one image block: (n, m), NaN where missing."""
        if self._relative(temperature) != 1:
            if self.codec.kept(self.num_classes) is None:
                return np.asarray(self.dense(block, columns, temperature).max(-1))
            labels = self.sparse(block, columns, temperature)
            first = labels.probs[..., 0]
            # of label maps a class that no cell keeps may be the largest
            return (
                first
                if labels.probs.shape[-1] == self.num_classes
                else np.maximum(first, labels.rest)
            )
        fields = self.codec.max_probability_fields(self.num_classes)
        parts = [
            self.codec.max_probability(part, self.num_classes)
            for part in self._parts(block, columns, fields, stored_order=True)
        ]
        return _joined(parts)

    def max_probabilities(
        self, block: int, columns: range | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """`max_probability` one chunk column after the other: what stays in the processor's cache is read fastest."""
        if self.codec.takes == "map":
            yield self.max_probability(block, columns)
            return
        fields = self.codec.max_probability_fields(self.num_classes)
        for part in self._labels.columns(block, columns, fields):
            yield self.codec.max_probability(part, self.num_classes)

    def ground_truth_probability(
        self, block: int, columns: range | None = None
    ) -> NDArray[np.float32]:
        """What every label, at T0, gives the image's ground truth: (n, m), NaN where either is missing.

        RejectedInput where the outputs are no classes of the data set.
        """
        rows = self.block_rows(block)
        truth = self.true_output[rows.start : rows.stop, None]
        if self.codec.kept(self.num_classes) is None:
            dense = self.dense(block, columns)
            found = np.take_along_axis(dense, np.maximum(truth, 0)[..., None], axis=-1)[..., 0]
        else:
            found = self.sparse(block, columns).probability_of(truth)
        found[truth[:, 0] < 0] = np.nan
        return found

    def crops(
        self, block: int, columns: range | None = None
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (n, m, 4) uint16 pixels and flips (n, m) of one image block.

        Boxes of images left out as bad are 65,535.
        """
        return self._crops.of_block(block, columns)

    def recover(
        self,
        images: Images,
        crops: Sequence[Sequence[int]] | NDArray[np.integer] | None = None,
        temperature: float | None = None,
    ) -> NDArray[np.float32]:
        """Dense labels of chosen crops: float32 (len(images), m, C); `crops` None takes all M.

        `images` are image rows or keys; `crops` is (len(images), m) crop numbers; `temperature` None is T0.
        """
        relative = self._relative(temperature)
        rows = self.store.image_rows(images)
        wanted = crop_numbers(crops, len(rows), self.num_crops)
        out = np.empty((len(rows), wanted.shape[1], self.num_classes), np.float32)
        per, height = self.plan.crops_per_chunk, self.layout.images_per_shard
        for block, columns, chosen in spans(rows, wanted // per, height):
            start = columns.start * per
            # few images of many: the others are not brought into C order
            for part in self._parts(block, columns, stored_order=True):
                crops_here = range(start, start + self._num_crops_of(part))
                for i in chosen:
                    offset = int(rows[i]) - block * height
                    self._recover_into(out[i], wanted[i], part, crops_here, offset, relative)
                start = crops_here.stop
        return out

    def batch(
        self,
        images: Images,
        crops: Crops | None = None,
        *,
        temperature: float | None = None,
        mask: Mask | None = None,
    ) -> LabelBatch:
        """Sparse labels, boxes and flips of any crops, as a sampler draws them: arrays (B, m, ...).

        `images` are B image rows or keys, in any order and also several times; `crops` is (B, m) crop numbers, None
        for all M; `temperature` None is T0. With a mask, HARD crops have the softened ground truth, and crops that it
        discards are NaN (FerKD Eq. 4). The labels are those of `recover`. Decoded chunks stay in memory for the
        next batch, up to 512 MB; of a larger label set batches are faster `unpacked`.

        UsageError for what the store does not hold, for a temperature that the labels do not have, and for a mask of
        another teacher or plan; NotGenerated for crops without committed labels; RejectedInput for a mask with HARD
        crops where the outputs are no classes of the data set.
        """
        return batch_of(self.chunk_source, images, crops, temperature, mask)

    def unpacked(self, scratch: Path | str) -> Unpacked:
        """The label set as flat records in a scratch folder, for batches at memory speed; see `Unpacked`.

        30 bytes per crop at K = 5 with float16 probabilities. Written once: every process of the node maps the same
        file, and later runs find it, until no process has opened it for 30 days.
        """
        from labelstore.store.unpacked import Unpacked

        return Unpacked(self, scratch)

    @cached_property
    def chunk_source(self) -> ChunkSource:
        """Records of any crops, read from the chunks."""
        return ChunkSource(self)

    @property
    def group(self) -> Group:
        """Where the codec's arrays are read."""
        return self._labels

    def crop_parts(
        self, block: int, columns: range
    ) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint8]]]:
        """As `crops`, one part per crop shard with axes in memory as on disk; flips are 255 where missing."""
        return self._crops.parts_of_block(block, columns)

    def relative_boxes(
        self, boxes: NDArray[np.uint16], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Boxes (n, m, 4) of image rows (n,) in shares of the image's height and width; NaN where it was left out as
        bad."""
        facts = self.store.image_columns
        height, width = (facts[name][rows].astype(np.float64) for name in ("height", "width"))
        size = np.stack([height, width, height, width], axis=1)
        size[~self.present[rows] | (height <= 0)] = np.nan
        return (boxes / size[:, None]).astype(np.float32)

    def boxes(self, images: Images) -> NDArray[np.uint16]:
        """Boxes (top, left, height, width) in pixels of the original image: uint16 (n, M, 4)."""
        return self._crops.of_images(BOX, self.store.image_rows(images))

    def flips(self, images: Images) -> NDArray[np.bool_]:
        """Whether each crop is mirrored left to right: bool (n, M)."""
        rows = self.store.image_rows(images)
        mirrored: NDArray[np.bool_] = self._crops.of_images(FLIP, rows) == 1
        return mirrored

    def crop_table(self, image: int | str) -> pd.DataFrame:
        """One image's crops, one row each: crop, box, flip, max_probability, top class and its name, class ids,
        probs.

        NotGenerated for an image that was left out as bad.
        """
        import pandas as pd

        asked: Any = [image]
        rows = self.store.image_rows(asked)
        if self.store.bad[rows[0]]:
            columns = self.store.image_columns
            raise NotGenerated(
                f"{columns['key'][rows[0]] or image}: it was left out as bad and has no labels in {self.name} "
                f"({columns['bad'][rows[0]]})"
            )
        block, offset = divmod(int(rows[0]), self.layout.images_per_shard)
        labels = self.sparse(block)
        box, ids, probs = self.boxes(rows)[0], labels.class_ids[offset], labels.probs[offset]
        order = np.argmax(probs, axis=-1)
        top = np.take_along_axis(ids, order[:, None], axis=-1)[:, 0]
        table = {
            "crop": np.arange(self.num_crops),
            **{name: box[:, i] for i, name in enumerate(("top", "left", "height", "width"))},
            "flip": self.flips(rows)[0],
            "max_probability": probs.max(axis=-1),
            "top1": np.asarray(self.output_names, object)[top] if self.outputs_are_classes else top,
            "top1_name": np.asarray(self.output_titles, object)[top],
            "class_ids": list(ids),
            "probs": list(probs),
        }
        return pd.DataFrame(table)

    def _recover_into(
        self,
        out: NDArray[np.float32],
        wanted: NDArray[np.int64],
        part: dict[str, NDArray[Any]],
        crops_here: range,
        offset: int,
        relative: float,
    ) -> None:
        """Those of the wanted crops (m,) of one image that are in this part, recovered into `out` (m, C)."""
        per = self.plan.crops_per_chunk
        # whole chunk columns from its first to its last, whatever is asked of other images: equal bits
        own = range(
            max(crops_here.start, int(wanted.min()) // per * per),
            min(crops_here.stop, (int(wanted.max()) // per + 1) * per),
        )
        here = (wanted >= own.start) & (wanted < own.stop)
        if not here.any():
            return
        inside = slice(own.start - crops_here.start, own.stop - crops_here.start)
        one = {
            name: array[offset : offset + 1]
            if name in self._labels.per_image
            else array[offset : offset + 1, inside]
            for name, array in part.items()
        }
        dense = self.codec.recover(one, self.num_classes, relative)[0]
        out[here] = dense[wanted[here] - own.start]

    def _num_crops_of(self, part: dict[str, NDArray[Any]]) -> int:
        whole = self._labels.per_image
        found: int = next(array.shape[1] for name, array in part.items() if name not in whole)
        return found

    def _parts(
        self,
        block: int,
        columns: range | None,
        fields: Sequence[str] | None = None,
        *,
        stored_order: bool = False,
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Read what the codec decodes: arrays of the asked crops, or whole maps with the boxes of these crops."""
        if self.codec.takes != "map":
            yield from self._labels.parts(block, columns, fields, stored_order=stored_order)
            return
        (maps,) = self._labels.parts(block, None, fields)
        boxes, _ = self.crops(block, columns)
        yield {**maps, "box": self.relative_boxes(boxes, np.asarray(self.block_rows(block)))}

    def _relative(self, temperature: float | None) -> float:
        return relative_temperature(self.codec, temperature, self.temperature)


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
