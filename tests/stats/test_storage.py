"""Storage figures are the bytes on disk, all of them, and scale by crops."""

from __future__ import annotations

import json

import numpy as np
import pytest

from labelstore.analysis.disk import parse_scale, storage
from labelstore.analysis.fkd_files import fkd_file_bytes
from labelstore.analysis.summary import summary
from labelstore.calibration import RegionThresholds, calibrate
from labelstore.codecs import Hard, MarginalSmoothing
from labelstore.errors import UsageError
from labelstore.testing.filled_store import add_label_set


def bytes_under(folder, pattern="*"):
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_every_byte_is_in_one_row(make_store, like_the_paper, backend):
    store = make_store(like_the_paper, images_per_shard=16, crops_per_shard=20, backend=backend)
    calibrate(store.label_set(), RegionThresholds(), name="ferkd")
    found = storage(store)
    assert found.arrays_bytes == sum(row.disk_bytes for row in found.arrays)
    assert found.arrays_bytes + found.metadata_bytes == bytes_under(store.arrays.root)
    assert found.catalogue_bytes == (store.path / "catalogue.db").stat().st_size
    assert {row.group for row in found.arrays} == {"crops/plan", "labels/teacher", "masks/ferkd"}
    for row in found.arrays:
        assert row.disk_per_crop == pytest.approx(row.disk_bytes / 2000)
        assert row.scaled_bytes == row.disk_bytes
    if backend == "zarr":
        box = next(row for row in found.arrays if row.array == "box")
        files = store.arrays.root / "crops" / "plan" / "box"
        assert box.disk_bytes == bytes_under(files) - bytes_under(files, "zarr.json")
        assert (box.dtype, box.raw_per_crop) == ("uint16", 8)


def test_rows_per_image_count_for_the_crops_that_share_them(make_store, like_the_paper):
    codec = MarginalSmoothing(k=5, class_ids="table")
    store = make_store(like_the_paper, codec=codec, crops_per_shard=20)
    raw = {row.array: row.raw_per_crop for row in storage(store).arrays}
    assert raw["class_rank"] == 5
    assert raw["class_table"] == 254 * 2 / 20


def test_a_label_set_stands_beside_fkds_files(make_store, like_the_paper):
    store = make_store(like_the_paper)
    found = storage(store, scale="1281167x200")
    (row,) = found.label_sets
    per_group = {
        group: sum(r.disk_bytes for r in found.arrays if r.group == group) / 2000
        for group in ("crops/plan", "labels/teacher")
    }
    assert row.labels_per_crop == pytest.approx(per_group["labels/teacher"])
    assert row.boxes_per_crop == pytest.approx(per_group["crops/plan"])
    assert row.total_per_crop == pytest.approx(sum(per_group.values()))
    assert row.fkd.disk_bytes == 1281167 * fkd_file_bytes(200, num_classes=12)
    assert row.ratio == pytest.approx(row.fkd.disk_bytes / (row.total_per_crop * 1281167 * 200))
    labels = [r for r in found.arrays if r.group == "labels/teacher"]
    for array in labels:
        assert array.scaled_bytes == pytest.approx(array.disk_bytes / 2000 * 1281167 * 200, abs=1)
    assert found.scale == (1281167, 200)
    assert found.kinds[0].num_images == 1281167
    assert json.loads(json.dumps(found.to_record()))["label_sets"][0]["ratio"] == row.ratio


def test_a_store_without_labels_and_one_with_an_undecided_set(make_store, like_the_paper):
    store = make_store(like_the_paper, blocks=[], stored_crops=False)
    add_label_set(store, Hard(), 12, name="hard")
    found = storage(store)
    assert found.arrays_bytes == 0
    assert {row.label_set: row.total_per_crop for row in found.label_sets} == {
        "hard": None,
        "teacher": None,
    }
    assert all(row.disk_per_crop is None and row.scaled_bytes is None for row in found.arrays)
    assert all(row.boxes_per_crop == 0 for row in found.label_sets)
    assert {row.ratio for row in found.label_sets} == {None}


@pytest.mark.parametrize(
    "text", ["1281167x200", " 1_281_167 x 200", "1,281,167*200", "1281167\u00d7200"]
)
def test_scales_are_read(text):
    assert parse_scale(text) == (1281167, 200)


@pytest.mark.parametrize(
    "text", ["", "1281167", "0x200", "10x", "10x-2", "1e6x200", "10x2x3", "_x1"]
)
def test_other_scales_are_refused(text):
    with pytest.raises(UsageError, match="1281167x200"):
        parse_scale(text)


def test_summary_counts_and_means(make_store, like_the_paper):
    truth = np.zeros(50, int)
    like_the_paper[0, :10] = 0.9999
    store = make_store(like_the_paper, ground_truth=truth, images_per_shard=16, bad={20})
    found = summary(store.label_set())
    counted = np.delete(like_the_paper, 20, 0)
    assert (found.labelled_images, found.bad_images, found.num_images) == (49, 1, 50)
    assert (found.blocks, found.blocks_wanted, found.sampled_crops) == (4, 4, 49 * 40)
    assert found.mean_max_probability == pytest.approx(counted.mean(), rel=1e-5)
    assert found.mean_ground_truth_probability == pytest.approx(counted.mean(), rel=1e-5)
    assert found.certain_crops == pytest.approx((counted > np.float32(0.999)).mean())
    assert found.teacher_seconds == 49
    assert found.devices == ("none",)
    assert json.loads(json.dumps(found.to_record()))["codec"]["name"] == "ms"
    assert summary(store.label_set(), max_blocks=2).sampled_blocks == 2


def test_summary_of_nothing(make_store, like_the_paper):
    found = summary(make_store(like_the_paper, blocks=[]).label_set())
    assert (found.blocks, found.sampled_crops, found.mean_max_probability) == (0, 0, None)
