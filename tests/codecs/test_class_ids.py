"""Class ids come back as they were, in both forms, whatever images name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.codecs import MarginalSmoothing, TopK, choose_class_ids
from labelstore.codecs.base import id_dtype, missing_id
from labelstore.codecs.class_ids import ESCAPE, MISSING, decode_ids, encode_ids, id_fields
from labelstore.errors import UsageError


@st.composite
def shards_of_ids(draw):
    """Ids (n, m, K) as a shard's labels would have them, some crops missing, and the number of classes."""
    num_classes = draw(st.sampled_from([3, 300, 1000, 65_534, 65_535, 200_000]))
    images, crops, k = draw(st.integers(1, 5)), draw(st.integers(1, 120)), draw(st.integers(1, 5))
    pool = draw(st.sampled_from([2, 20, num_classes]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = rng.integers(0, min(pool, num_classes), (images, crops, k)).astype(id_dtype(num_classes))
    ids = num_classes - 1 - ids
    ids[rng.random((images, crops)) < draw(st.sampled_from([0, 0.3, 1]))] = missing_id(ids.dtype)
    return ids.astype(id_dtype(num_classes)), num_classes


@pytest.mark.parametrize("form", ["plain", "table"])
@given(shard=shards_of_ids())
def test_ids_survive_both_forms(form, shard):
    ids, num_classes = shard
    arrays = encode_ids(ids, form, num_classes)
    np.testing.assert_array_equal(decode_ids(arrays, form), ids)
    assert decode_ids(arrays, form).dtype == id_dtype(num_classes)
    for field in id_fields(form, ids.shape[-1], num_classes):
        rows = ids.shape[:2] if field.per == "crop" else ids.shape[:1]
        assert arrays[field.name].shape == (*rows, *field.shape)
        assert arrays[field.name].dtype == np.dtype(field.dtype)


@given(shard=shards_of_ids(), data=st.data())
def test_any_crops_of_a_shard_decode_alone(shard, data):
    ids, num_classes = shard
    start = data.draw(st.integers(0, ids.shape[1] - 1))
    stop = data.draw(st.integers(start + 1, ids.shape[1]))
    arrays = encode_ids(ids, "table", num_classes)
    part = {name: a if name == "class_table" else a[:, start:stop] for name, a in arrays.items()}
    np.testing.assert_array_equal(decode_ids(part, "table"), ids[:, start:stop])


def test_the_most_frequent_class_has_rank_0_and_ties_go_to_the_lower_id():
    ids = np.array([[[7, 3], [7, 9], [7, 3], [2, 9]]], "<u2")
    arrays = encode_ids(ids, "table", 10)
    assert arrays["class_table"][0, :5].tolist() == [7, 3, 9, 2, 65_535]
    assert arrays["class_rank"][0].tolist() == [[0, 1], [0, 2], [0, 1], [3, 2]]


def test_an_image_of_more_classes_than_its_table_escapes_and_no_other_does():
    ids = np.zeros((2, 300, 1), "<u2")
    ids[1, :, 0] = np.arange(300)
    arrays = encode_ids(ids, "table", 1000)
    assert (arrays["class_escape"][0] == 65_535).all()
    assert np.count_nonzero(arrays["class_rank"][1] == ESCAPE) == 300 - 254
    np.testing.assert_array_equal(decode_ids(arrays, "table"), ids)


def test_the_escape_array_may_be_empty_and_usually_is():
    ids = np.zeros((2, 4, 2), "<u2")
    (escape,) = [f for f in id_fields("table", 2, 1000) if f.name == "class_escape"]
    assert escape.may_be_empty
    assert (encode_ids(ids, "table", 1000)["class_escape"] == escape.fill).all()


def test_missing_crops_have_a_rank_of_their_own():
    ids = np.full((1, 2, 2), 65_535, "<u2")
    assert (encode_ids(ids, "table", 10)["class_rank"] == MISSING).all()


@pytest.mark.parametrize(("num_classes", "dtype"), [(1000, "u2"), (65_534, "u2"), (65_535, "u4")])
def test_ids_are_as_narrow_as_they_can_be(num_classes, dtype):
    assert id_dtype(num_classes) == np.dtype(dtype)


def test_an_unknown_form_is_refused():
    with pytest.raises(UsageError, match="choose one of plain, table"):
        MarginalSmoothing(class_ids="tables")


def labels_of(ids):
    return TopK(
        class_ids=ids,
        probs=np.full(ids.shape, 0.5 / ids.shape[-1], np.float32),
        tail=np.full(ids.shape[:2], 0.5, np.float32),
    )


def test_the_smaller_form_is_chosen():
    rng = np.random.default_rng(0)
    few = rng.integers(0, 1000, (50, 1, 12))
    few = np.take_along_axis(
        np.broadcast_to(few, (50, 100, 12)), rng.integers(0, 12, (50, 100, 5)), -1
    )
    many = rng.integers(0, 1000, (50, 100, 5))
    codec = MarginalSmoothing(k=5)
    assert choose_class_ids(codec, labels_of(few.astype("<u2")), 1000).class_ids == "table"
    assert choose_class_ids(codec, labels_of(many.astype("<u2")), 1000).class_ids == "plain"
