"""Curricula, probability ranges and ensembles; and the draw file, which later runs find again or find damaged."""

from __future__ import annotations

import json
import math
import os
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import labelstore
from labelstore.codecs import MarginalSmoothing, densify
from labelstore.errors import RejectedInput, UsageError
from labelstore.scratch.folders import PREFIX
from labelstore.testing.filled_store import add_label_set, fill_blocks, filled_store
from tests.flat_options import StoredPasses
from tests.loader.conftest import NUM_CROPS, soft_labels
from trainer.curriculum import ranked_crops
from trainer.loader.draws import DRAW_FILE, FOLDER
from trainer.sampler import DrawingOrder, PassSchedule

SCHEDULE = PassSchedule.of(passes=5, crops_per_image=17)  # 85 positions of 60 crops


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two teachers on one plan."""
    codec = MarginalSmoothing(k=2, dtype="float32", class_ids="plain")
    path = tmp_path_factory.mktemp("pair") / "s"
    with filled_store(path, soft_labels(9), codec, images_per_shard=4, bad={2}) as opened:
        add_label_set(opened, codec, 7, name="second")
        fill_blocks(opened, soft_labels(9, seed=5), name="second", bad={2})
        yield opened


def passes(labels, **options):
    return StoredPasses(labels, **{"schedule": SCHEDULE, "allow_empty_images": True, **options})


def drawn(source) -> np.ndarray:
    found = [source.pass_labels(p).crops for p in range(source.schedule.num_passes)]
    return np.concatenate(found, axis=1).astype(np.int64)


def probabilities(labels) -> np.ndarray:
    return np.concatenate([labels.max_probability(block) for block in labels.blocks])


def reference_ranks(count, schedule):
    """Ranks of all positions of a run, among so many crops: the dozen lines that a curriculum is."""
    whole = schedule.epochs
    times = math.ceil(Fraction(whole, count))
    ranks = [int(Fraction(t * count, whole)) for t in range(whole)]
    dealt: list[int] = []
    for passes, m in schedule.runs():
        left = passes
        while left:
            together = times if times <= left - times else left
            first = len(dealt)
            for i in range(together):
                taken = ranks[first + i : first + together * m : together]
                if passes < times and m <= count:
                    lowest = min(ranks[first + i * m], count - m)
                    taken = list(range(lowest, lowest + m))
                dealt += taken
            left -= together
    return dealt


def reference(probability, usable, positions, order, schedule):
    """Crops of these positions of a curriculum."""
    drawn = []
    for p, keep in zip(probability, usable, strict=True):
        crops = sorted(
            np.flatnonzero(keep), key=lambda c: (-p[c] if order == "easy-to-hard" else p[c], c)
        )
        ranks = reference_ranks(len(crops), schedule)
        drawn.append([crops[ranks[t]] for t in positions])
    return np.array(drawn)


SCHEDULES = st.builds(
    PassSchedule.of,
    passes=st.integers(1, 12),
    crops_per_image=st.integers(1, 5),
    single_crop_first=st.integers(0, 3),
    single_crop_last=st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (3, 8), elements=st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0])),
    arrays(bool, (3, 8)),
    SCHEDULES,
    st.data(),
    st.sampled_from(["easy-to-hard", "hard-to-easy"]),
)
def test_a_curriculum_is_its_reference(probability, usable, schedule, data, order):
    usable[:, 3] = True
    start = data.draw(st.integers(0, schedule.epochs - 1))
    positions = range(start, data.draw(st.integers(start + 1, schedule.epochs)))
    found = ranked_crops(probability, usable, positions, order, schedule=schedule)
    wanted = reference(probability, usable, positions, order, schedule)
    np.testing.assert_array_equal(found, wanted)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (3, 8), elements=st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0])),
    arrays(bool, (3, 8)),
    SCHEDULES,
    st.sampled_from(["easy-to-hard", "hard-to-easy"]),
)
def test_a_curriculum_goes_once_through_the_crops_of_an_image(probability, usable, schedule, order):
    """From one end to the other over the run; each crop about as often, and never twice in a pass that can do without."""
    usable[:, 3] = True
    whole = schedule.epochs
    found = ranked_crops(probability, usable, range(whole), order, schedule=schedule)
    for p, keep, crops in zip(probability, usable, found, strict=True):
        assert keep[crops].all()
        count = int(keep.sum())
        times = math.ceil(whole / count)
        for nth in range(schedule.num_passes):
            positions = schedule.positions(nth)
            shown = crops[positions.start : positions.stop].tolist()
            assert len(set(shown)) == len(shown) or len(shown) > count
        if all(passes >= times or m > count for passes, m in schedule.runs()):
            often = np.bincount(crops, minlength=8)[keep]
            assert often.max() - often.min() <= 1
        steps = np.diff(p[crops])
        if whole <= count:
            assert (steps <= 0).all() if order == "easy-to-hard" else (steps >= 0).all()


@pytest.mark.parametrize("order", ["easy-to-hard", "hard-to-easy"])
def test_ferkds_curriculum_shows_no_crop_twice_in_a_batch(order):
    """FerKD Table 7: 300 epochs of 200 crops, m = 4; straight on, each batch showed a crop twice to four times."""
    schedule = PassSchedule.of(passes=75, crops_per_image=4)
    rng = np.random.default_rng(0)
    probability = rng.random((5, 200)).astype(np.float32)
    usable = rng.random((5, 200)) < [[1], [1], [0.9], [0.4], [0.03]]
    usable[:, :4] = True
    crops = ranked_crops(probability, usable, range(300), order, schedule=schedule)
    shown = np.sort(crops.reshape(5, 75, 4), axis=2)
    assert (np.diff(shown, axis=2) > 0).all()
    sure = np.take_along_axis(probability, crops, axis=1).reshape(5, 75, 4).mean(axis=2)
    # thirds of the run: sure, less sure, unsure
    thirds = sure.reshape(5, 3, 25).mean(axis=2)
    assert (np.diff(thirds[:4], axis=1) * (-1 if order == "easy-to-hard" else 1) > 0).all()


@pytest.mark.parametrize("positions", [range(-1, 2), range(3, 6)])
def test_a_curriculum_has_no_positions_outside_of_the_run(positions):
    with pytest.raises(UsageError, match="they must lie inside"):
        ranked_crops(
            np.ones((1, 3), "f4"),
            np.ones((1, 3), bool),
            positions,
            "easy-to-hard",
            schedule=PassSchedule(crops_per_pass=(5,)),
        )


@pytest.mark.parametrize("order", ["easy-to-hard", "hard-to-easy"])
@pytest.mark.parametrize("limits", [(0.0, 1.0), (0.3, 0.8)])
def test_a_run_draws_its_curriculum(labels, scratch, order, limits):
    with passes(labels, order=order, probability_range=limits, scratch=scratch) as source:
        found = drawn(source)
        images = source.table.images
    p = probabilities(labels)[images]
    usable = (p >= np.float32(limits[0])) & (p <= np.float32(limits[1]))
    np.testing.assert_array_equal(found, reference(p, usable, range(85), order, SCHEDULE))
    for image, crops in enumerate(found):
        assert set(crops.tolist()) == set(np.flatnonzero(usable[image]).tolist())
    with passes(labels, order=order, probability_range=limits) as resumed:
        np.testing.assert_array_equal(resumed.pass_labels(3).crops, found[:, 51:68])


def test_a_longer_curriculum_is_another_draw_file(labels, scratch):
    """Its crops differ, so that the planes kept by a shorter run are not its own."""
    folders, crops = set(), []
    for number in (5, 6):
        schedule = PassSchedule.of(passes=number, crops_per_image=17)
        options = {"schedule": schedule, "order": "hard-to-easy", "keep_draws": 1.0}
        with passes(labels, scratch=scratch, **options) as source:
            crops.append(source.pass_labels(1).crops)
            folders.add(source.folder)
    assert len(folders) == 2
    assert not np.array_equal(*crops)


def test_a_probability_range_leaves_out_what_lies_outside_and_draws_the_rest_in_order(labels):
    with passes(labels, probability_range=(0.3, 0.8), seed=4) as source:
        found = drawn(source)
        images, streams = source.table.images, source.table.streams
        assert source.counts.images == len(images) < 23
    p = probabilities(labels)
    usable = (p >= np.float32(0.3)) & (p <= np.float32(0.8))
    assert sorted(images.tolist()) == np.flatnonzero(usable.any(axis=1)).tolist()
    order = DrawingOrder(seed=4, num_crops=NUM_CROPS, crops_per_chunk=20, schedule=SCHEDULE)
    wanted = order.usable_crops(streams, usable[images], 85)
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(RejectedInput, match="choose a wider range"):
        passes(labels, probability_range=(0.3, 0.31), allow_empty_images=False)
    with pytest.raises(UsageError, match=r"give .low, high."):
        passes(labels, probability_range=(0.5, 0.4))


def test_an_ensembles_passes_hold_its_mean_in_the_order_of_one_teacher(pair, scratch):
    first, second = pair.label_set("teacher"), pair.label_set("second")
    together = labelstore.ensemble([first, second], weights=[1, 2])
    with passes(together, seed=3, scratch=scratch) as source, passes(first, seed=3) as alone:
        for p in range(SCHEDULE.num_passes):
            found = source.pass_labels(p)
            np.testing.assert_array_equal(found.crops, alone.pass_labels(p).crops)
            wanted = together.recover(found.images, found.crops.astype(np.int64))
            np.testing.assert_allclose(densify(found.labels, 7), wanted, atol=1e-6)


def drawn_files(scratch):
    return sorted((scratch / FOLDER).glob("*/plane-*.npy"))


def test_a_second_run_finds_the_first_ones_draw_file(labels, mask, scratch, monkeypatch):
    options = {"mask": mask, "scratch": scratch, "keep_draws": 1.0}
    with passes(labels, seed=1, **options) as source:
        first = drawn(source)
        assert source.folder.parent == scratch / FOLDER
    files = drawn_files(scratch)
    assert len(files) == 85
    assert not list(scratch.glob(f"{PREFIX}*"))

    def refuse(*args, **kwargs):
        raise AssertionError("labels were read again")

    with monkeypatch.context() as patch:
        patch.setattr(type(labels), "sparse", refuse)
        with passes(labels, seed=1, **options) as source:
            np.testing.assert_array_equal(drawn(source), first)
        with pytest.raises(AssertionError), passes(labels, seed=2, **options) as source:
            drawn(source)
        with pytest.raises(AssertionError), passes(labels, seed=1, temperature=2.0, **options) as s:
            drawn(s)
    with passes(labels, seed=1, mask=mask, scratch=scratch, keep_draws=0.0) as source:
        np.testing.assert_array_equal(drawn(source), first)
        assert source.folder.parent == scratch


@pytest.mark.parametrize("damage", ["flip", "short", "no seal", "foreign"])
def test_a_damaged_plane_is_made_again(labels, mask, scratch, damage):
    options = {"mask": mask, "scratch": scratch, "keep_draws": 1.0}
    with passes(labels, **options) as source:
        first = [source.pass_labels(p).take().tobytes() for p in range(SCHEDULE.num_passes)]
    file = drawn_files(scratch)[20]
    whole = file.read_bytes()
    if damage == "flip":
        file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    elif damage == "short":
        file.write_bytes(whole[:-100])
    elif damage == "no seal":
        file.with_suffix(".crc32c").unlink()
    else:
        file.write_bytes(drawn_files(scratch)[21].read_bytes())
    with passes(labels, **options) as source:
        again = [source.pass_labels(p).take().tobytes() for p in range(SCHEDULE.num_passes)]
    assert again == first
    assert file.read_bytes() == whole


def test_a_change_of_labels_is_another_draw_file(scratch, tmp_path):
    codec = MarginalSmoothing(k=3, dtype="float32", class_ids="plain")
    folders = set()
    for seed in (0, 1):
        path = tmp_path / f"s{seed}"
        with filled_store(path, soft_labels(5, seed=seed), codec, images_per_shard=4) as opened:
            options = {"order": "easy-to-hard", "scratch": scratch, "keep_draws": 1.0}
            with passes(opened.label_set(), **options) as source:
                source.pass_labels(0)
                folders.add(source.folder)
    assert len(folders) == 2


def test_old_draw_files_make_room_unless_they_are_in_use(labels, scratch):
    size = {"order": "easy-to-hard", "scratch": scratch}
    with passes(labels, seed=0, keep_draws=1.0, **size) as used:
        drawn(used)
        each = sum(file.stat().st_size for file in used.folder.iterdir()) / 1e9
        stale = (time.time() - 40 * 86_400,) * 2
        os.utime(used.folder / DRAW_FILE, stale)
        with passes(labels, temperature=2.0, keep_draws=1.0, **size) as other:
            drawn(other)
            assert used.folder.exists()  # held by its run
    with passes(labels, temperature=3.0, keep_draws=1.0, **size):
        assert not used.folder.exists()  # nobody had it, and it was old
        assert other.folder.exists()
    with passes(labels, temperature=4.0, keep_draws=1.5 * each, **size) as last:
        assert not other.folder.exists()  # no room for both
    assert last.folder.exists()
    with passes(labels, temperature=5.0, keep_draws=each / 10, **size) as source:
        assert source.folder.name.startswith(PREFIX)  # more than is kept at all


def test_another_process_attaches_to_a_draw_file(labels, mask, scratch):
    options = {"mask": mask, "scratch": scratch, "keep_draws": 1.0}
    with passes(labels, **options) as source:
        with passes(labels, mask=mask, attach=source.folder) as attached:
            wanted = source.pass_labels(2).take().tobytes()
            assert attached.pass_labels(2).take().tobytes() == wanted
        assert source.folder.exists()
        described = json.loads((source.folder / DRAW_FILE).read_text())
        assert described["seed"] == 0
        assert described["members"][0]["rule"] == mask.rule
