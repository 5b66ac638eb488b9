"""The xarray view: what `sparse`, `crops` and masks hold, read where it is indexed, sentinels elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

import labelstore
from labelstore.calibration import RegionThresholds
from labelstore.codecs import Full, MarginalSmoothing
from labelstore.testing.filled_store import add_label_set, fill_blocks
from tests.analysis.conftest import soft_labels

pytest.importorskip("xarray")
INDEXES = [
    (slice(None), slice(None)),
    (5, 7),
    (slice(3, 18, 4), slice(None, None, -1)),
    ([23, 1, 1, 12], [11, 0]),
    (-1, slice(2, 2)),
    (np.array([0, 15]), 3),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_arrays_are_the_labels(make_store, backend):
    codec = MarginalSmoothing(k=5, dtype="float32", class_ids="table")
    store = make_store(soft_labels(), codec, bad={3}, blocks=[0, 2], backend=backend)
    add_label_set(store, Full(dtype="float32"), 7, name="full")
    fill_blocks(store, soft_labels(), name="full", bad={3}, blocks=[0, 2])
    labels = store.label_set("teacher")
    labelstore.calibrate(labels, RegionThresholds(low=0.3, middle=0.4, top=0.9), name="m")
    tree = store.to_xarray()
    whole = {
        "labels/teacher/class_id": np.full((24, 12, 5), 65_535, np.uint16),
        "labels/teacher/probability": np.full((24, 12, 5), np.nan, np.float32),
        "labels/teacher/rest": np.full((24, 12), np.nan, np.float32),
        "labels/full/probability": np.full((24, 12, 7), np.nan, np.float32),
        "crops/plan/box": np.full((24, 12, 4), 65_535, np.uint16),
        "crops/plan/flip": np.full((24, 12), 255, np.uint8),
        "masks/m/region": np.full((24, 12), 255, np.uint8),
    }
    for block in (0, 2):
        rows = list(labels.block_rows(block))
        sparse, (box, flip) = labels.sparse(block), labels.crops(block)
        values = (
            sparse.class_ids,
            sparse.probs,
            sparse.rest,
            store.label_set("full").dense(block),
            box,
            flip,
            store.mask("m").regions(block),
        )
        for name, value in zip(whole, values, strict=True):
            whole[name][rows] = value
    whole["crops/plan/flip"][3] = 255
    for name, expected in whole.items():
        array = tree[name]
        assert array.dtype == expected.dtype
        for rows, crops in INDEXES:
            found = array.isel(image=rows, crop=crops).to_numpy()
            wanted = np.take(
                np.take(expected, np.arange(24)[rows], 0),
                np.arange(12)[crops],
                np.ndim(np.arange(24)[rows]),
            )
            np.testing.assert_array_equal(found, wanted, err_msg=name)
    assert tree["key"].to_numpy().tolist() == store.images()["key"].tolist()
    assert tree["labels/teacher/probability"].isel(kept=0, image=2).shape == (12,)
    assert (
        tree["crops/plan/box"].sel(edge="width").isel(image=0, crop=0) == labels.boxes([0])[0, 0, 3]
    )


def test_nothing_is_read_before_it_is_asked_for(store, monkeypatch):
    backend = type(store.arrays)
    calls, inner = [], backend.read

    def watched(self, spec, index, *arguments, **options):
        calls.append((spec.name, index))
        return inner(self, spec, index, *arguments, **options)

    monkeypatch.setattr(backend, "read", watched)
    tree = store.to_xarray()
    assert calls == []
    tree["labels/teacher/rest"].isel(image=12, crop=8).to_numpy()
    assert {index for _, index in calls} == {(1, 1)}
