"""Audit of label maps: sound where the teacher says the same again, and wrong maps are named by their images' crops."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import labelstore
from labelstore import LabelMap
from labelstore.care.auditing import audit
from labelstore.errors import RejectedInput
from labelstore.teachers.labeller import Labeller
from labelstore.teachers.teacher import load_teacher
from tests.flat_options import label_images
from tests.generation.conftest import write_photographs, write_teacher

M, K, SIZE = 4, 2, 96
WORK = {"device": "cpu", "workers": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("data") / "photographs", per_class=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = write_teacher(tmp_path_factory.mktemp("teacher") / "teacher")
    return load_teacher(str(folder), input_size=SIZE)


def make(path, images, teacher, dtype):
    label_images(
        path, images=images, teacher=teacher, codec=LabelMap(k=K, dtype=dtype), num_crops=M,
        images_per_shard=8, name="map", **WORK,
    )  # fmt: skip
    return labelstore.open(path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_same_maps_again(dtype, images, teacher, tmp_path):
    with make(tmp_path / "s", images, teacher, dtype) as store:
        report = audit(store, images=images, teacher=teacher, sample=10**6, **WORK)
        few = audit(store, images=images, teacher=teacher, sample=3, seed=1, **WORK)
        count = store.num_images
    assert (report.num_crops, report.num_images) == (count * M, count)
    assert report.is_sound
    # the same image in a batch of another make-up: kernels may sum in another order
    assert report.largest < 1e-4
    assert report.rounding == 0 if dtype == "float32" else report.rounding < 0.005
    assert few.num_crops == 3


def test_maps_of_another_image_are_found(images, teacher, tmp_path):
    once = Labeller.__call__

    def wrong(self, pixels):
        labels = once(self, pixels)
        if "class_ids" in labels:  # of one image, every cell says another class
            labels["class_ids"][-1] = (labels["class_ids"][-1] + 1) % 3
        return labels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Labeller, "__call__", wrong)
        store = make(tmp_path / "s", images, teacher, "float16")
    with store:
        report = audit(store, images=images, teacher=teacher, sample=10**6, **WORK)
        assert not report.is_sound
        named = {crop.image for crop in report.beyond}
        assert named == {store.num_rows - 1}
        assert len(report.beyond) == M
        assert {crop.crop for crop in report.beyond} == set(range(M))
        changed = shutil.copytree(images, tmp_path / "changed")
        first, second = sorted(changed.rglob("*.jpg"))[:2]
        shutil.copy(first, second)
        with pytest.raises(RejectedInput, match="changed"):
            audit(store, images=changed, teacher=teacher, **WORK)


def test_a_map_means_what_the_dense_head_says(images, teacher, tmp_path):
    """The stored label of a crop is the one that is pooled from a map made by hand."""
    from labelstore.care.map_audit import decoded_image, fresh_maps
    from labelstore.care.relabelling import Relabeller
    from labelstore.labelling.generation_options import GenerationOptions
    from labelstore.teachers.dense_head import dense_head

    with make(tmp_path / "s", images, teacher, "float32") as store:
        row = store.label_set_row()
        asker = Relabeller.of(
            store,
            row,
            labelstore.images.open_images(images),
            teacher,
            GenerationOptions(batch_size=2, device="cpu", workers=1),
        )
        maps = fresh_maps(asker, np.array([3, 0, 3]))
        (held,) = store.group("labels/map").parts(0, None)
        assert maps.shape == (2, *held["map_class"].shape[1:3], 3)
        assert decoded_image(asker, 0).shape[0] == 3
        assert dense_head(teacher) is not None
        for place, image in enumerate((0, 3)):
            ranked = -np.sort(-maps[place], axis=-1)[..., :K]
            np.testing.assert_allclose(ranked, held["map_logit"][image], atol=1e-4)
