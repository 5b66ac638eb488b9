"""Labels, boxes and flips of chosen images: equal bits to one image at a time, and no chunk column decoded twice."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore import Full, MarginalSmoothing
from labelstore.arrays.zarr_arrays import ZarrArrays
from labelstore.catalogue import image_blocks, image_table
from labelstore.catalogue.connection import Database
from labelstore.catalogue.ledger import Ledger
from labelstore.catalogue.named_rows import Teachers
from labelstore.errors import NotGenerated, RejectedInput, UsageError
from labelstore.store.chosen_images import spans
from labelstore.testing.filled_store import filled_store

IMAGES, CROPS, HEIGHT = 11, 80, 4  # two shards of two chunk columns
CODECS = {
    "table": MarginalSmoothing(k=3, class_ids="table"),
    "plain": MarginalSmoothing(k=3, class_ids="plain"),
    "full": Full(),
}


@pytest.fixture(scope="module", params=CODECS)
def labels(request, tmp_path_factory):
    dense = np.random.default_rng(1).dirichlet(np.full(6, 0.3), (IMAGES, CROPS)).astype("f4")
    path = tmp_path_factory.mktemp("chosen") / "s.labels"
    codec, bad = CODECS[request.param], [6]
    with filled_store(
        path, dense, codec, images_per_shard=HEIGHT, crops_per_shard=40, bad=bad,
        stored_crops=request.param != "plain",
    ) as store:  # fmt: skip
        yield store.label_set()


def one_at_a_time(labels, image, crops):
    """The slow way: the image's chunk columns from its first crop to its last, of a block that has it alone."""
    block, offset = divmod(image, HEIGHT)
    per = labels.plan.crops_per_chunk
    columns = range(min(crops) // per, max(crops) // per + 1)
    found = []
    for part in labels._parts(block, columns, stored_order=True):
        one = {name: array[offset : offset + 1] for name, array in part.items()}
        found.append(labels.codec.recover(one, labels.num_classes)[0])
    return np.concatenate(found)[np.array(crops) - columns.start * per]


@pytest.mark.sample(1)
def test_an_image_that_was_left_out_has_no_table_of_crops(labels):
    if labels.listed is not None:
        assert len(labels.crop_table(5)) == CROPS
    with pytest.raises(NotGenerated, match=r"0000006\.jpg: it was left out as bad .*on purpose"):
        labels.crop_table(6)


@pytest.mark.sample(2)
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_images_in_any_order_have_equal_bits(labels, data):
    images = data.draw(st.lists(st.integers(0, IMAGES - 1), max_size=9))
    m = data.draw(st.integers(1, 5))
    one = st.lists(st.integers(0, CROPS - 1), min_size=m, max_size=m)
    crops = data.draw(st.lists(one, min_size=len(images), max_size=len(images)))
    found = labels.recover(images, np.array(crops, int).reshape(len(images), m))
    assert found.shape == (len(images), m, 6)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(found[i], one_at_a_time(labels, image, crops[i]))
        np.testing.assert_array_equal(
            found[i], labels.dense(image // HEIGHT)[image % HEIGHT, crops[i]]
        )
    boxes, flips = labels.boxes(images), labels.flips(images)
    assert (boxes.dtype, flips.dtype) == (np.uint16, bool)
    assert boxes.shape == (*flips.shape, 4) == (len(images), CROPS, 4)
    for i, image in enumerate(images):
        whole = labels.crops(image // HEIGHT)
        np.testing.assert_array_equal(boxes[i], whole[0][image % HEIGHT])
        np.testing.assert_array_equal(flips[i], whole[1][image % HEIGHT])


@pytest.fixture
def decoded(monkeypatch):
    """How often each chunk column of each array and shard was decoded."""
    counts = Counter()
    read = ZarrArrays.read

    def counting(self, spec, index, files, columns=None, **kwargs):
        counts.update((spec.path, index, column) for column in spec.checked_columns(columns))
        return read(self, spec, index, files, columns, **kwargs)

    monkeypatch.setattr(ZarrArrays, "read", counting)
    return counts


@pytest.mark.parametrize("what", ["recover", "boxes", "flips"])
def test_every_chunk_column_is_decoded_once(labels, decoded, what):
    getattr(labels, what)([5, 0, 9, 1, 0, 7, 2])
    assert set(decoded.values()) <= {1}
    assert decoded or (what != "recover" and not labels.plan.stored)


def test_columns_that_nobody_asks_for_are_not_decoded(labels, decoded):
    labels.recover([1, 2], [[0], [CROPS - 1]])
    whole = labels.store.group("labels/teacher").per_image
    shards = {(i, c) for path, (_, i), c in decoded if path.rpartition("/")[2] not in whole}
    assert shards == {(0, 0), (1, 1)}


def test_spans_of_the_same_block_do_not_overlap():
    rows, columns = np.array([0, 1, 2, 3, 4]), np.array([[0, 2], [1, 1], [5, 9], [2, 4], [3, 3]])
    assert list(spans(rows, columns, 4)) == [(0, range(10), [0, 1, 3, 2]), (1, range(3, 4), [4])]
    assert list(spans(np.zeros(0, int), np.zeros((0, 3), int), 4)) == []


def test_keys_are_looked_up_together(labels, monkeypatch):
    store = labels.store
    keys = list(store.images()["key"])
    transactions = []
    reading = Database.reading
    monkeypatch.setattr(Database, "reading", lambda self: transactions.append(1) or reading(self))
    rows = store.image_rows([keys[8], 3, keys[0], keys[8]])
    assert rows.tolist() == [8, 3, 0, 8]
    assert len(transactions) == 1
    np.testing.assert_array_equal(labels.recover([keys[8]]), labels.recover([8]))


def test_more_keys_than_one_statement_takes(labels):
    keys = list(labels.store.images()["key"])
    asked = [f"no/{number}" for number in range(1100)] + keys
    assert labels.store.catalogue.images.find(asked) == {key: row for row, key in enumerate(keys)}


def test_counting_images_reads_none(labels, monkeypatch):
    store = labels.store
    for module in (image_blocks, image_table):
        monkeypatch.setattr(module, "verified_batches", lambda *_: pytest.fail("read"))
    store.refresh()
    assert (store.num_images, store.num_rows) == (IMAGES, IMAGES)
    assert f"images={IMAGES}" in repr(store)
    assert store.image_rows([3, 0]).tolist() == [3, 0]


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ("class0000/0000000.jpg", "give a list of image rows or keys"),
        (b"class0000/0000000.jpg", "give a list of image rows or keys"),
        (-1, "give a list of image rows or keys"),
        (None, "give a list of image rows or keys"),
        (np.array(3), "give a list of image rows or keys"),
        (np.zeros((1, 1), int), "give a list of image rows or keys"),
        ([2.7], "image row 2.7: give a whole number"),
        ([0, True], "image row True: give a whole number"),
        (np.array([2.0]), "give a whole number"),
        (np.array([True]), "give a whole number"),
        ([None], "image row None: give a whole number"),
        ([-1], "image row -1: this store has rows 0-10"),
        ([IMAGES], "image row 11: this store has rows 0-10"),
        ([2**70], "this store has rows 0-10"),
        (np.array([2**63], "u8"), "this store has rows 0-10"),
        (["no/such.jpg"], "no image with key 'no/such.jpg'"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(labels, images, says):
    for ask in (labels.store.image_rows, labels.recover, labels.boxes, labels.flips):
        with pytest.raises(UsageError, match=says) as error:
            ask(images)
        assert "\n" not in str(error.value)


def test_a_key_that_is_no_path_is_refused(labels):
    with pytest.raises(RejectedInput, match="relative path"):
        labels.recover(["../x.jpg"])


@pytest.mark.parametrize(
    ("crops", "says"),
    [
        ([[0.5]], "crop numbers are whole"), ([[True]], "crop numbers are whole"),
        ([["0"]], "crop numbers are whole"), ([[2**70]], "crop numbers are whole"),
        ([[CROPS]], "this plan has crops 0-79"), ([[-1]], "this plan has crops 0-79"),
        ([0], "one row of crop numbers per image"), ([[0], [1]], "one row of crop numbers per image"),
        ([[0], [1, 2]], "one row of crop numbers per image"), (3, "one row of crop numbers per image"),
    ],
)  # fmt: skip
def test_what_is_no_crop_is_refused(labels, crops, says):
    with pytest.raises(UsageError, match=says):
        labels.recover([0], crops)


def test_no_images_and_no_crops(labels):
    assert labels.recover([]).shape == (0, CROPS, 6)
    assert labels.recover([1, 2], np.zeros((2, 0), int)).shape == (2, 0, 6)
    assert labels.boxes([]).shape == (0, CROPS, 4)
    assert labels.flips([]).shape == (0, CROPS)


def test_frames_of_nothing_have_their_columns(labels, monkeypatch):
    store = labels.store
    shards, teachers = list(store.shards()), list(store.teachers())
    monkeypatch.setattr(Ledger, "shards", lambda *_: [])
    monkeypatch.setattr(Teachers, "all", lambda _: ())
    assert (list(store.shards()), list(store.teachers())) == (shards, teachers)
    assert min(len(shards), len(teachers)) > 0


@pytest.mark.parametrize("codec", ["plain", "full"])
def test_an_image_without_a_class_has_no_ground_truth_probability(tmp_path, codec):
    dense = np.zeros((4, 2, 6), "f4")
    dense[..., 0], dense[..., 1:] = 0.75, 0.05
    truth = np.array([-1, 0, 1, 2])
    with filled_store(tmp_path / "s", dense, CODECS[codec], ground_truth=truth) as store:
        found = store.label_set().ground_truth_probability(0)
    np.testing.assert_allclose(found[:, 0], [np.nan, 0.75, 0.05, 0.05], atol=1e-3)
