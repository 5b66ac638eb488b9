"""The short way to a label's largest probability gives what recovering the whole label gives."""

from __future__ import annotations

import numpy as np
import pytest

from labelstore.codecs import CODECS, codec_from_options, top_k


@pytest.mark.parametrize("num_classes", [2, 5, 40])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("sharpness", [0.02, 1.0])
@pytest.mark.parametrize("name", [name for name in CODECS if CODECS[name].takes == "probabilities"])
def test_it_is_the_largest_entry_of_the_recovered_label(name, dtype, sharpness, num_classes):
    if (name, dtype) == ("full", "uint8"):
        pytest.skip("full labels have no 8-bit form")
    if name == "hard":
        dtype = None
    codec = codec_from_options(name, 2 if name in ("ms", "mr") else None, dtype)
    rng = np.random.default_rng(4)
    dense = rng.dirichlet(np.full(num_classes, sharpness), (30, 8)).astype(np.float32)
    dense[3] = 0
    dense[3, :, 1] = 1
    dense[5] = np.nan
    kept = codec.kept(num_classes)
    arrays = codec.encode(dense if kept is None else top_k(dense, kept), num_classes)
    needed = {field: arrays[field] for field in codec.max_probability_fields(num_classes)}
    found = codec.max_probability(needed, num_classes)
    recovered = codec.recover(arrays, num_classes).max(axis=-1)
    assert np.isnan(found[5]).all()
    np.testing.assert_array_equal(found, recovered)
