"""FKD's storage: the paper's calculation, and the expected size of its files against files that torch writes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from labelstore.analysis.fkd_files import FKD_TABLE_2, fkd_file_bytes, fkd_kinds
from labelstore.errors import UsageError

GIB = 2**30
PRINTED = {
    "full": 0.877 * 1024,
    "hard": 5.36,
    "smoothing": 6.26,
    "mr-5": 13.41,
    "ms-5": 13.41,
    "ms-10": 22.35,
}


def test_the_papers_calculation_gives_the_papers_figures():
    kinds = fkd_kinds(1_200_000, 200)
    assert [(kind.kind, kind.k) for kind in kinds] == list(FKD_TABLE_2)
    for kind in kinds:
        assert kind.table_bytes / GIB == pytest.approx(PRINTED[kind.title], rel=1e-3)
    assert [kind.dimensions for kind in kinds] == [1005, 6, 7, 15, 15, 25]
    assert {kind.title: kind.payload_per_crop for kind in kinds}["ms-5"] == 57


@pytest.mark.parametrize(
    ("num_crops", "k", "half", "measured"),
    [
        (100, 5, False, 89.7),
        (200, 5, False, 81.6),
        (500, 5, False, 78.2),
        (500, 10, False, 128.8),
        (500, 5, True, 39.2),
    ],
)
def test_the_formula_agrees_with_measured_files_of_a_real_teacher(num_crops, k, half, measured):
    expected = fkd_file_bytes(num_crops, k=k, half=half) / num_crops
    assert expected == pytest.approx(measured, rel=0.015)


def written(num_crops, kind, k, num_classes, half, rng):
    """Bytes of one file as FKD's generator writes it."""
    dtype = np.float16 if half else np.float32
    probs = -np.sort(-rng.dirichlet(np.full(num_classes, 0.02), num_crops), axis=-1)
    ids = np.argsort(rng.random((num_crops, num_classes)), axis=-1)
    labels = {
        "full": lambda: probs.astype(dtype),
        "hard": lambda: ids[:, 0].astype(np.int64),
        "smoothing": lambda: np.stack([ids[:, 0], probs[:, 0]], -1).astype(dtype),
    }.get(kind, lambda: np.stack([ids[:, :k], probs[:, :k]], 1).astype(dtype))()
    file = io.BytesIO()
    torch.save(
        [rng.random((num_crops, 4)).astype(dtype), rng.random(num_crops) < 0.5, labels], file
    )
    return file.tell()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("kind", "k"), [("hard", None), ("smoothing", None), ("mr", 5), ("ms", 5), ("ms", 10)]
)
@pytest.mark.parametrize("num_crops", [40, 200])
def test_the_formula_agrees_with_files_that_torch_writes(num_crops, kind, k, half):
    rng = np.random.default_rng(num_crops)
    sizes = [written(num_crops, kind, k, 1000, half, rng) for _ in range(3)]
    expected = fkd_file_bytes(num_crops, kind=kind, k=k, half=half)
    assert expected == pytest.approx(np.mean(sizes), rel=0.06)


def test_full_labels_too():
    rng = np.random.default_rng(0)
    size = written(20, "full", None, 1000, False, rng)
    assert fkd_file_bytes(20, kind="full", k=None) == pytest.approx(size, rel=0.06)


def test_kinds_with_more_classes_than_there_are_are_left_out():
    assert [kind.title for kind in fkd_kinds(10, 10, num_classes=7)][-1] == "ms-5"
    assert {kind.paper for kind in fkd_kinds(10, 10, num_classes=7)} == {None}


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="K=None"):
        fkd_file_bytes(10, kind="ms", k=None)
    with pytest.raises(UsageError, match="0 images"):
        fkd_kinds(0, 10)
