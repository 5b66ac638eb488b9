"""Audit finds labels that are not the teacher's, names their crops, and finds nothing where there is nothing."""

from __future__ import annotations

import json
import shutil

import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore.care.auditing import audit
from labelstore.codecs import codec_from_options
from labelstore.errors import ConflictError, NotGenerated, RejectedInput, UsageError
from labelstore.teachers.labeller import Labeller
from labelstore.teachers.teacher import load_teacher
from tests.flat_options import generate, label_images
from tests.generation.conftest import write_teacher

M = 6
WORK = {"batch_size": 16, "device": "cpu", "workers": 2}
KINDS = [
    ("full", None, "float16"),
    ("hard", None, None),
    ("smoothing", None, "float32"),
    ("ms", 2, "uint8"),
    ("ms", 2, "float16"),
    ("mr", 2, "float16"),
]


def create(path, photographs, run_folder, codec, **options):
    label_images(
        path,
        images=photographs,
        teacher=str(run_folder),
        codec=codec,
        num_crops=M,
        crops_per_shard=3,
        images_per_shard=8,
        **{**WORK, **options},
    )
    return labelstore.open(path)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory, photographs, run_folder):
    """float16, and of one image (row 10) the labels of another."""
    once = Labeller.__call__

    def swaps(self, pixels):
        labels = once(self, pixels)
        if len(pixels) == M and swaps.number == 10:
            labels = {name: values[::-1].copy() for name, values in labels.items()}
            labels["class_ids"] = (labels["class_ids"] + 1) % 3
        swaps.number += 1
        return labels

    swaps.number = 0
    path = tmp_path_factory.mktemp("spoilt") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Labeller, "__call__", swaps)
        codec = codec_from_options("ms", 2)
        create(path, photographs, run_folder, codec, batch_size=M, workers=1).close()
    return path


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[2]}")
@pytest.mark.parametrize("stored_crops", [True])
def test_what_the_teacher_said_is_what_it_says(
    tmp_path, photographs, run_folder, kind, stored_crops
):
    with create(
        tmp_path / "s",
        photographs,
        run_folder,
        codec_from_options(*kind),
        stored_crops=stored_crops,
    ) as store:
        report = audit(store, sample=10**6, **WORK)
    assert (report.num_crops, report.num_images) == (21 * M, 21)
    assert report.is_sound
    # the same crops in batches of another make-up: kernels may sum in another order
    assert report.largest <= max(1e-5, 0.5 * report.tolerance)
    assert report.mean <= report.largest
    assert report.rounding <= {"uint8": 0.011, "float16": 2**-11, "float32": 0, None: 0}[kind[2]]


@pytest.mark.slow
def test_crops_that_are_not_the_teachers_are_named(spoilt, photographs):
    with labelstore.open(spoilt) as store:
        report = audit(store, sample=10**6, **WORK)
        keys = list(store.images()["key"])
    assert {crop.image for crop in report.beyond} == {10}
    assert {crop.key for crop in report.beyond} == {keys[10]}
    assert any(crop.stored_top1 != crop.fresh_top1 for crop in report.beyond)
    differences = [crop.difference for crop in report.beyond]
    assert differences == sorted(differences, reverse=True)
    assert report.largest == differences[0] > 0.02
    assert report.mean < report.largest
    with labelstore.open(spoilt) as store:
        assert audit(store, sample=10**6, tolerance=1.0, **WORK).is_sound
        few = audit(store, sample=7, seed=3, **WORK)
        assert few.num_crops == 7
        assert audit(store, sample=7, seed=3, **WORK).largest == few.largest


@pytest.mark.slow
def test_autocast_is_as_it_was(tmp_path, photographs, run_folder):
    codec = codec_from_options("ms", 2, "float32")
    with create(tmp_path / "s", photographs, run_folder, codec, autocast="bf16") as store:
        same = audit(store, **WORK)
        other = audit(store, autocast="none", **WORK)
    assert same.largest < other.largest < 0.05
    assert same.tolerance > 0.05


def test_what_cannot_be_audited_is_refused(spoilt, tmp_path, photographs, run_folder):
    copy = shutil.copytree(spoilt, tmp_path / "copy")
    with labelstore.open(copy) as store:
        for wrong in ({"sample": 0}, {"tolerance": -1.0}, {"tolerance": float("nan")}):
            with pytest.raises(UsageError):
                audit(store, **wrong)
        other = load_teacher(str(write_teacher(tmp_path / "other", seed=4)))
        with pytest.raises(ConflictError, match="made by weights"):
            audit(store, teacher=other, **WORK)
        changed = shutil.copytree(photographs, tmp_path / "changed")
        shutil.copy(changed / "cat" / "1.jpg", changed / "cat" / "2.jpg")
        with pytest.raises(RejectedInput, match=r"cat/2\.jpg changed"):
            audit(store, images=changed, **WORK)
        store.catalogue.groups.drop("labels/teacher")
        store.refresh()
        with pytest.raises(UsageError):
            audit(store, **WORK)
    plan = labelstore.PlanOptions(num_crops=M)
    with labelstore.create(tmp_path / "empty", images=photographs, plan=plan) as store:
        stops = {"max_seconds": 0.0, **WORK}
        with pytest.raises(labelstore.LabelStoreError):
            generate(
                store,
                teacher=str(run_folder),
                codec=codec_from_options("ms", 2),
                images=photographs,
                **stops,
            )
        with pytest.raises(NotGenerated):
            audit(store, **WORK)


@pytest.mark.slow
def test_the_command(spoilt, capsys):
    def run(*arguments):
        words = ["audit", spoilt, "--device", "cpu", "--workers", "2", *arguments]
        code = errors.run(labelstore_app.commands, "labelstore", [str(w) for w in words])
        return code, *capsys.readouterr()

    code, out, err = run("--sample", 10**6)
    assert code == 3
    assert "126 crops of 21 images" in out
    assert out.count("differs by") == len(set(out.splitlines()[1:]))
    assert "are not what the teacher says" in err
    code, out, _ = run("--sample", 10**6, "--json")
    assert code == 3
    report = json.loads(out)
    assert {crop["image"] for crop in report["beyond"]} == {10}
    assert run("--tolerance", 1)[0] == 0
    assert run("--sample", 0)[0] == 2
