"""Crop plans: which box and which flip a crop of an image is (FKD 3.1), as a pure function of integers.

The law is that of RandomResizedCrop: area uniform in `scale`, aspect ratio log-uniform in `ratio`, up to
ten attempts, then the largest centre crop. It is written down here so that any language can compute the
same boxes; `//` rounds down, `>>` shifts right, every number is an unsigned integer below 2^64.

- Constants of a plan: S0, S1 = scale * 2^32 and R0, R1 = ratio * 2^32 to the nearest integer;
  F = flip_prob * 2^16 to the nearest; for k = 0..4096, G[k] = 2^26 * sqrt(ratio0) *
  (ratio1 / ratio0)^(k / 8192) to the nearest. G is the only place with a logarithm or a root of a real
  number: it is computed with 60 decimal digits, so no platform's `exp` can change it.
- An image's stream is the first 8 bytes of SHA-256 of its key (NFC, UTF-8), as a little-endian integer.
- Attempt a = 0..9 of crop c draws one block of Philox-4x32-10 with key (seed mod 2^32, seed >> 32) and
  counter (a, c, stream mod 2^32, stream >> 32): words x0, x1, x2, x3. Crops therefore do not depend on
  how they are grouped or on how many there are.
- u = x0 >> 8; v = x1 >> 8; area = S0 + ((S1 - S0) * u >> 24), a share of the image in 2^-32;
  side = floor(sqrt(height * width * area)), in 2^-16 pixels; k = v >> 12;
  g = G[k] + ((G[k + 1] - G[k]) * (v mod 2^12) >> 12), the root of the aspect ratio in 2^-26.
- w = (side * g + 2^41) >> 42; h = ((side << 27) + (g << 16)) // (g << 17). The attempt is accepted if
  1 <= w <= width and 1 <= h <= height: top = x2 * (height - h + 1) >> 32, left = x3 * (width - w + 1) >> 32.
- After ten attempts: if width << 32 < height * R0 then w = width, h = ((width << 33) + R0) // (2 * R0);
  else if width << 32 > height * R1 then h = height, w = (height * R1 + 2^31) >> 32; else w = width, h = height;
  both at least 1 and at most the image's; top = (height - h) >> 1, left = (width - w) >> 1.
- The crop is flipped if ((x0 mod 2^8) << 8) + (x1 mod 2^8) of attempt 0 is below F.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import lru_cache
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labelstore.errors import FormatVersionError, RejectedInput, UsageError

U64 = NDArray[np.uint64]

LAW = "random-resized-crop/philox4x32-10/1"
"""Name of the arithmetic above, as recorded with a plan; it changes whenever a box would."""
IMPORTED_LAW = "imported/1"
"""The plan's law for crops that came with imported labels: they are stored and cannot be computed."""
BLENDED_LAW = "imported/2"
"""The same, of crops that may be both blended with another and partly replaced by it (`is_blended`)."""
MAX_SIDE = 65_534
"""Longest image side in pixels: 65,535 in a stored box means that it is missing."""

ATTEMPTS = 10
KNOTS = 4096
# Temporaries of one slice stay in the second-level cache
SLICE = 8192
LOW32 = np.uint64(0xFFFF_FFFF)
LOW8 = np.uint64(0xFF)
HALF = np.uint64(32)
ONE = np.uint64(1)


@dataclass(frozen=True, kw_only=True)
class CropPlan:
    """Every crop of every image: a function of (seed, image key, height, width, crop number).

    >>> boxes, flips = CropPlan(seed=1).crops("cat/1.jpg", 375, 500, [0, 1])
    >>> boxes.shape, flips.shape
    ((2, 4), (2,))
    """

    seed: int = 0
    """0 to 2^64 - 1."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height."""
    flip_prob: float = 0.5
    """Probability of a horizontal flip, used as a multiple of 2^-16."""

    def __post_init__(self) -> None:
        """Refuse parameters that no crop can satisfy."""
        object.__setattr__(self, "scale", _pair("scale", self.scale, 2**-32, 1))
        object.__setattr__(self, "ratio", _pair("ratio", self.ratio, 1 / 1024, 1024))
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed {self.seed} is not in 0 to 2^64 - 1: give another seed")
        if not 0 <= self.flip_prob <= 1:
            raise UsageError(f"flip_prob {self.flip_prob} is not a probability: give 0 to 1")

    def crops(
        self, key: str, height: int, width: int, crops: Sequence[int] | NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (m, 4) uint16 as top, left, height, width in pixels, and flips (m,), of one image.

        Raises RejectedInput for an image without pixels or with a side above 65,534.
        """
        boxes, flips = self.crops_of_images([key], [(height, width)], np.asarray(crops)[None, :])
        return boxes[0], flips[0]

    def crops_of_images(
        self, keys: Sequence[str] | U64, sizes: ArrayLike, crops: ArrayLike
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (n, m, 4) uint16 and flips (n, m) of n images, m crops each.

        `keys` are n image keys, or their `image_streams`, which a caller with many passes keeps;
        `sizes` (n, 2) are height and width in pixels; `crops` (n, m) are crop numbers below 2^32.
        Raises RejectedInput for an image without pixels or with a side above 65,534.
        """
        streams = keys if isinstance(keys, np.ndarray) else image_streams(keys)
        pixels = np.asarray(sizes)
        numbers = np.asarray(crops)
        if numbers.size == 0:
            numbers = numbers.astype(np.uint64)
        if pixels.shape != (len(streams), 2) or numbers.ndim != 2 or len(numbers) != len(streams):
            raise UsageError(
                f"{len(streams)} images need sizes ({len(streams)}, 2) and crops ({len(streams)}, m), "
                f"given {pixels.shape} and {numbers.shape}"
            )
        if numbers.size and not (numbers.min() >= 0 and numbers.max() <= 0xFFFF_FFFF):
            raise UsageError("crop numbers must be 0 to 2^32 - 1")
        wrong = np.flatnonzero(((pixels < 1) | (pixels > MAX_SIDE)).any(axis=1))
        if wrong.size:
            first = int(wrong[0])
            name = f"stream {streams[first]}" if isinstance(keys, np.ndarray) else keys[first]
            raise RejectedInput(
                f"{name}: {pixels[first, 1]} x {pixels[first, 0]} pixels; sides of 1 to {MAX_SIDE} "
                "can be cropped: resize or remove the image"
            )
        boxes = np.empty((*numbers.shape, 4), np.uint16)
        flips = np.empty(numbers.shape, np.bool_)
        self._fill(boxes.reshape(-1, 4), flips.reshape(-1), streams, pixels, numbers)
        return boxes, flips

    def _fill(
        self,
        boxes: NDArray[np.uint16],
        flips: NDArray[np.bool_],
        streams: U64,
        pixels: NDArray[Any],
        numbers: NDArray[Any],
    ) -> None:
        """Write n * m boxes and flips: an attempt runs only over the crops that have no box yet."""
        per_image = numbers.shape[1]
        scale, ratio = _fixed(self.scale, 32), _fixed(self.ratio, 32)
        roots = _roots_of_ratio(self.ratio)
        coin_below = np.uint64(round(self.flip_prob * 65_536))
        heights, widths = pixels[:, 0].astype(np.uint64), pixels[:, 1].astype(np.uint64)
        crops = numbers.ravel()
        pending = np.arange(crops.size)
        for attempt in range(ATTEMPTS + 1):
            still_pending = []
            for start in range(0, len(pending), SLICE):
                rows = pending[start : start + SLICE]
                images = rows // per_image
                height, width = heights[images], widths[images]
                if attempt == ATTEMPTS:
                    boxes[rows] = np.stack(_centre(height, width, ratio), axis=-1)
                    continue
                words = philox4x32(
                    _counter(attempt, crops[rows], streams[images]),
                    (self.seed & 0xFFFF_FFFF, self.seed >> 32),
                )
                if attempt == 0:
                    coin = (words[0] & LOW8) << np.uint64(8) | (words[1] & LOW8)
                    flips[rows] = coin < coin_below
                box_height, box_width = _size_of_attempt(words, height * width, scale, roots)
                fits = (box_height - ONE < height) & (box_width - ONE < width)
                box = (
                    boxes[rows[0] : rows[-1] + 1]
                    if attempt == 0
                    else np.empty((len(rows), 4), np.uint16)
                )
                # Where the box does not fit this writes nonsense that a later attempt replaces
                box[:, 0] = (words[2] * (height - box_height + ONE)) >> HALF
                box[:, 1] = (words[3] * (width - box_width + ONE)) >> HALF
                box[:, 2] = box_height
                box[:, 3] = box_width
                if attempt:
                    boxes[rows] = box
                still_pending.append(rows[~fits])
            pending = np.concatenate(still_pending) if still_pending else pending[:0]

    def to_record(self) -> dict[str, Any]:
        """Parameters as JSON values, with the name of the law."""
        record = asdict(self)
        return {"law": LAW, **record, "scale": list(self.scale), "ratio": list(self.ratio)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The plan that `to_record` described; FormatVersionError for a law that this version lacks."""
        parameters = dict(record)
        law = parameters.pop("law", None)
        # these decide what becomes of a crop's pixels, and nothing about its box
        for other in ("augmentation", "mixing", "mixed"):
            parameters.pop(other, None)
        if law in (IMPORTED_LAW, BLENDED_LAW):
            raise UsageError(
                "these crops were imported with their labels: they are stored and follow from no seed, so that no "
                "further ones can be drawn and none made again"
            )
        if law != LAW:
            raise FormatVersionError(
                f"crop plan with law {law!r}: this version computes {LAW!r}, use a newer labelstore"
            )
        try:
            return cls(**parameters)
        except TypeError as error:
            raise UsageError(f"crop plan record with unknown or wrong entries: {error}") from None


class PlannedCrops(Protocol):
    """Where the boxes and flips of an image's crops come from: a law, or a store that keeps them."""

    def crops(
        self, key: str, height: int, width: int, crops: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (m, 4) uint16 as top, left, height, width in pixels, and flips (m,), of one image."""


def imported_record(origin: str, *, mixed: bool = False, blended: bool = False) -> dict[str, Any]:
    """Parameters of a plan whose crops came with imported labels.

    `mixed`: beside them is how they were mixed; `blended`: a crop may be blended and then partly replaced.
    """
    law = BLENDED_LAW if blended else IMPORTED_LAW
    return {"law": law, "format": origin, **({"mixed": True} if mixed else {})}


def is_imported(record: Mapping[str, Any]) -> bool:
    """Whether a plan's crops came with imported labels: they are stored and follow from no seed."""
    return record.get("law") in (IMPORTED_LAW, BLENDED_LAW)


def is_blended(record: Mapping[str, Any]) -> bool:
    """Whether `mix_share` counts outside of `mix_box` too: crops may be blended and then partly replaced."""
    return record.get("law") == BLENDED_LAW


def _pair(name: str, bounds: Sequence[float], least: float, most: float) -> tuple[float, float]:
    """Both bounds as floats; UsageError unless least <= smallest <= largest <= most."""
    values = tuple(float(bound) for bound in bounds)
    if len(values) != 2 or not least <= values[0] <= values[1] <= most:
        raise UsageError(
            f"{name} {values} is not two numbers, smallest first, from {least:.3g} to {most:.3g}"
        )
    return values[0], values[1]


def image_streams(keys: Sequence[str]) -> U64:
    """Stream number of each image key, (n,) uint64: first 8 bytes of SHA-256 of the key, little-endian."""
    sha256 = hashlib.sha256
    parts = [
        sha256((key if key.isascii() else unicodedata.normalize("NFC", key)).encode()).digest()[:8]
        for key in keys
    ]
    return np.frombuffer(b"".join(parts), "<u8").astype(np.uint64)


def philox4x32(
    counter: tuple[U64, U64, U64, U64], key: tuple[int, int]
) -> tuple[U64, U64, U64, U64]:
    """Philox-4x32-10 (Salmon et al., SC 2011): four 32-bit words per counter, each array (j,) uint64."""
    word0, word1, word2, word3 = counter
    key0, key1 = key
    for _ in range(10):
        product0 = word0 * np.uint64(0xD251_1F53)
        product1 = word2 * np.uint64(0xCD9E_8D57)
        word0 = product1 >> HALF
        word0 ^= word1
        word0 ^= np.uint64(key0)
        word2 = product0 >> HALF
        word2 ^= word3
        word2 ^= np.uint64(key1)
        product1 &= LOW32
        product0 &= LOW32
        word1, word3 = product1, product0
        key0 = (key0 + 0x9E37_79B9) & 0xFFFF_FFFF
        key1 = (key1 + 0xBB67_AE85) & 0xFFFF_FFFF
    return word0, word1, word2, word3


def _counter(attempt: int, crops: NDArray[Any], streams: U64) -> tuple[U64, U64, U64, U64]:
    """Philox counters of one attempt at j crops."""
    crop = crops.astype(np.uint64)
    return np.full_like(crop, attempt), crop, streams & LOW32, streams >> HALF


def _size_of_attempt(
    words: tuple[U64, U64, U64, U64], image_area: U64, scale: tuple[int, int], roots: U64
) -> tuple[U64, U64]:
    """Height and width (j,) in pixels that one attempt asks for; they may not fit the image."""
    low, high = scale
    area = ((words[0] >> np.uint64(8)) * np.uint64(high - low) >> np.uint64(24)) + np.uint64(low)
    side = _floor_sqrt(image_area * area)
    position = words[1] >> np.uint64(8)
    knot = (position >> np.uint64(12)).astype(np.intp)
    below = roots[knot]
    root = below + ((roots[knot + 1] - below) * (position & np.uint64(KNOTS - 1)) >> np.uint64(12))
    width = (side * root + np.uint64(1 << 41)) >> np.uint64(42)
    height = ((side << np.uint64(27)) + (root << np.uint64(16))) // (root << np.uint64(17))
    return height, width


def _floor_sqrt(values: U64) -> U64:
    """Largest integer whose square is at most each value; exact for values below (2^32 - 1)^2 too."""
    root = np.sqrt(values.astype(np.float64)).astype(np.uint64)
    # float64 holds 53 bits of the value, so the root is off by one at most
    np.minimum(root, LOW32, out=root)
    root -= (root * root > values).astype(np.uint64)
    above = np.minimum(root + np.uint64(1), LOW32)
    return np.where(above * above <= values, above, root)


def _centre(heights: U64, widths: U64, ratio: tuple[int, int]) -> tuple[U64, U64, U64, U64]:
    """Top, left, height, width (j,) of the largest centre crop whose aspect ratio is in range."""
    narrowest, widest = np.uint64(ratio[0]), np.uint64(ratio[1])
    aspect = widths << HALF
    tall, wide = aspect < heights * narrowest, aspect > heights * widest
    height = np.where(tall, ((widths << np.uint64(33)) + narrowest) // (narrowest << ONE), heights)
    width = np.where(wide, (heights * widest + np.uint64(1 << 31)) >> HALF, widths)
    height = np.clip(height, ONE, heights)
    width = np.clip(width, ONE, widths)
    return (heights - height) >> ONE, (widths - width) >> ONE, height, width


def _fixed(bounds: tuple[float, float], bits: int) -> tuple[int, int]:
    """Both bounds as multiples of 2^-bits."""
    return round(bounds[0] * 2**bits), round(bounds[1] * 2**bits)


@lru_cache(maxsize=16)
def _roots_of_ratio(ratio: tuple[float, float]) -> U64:
    """G (4098,): roots of the aspect ratio in 2^-26, log-uniform knots; the last is repeated."""
    with localcontext() as context:
        context.prec = 60
        low, high = Decimal(ratio[0]), Decimal(ratio[1])
        step = ((high / low).ln() / (2 * KNOTS)).exp()
        root = low.sqrt() * (1 << 26)
        knots = []
        for _ in range(KNOTS + 1):
            knots.append(int(root.to_integral_value(ROUND_HALF_EVEN)))
            root *= step
    table = np.array([*knots, knots[-1]], np.uint64)
    table.flags.writeable = False
    return table
