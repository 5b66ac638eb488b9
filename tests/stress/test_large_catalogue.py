"""R21: a catalogue of ImageNet's size opens at once and in little memory; a sample in proportion."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from labelstore import MarginalSmoothing, PlanOptions
from labelstore.images import ImageFolder
from labelstore.store import create
from labelstore.testing.filled_store import add_label_set

IMAGENET, SAMPLE, CLASSES = 1_281_167, 20_000, 1000
PROBE = """
import json, sys, time
import numpy, pandas, sqlalchemy, labelstore
from labelstore.store import open_store  # imported before the clock starts
with open_store(sys.argv[2], readonly=True) as store:
    store.label_sets  # what is imported late

def peak_kb():
    # not ru_maxrss, which begins with what the process that forked this one held
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

before = peak_kb()
started = time.perf_counter()
with open_store(sys.argv[1], readonly=True) as store:
    names, count = store.label_sets, store.catalogue.images.num_images()
opened = time.perf_counter() - started
at_open = peak_kb()
with open_store(sys.argv[1], readonly=True) as store:
    started = time.perf_counter()
    row = store.image_rows([store.catalogue.images.rows([count - 1])[0].key])[0] if count < 10**5 else count - 1
    columns = store.image_columns
    read = time.perf_counter() - started
peak = peak_kb()
print(json.dumps({"open_seconds": opened, "open_mb": at_open / 1024, "read_seconds": read,
    "read_mb": peak / 1024, "before_mb": before / 1024, "images": count, "row": int(row)}))
"""


def make(path: Path, num_images: int) -> Path:
    truth = np.arange(num_images) * CLASSES // num_images
    folder = ImageFolder(
        root=path,
        classes=tuple(f"n{c:08d}" for c in range(CLASSES)),
        keys=tuple(f"n{c:08d}/n{c:08d}_{i}.JPEG" for i, c in enumerate(truth.tolist())),
        class_ids=truth,
        sizes=np.full(num_images, 110_000, np.int64),
        mtimes_ns=np.zeros(num_images, np.int64),
    )
    with create(path, images=folder, plan=PlanOptions(num_crops=200)) as store:
        add_label_set(store, MarginalSmoothing(k=5), CLASSES, name="teacher")
    return path


def test_opening_a_large_catalogue(scale, matrix, tmp_path):
    number = IMAGENET if scale >= 20 else round(SAMPLE * max(scale, 0.5))
    small = make(tmp_path / "small", 2000)
    path = make(tmp_path / "store", number)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, path, small], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["images"] == number
    assert found["row"] == number - 1
    # opening takes no memory in proportion to the images, reading them all less than 500 MiB altogether
    assert found["open_mb"] - found["before_mb"] < 20, found
    assert found["read_mb"] - found["before_mb"] < 40 + number / IMAGENET * 500, found
    assert found["open_mb"] < 500, found
    if number == IMAGENET:
        matrix.record("R21", **{name: round(found[name], 3) for name in found if name != "row"})
    else:
        matrix.record("R21", images=number, open_mb=round(found["open_mb"]))
