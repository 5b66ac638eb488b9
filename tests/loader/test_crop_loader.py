"""Batches: the pixels and labels of the drawn crops, the same whatever threads, ranks and restarts do."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from labelstore.cropping.crop_plan import CropPlan
from labelstore.cropping.device_decoding import DeviceDecoding, with_torchcodec
from labelstore.cropping.replay import read_image, replay
from labelstore.errors import LabelStoreError, RejectedInput, StorageError, UsageError
from labelstore.images import scan_folder
from tests.flat_options import CropLoader, StoredPasses
from trainer.loader import GroundTruthPasses, read_sizes
from trainer.losses import SparseSoftCrossEntropy
from trainer.sampler import PassSchedule

SIZE = 24
SCHEDULE = PassSchedule.of(passes=2, crops_per_image=4, single_crop_last=1)
TENSORS = ("pixels", "class_ids", "probs", "rest", "regions", "crops", "images")


@pytest.fixture
def source(labels, tmp_path):
    with StoredPasses(
        labels, schedule=SCHEDULE, seed=9, scratch=tmp_path, allow_empty_images=True
    ) as made:
        yield made


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("labelstore-loader")]


def loader(source, data, **options):
    return CropLoader(
        source, data, **{"batch_size": 24, "input_size": SIZE, "seed": 9, "workers": 2, **options}
    )


def snapshot(batches):
    """Copies of the batches of an iterator: buffers are filled again."""
    return [{name: getattr(b, name).clone() for name in TENSORS} for b in batches]


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in TENSORS:
            assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_batch_is_its_crops_replayed(source, labels, data, interpolation):
    batches = loader(source, data, interpolation=interpolation).batches(1)
    keys, seen = labels.store.image_columns["key"], []
    assert len(batches) == 4  # 22 images, 6 per step
    for step, batch in enumerate(batches):
        assert (batch.pass_index, batch.step, batch.crops_per_image) == (1, step, 4)
        assert batch.crops_of_step == len(batch) == (24 if step < 3 else 16)
        images, crops = batch.images.numpy(), batch.crops.numpy().reshape(-1, 4)
        boxes, flips = labels.boxes(images), labels.flips(images)
        for i, image in enumerate(images):
            pixels = read_image(data / keys[image])
            for j, crop in enumerate(crops[i]):
                wanted = replay(pixels, boxes[i, crop], flips[i, crop], SIZE, interpolation)
                assert torch.equal(batch.pixels[4 * i + j], wanted)
        dense = labels.recover(images, crops).reshape(len(batch), -1)
        rest = batch.rest[:, None].expand(-1, 7).clone()
        found = rest.scatter(1, batch.class_ids, batch.probs)
        np.testing.assert_array_equal(found.numpy(), dense)
        seen.extend(images.tolist())
    assert sorted(seen) == source.table.images.tolist()
    assert seen != sorted(seen)


def test_threads_and_prefetch_never_show(source, data):
    wanted = snapshot(loader(source, data, workers=1, prefetch=1).batches(0))
    for workers, prefetch in ((2, 1), (3, 2), (8, 5)):
        with loader(source, data, workers=workers, prefetch=prefetch).batches(0) as batches:
            assert_same(snapshot(batches), wanted)


@pytest.mark.parametrize("pass_index", [0, 2])
def test_resuming_at_any_step_gives_the_same_batches(source, data, pass_index):
    made = loader(source, data)
    wanted = snapshot(made.batches(pass_index))
    assert len(wanted) == made.steps(pass_index)
    for step in range(made.steps(pass_index) + 1):
        assert_same(snapshot(made.batches(pass_index, step)), wanted[step:])
    with pytest.raises(UsageError, match="step 9"):
        made.batches(pass_index, 9)


def test_batch_size_moves_no_crop(source, data):
    def by_image(batch_size):
        found = snapshot(loader(source, data, batch_size=batch_size).batches(1))
        return {name: torch.cat([batch[name] for batch in found]) for name in TENSORS}

    one, other = by_image(8), by_image(88)
    assert_same([one], [other])


def test_ranks_together_are_one_process(source, data):
    alone = snapshot(loader(source, data).batches(1))
    for world in (2, 3):
        shares = [
            snapshot(loader(source, data, rank=r, world_size=world).batches(1))
            for r in range(world)
        ]
        together = [
            {name: torch.cat([share[step][name] for share in shares]) for name in TENSORS}
            for step in range(len(alone))
        ]
        assert_same(together, alone)


def test_a_rank_without_images_in_the_last_step_gets_an_empty_batch(source, data):
    # 22 images, 7 a step: one is left for seven ranks
    last = []
    for rank in range(7):
        batches = list(loader(source, data, batch_size=28, rank=rank, world_size=7).batches(0))
        assert len(batches) == 4
        last.append(len(batches[-1]))
        assert batches[-1].crops_of_step == 4
        assert batches[-1].pixels.shape[1:] == (3, SIZE, SIZE)
    assert last == [4, 0, 0, 0, 0, 0, 0]


def test_the_last_batch_given_out_is_not_written_to(source, data):
    batches = loader(source, data, batch_size=8, workers=3, prefetch=2).batches(0)
    for batch in batches:
        before = batch.pixels.clone()
        threading.Event().wait(0.01)
        assert torch.equal(batch.pixels, before)


def test_to_is_a_copy(source, data):
    batches = loader(source, data, prefetch=1, batch_size=8).batches(0)
    first = next(batches).to("cpu")
    before = first.pixels.clone()
    for _ in batches:
        pass
    assert torch.equal(first.pixels, before)


@pytest.mark.gpu
def test_pinned_batches_arrive_whole(source, data):
    wanted = snapshot(loader(source, data, batch_size=8).batches(0))
    batches = loader(source, data, batch_size=8, pin_memory=True, prefetch=1).batches(0)
    moved = [batch.to("cuda") for batch in batches]
    assert_same([{n: getattr(b, n).cpu() for n in TENSORS} for b in moved], wanted)


@pytest.mark.sample(2)
@pytest.mark.parametrize("leave", ["break", "close", "with", "drop", "raise"])
def test_leaving_early_ends_the_threads(source, data, leave):
    def threads():
        return [t for t in threading.enumerate() if t.name.startswith("labelstore-loader")]

    made = loader(source, data, batch_size=4, workers=3)
    if leave == "break":
        for _ in made.batches(0):
            assert len(threads()) == 3
            break
    elif leave == "raise":

        def fail():
            with made.batches(0) as batches:
                for _ in batches:
                    raise KeyError

        with pytest.raises(KeyError):
            fail()
    else:
        batches = made.batches(0)
        next(batches)
        assert len(threads()) == 3
        if leave == "drop":
            del batches
        elif leave == "close":
            batches.close()
            batches.close()
            assert list(batches) == []
        else:
            with batches:
                pass
    assert not threads()
    assert len(snapshot(made.batches(0))) == 22  # the loader itself goes on


def test_worker_threads_run_torch_on_one_core_and_others_do_not(source, data, monkeypatch):
    counts = []
    import trainer.loader.crop_pixels as module

    original = module.replay_many

    def spying(*args):
        counts.append(torch.get_num_threads())
        original(*args)

    monkeypatch.setattr(module, "replay_many", spying)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in loader(source, data).batches(0):
            pass
        assert set(counts) == {1}
        assert torch.get_num_threads() == 2
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def own_data(source, data, tmp_path):
    """A copy of the images that a test may damage."""
    root = tmp_path / "images"
    for key in source.table.keys:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((data / key).read_bytes())
    return root


def damage(path, how):
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:400])
    elif how == "missing":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        import PIL.Image

        PIL.Image.new("RGB", (40, 30)).save(path)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("truncated", RejectedInput),
        ("missing", RejectedInput),
        ("folder", StorageError),
        ("resized", RejectedInput),
    ],
)
def test_errors_name_the_image_and_come_in_order(source, own_data, how, error):
    made = loader(source, own_data, workers=3)
    order = [image for batch in made.batches(0) for image in batch.images.tolist()]
    keys = dict(zip(source.table.images.tolist(), source.table.keys, strict=True))
    for place in (8, 10, 20):
        damage(own_data / keys[order[place]], how)
    for _ in range(3):
        batches = made.batches(0)
        good = [next(batches).step]
        with pytest.raises(error) as raised:
            good.extend(batch.step for batch in batches)
        assert good == [0]
        message = str(raised.value)
        assert keys[order[8]] in message
        assert "\n" not in message
        assert not any(t.name.startswith("labelstore-loader") for t in threading.enumerate())


def test_an_unforeseen_error_names_the_image_too(source, data, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("trainer.loader.crop_pixels.replay_many", broken)
    with pytest.raises(LabelStoreError, match=r"class\S+\.jpg: ZeroDivisionError: oops"):
        next(loader(source, data).batches(0))


def test_data_may_be_the_folder_above_train(source, data, tmp_path):
    (tmp_path / "in1k").mkdir()
    (tmp_path / "in1k/train").symlink_to(data)
    assert_same(
        snapshot(loader(source, tmp_path / "in1k").batches(2)),
        snapshot(loader(source, data).batches(2)),
    )
    with pytest.raises(RejectedInput, match="`data`"):
        loader(source, tmp_path)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"prefetch": 0}, {"rank": 1}, {"batch_size": 6}, {"seed": -1}],
)
def test_senseless_options_are_refused(source, data, options):
    with pytest.raises(UsageError):
        loader(source, data, **options)


def test_ground_truth_run_on_a_folder(data, tmp_path):
    folder = scan_folder(data)
    sizes = read_sizes(folder)
    assert (sizes == (375, 500)).all()
    with GroundTruthPasses(
        CropPlan(seed=2),
        keys=folder.keys,
        class_ids=folder.class_ids,
        sizes=sizes,
        num_classes=len(folder.classes),
        schedule=SCHEDULE,
        scratch=tmp_path,
    ) as source:
        made = loader(source, folder, batch_size=20)
        seen = []
        for pass_index in range(3):
            for batch in made.batches(pass_index):
                m = batch.crops_per_image
                truth = torch.from_numpy(folder.class_ids[batch.images.numpy()])
                assert torch.equal(batch.class_ids[:, 0], truth.repeat_interleave(m))
                loss = SparseSoftCrossEntropy()(
                    torch.zeros(len(batch), 7), batch.class_ids, batch.probs, batch.rest
                )
                assert loss.item() == pytest.approx(np.log(7), rel=1e-5)
                seen += [
                    (int(i), int(c))
                    for i, c in zip(batch.images.repeat_interleave(m), batch.crops, strict=True)
                ]
        assert sorted(seen) == [(i, c) for i in range(len(folder)) for c in range(9)]


def test_batches_of_a_device_are_those_of_the_cpu_but_for_rounding(source, data):
    decoding = DeviceDecoding(with_torchcodec, torch.device("cpu"), ["4:2:0", "4:4:4", "grey"])
    there = loader(source, data, decoding=decoding)
    for here, made in zip(
        snapshot(loader(source, data).batches(1)), snapshot(there.batches(1)), strict=True
    ):
        gap = (here.pop("pixels").int() - made.pop("pixels").int()).abs()
        assert gap.max() <= 2
        assert all(torch.equal(here[name], made[name]) for name in here)
    assert decoding.counts.total() == 22
    with pytest.raises(UsageError, match="`decode_device=device` with augmentation"):
        loader(source, data, decoding=decoding, augment=lambda *given: None)
