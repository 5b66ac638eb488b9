"""One demo picture: a real handwritten digit set into a crop of a real photograph, from a seed and a number.

Digits are scikit-learn's (1,797 of 8 x 8 pixels, 10 classes), photographs those that scikit-learn and
scikit-image ship, so nothing is downloaded. Train and val share neither digits (1,200 and 597) nor regions of a
photograph (its left 70 % and its right 30 %). `plan` makes every random choice, `render` only draws.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labelstore.errors import UsageError

Split = Literal["train", "val"]
Colour = tuple[int, int, int]

NUM_CLASSES = 10
TRAIN_DIGITS = 1200
TRAIN_SHARE_OF_PHOTOGRAPH = 0.7
# Without those that show numerals or letters (clock, page, text), drawings, and what needs a network
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "cell",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
    "stereo_motorcycle",
    "china.jpg",
    "flower.jpg",
)

SIDE = (160, 256)
DIGIT_SIDE = (0.45, 0.8)
FRAGMENT_SIDE = (0.15, 0.3)
MOST_FRAGMENTS = 3
OCCLUDER_SIDE = (0.15, 0.3)
ROTATION = 10.0
BRIGHTNESS = (0.35, 0.7)
COLOUR = (120, 255)
QUALITY = (85, 95)
WHOLE = (0.0, 0.0, 1.0, 1.0)
# A fragment is half a digit: a whole one would be a second right answer
HALVES = ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Glyph:
    """One digit, or a piece of one, as it is set into a picture."""

    digit: int
    """Row in scikit-learn's digits."""
    left: int
    top: int
    side: int
    """Pixels of the square that the whole digit fills before it is turned and cut."""
    angle: float
    """Degrees, counter-clockwise."""
    colour: Colour
    part: tuple[float, float, float, float] = WHOLE
    """Left, top, right, bottom of the piece that is kept, as shares of the square."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Every choice that makes one picture."""

    class_id: int
    width: int
    height: int
    photograph: int
    """Index into `PHOTOGRAPHS`."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom of the photograph's crop, as shares of its width and height."""
    gains: tuple[float, float, float]
    """Darkening of red, green and blue."""
    digit: Glyph
    fragments: tuple[Glyph, ...]
    """Pieces of other classes' digits, drawn first."""
    occluder: tuple[int, int, int, int] | None
    """Left, top, right, bottom in pixels of a patch of photograph over the digit."""
    quality: int
    """JPEG quality."""


def plan(seed: int, split: Split, number: int, *, sides: tuple[int, int] = SIDE) -> Picture:
    """The picture of that number: class `number` mod 10, all else random; a function of its arguments.

    Height and width lie within `sides`, in pixels.
    """
    rng = np.random.default_rng([seed, 0 if split == "train" else 1, number])
    class_id = number % NUM_CLASSES
    width, height = (int(side) for side in rng.integers(*sides, 2, endpoint=True))
    short = min(width, height)
    photograph = int(rng.integers(len(PHOTOGRAPHS)))
    own, others = _digits_of(seed, split, class_id), _digits_of(seed, split, -1)
    others = others[digits()[1][others] != class_id]
    side = round(short * rng.uniform(*DIGIT_SIDE))
    digit = Glyph(
        digit=int(rng.choice(own)),
        left=int(rng.integers(width - side, endpoint=True)),
        top=int(rng.integers(height - side, endpoint=True)),
        side=side,
        angle=float(rng.uniform(-ROTATION, ROTATION)),
        colour=_colour(rng),
    )
    fragments = tuple(
        _fragment(rng, int(rng.choice(others)), width, height)
        for _ in range(rng.integers(MOST_FRAGMENTS, endpoint=True))
    )
    return Picture(
        class_id=class_id,
        width=width,
        height=height,
        photograph=photograph,
        box=_photograph_box(rng, split, photograph, width / height),
        gains=_gains(rng, photograph),
        digit=digit,
        fragments=fragments,
        occluder=_occluder(rng, digit) if rng.random() < 0.5 else None,
        quality=int(rng.integers(*QUALITY, endpoint=True)),
    )


def render(picture: Picture) -> bytes:
    """The picture as a JPEG file."""
    photograph = photographs()[picture.photograph]
    across, down = photograph.size
    left, top, right, bottom = picture.box
    box = (left * across, top * down, right * across, bottom * down)
    canvas = photograph.resize(
        (picture.width, picture.height), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0
    )
    table = [round(value * gain) for gain in picture.gains for value in range(256)]
    canvas = canvas.point(table)
    behind = canvas.transpose(Image.Transpose.ROTATE_180)
    for glyph in (*picture.fragments, picture.digit):
        mask = _mask(glyph)
        margin = (mask.width - glyph.side) // 2
        canvas.paste(glyph.colour, (glyph.left - margin, glyph.top - margin), mask)
    if picture.occluder is not None:
        canvas.paste(behind.crop(picture.occluder), picture.occluder[:2])
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=picture.quality)
    return file.getvalue()


@lru_cache(maxsize=1)
def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Digits (1797, 8, 8) as uint8, 0 to 255, and their classes (1797,)."""
    bunch = _demo_library("sklearn.datasets").load_digits()
    images = np.round(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)
    return images, np.asarray(bunch.target, np.int64)


@lru_cache(maxsize=1)
def photographs() -> tuple[Image.Image, ...]:
    """The photographs named in `PHOTOGRAPHS`, RGB."""
    from_sklearn, from_skimage = _demo_library("sklearn.datasets"), _demo_library("skimage.data")
    arrays = []
    for name in PHOTOGRAPHS:
        array = (
            from_sklearn.load_sample_image(name)
            if name.endswith(".jpg")
            else getattr(from_skimage, name)()
        )
        arrays.append(array[0] if isinstance(array, tuple) else array)
    return tuple(Image.fromarray(np.ascontiguousarray(array)).convert("RGB") for array in arrays)


def _demo_library(name: str) -> Any:  # noqa: ANN401
    try:
        return import_module(name)
    except ImportError:
        raise UsageError(
            f"demo images need {name.partition('.')[0]}: pip install 'labelstore[demo]'"
        ) from None


@lru_cache(maxsize=64)
def _digits_of(seed: int, split: Split, class_id: int) -> NDArray[np.int64]:
    """Digits of one class (-1: of all) that belong to the split."""
    classes = digits()[1]
    order = np.random.default_rng([seed, 2]).permutation(len(classes))
    mine = np.sort(order[:TRAIN_DIGITS] if split == "train" else order[TRAIN_DIGITS:])
    return mine if class_id < 0 else mine[classes[mine] == class_id]


def _photograph_box(
    rng: np.random.Generator, split: Split, photograph: int, aspect: float
) -> tuple[float, float, float, float]:
    """A crop of the split's part of a photograph, in shares of it, with the picture's aspect ratio."""
    across, down = photographs()[photograph].size
    # One percent is left out at the border, so that no filter reads across it
    border = TRAIN_SHARE_OF_PHOTOGRAPH
    start, end = (0.0, border - 0.005) if split == "train" else (border + 0.005, 1.0)
    width = min((end - start) * across, down * aspect) * rng.uniform(0.4, 1.0)
    height = width / aspect
    left = rng.uniform(start * across, end * across - width)
    top = rng.uniform(0, down - height)
    return left / across, top / down, (left + width) / across, (top + height) / down


def _gains(rng: np.random.Generator, photograph: int) -> tuple[float, float, float]:
    """Darkening; grey photographs are tinted too, so that colour does not tell a digit from its ground."""
    brightness = rng.uniform(*BRIGHTNESS)
    red, green, blue = rng.uniform(0.75, 1.0, 3) if _is_grey(photograph) else (1.0, 1.0, 1.0)
    return float(brightness * red), float(brightness * green), float(brightness * blue)


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _is_grey(photograph: int) -> bool:
    red, green, blue = photographs()[photograph].split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def _fragment(rng: np.random.Generator, digit: int, width: int, height: int) -> Glyph:
    side = round(min(width, height) * rng.uniform(*FRAGMENT_SIDE))
    return Glyph(
        digit=digit,
        left=int(rng.integers(width - side, endpoint=True)),
        top=int(rng.integers(height - side, endpoint=True)),
        side=side,
        angle=float(rng.uniform(-ROTATION, ROTATION)),
        colour=_colour(rng),
        part=HALVES[int(rng.integers(len(HALVES)))],
    )


def _occluder(rng: np.random.Generator, digit: Glyph) -> tuple[int, int, int, int]:
    width, height = (round(digit.side * rng.uniform(*OCCLUDER_SIDE)) for _ in range(2))
    left = digit.left + int(rng.integers(digit.side - width, endpoint=True))
    top = digit.top + int(rng.integers(digit.side - height, endpoint=True))
    return left, top, left + width, top + height


def _colour(rng: np.random.Generator) -> Colour:
    red, green, blue = (int(value) for value in rng.integers(*COLOUR, 3, endpoint=True))
    return red, green, blue


def _mask(glyph: Glyph) -> Image.Image:
    """Opacity of a glyph, with a margin of an eighth around it: 8 x 8 enlarged smoothly, then given an edge."""
    # The empty pixel around it rounds off strokes that end at the border of the 8 x 8
    small = Image.fromarray(np.pad(digits()[0][glyph.digit], 1))
    side = glyph.side + 2 * round(glyph.side / 8)
    large = small.resize((side, side), Image.Resampling.BICUBIC)
    large = large.rotate(glyph.angle, Image.Resampling.BILINEAR).point(_EDGE)
    if glyph.part == WHOLE:
        return large
    left, top, right, bottom = (round(edge * side) for edge in glyph.part)
    cut = Image.new("L", large.size)
    cut.paste(large.crop((left, top, right, bottom)), (left, top))
    return cut


def _edge() -> list[int]:
    """Smooth step from transparent at 30 % to opaque at 60 % of full ink, for each of 256 levels."""
    share = np.clip((np.arange(256) / 255 - 0.3) / 0.3, 0, 1)
    return [int(level) for level in np.round(255 * share * share * (3 - 2 * share))]


_EDGE = _edge()
