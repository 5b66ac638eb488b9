"""What a pass holds: the right crops, with exactly the labels that the store gives for them."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from labelstore.calibration import Region, RegionThresholds, calibrate, calibrate_label
from labelstore.codecs import Full, MarginalRenorm, MarginalSmoothing, densify
from labelstore.cropping.crop_plan import CropPlan
from labelstore.errors import (
    IncompleteError,
    NotGenerated,
    RejectedInput,
    StorageError,
    UsageError,
)
from labelstore.scratch.folders import LOCK, PREFIX, ScratchFolder
from labelstore.testing.filled_store import filled_store
from tests.flat_options import StoredPasses
from trainer.loader import GroundTruthPasses
from trainer.sampler import DrawingOrder, PassSchedule

SCHEDULE = PassSchedule.of(passes=9, crops_per_image=7, single_crop_first=2, single_crop_last=1)


def passes(labels, **options):
    return StoredPasses(labels, **{"schedule": SCHEDULE, "allow_empty_images": True, **options})


def dense_pass(found) -> np.ndarray:
    return densify(found.labels, found.num_classes)


def check_pass(source, labels, pass_index, temperature=1.0):
    """Labels, boxes and flips of a pass equal the store's for its crop numbers; returns the numbers."""
    found = source.pass_labels(pass_index)
    crops = found.crops.astype(np.int64)
    wanted = labels.recover(found.images, crops, temperature=temperature)
    np.testing.assert_array_equal(dense_pass(found), wanted)
    rows = np.arange(len(crops))[:, None]
    np.testing.assert_array_equal(found.boxes, labels.boxes(found.images)[rows, crops])
    np.testing.assert_array_equal(found.flips, labels.flips(found.images)[rows, crops])
    return crops


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_stored_passes_hold_the_stores_labels_in_drawing_order(labels, scratch, temperature):
    with passes(
        labels, schedule=SCHEDULE, seed=3, temperature=temperature, scratch=scratch
    ) as source:
        drawn = [check_pass(source, labels, p, temperature) for p in range(SCHEDULE.num_passes)]
        assert source.table.images.tolist() == [i for i in range(23) if i != 5]
        assert dataclasses.astuple(source.counts) == (22, 1, 0)
        order = DrawingOrder(seed=3, num_crops=60, crops_per_chunk=20, schedule=SCHEDULE)
        wanted = order.crops(source.table.streams, range(SCHEDULE.epochs))
    np.testing.assert_array_equal(np.concatenate(drawn, axis=1), wanted)


def test_any_pass_can_come_first_or_again(labels, scratch):
    with passes(labels, scratch=scratch) as source:
        there = {p: source.pass_labels(p).take() for p in (7, 3, 11, 3, 0)}
    with passes(labels, scratch=scratch) as source:
        for p in range(SCHEDULE.num_passes):
            again = source.pass_labels(p).take()
            if p in there:
                assert again.tobytes() == there[p].tobytes()


def test_a_column_is_read_once_for_the_passes_that_use_it(labels, scratch, monkeypatch):
    read = []
    original = type(labels).sparse

    def sparse(self, block, columns=None, temperature=1.0):
        read.append((block, columns))
        return original(self, block, columns, temperature)

    monkeypatch.setattr(type(labels), "sparse", sparse)
    schedule = PassSchedule.of(passes=15, crops_per_image=4)
    with passes(labels, schedule=schedule, scratch=scratch) as source:
        for p in range(15):
            source.pass_labels(p)
            assert len(list(source.folder.glob("plane-*"))) <= 20 + 4
    assert len(read) == len(set(read)) == 3 * 3


def test_masked_passes_draw_usable_crops_only_and_each_before_any_again(labels, mask, scratch):
    regions = np.concatenate([mask.regions(block) for block in mask.blocks])
    assert {Region.TOO_HARD, Region.HARD, Region.IMPORTANT, Region.TOO_EASY} <= set(
        regions.ravel().tolist()
    )
    schedule = PassSchedule.of(passes=21, crops_per_image=6)  # 126 positions: two windows of M
    with passes(labels, schedule=schedule, mask=mask, scratch=scratch) as source:
        images = source.table.images
        drawn, hard_seen = [], 0
        for p in range(schedule.num_passes):
            found = source.pass_labels(p)
            crops = found.crops.astype(np.int64)
            region = regions[images[:, None], crops]
            np.testing.assert_array_equal(found.regions, region)
            hard = region == Region.HARD
            assert np.isin(region, [Region.HARD, Region.IMPORTANT]).all()
            wanted = labels.recover(images, crops)
            truth = np.broadcast_to(labels.ground_truth[images][:, None], crops.shape)
            wanted[hard] = np.float32(0.1 / 6)
            wanted[hard, truth[hard]] = np.float32(0.9)
            np.testing.assert_array_equal(dense_pass(found), wanted)
            drawn.append(crops)
            hard_seen += hard.sum()
        assert hard_seen > 50
    drawn = np.concatenate(drawn, axis=1)
    usable = np.isin(regions[images], [Region.HARD, Region.IMPORTANT])
    for i, allowed in enumerate(usable):
        count = allowed.sum()
        for first in range(0, 126 - count + 1, count):
            cycle = drawn[i, first : first + count]
            assert sorted(cycle.tolist()) == np.flatnonzero(allowed).tolist()


def test_masked_and_plain_agree_where_nothing_is_discarded(labels, scratch):
    everything = calibrate(labels, RegionThresholds(low=0, middle=0, top=1), name="everything")
    with (
        passes(labels, scratch=scratch) as plain,
        passes(labels, scratch=scratch, mask=everything) as masked,
    ):
        for p in range(SCHEDULE.num_passes):
            a, b = plain.pass_labels(p).take(), masked.pass_labels(p).take()
            assert a.tobytes() == b.tobytes()


def test_masks_are_read_in_slabs_where_labels_are_wide(labels, mask, scratch, monkeypatch):
    options = {"mask": mask}
    with passes(labels, scratch=scratch, **options) as source:
        whole = source.pass_labels(4).take()
    monkeypatch.setattr("labelstore.blocks.crop_slab.SLAB_VALUES", 8 * 20 * 3)
    with passes(labels, scratch=scratch, **options) as source:
        assert source.pass_labels(4).take().tobytes() == whole.tobytes()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    rng = np.random.default_rng(2)
    probs = rng.dirichlet(np.full(5, 0.5), size=(6, 20)).astype(np.float32)
    path = tmp_path_factory.mktemp("full") / "store"
    with filled_store(path, probs, Full(dtype="float32"), images_per_shard=4) as filled:
        yield filled.label_set()


def test_dense_labels_travel_too(full, scratch):
    schedule = PassSchedule.of(passes=3, crops_per_image=6)
    with passes(full, schedule=schedule, scratch=scratch) as source:
        for p in range(3):
            check_pass(source, full, p)


def test_dense_labels_are_calibrated_like_sparse_ones(full, scratch):
    rule = RegionThresholds(low=0.2, middle=0.6, top=1.0)
    mask = calibrate(full, rule, name="half")
    schedule = PassSchedule.of(passes=2, crops_per_image=4)
    with passes(full, schedule=schedule, mask=mask, scratch=scratch) as source:
        found = source.pass_labels(1)
        dense = full.recover(found.images, found.crops.astype(np.int64))
        truth = full.ground_truth[found.images][:, None]
        hard = found.regions == Region.HARD
        assert hard.any()
        assert not hard.all()
        as_sparse = dataclasses.replace(
            found.labels,
            probs=dense,
            class_ids=np.broadcast_to(np.arange(5), dense.shape),
            rest=np.zeros(hard.shape, np.float32),
        )
        wanted = densify(calibrate_label(as_sparse, found.regions, truth, 0.1, 5), 5)
        np.testing.assert_array_equal(dense_pass(found), wanted)


def test_fewer_crops_than_a_pass_takes_come_again(full, scratch):
    schedule = PassSchedule.of(passes=2, crops_per_image=50)
    with passes(full, schedule=schedule, scratch=scratch) as source:
        assert source.counts.repeating == 6
        crops = np.concatenate([source.pass_labels(p).crops for p in range(2)], axis=1)
    for cycle in range(5):
        part = np.sort(crops[:, cycle * 20 : cycle * 20 + 20], axis=1)
        np.testing.assert_array_equal(part, np.tile(np.arange(20), (6, 1)))


def test_images_without_a_usable_crop_are_counted_or_refused(labels, scratch):
    strict = calibrate(labels, RegionThresholds(low=0.3, middle=0.3, top=0.31), name="strict")
    usable = np.concatenate([strict.regions(b) for b in strict.blocks]) == Region.IMPORTANT
    empty = int((~usable.any(axis=1)).sum())
    assert 1 < empty < 23
    options = {"schedule": SCHEDULE, "mask": strict, "scratch": scratch}
    with pytest.raises(RejectedInput, match=rf"{empty} of 23 images.*`allow_empty_images`"):
        passes(labels, **options, allow_empty_images=False)
    with pytest.raises(RejectedInput, match=r"1 of 23 images.*left out as bad"):
        passes(labels, scratch=scratch, allow_empty_images=False)
    with passes(labels, **options) as source:
        counts = source.counts
        assert (counts.images, counts.left_out) == (23 - empty, empty)
        few = usable.sum(axis=1)
        assert counts.repeating == ((few > 0) & (few < 7)).sum()
        found = source.pass_labels(3)
        assert usable[found.images[:, None], found.crops].all()
    nothing = calibrate(labels, RegionThresholds(low=1, middle=1, top=1), name="nothing")
    with pytest.raises(RejectedInput, match=r"nothing to train on"):
        passes(labels, **{**options, "mask": nothing})


def test_an_unfinished_store_is_refused_or_used_in_part(tmp_path, scratch):
    probs = np.full((9, 20, 4), 0.25, np.float32)
    codec = MarginalSmoothing(k=2, dtype="float32", class_ids="plain")
    with filled_store(tmp_path / "s", probs, codec, images_per_shard=4, blocks=[0, 2]) as filled:
        part = filled.label_set()
        with pytest.raises(IncompleteError, match=r"`allow_incomplete`"):
            passes(part, scratch=scratch)
        with passes(part, scratch=scratch, allow_incomplete=True) as source:
            assert source.table.images.tolist() == [0, 1, 2, 3, 8]
            assert source.counts.left_out == 0
            check_pass(source, part, 4)


def test_a_missing_crop_is_never_trained_on(tmp_path, scratch):
    probs = np.full((3, 20, 4), 0.25, np.float32)
    probs[1, 7] = np.nan
    codec = MarginalSmoothing(k=2, dtype="float32", class_ids="plain")
    schedule = PassSchedule.of(passes=1, crops_per_image=20)
    with (
        filled_store(tmp_path / "s", probs, codec) as filled,
        passes(filled.label_set(), schedule=schedule, scratch=scratch) as source,
        pytest.raises(NotGenerated, match=r"class0001/0000001.jpg"),
    ):
        source.pass_labels(0)


def test_temperature_that_labels_cannot_have_is_refused(tmp_path, scratch):
    probs = np.full((3, 20, 4), 0.25, np.float32)
    codec = MarginalRenorm(k=2, dtype="float32", class_ids="plain")
    with filled_store(tmp_path / "s", probs, codec) as filled, pytest.raises(UsageError):
        passes(filled.label_set(), schedule=SCHEDULE, temperature=2.0, scratch=scratch)


def test_other_processes_attach(labels, scratch):
    with passes(labels, scratch=scratch) as source:
        other = passes(labels, attach=source.folder)
        wanted = source.pass_labels(5)
        assert other.pass_labels(5).take().tobytes() == wanted.take().tobytes()
        other.close()
        assert source.folder.exists()
        third = passes(labels, attach=source.folder)
    with pytest.raises(IncompleteError, match=r"is gone"):
        third.pass_labels(8)


def test_next_pass_is_laid_out_in_the_background(labels, scratch):
    with passes(labels, scratch=scratch) as source:
        source.prepare_later(6)
        (thread,) = source._ahead
        thread.join()
        assert all(source.planes.has(t) for t in SCHEDULE.positions(6))
        source.prepare_later(6)
        source.prepare_later(SCHEDULE.num_passes)
        assert not source._ahead
        check_pass(source, labels, 6)


def test_background_errors_come_back_to_who_asks(labels, scratch, monkeypatch):
    with passes(labels, scratch=scratch) as source:

        def broken(block, columns=None):
            raise StorageError("the disk is on fire")

        monkeypatch.setattr(labels, "crops", broken)
        source.prepare_later(4)
        for thread in source._ahead:
            thread.join()
        with pytest.raises(StorageError, match=r"on fire"):
            source.pass_labels(4)
        assert not list(source.folder.glob("*plane*"))
        monkeypatch.undo()
        check_pass(source, labels, 4)


def test_scratch_is_removed_when_closed_or_collected(labels, scratch):
    source = passes(labels, scratch=scratch)
    folder = source.folder
    found = source.pass_labels(0)
    source.close()
    assert not folder.exists()
    assert found.crops.shape == (22, 1)  # what is mapped stays readable
    source = passes(labels, scratch=scratch)
    folder = source.folder
    assert folder.exists()
    del source
    gc.collect()
    assert not folder.exists()


EXIT = """
import os, signal, sys
from pathlib import Path
from labelstore.scratch.folders import ScratchFolder
folder = ScratchFolder(Path(sys.argv[1]))
(folder.path / "file").touch()
pid = os.fork()
if not pid:
    sys.exit(0)  # a child's exit removes nothing
os.waitpid(pid, 0)
assert folder.path.exists()
print(folder.path, flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "raise":
    raise KeyError
"""


@pytest.mark.parametrize("how", ["end", "raise", "kill"])
def test_scratch_is_removed_at_exit(scratch, how):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXIT, str(scratch), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    (folder,) = run.stdout.decode().split()
    assert Path(folder).exists() == (how == "kill")
    busy = ScratchFolder(scratch)
    assert not Path(folder).exists()  # a killed process's folder goes with the next start
    ScratchFolder(scratch).close()
    assert busy.path.exists()  # and one in use stays
    busy.close()


def test_a_folder_that_is_just_being_made_is_not_swept(scratch):
    young = scratch / f"{PREFIX}abc"
    young.mkdir(parents=True)
    ScratchFolder(scratch).close()
    assert young.exists()
    (young / LOCK).touch()
    ScratchFolder(scratch).close()
    assert not young.exists()


def test_shared_memory_is_refused(labels):
    with pytest.raises(UsageError, match=r"shared memory"):
        passes(labels, scratch=Path("/dev/shm/labels"))


def test_a_disk_error_names_folder_and_flag(labels, scratch, monkeypatch):
    def full_disk(*args):
        raise OSError(28, os.strerror(28))

    with passes(labels, scratch=scratch) as source:
        monkeypatch.setattr(os, "pwrite", full_disk)
        with pytest.raises(StorageError, match=r"no space left.*`scratch`"):
            source.pass_labels(0)
        assert not list(source.folder.glob("*plane*"))


def ground_truth(scratch, **options):
    keys = [f"a/{i}.jpg" for i in range(11)]
    sizes = np.stack([np.arange(100, 111), np.arange(80, 91)], axis=1)
    return GroundTruthPasses(
        CropPlan(seed=4),
        keys=keys,
        class_ids=np.arange(11) % 3,
        sizes=sizes,
        num_classes=3,
        schedule=PassSchedule.of(passes=3, crops_per_image=4),
        scratch=scratch,
        **options,
    )


def test_ground_truth_passes_are_the_plans_crops(scratch, monkeypatch):
    monkeypatch.setattr("trainer.loader.ground_truth.IMAGES_TOGETHER", 4)
    with ground_truth(scratch, label_smoothing=0.3) as source:
        for p in range(3):
            found = source.pass_labels(p)
            np.testing.assert_array_equal(
                found.crops, np.tile(np.arange(4 * p, 4 * p + 4), (11, 1))
            )
            for i, key in enumerate(source.table.keys):
                height, width = source.table.sizes[i]
                box, flip = CropPlan(seed=4).crops(key, height, width, range(4 * p, 4 * p + 4))
                np.testing.assert_array_equal(found.boxes[i], box)
                np.testing.assert_array_equal(found.flips[i], flip)
            dense = dense_pass(found)
            np.testing.assert_allclose(dense.sum(-1), 1, rtol=1e-6)
            assert (dense.argmax(-1) == (np.arange(11) % 3)[:, None]).all()
            np.testing.assert_allclose(dense.min(-1), 0.1, rtol=1e-6)


def test_ground_truth_needs_a_class_for_every_image(scratch):
    with pytest.raises(RejectedInput, match=r"a/1.jpg: class -1"):
        GroundTruthPasses(
            CropPlan(),
            keys=["a/0.jpg", "a/1.jpg"],
            class_ids=np.array([0, -1]),
            sizes=np.full((2, 2), 9),
            num_classes=3,
            schedule=SCHEDULE,
            scratch=scratch,
        )
    with pytest.raises(UsageError):
        ground_truth(scratch, label_smoothing=1.5)
