"""R1: kill -9 at random moments of an import; nothing that was committed is lost, and the same import completes."""

import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

import labelstore
from labelstore.care.verification import verify
from labelstore.exchange import Stated
from labelstore.store.opening import exists
from tests.flat_options import import_labels

KILLS = 1
IMAGES, CROPS, CLASSES = 12, 4, 5


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Small images, and an archive with boxes and labels of their crops."""
    root = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    keys = [f"class{number % 3}/{number}.png" for number in range(IMAGES)]
    for key in keys:
        (root / "images" / key).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(root / "images" / key)
    probs = rng.dirichlet(np.ones(CLASSES), (IMAGES, CROPS)).astype(np.float32)
    boxes = np.tile(np.array([2, 3, 10, 12], np.uint16), (IMAGES, CROPS, 1))
    flips = rng.integers(0, 2, (IMAGES, CROPS)).astype(bool)
    np.savez(root / "labels.npz", key=np.array(keys), prob=probs, box=boxes, flip=flips)
    return root


def do_import(given, path, backend):
    stated = Stated(compression="ms", k=2, temperature=1.0)
    import_labels(
        path, format="npz", source=given / "labels.npz", images=given / "images", stated=stated,
        name="teacher", images_per_shard=2, crops_per_shard=2, backend=backend,
    )  # fmt: skip


def import_in_child(given, path, backend, after: float) -> bool:
    """Import in a child that ends without a word after so many seconds; whether it did."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process like kill does
        signal.setitimer(signal.ITIMER_REAL, max(after, 1e-6))
        do_import(given, path, backend)
    except BaseException:  # noqa: BLE001 - a child must not come back into the test
        os._exit(1)
    os._exit(0)


def held(path):
    """Committed blocks with their labels, boxes and flips."""
    with labelstore.open(path, readonly=True) as store:
        if not store.label_sets or store.label_set_row().codec["class_ids"] is None:
            return {}
        labels = store.label_set()
        return {
            block: [labels.dense(block).tobytes(), *(a.tobytes() for a in labels.crops(block))]
            for block in labels.blocks
        }


@pytest.mark.sample(1)
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_random_kills_of_an_import(backend, given, tmp_path, scale, matrix):
    whole = tmp_path / "whole"
    started = time.monotonic()
    do_import(given, whole, backend)
    seconds = time.monotonic() - started
    expected = held(whole)
    assert len(expected) == IMAGES // 2
    rng, kills, path = random.Random(3), 0, tmp_path / "store"
    wanted = max(1, round(KILLS * scale))
    while kills < wanted:
        shutil.rmtree(path, ignore_errors=True)
        before: dict = {}
        while kills < wanted and import_in_child(given, path, backend, rng.uniform(0, seconds)):
            kills += 1
            if exists(path):
                now = held(path)
                assert before.items() <= now.items() <= expected.items()
                assert verify(path, workers=1).is_sound
                before = now
        do_import(given, path, backend)
        assert held(path) == expected
        assert verify(path, "deep", workers=1).is_sound
    matrix.record("R1", kills=kills, lost=0, wrong=0)
