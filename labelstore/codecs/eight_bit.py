"""Probabilities as 8-bit codes: how the mass that is left splits at every rank ("stick breaking").

Rank k takes a share of what the ranks before it left over, so a label sums to one by construction and the tail is
what is left at the end. Stored is a code of the odds o_k = p_k / (everything after p_k):

- first rank: cells of p_1 whose boundaries include every multiple of 0.05, so that FerKD Table 1's bins and the usual
  thresholds (FerKD Eq. 4) say the same of stored and of teacher labels;
- later ranks: steps of log odds that widen as less is left, since an error in them then costs less (the KL divergence
  of a label is that of each split, weighted by what it splits).

Divergence from the float32 label: 1e-4 nats in the mean and 3e-4 at worst for K up to 20, 2e-4 and 5e-4 up to 50.
p_1 is right to 0.005. Later classes that are equally likely may change places, by up to 0.007: class ids keep the
teacher's order.

Code 254 takes all that is left, 255 is a missing crop. With K kept of C classes, c = code, to recover a label:

    left = 1;  h = 0.085 / sqrt(min(max(K - 1, 1), 16))
    for k = 1 .. K:
        o = FIRST_ODDS[c] for k = 1, else exp(min(h / sqrt(left), 0.3) * sinh(g * (c - 152)) / g)
            where g = 0.02 if c < 152 else 0.036
        o = at least 1 / (C - k), so that a kept class is never below one that is not kept
        o = at most p_1 / (left - p_1) where that is positive, so that the first class is the largest
        p_k = left * o / (1 + o), or all of left, but at most p_1, if c = 254 or k = C;  left = left - p_k
    rest = left / (C - K)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field
from labelstore.codecs.probabilities import row_sum, scale_rows

Float = NDArray[np.float32]

EVERYTHING, MISSING = 254, 255
MIDDLE = 152
"""Code of even odds, from the second rank on."""
FINEST = 0.085
COARSEST = np.float32(0.3)
"""Widest step of log odds, in nats."""
GROWTH_BELOW, GROWTH_ABOVE = np.float32(0.02), np.float32(0.036)
"""How fast steps widen away from even odds, towards small and towards large shares."""
FIRST_ANGLE = 0.0105
"""Cell width of p_1 in arcsin(sqrt(p_1)), where equal widths cost equal divergence."""
FIRST_LOG_STEP = 0.3
"""Widest cell of log p_1 and of log(1 - p_1), in nats."""
SHARP = np.float32(0.95)
"""From here on p_1's cells are cells of what p_1 leaves."""
_MOST = np.float32(1e30)  # odds that float32 still divides by
MANY = 100  # kept classes from where on the rounding of all those splits would be seen in the sum
ROWS_AT_ONCE = 16_384  # crops whose intermediate results stay in the processor's cache
CODES_AT_ONCE = 4_096  # crops looked up in a table at once, by numbers of 64 bits


def _towards_zero(start: float, end: float) -> NDArray[np.float64]:
    """Cell boundaries of a probability from `start` down to `end`, start left out."""
    edges = [start]
    while edges[-1] > end:
        angle = max(np.arcsin(np.sqrt(edges[-1])) - FIRST_ANGLE, 0)
        edges.append(max(np.sin(angle) ** 2, edges[-1] * np.exp(-FIRST_LOG_STEP)))
    return np.array(edges[1:])


def _first_table() -> tuple[Float, Float]:
    """Inner boundaries of p_1's cells as sort keys (see `_first_key`), and the odds that stand for codes 0 to 255."""
    middle: list[float] = [0.05]
    for low in np.arange(1, 19) / 20:
        angles = np.arcsin(np.sqrt([low, low + 0.05]))
        cells = int(np.ceil(np.ptp(angles) / FIRST_ANGLE))
        middle += [*np.sin(np.linspace(angles[0], angles[1], cells + 1)[1:-1]) ** 2, low + 0.05]
    probs = np.concatenate([_towards_zero(0.05, 2**-17)[::-1], np.round(middle, 15)])
    left = _towards_zero(0.05, 1e-20)[: EVERYTHING - 1 - len(probs)]
    edges = np.concatenate([np.log(probs / (1 - probs)), np.log((1 - left) / left)])
    log_odds = np.concatenate([[2 * edges[0] - edges[1]], edges, [2 * edges[-1] - edges[-2]]])
    odds = np.full(256, np.nan, np.float32)
    odds[:EVERYTHING] = np.exp((log_odds[1:] + log_odds[:-1]) / 2)
    odds[EVERYTHING] = odds[EVERYTHING - 1]
    return np.concatenate([probs, 0.05 / left]).astype(np.float32), odds


def _first_key(probs: Float, after: Float) -> Float:
    """Return the key that sorts p_1's cells: p_1 itself, and above 0.95 the far more precise 0.05 / (1 - p_1)."""
    sharp = probs >= SHARP
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(sharp, np.maximum(np.float32(0.05) / after, SHARP), probs)


def _steps() -> Float:
    """Log odds of codes 0 to 255, from the second rank on, in units of the step at even odds."""
    from_middle = np.arange(256, dtype=np.float32) - MIDDLE
    growth = np.where(from_middle < 0, GROWTH_BELOW, GROWTH_ABOVE)
    steps: Float = (np.sinh(growth * from_middle) / growth).astype(np.float32)
    steps[MISSING] = np.nan
    return steps


def _nearest_step(log_odds: Float) -> NDArray[np.uint8]:
    """Log odds in units of the step at even odds -> code, the inverse of `_steps`."""
    growth = np.where(log_odds < 0, GROWTH_BELOW, GROWTH_ABOVE)
    steps = np.nan_to_num(np.rint(np.arcsinh(log_odds * growth) / growth)) + MIDDLE
    code: NDArray[np.uint8] = steps.clip(0, EVERYTHING - 1).astype(np.uint8)
    return code


_FIRST_EDGES, _FIRST_ODDS = _first_table()
_STEPS = _steps()


def _finest(k: int) -> np.float32:
    """Step of log odds at even odds with everything left: more ranks share the same budget of divergence."""
    return np.float32(FINEST / np.sqrt(min(max(k - 1, 1), 16)))


@dataclass(frozen=True)
class EightBitProbs:
    """`probability_code` (K,) uint8; the tail needs no array."""

    def fields(self, k: int, outcomes: int) -> tuple[Field, ...]:
        """Arrays for K kept probabilities of a distribution over so many classes."""
        return (
            Field(
                name="probability_code",
                dtype="u1",
                shape=(k,),
                dimensions=("kept",),
                fill=MISSING,
                shuffle="noshuffle",
                level=1,
                row_axes_first=True,
            ),
        )

    def encode(self, probs: Float, tail: Float, outcomes: int) -> dict[str, NDArray[Any]]:
        """Probabilities (n, m, K), sorted descending, and tail (n, m) -> codes; NaN rows are missing."""
        k = probs.shape[-1]
        probs, tail = probs.astype(np.float32, copy=False), tail.astype(np.float32, copy=False)
        by_rank = probs.reshape(-1, k).T
        # summed from the small end, so that the little that a sharp teacher leaves keeps its precision
        after = np.cumsum(
            np.concatenate([tail.reshape(1, -1), by_rank[:0:-1]]), 0, dtype=np.float32
        )[::-1]
        missing = np.isnan(by_rank[0])
        codes = np.empty((k, len(missing)), np.uint8)
        left = _Left(k, outcomes, len(missing))
        for rank in range(k):
            if rank == 0:
                key = _first_key(by_rank[0], after[0])
                code = np.searchsorted(_FIRST_EDGES, key, side="right").astype(np.uint8)
            else:
                with np.errstate(divide="ignore", invalid="ignore"):
                    log_odds = np.log(by_rank[rank]) - np.log(after[rank])
                code = _nearest_step(log_odds / left.step())
            codes[rank] = np.where(after[rank] > 0, code, EVERYTHING)
            codes[rank, missing] = MISSING
            left.take(codes[rank])
        return {"probability_code": np.ascontiguousarray(codes.T).reshape(probs.shape)}

    def decode(self, arrays: Arrays, outcomes: int) -> tuple[Float, Float]:
        """Codes -> probabilities (n, m, K) and tail (n, m), all >= 0 and summing to one; NaN where missing."""
        codes = arrays["probability_code"]
        k = codes.shape[-1]
        flat = codes.reshape(-1, k)
        probs, tail = np.empty(flat.shape, np.float32), np.empty(len(flat), np.float32)
        for start in range(0, len(flat), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            by_rank = np.ascontiguousarray(flat[rows].T)
            left = _Left(k, outcomes, by_rank.shape[1])
            for rank in range(k):
                probs[rows, rank] = left.take(by_rank[rank])
            tail[rows] = left.mass
        if k > MANY:
            total = row_sum(probs) + tail
            scale_rows(probs, np.float32(1) / total)
            tail /= total
        return probs.reshape(codes.shape), tail.reshape(codes.shape[:-1])

    def largest(self, arrays: Arrays, outcomes: int) -> Float:
        """Codes -> the largest probability of every crop (n, m), as `decode` gives it."""
        codes = arrays["probability_code"]
        first = np.ascontiguousarray(codes[..., 0])
        probs = np.empty(first.shape, np.float32)
        table = _first_probs(outcomes)
        flat_codes, flat = first.reshape(-1), probs.reshape(-1)
        for start in range(0, len(flat), CODES_AT_ONCE):
            rows = slice(start, start + CODES_AT_ONCE)
            table.take(flat_codes[rows], out=flat[rows], mode="clip")
        return probs


@lru_cache(8)
def _first_probs(outcomes: int) -> Float:
    """(256,) the first rank's probability by its code."""
    return _Left(1, outcomes, 256).take(np.arange(256, dtype=np.uint8))


class _Left:
    """What is left of each crop's mass while its ranks take their shares, in order."""

    def __init__(self, k: int, outcomes: int, crops: int) -> None:
        self.mass: Float = np.ones(crops, np.float32)
        self._first: Float | None = None
        self._classes_after = outcomes - 1
        self._finest = _finest(k)
        # with less mass left than this, steps get no wider
        self._widest_below = (self._finest / COARSEST) ** 2

    def step(self) -> Float:
        """Step of log odds at even odds, (crops,)."""
        step: Float = self._finest / np.sqrt(self.mass.clip(self._widest_below, 1))
        return step

    def take(self, code: NDArray[np.uint8]) -> Float:
        """Codes (crops,) of the next rank -> its probabilities (crops,)."""
        if self._classes_after == 0:
            taken, left = self.mass, self.mass * 0
        else:
            taken = self._odds(code)
            left = self.mass / (1 + taken)
            taken *= left
        everything = code == EVERYTHING
        exhausts = bool(everything.any())
        if exhausts:
            taken = np.where(everything, self.mass, taken)
        if self._first is None:
            self._first = taken
        else:
            np.minimum(
                taken, self._first, out=taken
            )  # the cap on the odds, exact in spite of rounding
        if exhausts:
            left = np.where(everything, self.mass - taken, left)
        self.mass = left
        self._classes_after -= 1
        return taken

    def _odds(self, code: NDArray[np.uint8]) -> Float:
        # clip with two bounds is twice as fast as NumPy's maximum with a scalar
        least = 1 / self._classes_after
        if self._first is None:
            odds: Float = _FIRST_ODDS.take(code, mode="clip")
            odds.clip(np.float32(least), _MOST, out=odds)
            return odds
        odds = _STEPS.take(code, mode="clip")
        odds *= self.step()
        odds.clip(np.float32(np.log(least)), np.float32(np.log(_MOST)), out=odds)
        np.exp(odds, out=odds)
        cap = self._first / (self.mass - self._first).clip(1 / _MOST, 1)
        np.minimum(odds, cap, out=odds)
        return odds
