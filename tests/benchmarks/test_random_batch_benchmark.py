"""The benchmark of random batches, in small: every figure that was promised, and a page of them."""

from __future__ import annotations

import pytest

from benchmarks import random_batch


@pytest.mark.slow
def test_the_figures_that_were_promised(tmp_path, monkeypatch):
    monkeypatch.setattr(random_batch, "BATCHES", 2)
    result = random_batch.measure(tmp_path, 64, 8, 1)
    for name in random_batch.KEYS:
        assert result[name] > 0
    assert (result["unpacked_bytes_per_crop"], result["unpacked_bytes_per_crop_uint8"]) == (30, 24)
    page = random_batch.page(result)
    assert all(text in page for text in random_batch.ROWS.values())
