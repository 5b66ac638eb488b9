"""The label model's labels are labels: what a softmax of so many classes can give."""

import numpy as np
import pytest

from benchmarks import label_model


@pytest.mark.parametrize(
    ("k", "num_classes"), [(5, 1000), (12, 60), (1, 1000), (2, 3), (5, 70_000), (3, 3)]
)
def test_every_label_is_one_that_a_softmax_can_have(k, num_classes):
    labels = label_model.labels(3, 40, 25, k=k, num_classes=num_classes)
    probs, tail = labels.probs.astype(np.float64), labels.tail.astype(np.float64)
    np.testing.assert_allclose(probs.sum(-1) + tail, 1, atol=1e-6)
    assert (probs > 0).all()
    assert (np.diff(probs, axis=-1) <= 0).all()
    assert (tail <= (num_classes - k) * probs[..., -1] + 1e-7).all()
    assert labels.class_ids.max() < num_classes


@pytest.mark.parametrize(("k", "num_classes"), [(5, 1000), (5, 70_000), (3, 21_841)])
def test_a_class_is_kept_once(k, num_classes):
    ranked = np.sort(label_model.labels(3, 40, 25, k=k, num_classes=num_classes).class_ids, axis=-1)
    assert (ranked[..., 1:] != ranked[..., :-1]).all()


def test_the_same_block_gives_the_same_labels():
    first, again = label_model.labels(8, 4, 6), label_model.labels(8, 4, 6)
    for name in vars(first):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (label_model.labels(12, 4, 6).probs != first.probs).any()
