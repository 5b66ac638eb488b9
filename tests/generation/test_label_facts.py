"""A label set remembers how its labels came about, so that nobody has to say it twice, or may say something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore import MarginalSmoothing
from labelstore.care.repairing import repair
from labelstore.care.verification import verify
from labelstore.codecs import codec_from_options
from labelstore.errors import ConflictError, RejectedInput, UsageError
from labelstore.teachers.teacher import Teacher, load_teacher
from tests.flat_options import generate, grow, label_images
from tests.generation.conftest import write_photographs, write_teacher

WORK = {"batch_size": 16, "device": "cpu", "workers": 2}
OUTPUTS = [2, 0, 3]


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> Teacher:
    """Five outputs without names, three of which are these classes."""
    folder = tmp_path_factory.mktemp("five") / "teacher"
    teacher = load_teacher(str(write_teacher(folder, classes=tuple("abcde"))))
    return Teacher(module=teacher.module, row=teacher.row)


@pytest.fixture(scope="module")
def made(tmp_path_factory, photographs, five) -> Path:
    folder = tmp_path_factory.mktemp("facts")
    mapping = folder / "map.csv"
    mapping.write_text("bird,2\ncat,0\ndog,3\n")
    label_images(
        folder / "store",
        images=photographs,
        teacher=five,
        codec=MarginalSmoothing(k=2),
        num_crops=4,
        crops_per_shard=2,
        images_per_shard=8,
        class_map=mapping,
        allow_lost_mass=True,
        autocast="bf16",
        **WORK,
    )
    mapping.unlink()
    return folder / "store"


@pytest.fixture
def store(made, tmp_path):
    with labelstore.open(shutil.copytree(made, tmp_path / "store")) as store:
        yield store


def test_what_is_recorded(store, photographs):
    facts = store.label_set_row().facts
    assert facts["class_map"]["outputs"] == OUTPUTS
    assert Path(facts["class_map"]["source"]).name == "map.csv"
    assert (facts["autocast"], facts["crop_device"], facts["compile"]) == ("bf16", "cpu", False)
    assert (facts["images"], facts["interpolation"]) == (str(photographs), "bilinear")
    assert {"torch", "torchvision", "timm", "python", "labelstore"} <= facts["versions"].keys()


def test_resume_grow_and_a_further_codec_need_nothing_again(store, five):
    """The class map's file is gone, and nobody says where the images are."""
    about = {"teacher": five, **WORK}
    assert generate(store, codec=MarginalSmoothing(k=2), **about).num_crops == 0
    report = generate(store, codec=codec_from_options("full"), name="full", **about)
    assert report.num_crops == 21 * 4
    # the same teacher again: its class map, in float32 unless something else is asked for
    facts = store.label_set_row("full").facts
    assert (facts["class_map"]["outputs"], facts["autocast"]) == (OUTPUTS, "none")
    row = store.label_set_row(five.row.name)
    assert grow(store, num_crops=6, label_set=row.name, **about).num_crops == 21 * 2
    labels = store.label_set(row.name)
    assert labels.is_complete
    assert np.isfinite(labels.recover(range(21))).all()


def test_repair_makes_the_same_bytes_again(store, five):
    row = store.catalogue.ledger.shards(f"labels/{five.row.name}")[1]
    path = store.arrays.root / row.files[0].key
    before = path.read_bytes()
    path.write_bytes(before[:-3])
    (shard,) = repair(store, teacher=five, **WORK).shards
    assert shard.same_bytes
    assert path.read_bytes() == before
    assert verify(store, "deep").is_sound


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"autocast": "none"}, "autocast bf16, asked for none"),
        ({"crop_device": "cuda"}, "crops made on cpu, asked for cuda"),
    ],
)
def test_labels_that_would_not_be_alike_are_refused(store, five, change, words):
    with pytest.raises(ConflictError, match=words):
        generate(store, teacher=five, codec=MarginalSmoothing(k=2), **WORK, **change)


def test_another_class_map_is_refused_and_other_versions_are_noted(store, five, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("bird,1\ncat,0\ndog,3\n")
    about = {"teacher": five, "codec": MarginalSmoothing(k=2), **WORK}
    with pytest.raises(ConflictError, match="another class map"):
        generate(store, class_map=other, **about)
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labelstore.labelling.label_facts.version", lambda package: "9.9")
        generate(store, note=said.append, **about)
    assert "torch " in said[0]
    assert "-> 9.9" in said[0]


@pytest.mark.slow
def test_a_folder_that_moved_must_be_given(made, tmp_path, five):
    photographs = write_photographs(tmp_path / "photographs")
    store = label_images(
        tmp_path / "s",
        images=photographs,
        teacher=str(write_teacher(tmp_path / "teacher")),
        codec=MarginalSmoothing(k=2),
        num_crops=2,
        **WORK,
    )
    assert store.num_crops == 42
    photographs.rename(tmp_path / "elsewhere")
    about = {"teacher": str(tmp_path / "teacher"), "codec": MarginalSmoothing(k=1), **WORK}
    with labelstore.open(tmp_path / "s") as opened:
        with pytest.raises(UsageError, match=r"`images=DIR` is needed.*photographs is not there"):
            generate(opened, name="more", **about)
        generate(opened, name="more", images=tmp_path / "elsewhere", **about)
        # the newer label set knows the way
        generate(opened, name="again", **about)


def run(*arguments):
    return errors.run(labelstore_app.commands, "labelstore", [str(a) for a in arguments])


@pytest.mark.slow
def test_a_create_that_fails_at_once_leaves_no_store(tmp_path, run_folder, capsys):
    photographs = write_photographs(tmp_path / "photographs", per_class=2)
    first = photographs / "bird" / "0.jpg"
    good = first.read_bytes()
    first.write_bytes(good[:200])
    store = tmp_path / "s"
    command = ["create", store, "--images", photographs, "--teacher", run_folder, "--num-crops", 4]
    command += ["--k", 2, "--workers", 1, "--batch-size", 4]
    assert run(*command, "--device", "cpu") == 7
    assert run(*command, "--device", "nowhere") == 2
    assert run(*command, "--device", "cpu", "--name", "../x") == 2
    assert run(*command, "--device", "cpu", "--k", 4) == 2
    assert not store.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photographs"]
    # what has been labelled before the failure is kept, and so is a store that was there before
    last = photographs / "dog" / "1.jpg"
    first.write_bytes(good)
    last.write_bytes(last.read_bytes()[:200])
    assert run(*command, "--device", "cpu", "--images-per-shard", 6) == 7
    assert store.exists()
    capsys.readouterr()
    assert run(*command, "--device", "cpu", "--json", "--skip-bad") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_crops"] < 20
    assert run(*command, "--device", "cpu", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_crops"], report["already_committed"]) == (0, 20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "-1"], "seed -1"),
        (["--scale", "2,1"], "scale"),
        (["--flip-prob", "nan"], "flip_prob"),
        (["--backend", "tape"], "--backend tape"),
        (["--crops", "drawn"], "--crops drawn"),
        (["--amp", "fp8"], "--amp fp8"),
        (["--crop-device", "moon"], "--crop-device moon"),
        (["--compression", "hard", "--dtype", "uint8"], "leave --dtype out"),
        (["--expect-top1", "0.8"], "needs --val"),
        (["--val", ".", "--expect-top1", "80"], "share between 0 and 1"),
        (["--val", ".", "--val-images", "0"], "--val-images 0"),
    ],
)
def test_what_needs_no_teacher_is_refused_without_one(tmp_path, capsys, options, words):
    command = ["create", tmp_path / "s", "--images", tmp_path, "--teacher", "no:such:teacher"]
    assert run(*command, "--num-crops", "4", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_number_of_crops_or_a_plan_is_needed(tmp_path, capsys, photographs):
    command = ["create", tmp_path / "s", "--images", photographs, "--teacher", "x"]
    assert run(*command) == 2
    assert "--num-crops M is needed" in capsys.readouterr().err


def test_other_weights_under_the_name_are_refused_before_images_are_read(store, tmp_path):
    other = load_teacher(str(write_teacher(tmp_path / "other", seed=3, classes=tuple("abcde"))))
    other = Teacher(module=other.module, row=other.row)
    with pytest.raises((ConflictError, UsageError)):
        generate(store, teacher=other, codec=MarginalSmoothing(k=2), name="teacher", **WORK)
    with pytest.raises(RejectedInput):
        generate(store, teacher=other, codec=MarginalSmoothing(k=2), images=tmp_path, **WORK)
