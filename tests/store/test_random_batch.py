"""Batches of any crops are what `recover`, `boxes` and `flips` give of them, from chunks and from flat records alike."""

from __future__ import annotations

import collections
import errno
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

import labelstore
from labelstore import (
    Full,
    Hard,
    MarginalRenorm,
    MarginalSmoothing,
    PlanOptions,
    Region,
    RegionThresholds,
    Smoothing,
)
from labelstore.codecs import densify
from labelstore.errors import (
    DamagedShard,
    IncompleteError,
    NotGenerated,
    StorageError,
    UsageError,
)
from labelstore.scratch import room
from labelstore.store import random_batch, unpacked
from labelstore.store.flat_records import RecordForm
from labelstore.store.random_batch import ChunkSource, batch_of
from labelstore.testing.filled_store import add_label_set, empty_store, fill_blocks
from tests.kept_stores import kept_store

N, M, C, BAD = 21, 40, 12, 5
CODECS = {
    "ms": MarginalSmoothing(k=5),
    "table": MarginalSmoothing(k=5, class_ids="table"),
    "8bit": MarginalSmoothing(k=5, dtype="uint8", class_ids="table"),
    "float32": MarginalSmoothing(k=3, dtype="float32", class_ids="table"),
    "all": MarginalSmoothing(k=C),
    "mr": MarginalRenorm(k=3),
    "smoothing": Smoothing(),
    "hard": Hard(class_ids="table"),
    "full": Full(),
}
LAYOUT = {"images_per_shard": 8, "crops_per_shard": 20, "bad": {BAD}}


def soft_labels(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, M, C)) * rng.uniform(0, 5, (N, M, 1))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


def drawn(seed: int = 0, images: int = 13) -> tuple[np.ndarray, np.ndarray]:
    """Images in any order, some twice and a bad one, with crops of several shards and chunks."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, N, images)
    rows[:2] = BAD, rows[2]
    return rows, rng.integers(0, M, (images, 4))


def check(batch, labels, rows, crops, temperature=None):
    wanted = labels.recover(rows, crops, temperature)
    np.testing.assert_array_equal(densify(batch.labels, labels.num_classes), wanted)
    at = np.arange(len(rows))[:, None]
    np.testing.assert_array_equal(batch.boxes, labels.boxes(rows)[at, crops])
    np.testing.assert_array_equal(batch.flips, labels.flips(rows)[at, crops])
    assert np.isnan(batch.probs[0]).all()  # of the bad image


@pytest.fixture(scope="module", params=["zarr", "hdf5"])
def of_all_codecs(request, tmp_path_factory):
    """A store with a label set in each codec, made at T0 = 2; with seeded crops in HDF5."""
    plan = PlanOptions(
        num_crops=M, images_per_shard=8, crops_per_shard=20, stored_crops=request.param == "zarr"
    )
    path = tmp_path_factory.mktemp("codecs") / "s"
    with empty_store(path, np.arange(N) % C, C, plan, backend=request.param) as opened:
        for name, codec in CODECS.items():
            add_label_set(opened, codec, C, name=name, temperature=2.0)
            fill_blocks(opened, soft_labels(1), name=name, bad={BAD})
        yield opened


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", CODECS)
def test_a_batch_is_what_recover_gives(of_all_codecs, tmp_path, name):
    labels = of_all_codecs.label_set(name)
    flat = labels.unpacked(tmp_path)
    small = ChunkSource(labels, cache_bytes=1000)  # holds no two chunks
    rows, crops = drawn()
    for temperature in (None, 2.0, 5.0, 0.5):
        if labels.codec.fixed_temperature and temperature in (5.0, 0.5):
            for source in (labels, flat):
                with pytest.raises(UsageError, match="temperature"):
                    source.batch(rows, crops, temperature=temperature)
            continue
        for found in (
            labels.batch(rows, crops, temperature=temperature),
            flat.batch(rows, crops, temperature=temperature),
            batch_of(small, rows, crops, temperature, None),
        ):
            check(found, labels, rows, crops, temperature)
            assert (found.regions == Region.IMPORTANT).all()
    assert len(small._cache._held) == 1
    every = flat.batch(range(N))
    np.testing.assert_array_equal(densify(every.labels, C), labels.recover(range(N)))
    keys = of_all_codecs.image_columns["key"][rows].tolist()
    np.testing.assert_array_equal(labels.batch(keys, crops).boxes, flat.batch(rows, crops).boxes)
    for source in (labels, flat):
        assert source.batch([], np.zeros((0, 3), int)).probs.shape[:2] == (0, 3)
    flat.close()


@pytest.mark.slow
def test_what_is_kept_per_image_comes_from_the_crops_own_shard(store, tmp_path, monkeypatch):
    """With ranks left as they are, every crop needs its image's table, of which each crop shard has another."""
    labels = store.label_set("a")
    fields = labels.codec.fields(C)
    form = RecordForm(
        codec=labels.codec,
        stored=tuple(field.name for field in fields if field.per == "crop"),
        per_crop=tuple(field for field in fields if field.per == "crop"),
        per_image=tuple(field for field in fields if field.per == "image"),
        ranked=False,
    )
    assert [field.name for field in form.per_image] == ["class_table"]
    tables = np.concatenate(
        [form.image_records(labels, block)["class_table"] for block in labels.blocks]
    )
    assert (tables[:, 0] != tables[:, 1]).any()
    monkeypatch.setattr(RecordForm, "of", lambda _: form)
    for source in (labels, labels.unpacked(tmp_path)):
        for temperature in (None, 3.0):
            check(source.batch(*drawn(), temperature=temperature), labels, *drawn(), temperature)


def test_sizes_of_records():
    """Ids as wide as C needs, the label as stored, a box and a flip: nothing else."""
    sizes = {}
    for name, codec in CODECS.items():
        labels = type("Labels", (), {"codec": codec, "num_classes": 1000})
        sizes[name] = RecordForm.of(labels).dtype.itemsize
    wide = type("Labels", (), {"codec": CODECS["table"], "num_classes": 70_000})
    assert (sizes["table"], sizes["8bit"], sizes["hard"]) == (30, 24, 11)
    assert RecordForm.of(wide).dtype.itemsize == 40


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Three label sets, of which two have masks."""
    path = tmp_path_factory.mktemp("template") / "s"
    with kept_store(path, soft_labels(1), CODECS["table"], name="a", **LAYOUT) as opened:
        for seed, (name, codec) in enumerate({"b": CODECS["8bit"], "c": CODECS["full"]}.items(), 2):
            add_label_set(opened, codec, C, name=name)
            fill_blocks(opened, soft_labels(seed), name=name, bad={BAD})
        for name, low in {"a": 0.3, "c": 0.25}.items():
            rule = RegionThresholds(low=low, middle=0.5, top=0.9, epsilon=0.2)
            labelstore.calibrate(opened.label_set(name), rule, name=f"mask-{name}")
    return path


@pytest.mark.parametrize("name", ["a", "c"])
@pytest.mark.parametrize("temperature", [None, 3.0])
def test_masks(store, tmp_path, name, temperature):
    labels, mask = store.label_set(name), store.mask(f"mask-{name}")
    together = labelstore.ensemble([labels], [mask])
    codes = np.concatenate([mask.regions(block) for block in mask.blocks])
    flat = labels.unpacked(tmp_path)
    rows, crops = drawn(images=30)
    wanted = together.recover(rows, crops, temperature)
    for source in (labels, flat):
        found = source.batch(rows, crops, temperature=temperature, mask=mask)
        regions = codes[rows[:, None], crops]
        np.testing.assert_array_equal(found.regions, regions)
        assert {Region.HARD, Region.IMPORTANT, Region.TOO_EASY} <= set(regions.ravel().tolist())
        np.testing.assert_array_equal(densify(found.labels, C), wanted)
        usable = (regions == Region.HARD) | (regions == Region.IMPORTANT)
        np.testing.assert_array_equal(np.isnan(found.rest), ~usable)
    with pytest.raises(UsageError, match=r"mask mask-a was made from teacher a"):
        store.label_set("b").batch(rows, crops, mask=store.mask("mask-a"))


@pytest.mark.parametrize("names", [("a", "b"), ("a", "c"), ("a",)])
@pytest.mark.parametrize("temperature", [None, 3.0])
def test_ensembles(store, tmp_path, names, temperature):
    labels = [store.label_set(name) for name in names]
    masks = [None if name == "b" else store.mask(f"mask-{name}") for name in names]
    together = labelstore.ensemble(labels, masks, weights=[2, 1][: len(names)])
    flat = together.unpacked(tmp_path)
    rows, crops = drawn(images=30)
    wanted = together.recover(rows, crops, temperature)
    regions = np.concatenate([together.regions(block) for block in together.blocks])
    for source in (together, flat, pickle.loads(pickle.dumps(flat))):
        found = source.batch(rows, crops, temperature=temperature)
        np.testing.assert_allclose(densify(found.labels, C), wanted, rtol=1e-6, atol=1e-8)
        np.testing.assert_array_equal(found.regions, regions[rows[:, None], crops])
        np.testing.assert_array_equal(found.boxes, labels[0].batch(rows, crops).boxes)


def unpack_in_another_process(path, scratch):
    with labelstore.open(path) as store:
        flat = store.label_set("a").unpacked(scratch)
        return str(flat.path), flat.batch(*drawn()).probs


def batch_in_another_process(flat):
    return flat.batch(*drawn(), mask=flat.labels.store.mask("mask-a")).probs


@pytest.mark.slow
def test_processes_share_one_copy(store, tmp_path):
    """Two that begin at once, and one that is given the copy."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        begun = [
            pool.submit(unpack_in_another_process, store.path, tmp_path / "cache") for _ in range(2)
        ]
        found = [one.result() for one in begun]
        flat = store.label_set("a").unpacked(tmp_path / "cache")
        inode = (flat.path / "crops.npy").stat().st_ino
        masked = flat.batch(*drawn(), mask=store.mask("mask-a")).probs
        np.testing.assert_array_equal(pool.submit(batch_in_another_process, flat).result(), masked)
    for path, probs in found:
        assert path == str(flat.path)
        np.testing.assert_array_equal(probs, store.label_set("a").batch(*drawn()).probs)
    assert not list(flat.path.glob(".*"))  # what was begun is finished or gone
    assert (
        store.label_set("a").unpacked(tmp_path / "cache").path / "crops.npy"
    ).stat().st_ino == inode


def test_a_later_run_reads_nothing_of_the_store(store, tmp_path, monkeypatch):
    labels = store.label_set("a")
    wanted = labels.unpacked(tmp_path).batch(*drawn()).probs
    monkeypatch.setattr(RecordForm, "crop_records", lambda *_: pytest.fail("chunks were read"))
    np.testing.assert_array_equal(labels.unpacked(tmp_path).batch(*drawn()).probs, wanted)


@pytest.mark.parametrize("what", ["flip", "cut", "no seal", "short seal"])
def test_a_damaged_copy_is_mended(store, tmp_path, what):
    labels = store.label_set("a")
    flat = labels.unpacked(tmp_path)
    file, seal = flat.path / "crops.npy", flat.path / "crops.crc32c"
    flat.close()
    (flat.path / ".crops.npy.1-abcd.tmp").touch()  # of a process that was killed while it wrote
    if what == "flip":
        with file.open("r+b") as handle:
            handle.seek(-7, os.SEEK_END)  # of the last image
            byte = handle.read(1)[0]
            handle.seek(-7, os.SEEK_END)
            handle.write(bytes([byte ^ 4]))
    elif what == "cut":
        os.truncate(file, file.stat().st_size - 1)
    elif what == "no seal":
        seal.unlink()
    else:
        seal.write_bytes(seal.read_bytes()[:-1])
    again = labels.unpacked(tmp_path)
    assert again.path == flat.path
    np.testing.assert_array_equal(
        densify(again.batch(range(N)).labels, C), labels.recover(range(N))
    )
    assert what == "flip" or not list(flat.path.glob(".*"))
    whole = labels.unpacked(tmp_path)
    np.testing.assert_array_equal(whole.batch(range(N)).boxes, labels.boxes(range(N)))
    assert unpacked._crc(whole._crops._flat[-whole._crops._width * 5 :]) == whole._crops._crcs[-1]


@pytest.mark.parametrize("source", ["chunks", "flat"])
@pytest.mark.parametrize(
    ("images", "crops", "why"),
    [
        ([0, 1], [[0], [M]], f"crop {M} asked for: this plan has crops 0-{M - 1}"),
        ([0, 1], [[0], [-1]], "crop -1 asked for"),
        ([0, 1], [[0, 1]], "one row of crop numbers per image"),
        ([0, 1], [[0.5], [1]], "crop numbers are whole"),
        ([N], [[0]], f"image row {N}: this store has rows"),
        (["class0000/none.jpg"], [[0]], "no image with key 'class0000/none.jpg'"),
    ],
)
def test_what_is_not_there_is_refused(store, tmp_path, source, images, crops, why):
    labels = store.label_set("a")
    asked = labels if source == "chunks" else labels.unpacked(tmp_path)
    with pytest.raises(UsageError, match=why) as caught:
        asked.batch(images, crops)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_full_disk_leaves_nothing_half_written(store, tmp_path, monkeypatch):
    labels, real = store.label_set("a"), os.pwrite

    def full_disk(handle, data, offset):
        if offset > 8 * M * 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", full_disk)
    with pytest.raises(StorageError, match=r"no space left.*`scratch`") as caught:
        labels.unpacked(tmp_path)
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.npy*"))
    monkeypatch.setattr(os, "pwrite", real)
    assert labels.unpacked(tmp_path).batch([0], [[0]]).probs.shape == (1, 1, 5)


def test_a_copy_that_does_not_fit_is_not_begun(store, tmp_path, monkeypatch):
    usage = collections.namedtuple("Usage", "total used free")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(StorageError, match=r"labels take .* another disk with `scratch`"):
        store.label_set("a").unpacked(tmp_path)
    assert not list(tmp_path.rglob("*.npy*"))


def test_damage_in_the_store_is_not_unpacked(store, tmp_path):
    group = store.label_set("a").group
    (shard,) = store.arrays.root.glob(f"{group.name}/class_rank/c.1.1.0")
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedShard, match=r"labelstore\.repair"):
        store.label_set("a").unpacked(tmp_path)
    with pytest.raises(DamagedShard, match=r"labelstore\.repair"):
        store.label_set("a").batch(range(8, 16))
    assert not list(tmp_path.rglob("*.npy*"))


def test_shared_memory_is_no_scratch_folder(store):
    with pytest.raises(UsageError, match="shared memory"):
        store.label_set("a").unpacked("/dev/shm/labels")


def test_what_is_not_made_yet_is_refused(tmp_path):
    options = {**LAYOUT, "blocks": [0, 2]}
    with kept_store(tmp_path / "s", soft_labels(1), CODECS["ms"], **options) as store:
        labels = store.label_set()
        check(labels.batch([BAD, 20], [[0], [39]]), labels, [BAD, 20], [[0], [39]])
        with pytest.raises(NotGenerated, match="are not generated yet"):
            labels.batch([8], [[0]])
        with pytest.raises(IncompleteError, match="2 of 3 image blocks are complete") as caught:
            labels.unpacked(tmp_path)
        assert caught.value.exit_code == 8
        fill_blocks(store, soft_labels(1), name="teacher", bad={BAD})
        rows, crops = drawn()
        check(labels.batch(rows, crops), labels, rows, crops)
        check(labels.unpacked(tmp_path).batch(rows, crops), labels, rows, crops)


def test_the_cache_is_bounded():
    made = []

    def load(size):
        made.append(size)
        return np.zeros(size, np.uint8)

    cache = random_batch.ChunkCache(100)
    for key, size in [(1, 40), (2, 40), (1, 40), (3, 40), (1, 40), (2, 40), (4, 1000), (4, 1000)]:
        assert cache.get(("x", key), lambda size=size: load(size)).nbytes == size
        assert cache._bytes == sum(array.nbytes for array in cache._held.values())
        assert cache._bytes <= 100 or len(cache._held) == 1
    assert made == [40, 40, 40, 40, 1000]
