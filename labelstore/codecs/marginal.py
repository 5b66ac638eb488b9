"""Codecs that keep the top-K classes: `ms`, `mr`, `smoothing` and `hard` (FKD 3.5, Eq. 3-7).

hard        Eq. 3    the top-1 class, probability 1
smoothing   Eq. 4    the top-1 probability; what is left spread evenly over the C - 1 others
ms          Eq. 5    the top-K probabilities; what is left spread evenly over the C - K others, or as the tails of
                     all crops of the image are spread (`tail_classes`, see `image_tail`)
mr          Eq. 6-7  the top-K probabilities scaled to sum to one; the others zero
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import (
    Arrays,
    Field,
    LabelCodec,
    MapTopK,
    SparseLabels,
    TopK,
    check_dtype,
    missing_id,
)
from labelstore.codecs.class_ids import ClassIdForm, check_form, decode_ids, encode_ids, id_fields
from labelstore.codecs.eight_bit import EightBitProbs
from labelstore.codecs.float_probs import FloatProbs
from labelstore.codecs.image_tail import (
    TailedLabels,
    encode_tails,
    listed,
    read_tails,
    spread_tails,
    tail_fields,
)
from labelstore.codecs.probabilities import possible
from labelstore.codecs.recovery import relative_temperature, temper
from labelstore.codecs.topk import check_kept, first_classes
from labelstore.errors import UsageError

Float = NDArray[np.float32]

FORMS: Mapping[str, FloatProbs | EightBitProbs] = {
    "float32": FloatProbs("<f4"),
    "float16": FloatProbs("<f2"),
    "uint8": EightBitProbs(),
}
"""The on-disk forms of kept probabilities, by the name that `--dtype` gives them. `outcomes` is to them the number of
classes that share the mass: C, or K where the tail was dropped."""


@dataclass(frozen=True, kw_only=True)
class KeptClasses(LabelCodec):
    """What the four share: class ids in one of two forms, a record, the dense form."""

    class_ids: ClassIdForm = "plain"
    """"plain" ids, or "table": ranks in a table of each image's classes."""

    def __post_init__(self) -> None:
        check_form(self.class_ids)

    @abstractmethod
    def kept(self, num_classes: int) -> int:
        """K: how many of the C probabilities `encode` wants. UsageError where K > C."""

    def _num_kept(self, num_classes: int) -> int:
        """K, classes that are kept of every crop."""
        return self.kept(num_classes)

    def id_fields(self, num_classes: int) -> tuple[Field, ...]:
        """The arrays that hold class ids, (K,) per crop; UsageError where K > C."""
        k = check_kept(self._num_kept(num_classes), num_classes)
        return id_fields(self.class_ids, k, num_classes)

    def encode_ids(self, labels: TopK, num_classes: int) -> dict[str, NDArray[Any]]:
        """TopK (n, m, K or more) of one whole shard -> the arrays of its class ids by field name."""
        ids = _ids_of(labels)[..., : self._num_kept(num_classes)]
        return encode_ids(ids, self.class_ids, num_classes)

    def fields(self, num_classes: int) -> tuple[Field, ...]:
        """The arrays of a label set with this codec."""
        return self.id_fields(num_classes)

    def max_probability(self, arrays: Arrays, num_classes: int) -> NDArray[np.float32]:
        """Arrays (n, m, ...) -> largest entry of every recovered label (n, m), NaN where missing."""
        return np.ascontiguousarray(self.decode(arrays, num_classes).probs[..., 0])


@dataclass(frozen=True, kw_only=True)
class _KeptProbs(KeptClasses):
    """Those that keep probabilities beside the ids."""

    dtype: str = "float16"
    """How probabilities are kept: float32, float16 or uint8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dtype(self.dtype, FORMS)

    def _outcomes(self, num_classes: int) -> int:
        """How many classes share the mass: all C, unless the tail is dropped."""
        return num_classes

    def fields(self, num_classes: int) -> tuple[Field, ...]:
        """Class ids and probabilities, (K,) per crop."""
        return super().fields(num_classes) + self._probability_fields(num_classes)

    def _probability_fields(self, num_classes: int) -> tuple[Field, ...]:
        """All arrays but those of class ids."""
        k, outcomes = self._num_kept(num_classes), self._outcomes(num_classes)
        return FORMS[self.dtype].fields(k, outcomes)

    def encode(
        self, labels: TopK | MapTopK | NDArray[np.float32], num_classes: int
    ) -> dict[str, NDArray[Any]]:
        """TopK (n, m, K) of one whole shard -> arrays by field name; NaN rows are missing crops."""
        kept = _checked(labels, self._num_kept(num_classes))
        outcomes = self._outcomes(num_classes)
        probs = FORMS[self.dtype].encode(*possible(kept.probs, kept.tail, outcomes), outcomes)
        return self.encode_ids(kept, num_classes) | probs

    def decode(self, arrays: Arrays, num_classes: int, temperature: float = 1.0) -> SparseLabels:
        """Arrays (n, m, ...) -> recovered labels at `temperature` T / T0; missing crops are NaN."""
        labels = self._spread(arrays, *self._top_k(arrays, num_classes), num_classes)
        return temper(labels, num_classes, temperature)

    def _top_k(self, arrays: Arrays, num_classes: int) -> tuple[NDArray[Any], Float, Float]:
        """Arrays (n, m, ...) -> class ids and probabilities (n, m, K), and the tail (n, m)."""
        probs, tail = FORMS[self.dtype].decode(arrays, self._outcomes(num_classes))
        return decode_ids(arrays, self.class_ids), probs, tail

    def _spread(
        self, arrays: Arrays, ids: NDArray[Any], probs: Float, tail: Float, num_classes: int
    ) -> SparseLabels:
        """The label: the tail spread evenly over the classes that are not kept."""
        others = max(num_classes - probs.shape[-1], 1)
        # to the last bit, too, no kept class is below one that is not
        rest = np.minimum(tail / np.float32(others), probs[..., -1])
        return SparseLabels(class_ids=ids, probs=probs, rest=rest)

    def max_probability(self, arrays: Arrays, num_classes: int) -> NDArray[np.float32]:
        """Arrays (n, m, ...) -> largest entry of every recovered label (n, m); class ids are not looked at."""
        return FORMS[self.dtype].largest(arrays, self._outcomes(num_classes))

    def max_probability_fields(self, num_classes: int) -> tuple[str, ...]:
        """Names of the arrays that `max_probability` reads: all but the class ids."""
        return tuple(field.name for field in self._probability_fields(num_classes))


@dataclass(frozen=True, kw_only=True)
class MarginalSmoothing(_KeptProbs):
    """`ms`, FKD Eq. 5: top-K probabilities as they are, the tail mass spread evenly over the other classes.

    >>> from labelstore.codecs.topk import top_k
    >>> teacher = np.array([[[0.75, 0.125, 0.125]]], "f4")
    >>> ms = MarginalSmoothing(k=1)
    >>> ms.recover(ms.encode(top_k(teacher, 1), 3), 3).tolist()
    [[[0.75, 0.125, 0.125]]]
    """

    name: ClassVar[str] = "ms"
    k: int = 5
    """K, kept classes."""
    tail_classes: int = 0
    """L, classes of each image's table of how its crops' tails spread; 0: evenly, as in Eq. 5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_k(self.k)
        if self.tail_classes < 0:
            raise UsageError(
                f"tail_classes={self.tail_classes}: give the number of classes of each image's tail, or 0 for none"
            )

    def kept(self, num_classes: int) -> int:
        """K, and with an image's tail K + L, of which the tables are made; at most C. UsageError where K > C."""
        return check_kept(self.k, num_classes) + self.num_tail_classes(num_classes)

    def _num_kept(self, num_classes: int) -> int:
        return self.k

    def num_tail_classes(self, num_classes: int) -> int:
        """L: classes of each image's table, at most those that are not kept; 0 where the tail is spread evenly."""
        if not self.tail_classes:
            return 0
        return min(self.tail_classes, num_classes - self.k)

    def fields(self, num_classes: int) -> tuple[Field, ...]:
        """Class ids and probabilities, (K,) per crop; the tail's classes and shares, (L,) and (1 + L,) per image."""
        entries = self.num_tail_classes(num_classes)
        return super().fields(num_classes) + (tail_fields(entries, num_classes) if entries else ())

    def encode(
        self, labels: TopK | MapTopK | NDArray[np.float32], num_classes: int
    ) -> dict[str, NDArray[Any]]:
        """TopK (n, m, K + L) of one whole shard -> arrays by field name; NaN rows are missing crops.

        The image's tail is that of all its crops in the shard. Labels of fewer than K + L classes, but K or more, name
        fewer in the table.
        """
        entries = self.num_tail_classes(num_classes)
        if not entries:
            return super().encode(labels, num_classes)
        k = self._num_kept(num_classes)
        given = _checked(labels, k, at_least=True)
        kept = first_classes(given, k)
        return super().encode(kept, num_classes) | encode_tails(given, k, entries, num_classes)

    def _spread(
        self, arrays: Arrays, ids: NDArray[Any], probs: Float, tail: Float, num_classes: int
    ) -> SparseLabels:
        if not self.num_tail_classes(num_classes):
            return super()._spread(arrays, ids, probs, tail, num_classes)
        return listed(spread_tails(ids, probs, tail, read_tails(arrays), num_classes))

    def decode_tailed(
        self, arrays: Arrays, num_classes: int, temperature: float = 1.0
    ) -> TailedLabels:
        """Arrays (n, m, ...) with an image's tail -> the labels that `decode` gives, the table apart from the crops."""
        kept = self._top_k(arrays, num_classes)
        return spread_tails(*kept, read_tails(arrays), num_classes, temperature)

    def to_record(self) -> dict[str, Any]:
        """Name and parameters as JSON values; without a tail of images as versions write it that know of none."""
        record = super().to_record()
        return (
            record
            if self.tail_classes
            else {n: v for n, v in record.items() if n != "tail_classes"}
        )


@dataclass(frozen=True, kw_only=True)
class MarginalRenorm(_KeptProbs):
    """`mr`, FKD Eq. 6-7: top-K probabilities scaled to sum to one, every other class zero."""

    name: ClassVar[str] = "mr"
    fixed_temperature: ClassVar[str | None] = "the mass beyond the top-K was not kept"
    k: int = 5
    """K, kept classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_k(self.k)

    def kept(self, num_classes: int) -> int:
        """K; UsageError where K > C."""
        return check_kept(self.k, num_classes)

    def _outcomes(self, num_classes: int) -> int:
        return self.k

    def encode(
        self, labels: TopK | MapTopK | NDArray[np.float32], num_classes: int
    ) -> dict[str, NDArray[Any]]:
        """TopK (n, m, K) of one whole shard -> arrays by field name, renormalised."""
        kept = _checked(labels, self.k)
        total = kept.probs.sum(-1, keepdims=True)
        scaled = TopK(class_ids=kept.class_ids, probs=kept.probs / total, tail=kept.tail * 0)
        return super().encode(scaled, num_classes)

    def decode(self, arrays: Arrays, num_classes: int, temperature: float = 1.0) -> SparseLabels:
        """Arrays (n, m, ...) -> recovered labels; UsageError at another T than T0, since the tail is gone."""
        relative_temperature(self, temperature)
        return super().decode(arrays, num_classes)


@dataclass(frozen=True, kw_only=True)
class Smoothing(_KeptProbs):
    """`smoothing`, FKD Eq. 4: the top-1 probability, what is left spread evenly. Eq. 5 with K = 1."""

    name: ClassVar[str] = "smoothing"

    def kept(self, num_classes: int) -> int:
        """One."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Hard(KeptClasses):
    """`hard`, FKD Eq. 3: the teacher's top-1 class and no probability at all."""

    name: ClassVar[str] = "hard"
    fixed_temperature: ClassVar[str | None] = "a one-hot label has no temperature"

    def kept(self, num_classes: int) -> int:
        """One."""
        return 1

    def encode(
        self, labels: TopK | MapTopK | NDArray[np.float32], num_classes: int
    ) -> dict[str, NDArray[Any]]:
        """TopK (n, m, 1) of one whole shard -> arrays by field name."""
        return self.encode_ids(_checked(labels, 1), num_classes)

    def decode(self, arrays: Arrays, num_classes: int, temperature: float = 1.0) -> SparseLabels:
        """Arrays (n, m, ...) -> one-hot labels; UsageError at another T than T0."""
        relative_temperature(self, temperature)
        ids = decode_ids(arrays, self.class_ids)
        missing = ids == missing_id(ids.dtype)
        probs = np.where(missing, np.float32(np.nan), np.float32(1))
        return SparseLabels(class_ids=ids, probs=probs, rest=probs[..., 0] * 0)


def _check_k(k: int) -> None:
    if k < 1:
        raise UsageError(f"K={k}: keep at least one class with `k`")


def _checked(
    labels: TopK | MapTopK | NDArray[np.float32], k: int, *, at_least: bool = False
) -> TopK:
    given = "dense labels"
    if isinstance(labels, TopK):
        width = labels.class_ids.shape[-1]
        if width == k or (at_least and width > k):
            return labels
        given = f"{width} kept classes"
    raise UsageError(f"{given} given to a codec that keeps K={k}: make them with top_k(probs, {k})")


def _ids_of(labels: TopK) -> NDArray[Any]:
    """Class ids (n, m, K) with the sentinel wherever the label itself is NaN."""
    dtype = labels.class_ids.dtype
    missing = np.isnan(labels.probs[..., :1])
    return np.where(missing, np.asarray(missing_id(dtype), dtype), labels.class_ids)
