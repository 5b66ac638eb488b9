"""Probabilities as float16 or float32, and the tail mass as a field of its own.

One minus a rounded sum is no tail: float16 loses it in nearly all labels of a sharp teacher. So:

- float32 keeps the tail as float32.
- float16 keeps one byte, `tail_code`: 0 where one minus the rounded sum is right to 7 %, which it is for most
  labels of a soft teacher (then the byte costs next to nothing), 1 where there is no mass at all, otherwise the
  tail's logarithm in steps of a fifth of an octave (7 % either way), from 1 at code 2 to 2^-50 at code 254. 255 is
  a missing crop.

To recover a float32 label: probabilities and tail divided by their sum, unless that is one to 1e-6.
To recover a float16 label with code 0: tail = 1 - sum(p). Any other:

    p = sqrt(2^-25 * tail / (C - K)) where p is 0               float16 has nothing that small
    factor = max((1 - tail) / sum(p), 1 / (sum(p) + (C - K) * p_K))
    tail = min(tail, (C - K) * p_K * factor);  p = factor * p   so that no kept class is below one that is not

Kept probabilities and tail sum to one, and nothing is ever negative. The largest probability is exact in float32,
right to 2^-11 in float16, and there on the same side of every multiple of 0.05 as the teacher's: the bins of FerKD
Table 1 and the usual thresholds (FerKD Eq. 4) say the same of stored and of teacher labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field
from labelstore.codecs.probabilities import (
    CLOSE,
    float32_of,
    is_missing,
    keep_sides,
    possible,
    row_sum,
    scale_rows,
)

Float = NDArray[np.float32]

AS_SUM, NOTHING, FIRST_STEP, LAST_STEP, MISSING = 0, 1, 2, 254, 255
STEPS_PER_OCTAVE = 5
CLOSE_ENOUGH = 0.07
"""Relative error up to which one minus the rounded sum stands for the tail: half a step."""
SMALLEST = np.float32(2**-25)
"""Below this float16 is zero."""

_TAILS = np.exp2(-(np.arange(256) - FIRST_STEP) / STEPS_PER_OCTAVE).astype(np.float32)
_TAILS[[NOTHING, MISSING]] = 0, np.nan


@dataclass(frozen=True)
class FloatProbs:
    """`probability` (K,) as dtype, and `tail` or `tail_code` where there is mass beyond the kept classes."""

    dtype: str
    """"<f2" or "<f4"."""

    def fields(self, k: int, outcomes: int) -> tuple[Field, ...]:
        """Arrays for K kept probabilities of a distribution over so many classes."""
        probability = Field(
            name="probability",
            dtype=self.dtype,
            shape=(k,),
            dimensions=("kept",),
            fill=float("nan"),
            row_axes_first=True,
        )
        if k == outcomes:
            return (probability,)
        if self.dtype == "<f4":
            return probability, Field(name="tail", dtype="<f4", fill=float("nan"), level=3)
        return probability, Field(
            name="tail_code", dtype="u1", fill=MISSING, shuffle="noshuffle", level=7
        )

    def encode(self, probs: Float, tail: Float, outcomes: int) -> dict[str, NDArray[Any]]:
        """Probabilities (n, m, K), sorted descending, and tail (n, m) -> arrays; NaN rows are missing."""
        stored = probs.astype(self.dtype, order="C")
        if self.dtype == "<f4":
            arrays = {"probability": stored, "tail": tail.astype("<f4")}
        else:
            flat, by_row = stored.reshape(-1, stored.shape[-1]), tail.reshape(-1)

            def largest(rows: NDArray[np.intp]) -> Float:
                return self.largest(_half_arrays(flat[rows], by_row[rows], outcomes), outcomes)

            keep_sides(flat, probs[..., 0].reshape(-1), largest)
            arrays = _half_arrays(stored, tail, outcomes)
        return {field.name: arrays[field.name] for field in self.fields(probs.shape[-1], outcomes)}

    def decode(self, arrays: Arrays, outcomes: int) -> tuple[Float, Float]:
        """Arrays -> probabilities (n, m, K) and tail (n, m), all >= 0 and summing to one; NaN where missing."""
        probs = self._stored(arrays["probability"])
        total = row_sum(probs)
        if probs.shape[-1] == outcomes:
            total[is_missing(total)] = np.nan
            total[np.abs(total - 1) <= CLOSE] = 1
            scale_rows(probs, np.float32(1) / total)
            return probs, total * np.float32(0)
        if self.dtype == "<f4":
            return possible(probs, arrays["tail"], outcomes)
        tail = (np.float32(1) - total).clip(0, 1)
        code = arrays["tail_code"].ravel()
        rows = np.flatnonzero(code != AS_SUM)
        by_row = probs.reshape(len(code), probs.shape[-1])
        by_row[rows], tail.ravel()[rows] = _scaled(by_row.take(rows, 0), code[rows], outcomes)
        return probs, tail

    def largest(self, arrays: Arrays, outcomes: int) -> Float:
        """Arrays -> the largest probability of every crop (n, m), as `decode` gives it."""
        stored = arrays["probability"]
        k = stored.shape[-1]
        if self.dtype == "<f4" or k == outcomes:
            return np.ascontiguousarray(self.decode(arrays, outcomes)[0][..., 0])
        # nothing is moved twice where axes lie as on disk
        by_rank = np.moveaxis(stored, -1, 0).reshape(k, -1)
        flat = float32_of(by_rank[0])
        code = arrays["tail_code"].ravel()
        rows = np.flatnonzero(code != AS_SUM)
        coded = float32_of(by_rank.take(rows, axis=1, mode="clip")).T
        factor = _factor(coded, _TAILS.take(code[rows], mode="clip"), outcomes)
        factor *= coded[:, 0]
        flat[rows] = factor
        return flat.reshape(stored.shape[:-1])

    def _stored(self, probability: NDArray[Any]) -> Float:
        """Stored probabilities as float32, in memory of their own."""
        if self.dtype == "<f4":
            return np.array(probability, np.float32, order="C")
        return float32_of(np.ascontiguousarray(probability))


def _half_arrays(stored: NDArray[Any], tail: Float, outcomes: int) -> dict[str, NDArray[Any]]:
    """float16 probabilities (..., K), the last rounded up where it fell below the rest, and the code of the tail."""
    others = np.float32(max(outcomes - stored.shape[-1], 1))
    last = stored[..., -1]
    below = (last > 0) & (last.astype(np.float32) < tail / others)
    if below.any():
        last = np.where(below, np.nextafter(last, np.float16(1)), last)
        stored = np.maximum(stored, last[..., None])
    rounded = stored.astype(np.float32)
    code = _tail_code(tail, 1 - row_sum(rounded), rounded[..., -1] * others)
    return {"probability": stored, "tail_code": code}


def _tail_code(tail: Float, by_sum: Float, most: Float) -> NDArray[np.uint8]:
    """Codes of tails (...), given one minus the rounded sums and the most that the last kept class allows."""
    missing = np.isnan(tail)
    with np.errstate(divide="ignore"):
        octaves = -np.log2(np.where(missing, 1, tail))
    steps = np.rint(octaves * STEPS_PER_OCTAVE) + FIRST_STEP
    code: NDArray[np.uint8] = steps.clip(FIRST_STEP, LAST_STEP).astype(np.uint8)
    close = np.abs(by_sum - tail) <= CLOSE_ENOUGH * tail
    code[close & (by_sum <= most)] = AS_SUM
    code[tail == 0] = NOTHING
    code[missing] = MISSING
    return code


def _scaled(probs: Float, code: NDArray[np.uint8], outcomes: int) -> tuple[Float, Float]:
    """Probabilities (r, K), in place, and tails (r,) of rows whose tail has a code of its own."""
    tail = _TAILS.take(code, mode="clip")
    factor = _factor(probs, tail, outcomes)
    most = probs[:, -1] * np.float32(outcomes - probs.shape[-1])
    scale_rows(probs, factor)
    return probs, np.minimum(tail, most * factor)


def _factor(probs: Float, tail: Float, outcomes: int) -> Float:
    """Return the factor of rows (r, K) with tails (r,); what float16 has lost is put back in place first."""
    others = np.float32(outcomes - probs.shape[-1])
    if probs.min(initial=1) <= 0:
        lost = probs == 0
        np.copyto(probs, np.sqrt(tail / others * SMALLEST)[:, None], where=lost)
    total = row_sum(probs)
    factor: Float = 1 - tail
    factor /= total
    # no kept class below one that is not: a least factor
    least = probs[:, -1] * others
    least += total
    np.divide(1, least, out=least)
    np.maximum(factor, least, out=factor)
    return factor
