"""Plain tables out: NumPy archives and Parquet files, one per image block, and one HDF5 file, readable with h5py alone.

Sparse labels go out as class ids with probabilities (K of each) and the mass of the other classes, dense ones as
probabilities (C) or outputs (C); boxes are pixels. NumPy and Parquet are as `readers.tables` reads them. HDF5 has

    key           (n,)         UTF-8 text: path relative to the image folder
    ground_truth  (n,)         int32, index into class_names, -1 for none
    height, width (n,)         int32, pixels of the original image
    box           (n, m, 4)    uint16, top, left, height, width in pixels of the original image
    flip          (n, m)       uint8, 1: mirrored left to right after cropping
    class_id      (n, m, K)    uint16 (uint32 above 65,534 classes), descending by probability
    prob          (n, m, K)    float32, and
    tail          (n, m)       float32, the mass of the C - K other classes, which share it evenly; or
    prob          (n, m, C)    float32, of all classes; or
    logit         (n, m, C)    float32, outputs before softmax
    crop          (m,)         int32, numbers of the crops in the store
    class_names                of the ground truth

and, where crops were mixed before the teacher saw them, the fields of `schema.MIX_FIELDS` with `mix_key` for the row.
Attributes of the file say what made the labels; each dataset's `about` says what it is. Lost: digests; from NumPy and
Parquet the teacher, from HDF5 masks.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.hdf5_table import Hdf5Table, TableColumn
from labelstore.codecs import id_dtype, in_short
from labelstore.exchange.exported import Export, ExportedBlock, Writer


class _TableWriter(Writer):
    """Writes one file per image block."""

    ending: ClassVar[str]

    def __init__(self, place: Path, export: Export) -> None:
        self.folder, self.export = place, export
        self._files = 0

    def next_file(self) -> Path:
        """Where the next block goes."""
        self._files += 1
        return self.folder / f"part-{self._files - 1:05d}.{self.ending}"


class NpzWriter(_TableWriter):
    """Writes one archive per image block."""

    ending: ClassVar[str] = "npz"

    def write(self, block: ExportedBlock) -> int:
        """One archive with key, box, flip and the labels."""
        arrays: dict[str, NDArray[Any]] = {
            "key": np.array(block.keys),
            "box": block.boxes,
            "flip": block.flips.astype(np.uint8),
            **block.label_arrays(self.export),
        }
        with self.next_file().open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for its own flags
        return 1


class ParquetWriter(_TableWriter):
    """Writes one file per image block, a row per crop."""

    ending: ClassVar[str] = "parquet"

    def write(self, block: ExportedBlock) -> int:
        """Columns key, crop (from 0), store_crop, top, left, height, width, flip and the labels, as lists where
        there are several."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        n, m = block.flips.shape
        keys = pa.array(np.repeat(np.array(block.keys, object), m)).dictionary_encode()
        columns: dict[str, Any] = {
            "key": keys.cast(pa.string()),
            "crop": np.tile(np.arange(m, dtype=np.int32), n),
            "store_crop": np.tile(np.array(self.export.crops, np.int32), n),
        }
        for at, name in enumerate(("top", "left", "height", "width")):
            columns[name] = block.boxes[..., at].reshape(-1)
        columns["flip"] = block.flips.reshape(-1)
        for name, values in block.label_arrays(self.export).items():
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            if values.ndim == 2:
                columns[name] = flat
            else:
                columns[f"{name}s"] = pa.FixedSizeListArray.from_arrays(flat, values.shape[-1])
        pq.write_table(pa.table(columns), self.next_file(), compression="zstd")
        return 1


LAYOUT = "labelstore-hdf5/1"
_MIXING = {
    "mix_from": ("<u2", (4,), "box of the other crop, pixels of its image"),
    "mix_flip": ("u1", (), "1: the other crop was mirrored"),
    "mix_share": (
        "<f4",
        (),
        "share of this crop; 1: not mixed. Law imported/2 of crop_plan: outside of mix_box",
    ),
    "mix_box": (
        "<u2",
        (4,),
        "top, left, height, width in the teacher's input that the other crop replaced; no height: blended",
    ),
}


class Hdf5Writer(Writer):
    """Writes one file."""

    single_file: ClassVar[bool] = True
    keeps_mixing: ClassVar[bool] = True
    keeps_augmentation: ClassVar[bool] = True

    def __init__(self, place: Path, export: Export) -> None:
        self.place, self.export = place, export
        self._table: Hdf5Table | None = None
        self._keys: NDArray[Any] = export.labels.store.image_columns["key"]

    def write(self, block: ExportedBlock) -> int:
        """The rows of some images."""
        begun = self._table is None
        if self._table is None:
            self._table = self._new_table()
        values: dict[str, NDArray[Any]] = {
            "key": np.array(block.keys, object),
            "ground_truth": block.ground_truth,
            "height": block.sides[:, 0],
            "width": block.sides[:, 1],
            "box": block.boxes,
            "flip": block.flips.astype(np.uint8),
            **block.label_arrays(self.export),
        }
        if block.mixed is not None:
            values |= {name: block.mixed[name] for name in _MIXING}
            values["mix_key"] = self._keys[block.mixed["mix_image"].astype(np.int64)]
        self._table.append(values)
        return int(begun)

    def finish(self) -> int:
        """Close the file."""
        assert self._table is not None
        self._table.finish()
        return 0

    def abandon(self) -> None:
        """Let go of the file."""
        if self._table is not None:
            self._table.abandon()

    def _new_table(self) -> Hdf5Table:
        export, labels = self.export, self.export.labels
        return Hdf5Table(
            self.place,
            num_rows=export.num_images,
            columns=self._columns(),
            whole={
                "crop": (np.array(export.crops, np.int32), "numbers of the crops in the store"),
                "class_names": (
                    np.array(labels.store.class_names, object),
                    "classes of the ground truth",
                ),
                **self._output_of_class(),
            },
            attributes=self._attributes(),
        )

    def _output_of_class(self) -> dict[str, tuple[NDArray[Any], str]]:
        """Which output each class of the ground truth is, where it is one."""
        outputs = self.export.labels.outputs
        if not outputs.are_classes:
            return {}
        return {"output_of_class": (outputs.of_class.astype(np.int32), "output of each class")}

    def _columns(self) -> dict[str, TableColumn]:
        export, labels = self.export, self.export.labels
        m, classes = len(export.crops), labels.num_classes
        text = f"S{max(len(str(key).encode()) for key in self._keys if key is not None)}"
        columns: dict[str, tuple[str, tuple[int, ...], str]] = {
            "key": (text, (), "path relative to the image folder"),
            "ground_truth": ("<i4", (), "index into class_names, -1 for none"),
            "height": ("<i4", (), "of the original image, pixels"),
            "width": ("<i4", (), "of the original image, pixels"),
            "box": ("<u2", (m, 4), "top, left, height, width in pixels of the image"),
            "flip": ("u1", (m,), "1: mirrored left to right"),
        }
        if export.kept is not None:
            kept = (m, export.kept)
            columns["class_id"] = (id_dtype(classes).str, kept, "classes of the label")
            columns["prob"] = ("<f4", kept, "their probabilities")
            columns["tail"] = ("<f4", (m,), "mass of all other classes, which share it evenly")
        elif export.gives_outputs:
            columns["logit"] = ("<f4", (m, classes), "outputs before softmax")
        else:
            columns["prob"] = ("<f4", (m, classes), "of every class")
        if export.is_mixed:
            columns["mix_key"] = (text, (m,), "key of the image that was mixed in")
            for name, (dtype, shape, about) in _MIXING.items():
                columns[name] = (dtype, (m, *shape), about)
        return {
            name: TableColumn(dtype=dtype, shape=shape, about=about)
            for name, (dtype, shape, about) in columns.items()
        }

    def _attributes(self) -> dict[str, str | int | float]:
        labels = self.export.labels
        teacher = labels.store.teacher(labels.row.teacher)
        return {
            "layout": LAYOUT,
            "written_by": f"labelstore {version('labelstore')}",
            "store": labels.store.uuid,
            "label_set": labels.name,
            "codec": json.dumps(in_short(labels.codec.to_record()), sort_keys=True),
            "temperature": float(self.export.temperature),
            "num_classes": labels.num_classes,
            "outputs_are": labels.outputs.kind,
            "teacher": teacher.name,
            "teacher_source": teacher.source,
            "teacher_digest": teacher.digest,
            "input_size": teacher.input_size,
            "interpolation": teacher.interpolation,
            "crop_plan": json.dumps(dict(labels.plan.parameters), sort_keys=True),
        }
