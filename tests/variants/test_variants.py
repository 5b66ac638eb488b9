"""A variant is what the teacher would have stored; its cost is counted; what cannot be derived is one line."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore.analysis.comparison import compare
from labelstore.codecs import Full, Hard, MarginalRenorm, MarginalSmoothing, Smoothing, top_k
from labelstore.commit import block_jobs as source_of_blocks
from labelstore.errors import ConflictError, UsageError
from labelstore.labelling.deriving import codec_for, derive, variant_name
from labelstore.testing.filled_store import fill_blocks
from tests.kept_stores import kept_store

N, M, C = 20, 10, 12
BAD = 3
FULL = Full(dtype="float32")
MS = MarginalSmoothing(k=5, dtype="float32")


@pytest.fixture(scope="module")
def probabilities():
    logits = np.random.default_rng(0).normal(0, 3, (N, M, C))
    dense = np.exp(logits)
    return (dense / dense.sum(-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def make_store(tmp_path, probabilities):
    opened = []

    def make(codec=FULL, **options):
        settings = {"images_per_shard": 8, "crops_per_shard": 5, "bad": {BAD}, **options}
        path = tmp_path / f"{len(opened)}.labels"
        opened.append(kept_store(path, probabilities, codec, **settings))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def everything(labels):
    return np.concatenate([labels.dense(block) for block in labels.blocks])


def kl(source, variant):
    """KL(source || variant) of dense labels, the plain way; a variant's zeros count as 2^-26."""
    p, q = source.astype(np.float64), np.maximum(variant.astype(np.float64), 2.0**-26)
    return (p * (np.log(p) - np.log(q))).sum(-1)


CHEAPER = [
    MarginalSmoothing(k=5, dtype="float16"),
    MarginalSmoothing(k=2, dtype="uint8"),
    MarginalSmoothing(k=2, tail_classes=3, dtype="uint8"),
    MarginalRenorm(k=3, dtype="uint8"),
    Smoothing(dtype="float32"),
    Hard(),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_a_variant_is_what_the_teacher_would_have_stored(make_store, probabilities, backend):
    store = make_store(backend=backend)
    source = store.label_set()
    is_bad = np.arange(N)[:, None, None] == BAD
    for codec in [*CHEAPER, Full(dtype="float16")]:
        variant = derive(source, codec)
        assert variant.is_complete
        kept, shards = codec.kept(C), np.split(np.where(is_bad, np.nan, probabilities), 2, axis=1)
        stored = [
            codec.encode(shard if kept is None else top_k(shard, kept), C) for shard in shards
        ]
        expected = np.concatenate([codec.recover(shard, C) for shard in stored], axis=1)
        np.testing.assert_allclose(everything(variant), expected, atol=2e-6)
        assert variant.row.teacher == source.row.teacher
        np.testing.assert_array_equal(variant.boxes([1]), source.boxes([1]))
    store.catalogue.verify_digests()


@pytest.mark.slow
def test_from_ms_it_is_the_same_as_from_full(make_store):
    store = make_store()
    full = store.label_set()
    ms = derive(full, MS)
    for codec in CHEAPER:
        # a probability halfway between two float16 may be rounded either way
        np.testing.assert_allclose(
            everything(derive(ms, codec)), everything(derive(full, codec)), atol=2**-11
        )


@pytest.mark.sample(1)
@pytest.mark.parametrize("codec", CHEAPER)
@pytest.mark.parametrize("source", [FULL, MS])
def test_the_cost_is_the_divergence_over_all_crops(make_store, source, codec):
    labels = make_store(source).label_set()
    variant = derive(labels, codec)
    (cost,) = compare([labels, variant]).pairs
    expected = np.delete(kl(everything(labels), everything(variant)), BAD, 0).ravel()
    assert cost.num_crops == expected.size == (N - 1) * M
    assert cost.kl == pytest.approx(expected.mean(), abs=1e-6)
    assert cost.kl_worst == pytest.approx(expected.max(), abs=1e-6)
    rank = np.sort(expected)[int(np.ceil(0.99 * expected.size)) - 1]
    assert cost.kl_p99 == pytest.approx(rank, rel=0.012, abs=1e-6)


def test_eight_bits_cost_little(make_store):
    labels = make_store(MS).label_set()
    variant = derive(labels, MarginalSmoothing(k=5, dtype="uint8"))
    (cost,) = compare([labels, variant]).pairs
    assert cost.kl < 1e-3
    assert cost.kl_p99 < 5e-3


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("source", "wanted", "why"),
    [
        (Hard(), MarginalSmoothing(k=1), "does not keep the teacher's probabilities"),
        (MarginalRenorm(k=3), MarginalSmoothing(k=2), "does not keep the teacher's probabilities"),
        (MarginalRenorm(k=3), Smoothing(), "does not keep the teacher's probabilities"),
        (MS, MarginalSmoothing(k=6), "keeps 5 of 12 classes"),
        (MS, MarginalSmoothing(k=6, tail_classes=2), "keeps 5 of 12 classes"),
        (MS, Full(), "needs all 12 probabilities"),
        (MS, MarginalSmoothing(k=5, dtype="float32"), "just that already"),
        (FULL, MarginalSmoothing(k=13), "K=13 of C=12"),
    ],
)
def test_what_the_source_lacks_is_refused_and_nothing_written(make_store, source, wanted, why):
    store = make_store(source)
    files = sorted(store.path.rglob("*"))
    with pytest.raises(UsageError, match=why):
        derive(store.label_set(), wanted)
    assert store.label_sets == ("teacher",)
    assert sorted(store.path.rglob("*")) == files


def test_a_stopped_derivation_goes_on_where_it_was(make_store, monkeypatch):
    store = make_store()
    stage, written = source_of_blocks.stage_block, []

    def stops(store, lease, *args, **options):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(lease.block)
        return stage(store, lease, *args, **options)

    monkeypatch.setattr(source_of_blocks, "stage_block", stops)
    with pytest.raises(KeyboardInterrupt):
        derive(store.label_set("teacher"), Hard(), name="hard")
    assert len({row.block for row in store.catalogue.ledger.shards("labels/hard")}) == 1

    def goes_on(store, lease, *args, **options):
        written.append(lease.block)
        return stage(store, lease, *args, **options)

    monkeypatch.setattr(source_of_blocks, "stage_block", goes_on)
    assert derive(store.label_set("teacher"), Hard(), name="hard").is_complete
    assert sorted(written) == [0, 1, 2], "a block was derived twice, or its lease was not let go"
    monkeypatch.setattr(source_of_blocks, "stage_block", None)
    assert derive(store.label_set("teacher"), Hard(), name="hard").is_complete


def derive_in_a_process(path):
    with labelstore.open(path) as store:
        derive(store.label_set("teacher"), MarginalRenorm(k=3), name="mr")


@pytest.mark.slow
def test_two_processes_share_the_blocks(make_store):
    store = make_store(images_per_shard=2)
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=derive_in_a_process, args=(store.path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    store.refresh()
    assert store.label_set("mr").is_complete
    assert np.nanmax(abs(everything(store.label_set("mr")).sum(-1) - 1)) < 1e-6


def test_of_an_unfinished_source_what_is_there_is_derived(make_store, probabilities):
    store = make_store(blocks=[0, 2])
    variant = derive(store.label_set("teacher"), Hard(), name="hard")
    assert variant.blocks == (0, 2)
    fill_blocks(store, probabilities, name="teacher", bad={BAD})
    assert derive(store.label_set("teacher"), Hard(), name="hard").is_complete


def test_a_name_that_is_something_else_is_a_conflict(make_store):
    store = make_store()
    labels = store.label_set("teacher")
    derive(labels, Hard(), name="cheap")
    with pytest.raises(ConflictError, match="compression"):
        derive(store.label_set("teacher"), Smoothing(), name="cheap")
    with pytest.raises(ConflictError, match="compression"):
        derive(store.label_set("teacher"), Smoothing(), name="teacher")
    ms = derive(store.label_set("teacher"), MS, name="ms")
    with pytest.raises(ConflictError, match="not derived from ms"):
        derive(ms, Hard(), name="cheap")


def test_what_is_not_said_is_as_in_the_source(make_store):
    labels = make_store(MS).label_set()
    assert codec_for(labels, None, None, "uint8") == MarginalSmoothing(k=5, dtype="uint8")
    assert codec_for(labels, None, 3, None) == MarginalSmoothing(k=3, dtype="float32")
    assert codec_for(labels, "mr", None, None) == MarginalRenorm(k=5, dtype="float32")
    assert codec_for(labels, "hard", None, None) == Hard()
    with pytest.raises(UsageError, match="no label codec"):
        codec_for(labels, "zip", None, None)
    assert variant_name(labels, MarginalRenorm(k=3, dtype="uint8")) == "teacher-mr3-uint8"


def test_the_command(make_store, capsys):
    path = make_store().path

    def run(*arguments):
        given = ["variants", str(path), *arguments]
        code = errors.run(labelstore_app.commands, "labelstore", given)
        return code, *capsys.readouterr()

    choice = ["--from", "teacher", "--compression", "mr", "--k", "3", "--dtype", "uint8"]
    code, out, _ = run(*choice, "--dry-run")
    assert code == 0
    assert "would derive label set teacher-mr3-uint8" in out
    with labelstore.open(path) as store:
        assert store.label_sets == ("teacher",)
    code, out, _ = run(*choice, "--json")
    assert code == 0
    record = json.loads(out)
    assert record["label_set"] == "teacher-mr3-uint8"
    assert 0 < record["kl"]["mean"] < record["kl"]["p99"] <= record["kl"]["worst"]
    assert record["is_complete"]
    assert record["bytes"] < record["source_bytes"]
    code, out, _ = run(*choice)
    assert code == 0
    assert "KL(source || new) mean" in out
    assert "KL(source || new) 99th percentile" in out
    for bad, what in (
        (["--compression", "ms", "--k", "13"], "K=13 of C=12"),
        (["--compression", "ms", "--dtype", "int4"], "dtype 'int4'"),
        (["--compression", "full", "--k", "3"], "only ms, mr and labelmap keep K"),
    ):
        code, out, err = run("--from", "teacher", *bad)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert what in err
    code, _, err = run("--from", "teacher-mr3-uint8", "--compression", "ms", "--k", "2")
    assert code == 2
    assert err.count("\n") == 1
