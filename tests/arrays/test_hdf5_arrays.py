"""The HDF5 backend: the conformance suite, and what HDF5 programs see."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest

from labelstore.arrays import open_arrays
from labelstore.errors import UsageError
from labelstore.testing.array_backend_tests import (
    SPECS,
    ArrayBackendTests,
    field_spec,
    put_shard,
    random_arrays,
)


class TestHdf5Arrays(ArrayBackendTests):
    backend = "hdf5"
    # HDF5's own headers are never read by us: `verify` notices flips there
    notices_every_flip = False


def test_h5py_reads_what_we_wrote(tmp_path):
    backend = open_arrays(tmp_path, "hdf5")
    arrays = random_arrays(SPECS, np.random.default_rng(0))
    (record,) = put_shard(backend, SPECS, (1, 1), arrays)
    with h5py.File(tmp_path / record.key) as file:
        assert file.attrs["group"] == "labels/r50"
        assert (file.attrs["image_block"], file.attrs["crop_shard"]) == (1, 1)
        assert sorted(file) == sorted(arrays)
        for spec in SPECS:
            dataset = file[spec.name]
            np.testing.assert_array_equal(dataset[:], arrays[spec.name])
            assert dataset.chunks == spec.chunk
            assert (dataset.compression, dataset.shuffle, dataset.fletcher32) == (
                "gzip",
                True,
                True,
            )
            assert tuple(axis.label for axis in dataset.dims) == spec.dimensions
            np.testing.assert_equal(dataset.fillvalue, np.array(spec.fill, spec.dtype)[()])


def test_chunks_that_gzip_cannot_shrink(tmp_path):
    backend = open_arrays(tmp_path, "hdf5")
    spec = field_spec("tail", "u1", 255)
    values = np.random.default_rng(1).integers(0, 256, (4, 6)).astype("u1")
    (record,) = put_shard(backend, [spec], (0, 0), {"tail": values})
    with h5py.File(tmp_path / record.key) as file:
        np.testing.assert_array_equal(file["tail"][:], values)
    np.testing.assert_array_equal(backend.read(spec, (0, 0), [record]), values)


def test_one_group_per_shard(tmp_path):
    backend = open_arrays(tmp_path, "hdf5")
    specs = [field_spec("tail", "u1", 255), field_spec("flip", "u1", 255)]
    specs[1] = replace(specs[1], path="crops/default/flip")
    zeros = np.zeros((4, 6), "u1")
    with pytest.raises(UsageError, match="one group"):
        backend.encode_shard(specs, (0, 0), {"tail": zeros, "flip": zeros})


def test_unknown_backend(tmp_path):
    with pytest.raises(UsageError, match="zarr, hdf5"):
        open_arrays(tmp_path, "n5")
