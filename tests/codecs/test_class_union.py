"""Sparse labels over the union of their classes say what each of them says, and list every class once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore.codecs import SparseLabels, densify, over_union, widen
from labelstore.codecs.base import missing_id


def sparse(rng, rows, kept, num_classes):
    """Labels (rows, K) with distinct classes; one row in five is missing."""
    order = np.argsort(rng.random((rows, num_classes)), -1)[:, :kept].astype(np.uint16)
    mass = rng.dirichlet(np.ones(kept + 1), rows).astype(np.float32)
    probs = -np.sort(-mass[:, :kept], -1)
    rest = mass[:, kept] / max(num_classes - kept, 1)
    missing = rng.random(rows) < 0.2
    order[missing], probs[missing], rest[missing] = missing_id(order.dtype), np.nan, np.nan
    return SparseLabels(class_ids=order, probs=probs, rest=rest)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 9)
)
def test_every_label_keeps_its_meaning_over_the_union(seed, kept, more):
    rng = np.random.default_rng(seed)
    num_classes = sum(kept) + more
    labels = [sparse(rng, 12, k, num_classes) for k in kept]
    ids, found = over_union(labels, num_classes)
    assert ids.shape == (12, sum(kept))
    ordered = np.sort(ids, -1)
    assert (ordered[:, 1:] != ordered[:, :-1]).all()
    assert ids.max() < num_classes
    for label, probs in zip(labels, found, strict=True):
        again = SparseLabels(class_ids=ids, probs=probs, rest=label.rest)
        wanted = densify(label, num_classes)
        dense = densify(again, num_classes)
        np.testing.assert_array_equal(dense, wanted)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 6), st.integers(0, 6))
def test_a_wider_list_is_the_same_label(seed, kept, wider, more):
    num_classes = kept + wider + more
    label = sparse(np.random.default_rng(seed), 9, kept, num_classes)
    wide = widen(label, kept + wider, num_classes)
    assert wide.class_ids.shape[-1] == wide.probs.shape[-1] == kept + wider
    np.testing.assert_array_equal(densify(wide, num_classes), densify(label, num_classes))
    there = ~np.isnan(label.rest)
    ordered = np.sort(wide.class_ids[there], -1)
    assert (ordered[:, 1:] != ordered[:, :-1]).all()
