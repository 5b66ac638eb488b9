"""What a layout makes of a killed writer and of flipped bits: both are tried on copies, in processes of their own.

python -m benchmarks.layouts.harm write NAME FOLDER      a writer that says what it was handed, to be killed
python -m benchmarks.layouts.harm read NAME FOLDER       reads everything and compares it with the label model
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import label_model
from benchmarks.layouts import LAYOUTS
from benchmarks.layouts.base import Crops, Layout

PARTS, PART = 8, 1024
"""Parts of a killed writing, and images of each: a shard of ours."""
KILLED_CROPS = 8
FLIPPED_IMAGES, FLIPPED_CROPS = 256, 100
READ_SECONDS = 1800
"""For all that a killed writer left, image by image, on a machine that is busy with other work."""
ROUNDED = 0.012
"""Error of a probability that 8 bits may make; float16 makes less."""


def lost_by_kills(layout: Layout, folder: Path, kills: int, seed: int = 0) -> float:
    """Share of the images that the writer had taken, and asked for more, that cannot be read after `kill -9`."""
    rng = random.Random(seed)
    taken = readable = 0
    for number in range(kills):
        there = folder / f"killed-{number}"
        handed = _killed_after(layout, there, rng.randrange(2, PARTS - 1), rng.random() * 0.05)
        taken += handed * PART
        readable += _ask(layout, there, handed)["equal"]
        shutil.rmtree(there, ignore_errors=True)
    return 1 - readable / taken


def _killed_after(layout: Layout, folder: Path, parts: int, delay_s: float) -> int:
    with subprocess.Popen(
        [sys.executable, "-m", __spec__.name, "write", layout.name, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        handed = 0
        for line in process.stdout:
            handed = int(line)
            if handed == parts:
                break
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        # what it said before it died counts too
        return max([handed, *map(int, process.stdout.read().split())])


def flipped(layout: Layout, folder: Path, flips: int, seed: int = 0) -> Counter[str]:
    """Of so many single flipped bits: `noticed` (an error, or a crash), `wrong` (other values, no error), `harmless`."""
    rng = random.Random(seed)
    whole = folder / "whole"
    parts = label_model.parts(FLIPPED_IMAGES, FLIPPED_CROPS, FLIPPED_IMAGES)
    layout.write(whole, parts, FLIPPED_IMAGES)
    files = [path for path in sorted(layout.data(whole).rglob("*")) if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    before = everything(layout, whole)
    found: Counter[str] = Counter()
    for _ in range(flips):
        (path,) = rng.choices(files, sizes)
        data = bytearray(path.read_bytes())
        at = rng.randrange(8 * len(data))
        data[at // 8] ^= 1 << at % 8
        there = folder / "flipped"
        shutil.copytree(whole, there)
        (there / path.relative_to(whole)).write_bytes(data)
        found[_outcome(layout, there, before)] += 1
        shutil.rmtree(there)
    return found


def _outcome(layout: Layout, folder: Path, before: str) -> str:
    """Read it all in a new process: some libraries crash on damaged files, which counts as noticed."""
    # not `fork`: threads of libraries that this process has used would be gone in the child
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    child = context.Process(target=_read_all, args=(layout.name, folder, before))
    child.start()
    child.join(READ_SECONDS)
    if child.is_alive():
        child.kill()
        child.join()
    return {0: "harmless", 2: "wrong"}.get(child.exitcode or 0, "noticed")


def _read_all(name: str, folder: Path, before: str) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    sys.exit(0 if everything(layout, folder) == before else 2)


def everything(layout: Layout, folder: Path) -> str:
    """A digest of every value that a full read gives; an error of the reader is raised."""
    reader, found = layout.reader(folder), hashlib.blake2b()
    try:
        for part in reader.everything(FLIPPED_IMAGES):
            for field in part:
                found.update(np.ascontiguousarray(field).tobytes())
    finally:
        reader.close()
    return found.hexdigest()


def _same(crops: Crops, labels: label_model.ModelLabels, at: int) -> bool:
    ids, probs, box, flip = crops
    same = np.array_equal(ids, labels.class_ids[at]) and bool(
        np.allclose(probs.astype(np.float32), labels.probs[at], rtol=1e-3, atol=ROUNDED)
    )
    if box.size and np.issubdtype(box.dtype, np.integer):
        same = same and np.array_equal(box, labels.box[at])
    if flip.size:
        same = same and np.array_equal(flip.astype(bool), labels.flip[at])
    return same


def _told(images: int) -> Iterator[tuple[range, label_model.ModelLabels]]:
    """Parts for a writer to be killed: each says that the one before it was taken."""
    for number, part in enumerate(label_model.parts(images, KILLED_CROPS, PART)):
        print(number, flush=True)
        yield part


def _ask(layout: Layout, folder: Path, handed: int) -> dict[str, int]:
    """How many of the images that were handed over a new process can read."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "read", layout.name, str(folder), str(handed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=READ_SECONDS,
    )
    lines = done.stdout.split("\n")
    return json.loads(lines[-2]) if done.returncode == 0 else {"equal": 0}


def _read(layout: Layout, folder: Path, handed: int) -> int:
    """Images that read as they were written: each tried on its own, or in order up to an error where that cannot be."""
    reader = layout.reader(folder)
    equal = 0
    in_order = reader.everything(handed * PART)
    for rows, labels in label_model.parts(handed * PART, KILLED_CROPS, PART):
        for row in rows:
            if not layout.random_access:
                try:
                    equal += _same(next(in_order), labels, row - rows.start)
                except Exception:  # noqa: BLE001 - the rest of the file, or all of it, cannot be read
                    return equal
                continue
            try:
                equal += _same(reader.image(row), labels, row - rows.start)
            except Exception:  # noqa: BLE001, S112 - whatever a library raises: this image cannot be read
                continue
    return equal


def main() -> None:
    what, name, folder, *rest = sys.argv[1:]
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    if what == "write":
        images = PARTS * PART
        layout.write(Path(folder), _told(images), images)
        print(PARTS, flush=True)
    else:
        print(json.dumps({"equal": _read(layout, Path(folder), int(rest[0]))}))


if __name__ == "__main__":
    main()
