"""`labelmap`: a crop's label is softmax(RoIAlign(map, box)), as torchvision pools and as a slow loop does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from labelstore.codecs import LabelMap, MapTopK, codec_from_options, codec_from_record, densify
from labelstore.codecs.labelmap import axis_weights
from labelstore.errors import RejectedInput, UsageError


def maps(rng, n, height, width, kept, num_classes, scale=4.0):
    """Dense logits (n, H, W, C) of which each cell keeps the K largest, the others 0; and their top-K."""
    dense = rng.normal(size=(n, height, width, num_classes)).astype(np.float32) * scale
    ids = np.argsort(-dense, -1)[..., :kept]
    values = np.take_along_axis(dense, ids, -1)
    sparse = np.zeros_like(dense)
    np.put_along_axis(sparse, ids, values, -1)
    return sparse, MapTopK(class_ids=ids.astype(np.uint16), logits=values)


def boxes_in(rng, n, m):
    """(n, m, 4) shares of the image, from slivers to the whole image."""
    sides = rng.uniform(0.001, 1, (n, m, 2))
    sides[:, 0] = 1
    corners = rng.uniform(0, 1, (n, m, 2)) * (1 - sides)
    return np.concatenate([corners, sides], -1).astype(np.float32)


def pooled_by_torchvision(dense, boxes):
    """(n, H, W, C), (n, m, 4) -> (n, m, C): x runs along the columns of the map, y along its rows."""
    n, height, width, num_classes = dense.shape
    top, left, tall, wide = (torch.from_numpy(boxes[..., edge]) for edge in range(4))
    corners = [left * width, top * height, (left + wide) * width, (top + tall) * height]
    image = torch.arange(n, dtype=torch.float32)[:, None].expand(top.shape)
    rois = torch.stack([image, *(corner - 0.5 for corner in corners)], -1).reshape(-1, 5)
    found = roi_align(torch.from_numpy(dense).permute(0, 3, 1, 2), rois, (1, 1), aligned=False)
    return found.reshape(n, -1, num_classes).numpy()


def pooled_by_hand(dense, box):
    """One map (H, W, C), one box -> (C,): every sample point, every one of its four cells, in Python."""
    height, width, _ = dense.shape
    y, x = box[0] * height - 0.5, box[1] * width - 0.5
    tall, wide = max(box[2] * height, 1), max(box[3] * width, 1)
    rows, columns = math.ceil(tall), math.ceil(wide)
    total = np.zeros(dense.shape[2])
    for i in range(rows):
        for j in range(columns):
            at = [y + (i + 0.5) * tall / rows, x + (j + 0.5) * wide / columns]
            if at[0] < -1 or at[0] > height or at[1] < -1 or at[1] > width:
                continue
            at = [
                min(max(value, 0), size - 1)
                for value, size in zip(at, (height, width), strict=True)
            ]
            low = [int(value) for value in at]
            for down in (0, 1):
                for right in (0, 1):
                    row, column = min(low[0] + down, height - 1), min(low[1] + right, width - 1)
                    share = abs(1 - down - (at[0] - low[0])) * abs(1 - right - (at[1] - low[1]))
                    total += share * dense[row, column]
    return total / (rows * columns)


def softmax(logits, temperature=1.0):
    return torch.softmax(torch.from_numpy(logits) / temperature, -1).numpy()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.5, 1.0, 3.0])
)
def test_labels_are_torchvisions_roi_align_and_softmax(seed, height, width, temperature):
    rng = np.random.default_rng(seed)
    num_classes, kept = 12, int(rng.integers(1, 13))
    dense, top = maps(rng, 3, height, width, kept, num_classes)
    boxes = boxes_in(rng, 3, 7)
    codec = LabelMap(k=kept, dtype="float32", height=height, width=width)
    arrays = {**codec.encode(top, num_classes), "box": boxes}
    found = codec.recover(arrays, num_classes, temperature)
    wanted = softmax(pooled_by_torchvision(dense, boxes), temperature)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_pooling_is_what_a_slow_loop_computes():
    rng = np.random.default_rng(3)
    dense, top = maps(rng, 2, 5, 7, 4, 9)
    boxes = boxes_in(rng, 2, 9)
    boxes[0, 1] = [0.95, 0.97, 0.05, 0.03]  # smaller than a cell, in the corner
    codec = LabelMap(k=4, dtype="float32", height=5, width=7)
    found = codec.recover({**codec.encode(top, 9), "box": boxes}, 9)
    slow = np.array([[pooled_by_hand(dense[i], box) for box in boxes[i]] for i in range(2)])
    np.testing.assert_allclose(found, softmax(slow.astype(np.float32)), atol=1e-5)
    np.testing.assert_allclose(pooled_by_torchvision(dense, boxes), slow, atol=1e-4)


def test_a_crop_is_pooled_where_it_lies():
    """ReLabel's reference decoder returns (0.5, 0.5) for the left third of a left/right map."""
    dense = np.zeros((1, 15, 15, 2), np.float32)
    dense[:, :, :7, 0], dense[:, :, 7:, 1] = 10, 10
    ids = np.argsort(-dense, -1, kind="stable")
    top = MapTopK(class_ids=ids.astype(np.uint16), logits=np.take_along_axis(dense, ids, -1))
    codec = LabelMap(k=2, dtype="float32", height=15, width=15)
    third = np.array([[[0, 0, 1, 1 / 3], [0, 2 / 3, 1, 1 / 3]]], np.float32)
    found = codec.recover({**codec.encode(top, 2), "box": third}, 2)[0]
    np.testing.assert_allclose(found, [[0.99995, 0.00005], [0.00005, 0.99995]], atol=1e-5)


def test_labels_are_sorted_lists_of_distinct_classes_and_an_exact_rest():
    rng = np.random.default_rng(1)
    num_classes = 40
    _, top = maps(rng, 4, 3, 3, 3, num_classes)
    boxes = boxes_in(rng, 4, 6)
    codec = LabelMap(k=3, dtype="float32", height=3, width=3)
    arrays = {**codec.encode(top, num_classes), "box": boxes}
    labels = codec.decode(arrays, num_classes)
    assert labels.class_ids.shape[-1] == codec.listed(arrays, num_classes) < 28
    assert (np.diff(labels.probs, axis=-1) <= 0).all()
    ordered = np.sort(labels.class_ids, -1)
    assert (ordered[..., 1:] != ordered[..., :-1]).all()
    total = labels.probs.sum(-1) + labels.rest * (num_classes - labels.probs.shape[-1])
    np.testing.assert_allclose(total, 1, atol=1e-5)
    full = densify(labels, num_classes)
    for image in range(4):
        kept = np.unique(top.class_ids[image])
        never = np.setdiff1d(np.arange(num_classes), kept)
        np.testing.assert_array_equal(
            full[image][:, never], np.repeat(labels.rest[image][:, None], len(never), 1)
        )
    np.testing.assert_allclose(codec.max_probability(arrays, num_classes), full.max(-1))


def test_missing_images_and_crops_are_nan():
    rng = np.random.default_rng(2)
    _, top = maps(rng, 3, 2, 2, 2, 6)
    top.logits[1] = np.nan
    codec = LabelMap(k=2, height=2, width=2)
    boxes = boxes_in(rng, 3, 4)
    boxes[1] = np.nan
    arrays = {**codec.encode(top, 6), "box": boxes}
    found = codec.recover(arrays, 6)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("cells", [1, 2, 15])
def test_weights_of_an_axis_sum_to_one_and_are_never_negative(cells):
    rng = np.random.default_rng(cells)
    length = rng.uniform(0, 1, 500).astype(np.float32)
    start = (rng.uniform(0, 1, 500) * (1 - length)).astype(np.float32)
    weights = axis_weights(start, length, cells)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert (weights >= 0).all()


def test_records_options_and_what_is_refused():
    codec = codec_from_options("labelmap", 3)
    assert codec == LabelMap(k=3)
    with pytest.raises(UsageError, match="no teacher is known"):
        codec.fields(10)
    whole = LabelMap(k=3, height=15, width=15, image_size=475)
    assert codec_from_record(whole.to_record()) == whole
    assert {field.shape for field in whole.fields(10)} == {(15, 15, 3)}
    assert {field.per for field in whole.fields(10)} == {"image"}
    for wrong in ({"k": 0}, {"height": 0}, {"width": 10**9}, {"dtype": "uint8"}, {"levels": 1}):
        with pytest.raises(UsageError):
            codec_from_record({"name": "labelmap", **wrong})
    with pytest.raises(UsageError, match="K=3 of C=2"):
        whole.fields(2)
    _, top = maps(np.random.default_rng(0), 1, 15, 15, 3, 10)
    with pytest.raises(RejectedInput, match="`dtype=float32`"):
        whole.encode(MapTopK(class_ids=top.class_ids, logits=top.logits * 1e6), 10)
    with pytest.raises(UsageError, match="labels of crops"):
        whole.encode(np.ones((1, 1, 10), np.float32), 10)
