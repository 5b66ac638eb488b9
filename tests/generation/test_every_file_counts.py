"""Images in are labelled, refused, left out or counted; numbered classes are followed wherever a folder is read again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import labelstore
import trainer
from cli import errors, labelstore_app
from labelstore import Full, PlanOptions
from labelstore.errors import ConflictError
from labelstore.exchange import Stated
from labelstore.images import scan_folder
from labelstore.labelling.growing import add_images
from tests.flat_options import generate, import_labels, label_images
from tests.generation.conftest import write_teacher

WORK = {"batch_size": 16, "device": "cpu", "workers": 1}
NUMBERS = ("0", "1", "2", "10")


def write_numbered(root, per_class=2):
    rng = np.random.default_rng(0)
    for name in NUMBERS:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 255, (40, 44, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def numbered(tmp_path):
    """A folder of numbered classes with files that are no images, and a teacher that names no class."""
    images = write_numbered(tmp_path / "images")
    (images / "1" / ".thumbs").mkdir()
    shutil.copy(images / "1" / "0.png", images / "1" / ".thumbs" / "0.png")
    (images / "2" / "notes.txt").write_text("x")
    teacher = write_teacher(tmp_path / "teacher", classes=NUMBERS)
    return images, teacher


def make(path, images, teacher, **changes):
    notes = []
    label_images(
        path, images=images, teacher=str(teacher), codec=Full(), num_crops=2, note=notes.append,
        **{**WORK, **changes},
    )  # fmt: skip
    return notes


def test_files_in_are_labelled_left_out_or_counted(numbered, tmp_path, capsys):
    images, teacher = numbered
    (images / "0" / "broken.png").write_bytes(b"no picture")
    notes = make(tmp_path / "s", images, teacher, skip_bad=True)
    assert sum("2 files ignored (" in note for note in notes) == 1
    assert (
        errors.run(labelstore_app.commands, "labelstore", ["info", str(tmp_path / "s"), "--json"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    labelled = told["images"] - told["bad_images"]
    files = [path for path in images.rglob("*") if path.is_file()]
    assert (labelled, told["bad_images"], sum(told["ignored_files"].values())) == (8, 1, 2)
    assert labelled + told["bad_images"] + sum(told["ignored_files"].values()) == len(files)
    assert errors.run(labelstore_app.commands, "labelstore", ["info", str(tmp_path / "s")]) == 0
    assert "9 of 4 classes, 1 left out; 2 files ignored" in capsys.readouterr().out


def test_a_store_that_has_hidden_images_is_still_read(numbered, tmp_path):
    images, teacher = numbered
    with labelstore.create(
        tmp_path / "s", images=scan_folder(images).with_hidden(), plan=PlanOptions(num_crops=2)
    ) as store:
        assert "1/.thumbs/0.png" in set(store.images()["key"])
        generate(store, teacher=str(teacher), codec=Full(), images=images, **WORK)
        assert store.label_set().is_complete
        assert add_images(store, images).num_new == 0


def test_an_older_store_keeps_its_numbers(numbered, tmp_path):
    """A store whose classes are numbered in the order of text, as all were before."""
    images, teacher = numbered
    old = tuple(sorted(NUMBERS))
    folder = scan_folder(images).with_classes(old)
    with labelstore.create(tmp_path / "s", images=folder, plan=PlanOptions(num_crops=2)) as store:
        assert store.class_names == old == ("0", "1", "10", "2")
        generate(store, teacher=str(teacher), codec=Full(), images=images, **WORK)
        Image.new("RGB", (40, 44)).save(images / "10" / "new.png")
        add_images(store, images)
        frame = store.images()
        assert (frame["class"] == frame["key"].str.partition("/")[0]).all()
        by_row = store.image_columns["class_id"][frame["image"]]
        assert [old[i] for i in by_row] == frame["class"].tolist()


def test_labels_from_elsewhere_number_classes_as_torchvision_does(numbered, tmp_path):
    images, teacher = numbered
    keys = [f"{name}/{i}.png" for name in sorted(NUMBERS) for i in range(2)]
    probs = np.repeat(np.eye(4, dtype=np.float32), 2, axis=0)[
        :, None
    ]  # torchvision's class of each image
    np.savez(tmp_path / "labels.npz", key=np.array(keys), prob=probs)
    stated = Stated(whole_images=True, teacher="timm:resnet18", compression="full", temperature=1.0)

    def bring(path):
        return import_labels(
            path, format="npz", source=tmp_path / "labels.npz", images=images, stated=stated
        )

    report = bring(tmp_path / "imported")
    assert report.ground_truth_probability == 1
    with labelstore.open(tmp_path / "imported") as store:
        assert store.class_names == tuple(sorted(NUMBERS))
    make(tmp_path / "s", images, teacher)
    with pytest.raises(ConflictError, match="numbers its classes in the order 0, 1, 2, "):
        bring(tmp_path / "s")


def test_a_run_that_is_resumed_keeps_its_numbers(numbered, tmp_path):
    from trainer.training_data import open_training_data

    images, _ = numbered
    settings = {
        "labels": "ground-truth", "train": images, "model": "timm:resnet18", "epochs": 1, "crops_per_image": 1,
        "batch_size": 4, "scratch": tmp_path,
    }  # fmt: skip
    for names in ((), tuple(sorted(NUMBERS))):
        config = trainer.TrainConfig(**settings, class_names=names)
        with open_training_data(config) as data:
            used = data.config.class_names
            truth = data.source.table.ground_truth
            keys = data.source.table.keys
        assert used == (names or NUMBERS)
        assert [used[i] for i in truth] == [key.partition("/")[0] for key in keys]


def test_a_note_says_how_numbered_folders_are_counted(tmp_path):
    images = write_numbered(tmp_path / "images")
    teacher = write_teacher(tmp_path / "teacher", classes=NUMBERS)
    config = yaml.safe_load((teacher / "config.yaml").read_text())
    del config["class_names"]
    (teacher / "config.yaml").write_text(yaml.safe_dump(config))
    notes = make(tmp_path / "s", images, teacher)
    with labelstore.open(tmp_path / "s") as store:
        assert store.class_names == NUMBERS
    assert any("called by numbers" in note for note in notes)
