"""Arguments of `verify` that make no sense are refused before anything is read."""

import numpy as np
import pytest

import labelstore
from labelstore import MarginalSmoothing
from labelstore.errors import UsageError
from labelstore.testing.filled_store import filled_store


@pytest.mark.parametrize("blocks", [[], None], ids=["empty", "full"])
def test_levels_and_workers(tmp_path, blocks):
    dense = np.full((2, 2, 3), 1 / 3, "f4")
    with filled_store(tmp_path / "s", dense, MarginalSmoothing(k=2), blocks=blocks) as store:
        for level in ("digest", "dep", "", None):
            with pytest.raises(UsageError, match="choose one of fast, digests, deep") as error:
                labelstore.verify(store, level)
            assert "\n" not in str(error.value)
        for workers in (0, -1, 10**9):
            with pytest.raises(UsageError, match=r"workers=.*: 1 to"):
                labelstore.verify(store, workers=workers)
        assert labelstore.verify(store, "fast", workers=1).problems == ()
