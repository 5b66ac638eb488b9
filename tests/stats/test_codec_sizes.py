"""Predicted sizes are those that a store then has; what cannot be predicted from the labels says so."""

import json

import numpy as np
import pytest

from benchmarks import label_model
from cli.labelstore_app import app
from labelstore import MarginalSmoothing
from labelstore.analysis.codec_sizes import codec_table
from labelstore.analysis.fkd_files import fkd_kinds
from labelstore.codecs import Full, Hard, Logits, MarginalRenorm, ProductCodes, Smoothing
from labelstore.errors import UsageError
from labelstore.labelling.deriving import derive
from labelstore.testing.filled_store import filled_store

CLASSES = 60
INDEX = 20 / (64 * 20)
"""Shard index and checksum of one chunk, per crop."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    model = label_model.labels(0, 128, 40, k=12, num_classes=CLASSES)
    rest = (model.tail / (CLASSES - 12))[..., None]
    dense = np.broadcast_to(rest, (128, 40, CLASSES)).astype("f4")
    np.put_along_axis(dense, model.class_ids.astype(int), model.probs, -1)
    dense /= dense.sum(-1, keepdims=True)
    path = tmp_path_factory.mktemp("sizes") / "s.labels"
    with filled_store(path, dense, Full(dtype="float32"), images_per_shard=64) as opened:
        yield opened


def row(table, kind, dtype):
    (found,) = (row for row in table.rows if (row.kind, row.dtype) == (kind, dtype))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "kind", "dtype"),
    [
        (Hard(), "hard", ""),
        (Smoothing(dtype="uint8"), "smoothing", "uint8"),
        (MarginalRenorm(k=5, dtype="float16"), "mr-5", "float16"),
        (MarginalSmoothing(k=10, dtype="uint8"), "ms-10", "uint8"),
        (MarginalSmoothing(k=5, dtype="float32"), "ms-5", "float32"),
        (MarginalSmoothing(k=3, tail_classes=100, dtype="uint8"), "ms-3-tail100", "uint8"),
    ],
)
def test_a_prediction_is_what_the_variant_then_weighs(store, codec, kind, dtype):
    before = row(codec_table(store), kind, dtype)
    derive(store.label_set("teacher"), codec, name=f"{kind}-{dtype}")
    after = row(codec_table(store), kind, dtype)
    assert (before.basis, before.label_set) == ("sample", None)
    assert after.label_set == f"{kind}-{dtype}"
    # the index of each chunk of each array is not predicted
    arrays = len(codec.fields(CLASSES)) + 2
    assert abs(after.measured_per_crop - before.labels_per_crop) < (
        0.05 * after.measured_per_crop + arrays * INDEX
    )


def test_the_richest_label_set_is_the_sample_and_fkds_figures_are_beside(store):
    table = codec_table(store, scale="1200000x200")
    assert table.source == "teacher"
    assert table.scale == (1_200_000, 200)
    assert all(r.predicted_bytes > 0 for r in table.rows)
    by_kind = {kind.title: kind for kind in fkd_kinds(1_200_000, 200, num_classes=CLASSES)}
    for found in table.rows:
        if found.kind in by_kind:
            assert found.fkd_table_bytes == by_kind[found.kind].table_bytes
            assert found.fkd_disk_bytes == by_kind[found.kind].disk_bytes
    maps = [r for r in table.rows if r.kind.startswith("relabel")]
    assert [r.fkd_table_bytes for r in maps] == [
        4 * 225 * CLASSES * 1_200_000,
        4 * 225 * 10 * 1_200_000,
    ]
    assert len({r.predicted_bytes / r.labels_per_crop for r in maps}) == 1


@pytest.mark.slow
def test_what_a_source_does_not_keep_is_counted_raw(store):
    derive(store.label_set("teacher"), MarginalSmoothing(k=5, dtype="uint8"), name="small")
    table = codec_table(store, "small")
    assert row(table, "full", "float16").basis == "raw"
    assert row(table, "full", "float16").labels_per_crop == 2 * CLASSES
    assert row(table, "ms-10", "uint8").basis == "raw"
    assert row(table, "ms-5", "float32").basis == "raw", "its low bits are not the teacher's"
    assert row(table, "ms-5", "uint8").basis == "sample"
    derive(store.label_set("teacher"), Hard(), name="one-hot")
    hard = codec_table(store, "one-hot")
    assert {r.kind for r in hard.rows if r.basis == "sample"} == {"hard"}


def test_a_store_without_labels_has_nothing_to_sample(tmp_path):
    dense = np.full((8, 2, 4), 0.25, "f4")
    with filled_store(tmp_path / "s.labels", dense, Full(), blocks=[]) as empty:
        with pytest.raises(UsageError, match="no labels of crops"):
            codec_table(empty)
        with pytest.raises(UsageError, match="no labels of crops"):
            codec_table(empty, "teacher")


@pytest.mark.slow
def test_the_command_prints_the_table(store, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.argv",
        ["labelstore", "stats", str(store.path), "--storage", "--scale", "1281167x200", "--json"],
    )
    with pytest.raises(SystemExit) as ended:
        app()
    assert not ended.value.code
    rows = json.loads(capsys.readouterr().out)["codecs"]["rows"]
    assert {"full", "hard", "ms-10", "relabel-full", "relabel-5"} <= {r["kind"] for r in rows}
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["labelstore", "stats", str(store.path), "--storage"])
    with pytest.raises(SystemExit):
        app()
    shown = capsys.readouterr().out
    assert "FKD Table 2 with these labels" in shown
    assert "relabel-full" in shown


def test_labels_that_no_other_form_follows_from_are_told_apart_from_none(new_store):
    """Advice that can be followed: `labelstore create` would change nothing where labels are there."""
    empty = new_store(np.full((4, 2, 3), 1 / 3, "f4"), MarginalSmoothing(k=2), blocks=[])
    with pytest.raises(UsageError, match=r"run `labelstore\.generate` first"):
        codec_table(empty)


def test_outputs_have_rows_of_their_own_in_the_bytes_that_they_take(new_store):
    outputs = np.random.default_rng(3).normal(size=(40, 20, 48)).astype("f4")
    store = new_store(outputs, Logits(dtype="float32"))
    with store.catalogue.transaction() as conn:
        store.catalogue.label_sets.change(conn, "teacher", facts={"outputs_are": "embedding"})
    before = {(row.kind, row.dtype): row for row in codec_table(store).rows}
    source = store.label_set()
    assert list(before) == [
        ("logits", "float32"),
        ("logits", "float16"),
        ("logits", "uint8"),
        ("pq-20", ""),
    ]
    for codec in (Logits(dtype="uint8"), ProductCodes()):
        derive(source, codec, name=codec.name)
    after = {(row.kind, row.dtype): row for row in codec_table(store).rows}
    for kind, dtype in (("logits", "uint8"), ("pq-20", "")):
        found = after[kind, dtype]
        assert found.label_set == ("logits" if dtype else "pq")
        assert abs(found.measured_per_crop - before[kind, dtype].labels_per_crop) < (
            0.05 * found.measured_per_crop + 4 * 20 / (40 * 20)
        )
