"""Recorded augmentation: the teacher's pixels and the student's are the same, whatever happened on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import labelstore
from labelstore import CropAugmentation, CropPlan, Full, LabelMap
from labelstore.care.auditing import audit
from labelstore.care.repairing import repair
from labelstore.cropping.crop_augmentation import PlannedAugmentation
from labelstore.cropping.replay import read_image, replay
from labelstore.errors import ConflictError, UsageError
from tests.flat_options import CropDataset, CropLoader, StoredPasses, generate, label_images
from tests.generation.conftest import made_crops, write_photographs, write_teacher
from trainer.config import TrainConfig
from trainer.sampler import PassSchedule
from trainer.training_data import open_training_data

BOTH = CropAugmentation(color_jitter=(0.4, 0.4, 0.4, 0.1), rand_augment=9)
SIZE = 32
M = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("augmented")
    write_photographs(root / "images", per_class=3)
    write_teacher(root / "teacher")
    label(root / "s", root, num_crops=M, augmentation=BOTH)
    return root


def label(store: Path, place: Path, **options: object) -> None:
    settings = {
        "images": place / "images",
        "teacher": str(place / "teacher"),
        "codec": Full(dtype="float32"),
        "images_per_shard": 4,
        "crops_per_shard": 2,
        "batch_size": 7,
        "device": "cpu",
        "workers": 2,
        **options,
    }
    label_images(store, **settings)  # type: ignore[arg-type]


def plain_pixels(place: Path, key: str, crop: int) -> torch.Tensor:
    """One crop, from the functions of a plan alone."""
    image = read_image(place / "images" / key)
    boxes, flips = CropPlan().crops(key, *image.shape[1:], [crop])
    (operations,) = PlannedAugmentation(0, BOTH).operations(key, [crop])
    return replay(image, boxes[0], bool(flips[0]), SIZE, operations=operations)


def test_teacher_and_student_see_the_same_pixels(place):
    with labelstore.open(place / "s") as store:
        labels = store.label_set()
        keys = store.image_columns["key"].tolist()
        expected = torch.stack([plain_pixels(place, key, c) for key in keys for c in range(M)])
        shape = {"num_crops": M, "side": SIZE, "augmentation": PlannedAugmentation(0, BOTH)}
        for batch_size, workers in ((5, 1), (64, 3)):
            made = made_crops(
                store, place / "images", batch_size=batch_size, workers=workers, **shape
            )
            assert torch.equal(made, expected)
        schedule = PassSchedule.of(passes=2, crops_per_image=2)
        with StoredPasses(labels, schedule=schedule, seed=1) as source:
            loader = CropLoader(source, place / "images", batch_size=6, input_size=SIZE)
            seen = 0
            for p in range(2):
                for batch in loader.batches(p):
                    rows = batch.images.repeat_interleave(2) * M + batch.crops
                    assert torch.equal(batch.pixels, expected[rows])
                    seen += len(rows)
            assert seen == len(expected)
        data = CropDataset(labels, place / "images", crops_per_image=2, input_size=SIZE, passes=1)
        item = data[3]
        assert torch.equal(item["pixels"], expected[3 * M + item["crops"]])
        data.close()


def test_labels_are_the_teachers_of_these_pixels(place):
    from labelstore.teachers.teacher import load_teacher

    teacher = load_teacher(str(place / "teacher"))
    with labelstore.open(place / "s") as store:
        stored = store.label_set().recover([2])[0]
        key = str(store.image_columns["key"][2])
        pixels = torch.stack([plain_pixels(place, key, c) for c in range(M)])
        with torch.inference_mode():
            expected = torch.softmax(teacher.module((pixels.float() / 255 - 0.5) / 0.25), 1)
        np.testing.assert_allclose(stored, expected.numpy(), atol=2e-6)
        assert audit(store, sample=36, device="cpu", workers=2).largest < 1e-5


def test_damage_and_more_teachers_follow_the_plan(place, tmp_path):
    shutil.copytree(place / "s", tmp_path / "s")
    teacher = {"teacher": str(place / "teacher"), "device": "cpu", "workers": 2}
    with labelstore.open(tmp_path / "s") as store:
        row = next(iter(store.catalogue.ledger.shards("labels/teacher")))
        path = store.arrays.root / row.files[0].key
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with labelstore.open(tmp_path / "s", checked=False) as store:
        repair(store, device="cpu", workers=1, batch_size=7, whole_shards=True)
        assert path.read_bytes() == whole
        generate(store, codec=Full(dtype="float32"), name="more", **teacher)
        first, more = store.label_set("teacher").recover([1]), store.label_set("more").recover([1])
        np.testing.assert_allclose(first, more, atol=2e-6)


def test_a_plan_that_says_something_else_is_refused(place, tmp_path):
    for other in (None, CropAugmentation(rand_augment=9)):
        with pytest.raises(ConflictError, match="exists with augmentation"):
            label(place / "s", place, num_crops=M, augmentation=other)
    label(place / "s", place, num_crops=M, augmentation=BOTH)
    # with the plan goes what it does to pixels
    label(tmp_path / "from", place, plan_of=place / "s")
    with labelstore.open(tmp_path / "from") as store, labelstore.open(place / "s") as first:
        assert store.plan().parameters == first.plan().parameters
        np.testing.assert_allclose(
            store.label_set().recover([0]), first.label_set().recover([0]), atol=2e-6
        )
    with pytest.raises(UsageError, match="crops are augmented otherwise"):
        label(tmp_path / "x", place, plan_of=place / "s", augmentation=CropAugmentation())
    with pytest.raises(UsageError, match="run on the CPU"):
        label(tmp_path / "x", place, num_crops=M, augmentation=BOTH, crop_device="cuda")
    with pytest.raises(UsageError, match="label maps are of whole images"):
        label(tmp_path / "x", place, num_crops=M, augmentation=BOTH, codec=LabelMap(k=2))
    with labelstore.open(place / "s") as store, pytest.raises(UsageError, match="label maps"):
        generate(store, teacher=str(place / "teacher"), codec=LabelMap(k=2), name="m", device="cpu")
    assert not (tmp_path / "x").exists()


def test_what_comes_on_top_is_said_and_what_would_be_lost_is_refused(place, tmp_path):
    notes: list[str] = []
    about = {"store": place / "s", "train": place / "images", "crops_per_image": 2, "batch_size": 6}
    with open_training_data(TrainConfig(**about, color_jitter=(0.1, 0, 0, 0)), notes.append):
        assert any("come on top, for the student alone" in note for note in notes)
    with labelstore.open(place / "s") as store:
        with pytest.raises(UsageError, match="were augmented as the plan records"):
            labelstore.export_labels(store.label_set(), target=tmp_path / "out", format="fkd")
        labelstore.export_labels(store.label_set(), target=tmp_path / "out.h5", format="hdf5")


def test_on_the_command_line(place, tmp_path, labelstore_command):
    create = (
        "create", tmp_path / "s", "--images", place / "images", "--teacher", place / "teacher",
        "--num-crops", 2, "--k", 2, "--device", "cpu",
    )  # fmt: skip
    for wrong, why in (
        (("--color-jitter", "1,2"), "give 4 numbers"),
        (("--color-jitter", "0.4,0.4,0.4,0.9"), "hue (0 to 0.5)"),
        (("--rand-augment", "12"), "each is 0 to 10"),
        (("--rand-augment-ops", "3"), "need --rand-augment"),
    ):
        code, _, err = labelstore_command(*create, *wrong)
        assert code == 2, err
        assert why in err
    code, _, err = labelstore_command(
        *create, "--color-jitter", "0.4,0.4,0.4,0.1", "--rand-augment", 9
    )
    assert code == 0, err
    with labelstore.open(tmp_path / "s") as store:
        assert store.plan().parameters["augmentation"] == BOTH.to_record()
    out = labelstore_command("info", tmp_path / "s")[1]
    assert "colour jitter 0.4, 0.4, 0.4, 0.1" in out
    assert "RandAugment 9" in out
