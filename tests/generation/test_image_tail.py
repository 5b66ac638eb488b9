"""`--tail-classes` from the teacher to what is read: labelled, audited, verified, grown, derived."""

from __future__ import annotations

import numpy as np
import pytest

import labelstore
from labelstore.care.auditing import audit
from labelstore.care.verification import verify
from labelstore.codecs import Full, MarginalSmoothing, top_k
from labelstore.labelling.deriving import derive
from tests.flat_options import generate, grow, label_images

WORK = {"batch_size": 16, "device": "cpu", "workers": 2}
CODEC = MarginalSmoothing(k=1, tail_classes=2, dtype="uint8")


@pytest.fixture(scope="module")
def store(tmp_path_factory, photographs, run_folder):
    path = tmp_path_factory.mktemp("tail") / "s.labels"
    label_images(
        path,
        images=photographs,
        teacher=str(run_folder),
        codec=CODEC,
        num_crops=6,
        name="tail",
        **WORK,
    )
    with labelstore.open(path) as opened:
        yield opened


def test_labels_are_the_teachers_through_the_codec(store, photographs, run_folder):
    tail = store.label_set("tail")
    assert tail.codec.tail_classes == 2
    assert tail.plan.crops_per_shard == 6, "one table for all crops of an image"
    full = Full(dtype="float32")
    generate(store, teacher=str(run_folder), codec=full, images=photographs, name="full", **WORK)
    for block in tail.blocks:
        dense = store.label_set("full").dense(block)
        wanted = CODEC.recover(CODEC.encode(top_k(dense, 3), 3), 3)
        np.testing.assert_allclose(tail.dense(block), wanted, atol=1e-5)


def test_it_is_audited_verified_and_derived(store, photographs):
    labels = store.label_set("tail")
    report = audit(store, label_set="tail", images=photographs, **WORK)
    assert report.is_sound
    even = derive(labels, MarginalSmoothing(k=1, dtype="uint8"))
    np.testing.assert_array_equal(even.max_probability(0), labels.max_probability(0))
    assert verify(store.path, "deep").is_sound


def test_new_crops_bring_tables_of_their_own(store, photographs, run_folder):
    labels = store.label_set("tail")
    before = {block: labels.dense(block) for block in labels.blocks}
    grow(
        store,
        num_crops=12,
        teacher=str(run_folder),
        images=photographs,
        label_set="tail",
        **WORK,
    )
    grown = store.label_set("tail")
    assert grown.num_crops == 12
    for block, dense in before.items():
        after = grown.dense(block)
        np.testing.assert_array_equal(after[:, :6], dense)
        assert not np.isnan(after).any()
