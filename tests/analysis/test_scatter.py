"""The scatter of an image's labels against the definition, and budgets against the bytes of the store."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.analysis.disk import storage
from labelstore.analysis.scatter import COUNTS, LabelSums, scatter
from labelstore.codecs import Full, Hard, MarginalSmoothing, SparseLabels
from labelstore.errors import UsageError
from tests.analysis.conftest import soft_labels


def defined(dense):
    """(N,) trace of the covariance of each image's labels (M, C), by NumPy."""
    return np.array([np.trace(np.cov(image.astype(np.float64), rowvar=False)) for image in dense])


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "codec",
    [
        Full(dtype="float32"),
        MarginalSmoothing(k=2, dtype="float32"),
        MarginalSmoothing(k=3),
        MarginalSmoothing(k=2, tail_classes=4),
        Hard(),
    ],
    ids=str,
)
def test_it_is_the_trace_of_the_covariance(make_store, codec):
    store = make_store(soft_labels(), codec, bad={3})
    labels = store.label_set()
    found = scatter(labels, worst=2)
    rows = np.flatnonzero(labels.present)
    wanted = defined(labels.recover(rows))
    assert found.num_images == len(rows)
    assert found.trace == pytest.approx(wanted.mean(), rel=1e-5)
    assert found.median == pytest.approx(np.median(wanted), rel=1e-5)
    assert found.top_decile == pytest.approx(np.quantile(wanted, 0.9), rel=1e-5)
    keys = store.image_columns["key"][rows[np.argsort(-wanted)[:2]]]
    assert [key for key, _ in found.worst] == list(keys)
    assert [(each.num_crops, each.drift) for each in found.drifts] == [
        (m, pytest.approx(found.trace / m)) for m in sorted({*COUNTS, store.num_crops})
    ]


def test_labels_are_brought_to_the_temperature(make_store):
    labels = make_store(soft_labels(), Full(dtype="float32")).label_set()
    found = scatter(labels, temperature=4.0)
    powers = labels.recover(range(labels.store.num_images)).astype(float) ** (1 / 4)
    wanted = defined(powers / powers.sum(-1, keepdims=True))
    assert found.trace == pytest.approx(wanted.mean(), rel=1e-4)
    assert found.temperature == 4.0


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 4), st.integers(2, 6), st.integers(1, 5)),
    cut=st.integers(0, 6),
    missing=st.booleans(),
)
def test_sparse_sums_are_the_dense_ones_however_they_are_cut(seed, shape, cut, missing):
    n, m, k = shape
    classes, rng = 9, np.random.default_rng(seed)
    ids = np.argsort(rng.random((n, m, classes)), -1)[..., :k]
    probs = rng.dirichlet(np.ones(k + 1), (n, m)).astype("f4")
    kept = -np.sort(-probs[..., :k], -1)
    rest = (probs[..., k] / (classes - k)).astype("f4")
    if missing:
        kept[0, 0], rest[0, 0] = np.nan, np.nan
    dense = np.repeat(rest[..., None], classes, -1)
    np.put_along_axis(dense, ids, kept, -1)
    sparse, whole = LabelSums(n, classes), LabelSums(n, classes)
    for part in (slice(0, min(cut, m)), slice(min(cut, m), m)):
        sparse.add_sparse(
            SparseLabels(class_ids=ids[:, part], probs=kept[:, part], rest=rest[:, part])
        )
        whole.add_dense(dense[:, part])
    np.testing.assert_allclose(sparse.traces(), whole.traces(), atol=1e-6)
    there = [row[~np.isnan(row[:, 0])] for row in dense]
    wanted = [
        np.trace(np.cov(r.astype(float), rowvar=False)) if len(r) > 1 else np.nan for r in there
    ]
    np.testing.assert_allclose(sparse.traces(), wanted, atol=1e-6)


def test_a_budget_buys_what_fits_in_it(make_store):
    store = make_store(soft_labels(), MarginalSmoothing(k=2))
    labels = store.label_set()
    (own,) = storage(store).label_sets
    size = own.total_per_crop
    budget = round(size * store.num_images * 5.5)
    found = scatter(labels, budget=budget)
    measured, *predicted = found.bought
    assert (measured.basis, measured.num_crops) == ("measured", 5)
    assert measured.drift == pytest.approx(found.trace / 5)
    for each in found.bought:
        crops = each.num_crops
        assert crops * each.bytes_per_crop * store.num_images <= budget
        assert (crops + 1) * each.bytes_per_crop * store.num_images > budget
    assert {each.form for each in predicted} >= {"hard", "ms-5 uint8"}
    twice = scatter(labels, budget=budget, for_images=2 * store.num_images)
    assert twice.bought[0].num_crops == 2
    none = scatter(labels, budget=1)
    assert {(each.num_crops, each.drift) for each in none.bought} == {(0, None)}
    assert json.loads(json.dumps(found.to_record()))["budget"] == budget


def test_labels_that_are_all_alike_do_not_scatter(make_store):
    same = np.repeat(soft_labels()[:, :1], 4, axis=1)
    labels = make_store(same, Full(dtype="float32"), crops_per_shard=2).label_set()
    assert scatter(labels).trace < 1e-9


def test_what_cannot_be_asked_is_refused(make_store):
    labels = make_store(soft_labels()).label_set()
    for wrong in ({"budget": 0}, {"for_images": 0}):
        with pytest.raises(UsageError, match="give 1 or more"):
            scatter(labels, **wrong)
    with pytest.raises(UsageError, match="nothing can scatter"):
        scatter(make_store(soft_labels()[:, :1], crops_per_shard=1).label_set())
