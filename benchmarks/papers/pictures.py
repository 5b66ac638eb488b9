"""The miniature's pictures: 20 classes of handwritten digits, upright or lying, in their typical surroundings.

Digits and photographs are the demo's (`labelstore.testing.digit_pictures`), and so is the split: train and val share neither
digits nor regions of a photograph. Two things differ, because the papers' claims need them:

- a class's digit stands in front of its own photograph 70 % of the time, so that a crop without the digit still says something
  about the class (FerKD is about context);
- a digit may lie on its side, which makes a class of its own: 20 classes, some of them alike (a lying nought), so that there is
  something in a soft label beyond its first class.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.papers.setting import Setting
from labelstore.testing import digit_pictures
from labelstore.testing.digit_pictures import PHOTOGRAPHS, Glyph, Picture, Split

NUM_CLASSES = 20
SIDE = (64, 96)
"""Pixels of a picture: small, so that decoding costs little beside a small network."""
DIGIT_SIDE = (0.4, 0.7)
ROTATION = 10.0
MOST_FRAGMENTS = 3
FRAGMENT_SIDE = (0.15, 0.3)
OCCLUDED = 0.3

FOLDERS: dict[str, tuple[Split, int]] = {
    "teacher": ("train", 0),
    "train": ("train", 0),
    "tune": ("val", 1_000_000),
    "val": ("val", 0),
}
"""Folder -> split, and the number of its first picture: tune and val are different pictures of the same split."""


def plan(setting: Setting, split: Split, number: int) -> Picture:
    """The picture of that number: class `number` mod 20, all else random; a function of its arguments."""
    rng = np.random.default_rng([setting.data_seed, 0 if split == "train" else 1, number])
    class_id = number % NUM_CLASSES
    digit, lying = divmod(class_id, 2)
    width, height = (int(side) for side in rng.integers(*SIDE, 2, endpoint=True))
    short = min(width, height)
    typical = rng.random() < setting.context
    photograph = digit if typical else int(rng.integers(len(PHOTOGRAPHS)))
    own = digits_of(split, digit)
    others = np.concatenate([digits_of(split, other) for other in range(10) if other != digit])
    side = round(short * rng.uniform(*DIGIT_SIDE))
    glyph = Glyph(
        digit=int(rng.choice(own)),
        left=int(rng.integers(width - side, endpoint=True)),
        top=int(rng.integers(height - side, endpoint=True)),
        side=side,
        angle=90.0 * lying + float(rng.uniform(-ROTATION, ROTATION)),
        colour=_colour(rng),
    )
    fragments = []
    for _ in range(int(rng.integers(MOST_FRAGMENTS, endpoint=True))):
        size = round(short * rng.uniform(*FRAGMENT_SIDE))
        fragments.append(
            Glyph(
                digit=int(rng.choice(others)),
                left=int(rng.integers(width - size, endpoint=True)),
                top=int(rng.integers(height - size, endpoint=True)),
                side=size,
                angle=float(rng.uniform(-180, 180)),
                colour=_colour(rng),
                part=digit_pictures.HALVES[int(rng.integers(4))],
            )
        )
    occluder = None
    if rng.random() < OCCLUDED:
        patch = round(side * rng.uniform(0.15, 0.3))
        left = glyph.left + int(rng.integers(side - patch, endpoint=True))
        top = glyph.top + int(rng.integers(side - patch, endpoint=True))
        occluder = (left, top, left + patch, top + patch)
    brightness = float(rng.uniform(0.35, 0.7))
    return Picture(
        class_id=class_id,
        width=width,
        height=height,
        photograph=photograph,
        box=_region(rng, split, photograph, width / height),
        gains=(brightness, brightness, brightness),
        digit=glyph,
        fragments=tuple(fragments),
        occluder=occluder,
        quality=int(rng.integers(85, 95, endpoint=True)),
    )


def digits_of(split: Split, digit: int) -> np.ndarray:
    """Rows of scikit-learn's digits that show `digit` and belong to the split: 1,200 train, 597 val in all."""
    classes = digit_pictures.digits()[1]
    order = np.random.default_rng(20_221_023).permutation(len(classes))
    cut = digit_pictures.TRAIN_DIGITS
    mine = order[:cut] if split == "train" else order[cut:]
    return np.sort(mine[classes[mine] == digit])


def make_images(setting: Setting, folder: Path) -> None:
    """Write what is missing of teacher/, train/, tune/ and val/, one folder per class."""
    digit_pictures.digits(), digit_pictures.photographs()
    for name, count in setting.images.items():
        for class_id in range(NUM_CLASSES):
            (folder / name / f"c{class_id:02d}").mkdir(parents=True, exist_ok=True)

        def write(entry: tuple[Path, Split, int]) -> None:
            path, split, number = entry
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(digit_pictures.render(plan(setting, split, number)))
            temporary.replace(path)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for _ in pool.map(write, list(_missing(folder / name, name, count))):
                pass


def _missing(folder: Path, name: str, count: int) -> Iterator[tuple[Path, Split, int]]:
    split, first = FOLDERS[name]
    for number in range(first, first + count):
        path = folder / f"c{number % NUM_CLASSES:02d}" / f"p{number:07d}.jpg"
        if not path.exists():
            yield path, split, number


def _region(
    rng: np.random.Generator, split: Split, photograph: int, aspect: float
) -> tuple[float, float, float, float]:
    """A crop of the split's part of a photograph, in shares of it: train left of 70 %, val right of it."""
    across, down = digit_pictures.photographs()[photograph].size
    border = digit_pictures.TRAIN_SHARE_OF_PHOTOGRAPH
    start, stop = (0.0, border - 0.005) if split == "train" else (border + 0.005, 1.0)
    width = min((stop - start) * across, down * aspect) * rng.uniform(0.4, 1.0)
    height = width / aspect
    left = rng.uniform(start * across, stop * across - width)
    top = rng.uniform(0, down - height)
    return left / across, top / down, (left + width) / across, (top + height) / down


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(120, 255, 3, endpoint=True))
    return red, green, blue
