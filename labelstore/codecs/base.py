"""What a label codec is: the arrays it needs, and both directions between them and soft labels.

Letters: n images, m crops, K kept classes, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import UsageError

Arrays = Mapping[str, NDArray[Any]]
Takes = Literal["probabilities", "outputs", "map"]
"""What a codec encodes: probabilities of crops, outputs of crops before softmax, or a map of whole images."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One array of a group (a label set, a crop plan or a mask): what one row of it looks like."""

    name: str
    """Array name inside the group, as on disk: "probability", "box", "region"."""
    dtype: str
    """Little-endian NumPy dtype string: "u1", "<u2", "<u4", "<f2", "<f4"."""
    shape: tuple[int, ...] = ()
    """Shape of one row: (K,) for kept classes, () for a scalar."""
    dimensions: tuple[str, ...] = ()
    """Names of the row's axes, one per entry of `shape`."""
    per: Literal["crop", "image"] = "crop"
    """What a row belongs to: a crop, or an image within one shard of crops."""
    fill: float | int = 0
    """Sentinel that no valid row contains: what a reader sees where nothing is stored."""
    shuffle: Literal["bitshuffle", "shuffle", "noshuffle"] = "bitshuffle"
    """Byte reordering before zstd."""
    level: int = 5
    """zstd level that suits its values: 1 is both smallest and fastest where plain Huffman codes do the work."""
    row_axes_first: bool = False
    """Store the row's axes before (image, crop), so that equal ranks of neighbouring crops are adjacent."""
    may_be_empty: bool = False
    """True where a chunk of nothing but `fill` is a legal value and is left out of the file."""


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The K largest probabilities of teacher labels, sorted descending, and the mass beyond them."""

    class_ids: NDArray[Any]
    """(..., K) unsigned integers; the dtype's largest value marks a missing crop."""
    probs: NDArray[np.float32]
    """(..., K) float32, sorted descending along the last axis."""
    tail: NDArray[np.float32]
    """(...) float32: mass of the C - K other classes, >= 0; probs.sum(-1) + tail = 1."""


@dataclass(frozen=True, kw_only=True)
class MapTopK:
    """The K largest outputs of a dense head in each cell of n images' maps, sorted descending."""

    class_ids: NDArray[Any]
    """(n, H, W, K) unsigned integers."""
    logits: NDArray[np.float32]
    """(n, H, W, K) float32, before softmax; an image of NaN is missing."""


@dataclass(frozen=True, kw_only=True)
class SparseLabels:
    """Recovered labels: class ids with their probabilities, and one probability for every other class.

    The dense label has `probs[..., k]` at `class_ids[..., k]` and `rest` everywhere else; it is
    non-negative and probs.sum(-1) + (C - K) * rest = 1.
    """

    class_ids: NDArray[Any]
    """(..., K) class indices."""
    probs: NDArray[np.float32]
    """(..., K) float32; the first is the largest, and none is below `rest`."""
    rest: NDArray[np.float32]
    """(...) float32: probability of each class that is not listed."""

    @classmethod
    def joined(cls, parts: Sequence[SparseLabels]) -> SparseLabels:
        """Labels (n, m, K) of crops side by side, along the second axis."""
        if len(parts) == 1:
            return parts[0]
        names = ("class_ids", "probs", "rest")
        return cls(**{n: np.concatenate([getattr(p, n) for p in parts], axis=1) for n in names})

    def probability_of(self, class_id: NDArray[Any]) -> NDArray[np.float32]:
        """What labels (n, m, K) give a class per image (n, 1): (n, m) in memory of its own, NaN where missing."""
        found = self.rest.astype(np.float32, copy=True)
        for rank in range(self.probs.shape[-1]):
            np.copyto(found, self.probs[..., rank], where=self.class_ids[..., rank] == class_id)
        return found


class LabelCodec(ABC):
    """A lossy form of a soft label (FKD 3.5); a frozen dataclass that owns both directions.

    Arrays always carry the two leading axes (image, crop): one shard, or any part of one. A codec does not know the
    temperature T0 of the teacher's softmax, which is the label set's: its `temperature` is T / T0, and 1 keeps labels
    as they were made. Outputs before softmax and label maps have T0 = 1.
    """

    name: ClassVar[str]
    """On-disk name and the value of `--compression`: full, hard, smoothing, ms, mr, logits, labelmap."""
    fixed_temperature: ClassVar[str | None] = None
    """Why labels stay at the temperature that they were made at; None where they can be brought to another one."""
    takes: ClassVar[Takes] = "probabilities"
    """What `encode` takes. A map's arrays are per image; `decode` then also reads `box` (n, m, 4), float32 (top,
    left, height, width) in shares of the image, NaN where a crop is missing."""

    def kept(self, num_classes: int) -> int | None:
        """How many of the C probabilities `encode` wants, or None for all of them. UsageError for more than C."""
        return None

    @abstractmethod
    def fields(self, num_classes: int) -> tuple[Field, ...]:
        """The arrays of a label set with this codec."""

    @abstractmethod
    def encode(
        self, labels: TopK | MapTopK | NDArray[np.float32], num_classes: int
    ) -> dict[str, NDArray[Any]]:
        """Teacher labels of one whole shard (n, m, ...) -> arrays by field name. Missing crops are NaN rows.

        `labels` is a TopK with `kept()` classes, or dense (n, m, C) float32 where `kept()` is None (outputs
        before softmax where `takes` says so), or a MapTopK of n images.
        """

    def decode(self, arrays: Arrays, num_classes: int, temperature: float = 1.0) -> SparseLabels:
        """Arrays (n, m, ...) -> recovered labels; missing crops come back as NaN probabilities.

        UsageError for a codec that leaves no class out.
        """
        what = "output" if self.takes == "outputs" else "class"
        raise UsageError(
            f"{self.name} labels keep every {what} and have no sparse form: recover dense labels instead"
        )

    def recover(
        self, arrays: Arrays, num_classes: int, temperature: float = 1.0
    ) -> NDArray[np.float32]:
        """Arrays (n, m, ...) -> dense labels (n, m, C), non-negative, each summing to one."""
        return densify(self.decode(arrays, num_classes, temperature), num_classes)

    def max_probability(self, arrays: Arrays, num_classes: int) -> NDArray[np.float32]:
        """Arrays (n, m, ...) -> largest entry of every label at T0, (n, m), NaN where missing.

        `arrays` need hold no more than `max_probability_fields`.
        """
        largest: NDArray[np.float32] = self.recover(arrays, num_classes).max(-1)
        return largest

    def max_probability_fields(self, num_classes: int) -> tuple[str, ...]:
        """Names of the arrays that `max_probability` reads."""
        return tuple(field.name for field in self.fields(num_classes))

    def to_record(self) -> dict[str, Any]:
        """Parameters as JSON values, `name` included: what the catalogue keeps."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The codec that `to_record` described; UsageError for parameters that make no sense."""
        known = {parameter.name for parameter in fields(cls)}  # type: ignore[arg-type]
        parameters = {key: value for key, value in record.items() if key != "name"}
        unknown = sorted(parameters.keys() - known)
        if unknown:
            raise UsageError(
                f"codec {record.get('name')!r} has no parameter {unknown[0]!r}: it has {', '.join(sorted(known))}"
            )
        return cls(**parameters)


WIDE_IDS_ABOVE = 65_534
"""More classes than this need 32-bit ids: 65,535 itself is the 16-bit sentinel."""


def id_dtype(num_classes: int) -> np.dtype[Any]:
    """Smallest unsigned dtype that holds every class id of C classes and a sentinel above them."""
    return np.dtype("<u4" if num_classes > WIDE_IDS_ABOVE else "<u2")


def missing_id(dtype: np.dtype[Any]) -> int:
    """The id that marks a missing crop: the largest value of an unsigned dtype."""
    return int(np.iinfo(dtype).max)


def densify(labels: SparseLabels, num_classes: int) -> NDArray[np.float32]:
    """Sparse labels (..., K) -> dense labels (..., C); missing crops become rows of NaN."""
    ids: NDArray[Any] = labels.class_ids
    missing = ids[..., 0] == missing_id(ids.dtype)
    dense = np.empty((*ids.shape[:-1], num_classes), np.float32)
    dense[...] = labels.rest[..., None]
    np.put_along_axis(dense, np.where(missing[..., None], 0, ids).astype(np.intp), labels.probs, -1)
    dense[missing] = np.nan
    return dense


FOUND = ("class_ids", "codebook")
"""Parameters that no user chooses: the first shard, or a sample, decides them once for a label set."""


def identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a user chose of a codec: two label sets may agree in it and differ in what was found."""
    return {key: value for key, value in record.items() if key not in FOUND}


def in_short(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record for people and for files beside the catalogue: of a codebook its checksum."""
    short = dict(record)
    if short.get("codebook"):
        short["codebook"] = str(short["codebook"]).partition(":")[0]
    return short


def with_class_ids(record: Mapping[str, Any], form: str | None) -> dict[str, Any]:
    """The record with class ids in this form, None before the first shard has decided; as it is without class ids."""
    return {**record, "class_ids": form} if "class_ids" in record else dict(record)


def check_dtype(dtype: str, allowed: Collection[str]) -> str:
    """The dtype, if numbers can be kept so; UsageError otherwise."""
    if dtype not in allowed:
        raise UsageError(f"dtype {dtype!r}: choose one of {', '.join(allowed)} with `dtype`")
    return dtype
