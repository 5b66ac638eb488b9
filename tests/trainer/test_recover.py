import numpy as np
import pytest
import torch

from labelstore.codecs.base import SparseLabels
from tests.trainer.dense_reference import dense_labels
from trainer.label_tensors import ground_truth_labels, label_tensors
from trainer.losses import SparseSoftCrossEntropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_ground_truth_loss_is_torchs_label_smoothing(smoothing):
    truth = np.array([0, 3, 9])
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    labels = label_tensors(ground_truth_labels(truth, 10, smoothing))
    expected = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(truth), label_smoothing=smoothing
    )
    torch.testing.assert_close(SparseSoftCrossEntropy()(logits, *labels), expected)


def test_dense_labels_have_rest_everywhere_else():
    labels = SparseLabels(
        class_ids=np.array([[1, 2]], np.uint16),
        probs=np.array([[0.2, 0.1]], np.float32),
        rest=np.array([0.7 / 3], np.float32),
    )
    dense = dense_labels(*label_tensors(labels), 5)
    torch.testing.assert_close(dense, torch.tensor([[0.7 / 3, 0.2, 0.1, 0.7 / 3, 0.7 / 3]]))


def test_tensors_are_flat_wide_and_independent_of_read_only_maps():
    ids = np.array([[[65_533], [3]]], np.uint16)
    probs, rest = np.full((1, 2, 1), 0.5, np.float16), np.zeros((1, 2), np.float32)
    for array in (ids, probs, rest):
        array.flags.writeable = False
    class_ids, values, others = label_tensors(SparseLabels(class_ids=ids, probs=probs, rest=rest))
    assert class_ids.tolist() == [[65_533], [3]]
    assert class_ids.dtype == torch.int64
    assert values.shape == (2, 1)
    assert values.dtype == others.dtype == torch.float32
    assert others.shape == (2,)
