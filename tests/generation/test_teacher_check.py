"""A teacher is measured before labels are paid for, as timm would measure it, and refused where it is another one."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

import labelstore
from labelstore import MarginalSmoothing
from labelstore.errors import RejectedInput, UsageError
from labelstore.teachers.labeller import Labeller
from labelstore.teachers.teacher import load_teacher
from labelstore.teachers.teacher_check import TeacherCheck, evaluate_teacher
from tests.flat_options import generate, label_images
from tests.generation.conftest import CLASSES, write_photographs, write_teacher

WORK = {
    "codec": MarginalSmoothing(k=2),
    "num_crops": 4,
    "batch_size": 16,
    "device": "cpu",
    "workers": 2,
}


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("val") / "val", per_class=20)


def plain_top1(teacher, val, classes, outputs=None):
    """timm's own transform, one image at a time."""
    row = teacher.row
    transform = timm.data.create_transform(
        input_size=row.input_size,
        interpolation=row.interpolation,
        mean=row.mean,
        std=row.std,
        crop_pct=row.crop_pct,
    )
    correct = []
    for number, name in enumerate(classes):
        for path in sorted((val / name).iterdir()):
            pixels = transform(Image.open(path).convert("RGB"))[None]
            with torch.inference_mode():
                logits = teacher.module(pixels)[0]
            correct.append(int(logits[outputs].argmax() if outputs else logits.argmax()) == number)
    return sum(correct), len(correct)


def test_it_is_timms_top1(val, run_folder):
    teacher = load_teacher(str(run_folder))
    told = []
    found = evaluate_teacher(
        teacher,
        Labeller(teacher, None, device="cpu"),
        val,
        CLASSES,
        progress=lambda *where: told.append(where),
    )
    correct, count = plain_top1(teacher, val, CLASSES)
    assert (told[0], told[-1]) == ((0, count), (count, count))
    assert found.num_images == count == 60
    assert abs(found.correct - correct) <= 1  # pixels may differ by 1 of 255
    assert 0 < found.correct < 60
    few = evaluate_teacher(
        teacher, Labeller(teacher, None, device="cpu"), val, CLASSES, num_images=10
    )
    assert few.num_images == 10


def test_the_class_map_is_part_of_it(val, tmp_path):
    teacher = load_teacher(
        str(write_teacher(tmp_path / "teacher", classes=("dog", "x", "bird", "y", "cat")))
    )
    outputs = [2, 4, 0]
    labeller = Labeller(teacher, None, device="cpu", class_map=np.array(outputs))
    found = evaluate_teacher(teacher, labeller, val, CLASSES)
    assert abs(found.correct - plain_top1(teacher, val, CLASSES, outputs)[0]) <= 1
    # a folder of some of the classes will do, one of none will not
    shutil.copytree(val / "dog", tmp_path / "few" / "dog")
    few = evaluate_teacher(teacher, labeller, tmp_path / "few", CLASSES)
    assert few.num_images == 20
    (tmp_path / "few" / "dog").rename(tmp_path / "few" / "<b>")
    with pytest.raises(RejectedInput, match="no class of these images"):
        evaluate_teacher(teacher, labeller, tmp_path / "few", CLASSES)


def test_beyond_three_standard_errors_nothing_is_written(tmp_path, photographs, val, run_folder):
    measured = evaluate_teacher(
        teacher := load_teacher(str(run_folder)),
        Labeller(teacher, None, device="cpu"),
        val,
        CLASSES,
    ).top1
    about = {"images": photographs, "teacher": teacher, **WORK}
    too_much = measured + 3.2 * (0.7 * 0.3 / 60) ** 0.5 + 0.05
    with pytest.raises(
        RejectedInput, match=rf"top-1 {100 * measured:.2f} %.*expected {100 * too_much:.2f} %"
    ):
        label_images(tmp_path / "s", check=TeacherCheck(val=val, expect_top1=too_much), **about)
    assert not list(tmp_path.iterdir())
    said = []
    check = TeacherCheck(val=val, expect_top1=measured + 0.01)
    label_images(tmp_path / "s", check=check, note=said.append, **about)
    assert "on 60 images" in said[0]
    with labelstore.open(tmp_path / "s") as store:
        (row,) = store.catalogue.teachers.all()
        assert row.top1 == measured
        assert row.facts["evaluation"]["num_images"] == 60
        assert row.facts["evaluation"]["val"] == str(val)
        # a further teacher is checked as well, and refused before it is registered
        other = load_teacher(str(write_teacher(tmp_path / "other", seed=5)))
        with pytest.raises(RejectedInput, match="three standard errors"):
            generate(
                store,
                teacher=other,
                check=TeacherCheck(val=val, expect_top1=0.99),
                **{k: v for k, v in WORK.items() if k != "num_crops"},
            )
        assert len(store.catalogue.teachers.all()) == 1
        store.catalogue.verify_digests()
    # resumed, what was measured is not measured again, but still judged
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labelstore.teachers.teacher_check.centre_crops", None)
        said.clear()
        with labelstore.open(tmp_path / "s") as store:
            rest = {k: v for k, v in WORK.items() if k != "num_crops"}
            generate(store, teacher=teacher, check=check, note=said.append, **rest)
            assert said == []
            with pytest.raises(RejectedInput, match="three standard errors"):
                generate(
                    store, teacher=teacher, check=TeacherCheck(val=val, expect_top1=0.999), **rest
                )


@pytest.mark.parametrize("share", [0.0, 1.0, 88.0, -0.1, float("nan"), float("inf")])
def test_a_share_is_a_share(val, share):
    with pytest.raises(UsageError, match="between 0 and 1"):
        TeacherCheck(val=val, expect_top1=share)
    with pytest.raises(UsageError, match="at least 1"):
        TeacherCheck(val=val, num_images=0)
