"""Stores that are no parts of one data set, and labels that are not the same, are refused before anything is
written."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import labelstore
from labelstore import MarginalSmoothing, RegionThresholds
from labelstore.care.dropping import drop
from labelstore.catalogue.digests import update_rows
from labelstore.catalogue.image_blocks import pack, unpack
from labelstore.catalogue.schema import metadata
from labelstore.errors import ConflictError, UsageError
from labelstore.sharing.agreement import agreement_of, sparse_difference
from labelstore.sharing.union import union_of
from tests.merging.parts import KEYS, C, H, M, N, W, by_key, fill_maps, part, soft_labels
from tests.merging.test_merge import CODECS


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory):
    """Two stores that share images 5 to 7; a third like the second, with other labels of image 6."""
    root = tmp_path_factory.mktemp("overlapping")
    other = soft_labels()
    other[6] = np.roll(other[6], 1, axis=-1)
    one_block = {"images_per_shard": 16, "crops_per_shard": M}
    for name, images, labels, seed in (
        ("a", range(8), soft_labels(), 6),
        ("b", range(5, N), soft_labels(), 6),
        ("c", range(5, N), other, 7),
    ):
        with part(root / name, images, CODECS, labels=labels, **one_block) as store:
            fill_maps(store, images, seed=seed)
    return root


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two stores that share image 6, with a mask."""
    root = tmp_path_factory.mktemp("pair")
    for name, images in (("a", range(7)), ("b", range(6, N))):
        with part(root / name, images) as store:
            labelstore.calibrate(store.label_set(), RegionThresholds(), name="ferkd")
    return root


def test_equal_labels_agree_and_others_do_not(overlapping, tmp_path):
    with (
        labelstore.open(overlapping / "a") as a,
        labelstore.open(overlapping / "b") as b,
        labelstore.open(overlapping / "c") as c,
    ):
        same, other = union_of([a, b]), union_of([a, c])
        for name in CODECS:
            found = agreement_of(same, a.label_set_row(name))
            assert (found.compared, found.largest) == (3 * M, 0)
            with pytest.raises(ConflictError, match=rf"{KEYS[6]}.* differ by|have another class"):
                agreement_of(other, a.label_set_row(name))
        cells = agreement_of(same, a.label_set_row("map"))
        assert (cells.compared, cells.largest) == (3 * H * W, 0)
        with pytest.raises(ConflictError, match="differ by"):
            agreement_of(other, a.label_set_row("map"))
    with pytest.raises(ConflictError):
        labelstore.merge(tmp_path / "out", [overlapping / "a", overlapping / "c"])
    assert not list(tmp_path.iterdir())


def test_of_labels_that_agree_the_first_are_taken(tmp_path):
    near = soft_labels() * np.linspace(1, 1 + 1e-3, C, dtype=np.float32)
    near /= near.sum(-1, keepdims=True)
    codecs = {"teacher": MarginalSmoothing(k=2, dtype="float32")}
    part(tmp_path / "a", range(8), codecs).close()
    part(tmp_path / "b", range(5, N), codecs, labels=near).close()
    report = labelstore.merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    (labels,) = report.label_sets
    assert (report.overlapping, labels.from_stores, labels.compared) == (3, (8, 6), 3 * M)
    assert 0 < labels.largest_difference < 0.001
    with labelstore.open(tmp_path / "out") as out, labelstore.open(tmp_path / "a") as a:
        assert by_key(a, "teacher").items() <= by_key(out, "teacher").items()


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_labels_as_another_machine_makes_them_agree(seed, k):
    """Where every probability moves by at most e, K kept classes differ by at most 2 e, whatever the ties."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(6), 5)
    probs[:, 1] = probs[:, 0]  # ties
    moved = probs + rng.uniform(-1e-3, 1e-3, probs.shape)

    def kept(values):
        ids = np.argsort(-values, axis=-1, kind="stable")[:, :k]
        found = np.take_along_axis(values, ids, -1)
        tail = values.sum(-1) - found.sum(-1)
        return ids, found, np.minimum(found.min(-1), tail)

    difference = sparse_difference(*kept(probs), *kept(moved))
    assert difference.shape == (5,)
    assert difference.max() <= 6.001e-3  # a tail moves by what its classes move together
    other = np.roll(np.eye(6)[:5], 1, axis=-1)
    assert sparse_difference(*kept(np.eye(6)[:5]), *kept(other)).min() > 0.9


def change(path, table, **values):
    """Change a row as a writer of ours would."""
    with labelstore.open(path) as store, store.catalogue.transaction() as conn:
        if table == "image_blocks":
            (row,) = conn.execute(metadata.tables[table].select())
            columns = unpack(row)
            for name, value in values.items():
                columns[name][0] = value
            values = pack(0, columns)
        update_rows(conn, metadata.tables[table], [values])


LAW = '{"flip_prob":0.5,"law":"random-resized-crop/philox4x32-10/1","ratio":[0.75,1.25],"scale":[0.08,1.0],"seed":9}'


@pytest.mark.parametrize(
    ("table", "values", "message"),
    [
        ("plans", {"name": "plan", "parameters": LAW}, "crop plan plan: its seed, ranges or law is"),
        ("plans", {"name": "plan", "num_crops": 6}, "number of crops per image is 4 in .* and 6 in"),
        ("plans", {"name": "plan", "crops_per_chunk": 1}, "its crops per chunk is 2 in"),
        ("plans", {"name": "plan", "stored": False}, "its storing of boxes is True in"),
        ("teachers", {"name": "teacher", "digest": "f" * 64}, "teacher teacher is .* weights ffff"),
        ("label_sets", {"name": "teacher", "temperature": 2.0}, "label set teacher: its temperature"),
        (
            "label_sets",
            {"name": "teacher", "codec": MarginalSmoothing(k=3).to_record()},
            "label set teacher: its codec is k 2 in .* and k 3 in",
        ),
        (
            "label_sets",
            {"name": "teacher", "facts": {"autocast": "bf16"}},
            "label set teacher: its autocast is none in .* and bf16 in",
        ),
        ("image_blocks", {"digest": 1}, f"'{KEYS[6]}' is another file"),
        ("image_blocks", {"class_id": 0}, f"'{KEYS[6]}' is of another class"),
        ("classes", {"class_id": 2, "name": "other"}, "the first difference is class 2"),
    ],
)  # fmt: skip
def test_what_differs_is_named(table, values, message, pair, tmp_path):
    shutil.copytree(pair / "b", tmp_path / "b")
    plain = {
        key: labelstore.catalogue.record_columns.json_text(value)
        if isinstance(value, dict)
        else value
        for key, value in values.items()
    }
    change(tmp_path / "b", table, **plain)
    with pytest.raises(ConflictError, match=message) as raised:
        labelstore.merge(tmp_path / "out", [pair / "a", tmp_path / "b"])
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_teachers_are_known_by_their_weights_and_masks_by_their_rule(pair, tmp_path):
    shutil.copytree(pair / "b", tmp_path / "b")
    with labelstore.open(tmp_path / "b") as store:
        drop(store, "mask", "ferkd")
        for name, rule in (("ferkd", RegionThresholds(low=0.2)), ("mine", RegionThresholds())):
            labelstore.calibrate(store.label_set(), rule, name=name)
        # the same weights, once more under another name
        row = store.teacher("teacher")
        store.catalogue.teachers.add(type(row)(**{**vars(row), "name": "same"}))
    change(tmp_path / "b", "label_sets", name="teacher", teacher="same")
    report = labelstore.merge(tmp_path / "out", [pair / "a", tmp_path / "b"])
    assert report.masks == ()
    assert [note.partition(":")[0] for note in report.notes] == [
        "mask ferkd is dropped",
        "mask mine is dropped",
    ]
    with labelstore.open(tmp_path / "out") as out:
        assert [row.name for row in out.catalogue.teachers.all()] == ["teacher"]
        assert out.label_set("teacher").is_complete
        assert out.masks == ()


def test_wrong_arguments_and_places(pair, tmp_path):
    a, b = pair / "a", pair / "b"
    for stores, options in (
        ([a], {}),
        ([a, a], {}),
        ([a, b], {"backend": "tar"}),
        ([a, b], {"images_per_shard": 0}),
    ):
        with pytest.raises(UsageError):
            labelstore.merge(tmp_path / "out", stores, **options)
    with pytest.raises(UsageError, match="is inside the store"):
        labelstore.merge(a / "out", [a, b])
    with pytest.raises(UsageError, match="one of the stores"):
        labelstore.merge(b, [a, b])
    with pytest.raises(UsageError, match="cannot be made there"):
        labelstore.merge("s3://bucket/out", [a, b])
    (tmp_path / "there").mkdir()
    with pytest.raises(ConflictError, match="exists already"):
        labelstore.merge(tmp_path / "there", [a, b])
    shutil.copytree(a, tmp_path / "other")
    with pytest.raises(ConflictError, match="was not made by merging"):
        labelstore.merge(tmp_path / "other", [a, b])
    labelstore.merge(tmp_path / "out", [a, b])
    with pytest.raises(ConflictError, match="in another order"):
        labelstore.merge(tmp_path / "out", [b, a])
