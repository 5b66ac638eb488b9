"""A frozen store in an S3-compatible bucket: read by range, every chunk checked, nothing written."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore import MarginalSmoothing, PlanOptions, RegionThresholds
from labelstore.analysis.disk import storage
from labelstore.analysis.histogram import histogram
from labelstore.analysis.summary import summary
from labelstore.blocks.block_map import block_map
from labelstore.calibration import calibrate, preview
from labelstore.care.freezing import freeze
from labelstore.care.leftovers import gc
from labelstore.care.verification import verify
from labelstore.errors import DamagedShard, StorageError, StoreNotFound, UsageError
from labelstore.testing.filled_store import filled_store
from tests.flat_options import StoredPasses
from tests.machines.conftest import everything, soft_labels
from trainer.sampler import PassSchedule

pytest.importorskip("obstore", reason="obstore is not installed")

RULE = RegionThresholds(low=0.2, middle=0.3, top=0.9)


@pytest.fixture(scope="module")
def server():
    moto = pytest.importorskip("moto.server", reason="moto's server is not installed")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(autouse=True)
def environment(server, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("LABELSTORE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def s3(environment):
    import boto3

    return boto3.client("s3")


def upload(s3, folder, bucket, prefix):
    s3.create_bucket(Bucket=bucket)
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            s3.put_object(Bucket=bucket, Key=key, Body=path.read_bytes(), ACL="public-read")
    return f"s3://{bucket}/{prefix}"


@pytest.fixture(scope="module")
def frozen_stores(tmp_path_factory):
    """Per backend one frozen store of two chunk columns in each shard, with a mask."""
    folder, found = tmp_path_factory.mktemp("stores"), {}
    labels = soft_labels(shape=(13, 40, 12))
    for backend in ("zarr", "hdf5"):
        about = {"images_per_shard": 8, "crops_per_shard": 40, "bad": {5}, "backend": backend}
        with filled_store(
            folder / f"{backend}-work", labels, MarginalSmoothing(k=3), **about
        ) as store:
            assert store.label_set().layout.columns_per_shard == 2
            calibrate(store.label_set(), RULE, name="m")
            found[backend] = freeze(store, folder / backend).path
    return found


@pytest.fixture(params=["zarr", "hdf5"])
def frozen(request, frozen_stores):
    return frozen_stores[request.param]


@pytest.fixture
def url(s3, frozen, request):
    return upload(s3, frozen, f"bucket-{abs(hash(request.node.name)) % 10**9}", "sets/in1k.labels")


@pytest.fixture
def requests_seen(monkeypatch):
    """(key, range, bytes) of every object that is asked for."""
    import obstore

    seen = []
    real = obstore.get

    def watched(store, path, *, options=None):
        answer = real(store, path, options=options)
        seen.append((path, options["range"], answer.range[1] - answer.range[0]))
        return answer

    monkeypatch.setattr(obstore, "get", watched)
    return seen


@pytest.mark.sample(1)
def test_it_is_read_as_the_folder_is(url, frozen):
    with labelstore.open(url) as store, labelstore.open(frozen) as local:
        assert store.location == url
        for one, other in zip(
            everything(store.label_set()), everything(local.label_set()), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        labels, there = store.label_set(), local.label_set()
        np.testing.assert_array_equal(
            labels.recover([3, 12], [[1], [37]]), there.recover([3, 12], [[1], [37]])
        )
        assert histogram(labels) == histogram(there)
        assert summary(labels) == summary(there)
        assert preview(labels) == preview(there)
        for block in store.mask("m").blocks:
            np.testing.assert_array_equal(
                store.mask("m").regions(block), local.mask("m").regions(block)
            )
        assert storage(store).arrays_bytes == storage(local).arrays_bytes
        # in a worker, too: it opens the bucket itself
        copy = pickle.loads(pickle.dumps(labels))
        np.testing.assert_array_equal(copy.dense(0), labels.dense(0))
        assert copy.store.location == url


@pytest.mark.sample(1)
def test_training_passes(url, frozen, tmp_path):
    schedule = PassSchedule.of(passes=2, crops_per_image=2)
    drawn = []
    for where in (url, frozen):
        with labelstore.open(where) as store:
            about = {"schedule": schedule, "scratch": tmp_path, "allow_empty_images": True}
            passes = StoredPasses(store.label_set(), mask=store.mask("m"), **about)
            drawn.append([passes.pass_labels(number).take() for number in range(2)])
            passes.close()
    for one, other in zip(*drawn, strict=True):
        assert one.tobytes() == other.tobytes()


def test_only_ranges_of_shards_are_asked_for(url, frozen, requests_seen):
    with labelstore.open(url) as store:
        whole = {key for key, _, _ in requests_seen}
        assert len(whole) == 3  # manifest, catalogue, the file that describes the arrays
        assert not list(store.arrays.root.rglob("c.*")) + list(store.arrays.root.rglob("*.h5"))
        requests_seen.clear()
        labels = store.label_set()
        labels.sparse(1, range(1, 2))
        assert requests_seen
        sizes = {
            f"{store.arrays.root.name}/{file.key}": file.size
            for row in store.catalogue.ledger.shards("labels/teacher")
            for file in row.files
        }
        asked = {}
        for key, _, size in requests_seen:
            asked[key] = asked.get(key, 0) + size
        for key, size in asked.items():
            (due,) = (sizes[name] for name in sizes if key.endswith(name))
            assert size < due
        # the index of a shard is asked for once
        count = len(requests_seen)
        labels.sparse(1, range(1, 2))
        assert len(requests_seen) - count < count
    # opened again: catalogue and metadata come from the cache
    requests_seen.clear()
    labelstore.open(url).close()
    assert [key.rpartition("/")[2] for key, _, _ in requests_seen] == ["labelstore.json"]


@pytest.mark.sample(1)
def test_a_part_of_the_cache_that_was_cut_is_fetched_again(url, frozen, tmp_path):
    labelstore.open(url).close()
    (held,) = (tmp_path / "cache").rglob("catalogue.db")
    held.chmod(0o644)
    held.write_bytes(held.read_bytes()[:-1])
    with labelstore.open(url) as store:
        store.catalogue.verify_digests()
        assert held.read_bytes() == (frozen / "catalogue.db").read_bytes()
    with labelstore.open(url, cache=tmp_path / "other") as store:
        assert store.path.parent == tmp_path / "other"


def test_nothing_is_written(url, s3, frozen, tmp_path):
    bucket = url.split("/")[2]
    before = {o["Key"]: o["ETag"] for o in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    with labelstore.open(url) as store:
        with pytest.raises(StorageError, match=f"{url}: .* never changes") as raised:
            calibrate(store.label_set(), RULE, name="other")
        assert "\n" not in str(raised.value)
        for refused in (verify, gc, lambda s: freeze(s, tmp_path / "x")):
            with pytest.raises(UsageError, match="copy it to a disk"):
                refused(store)
    with pytest.raises(UsageError, match="a store cannot be made there"):
        labelstore.create("s3://bucket/new", images=tmp_path, plan=PlanOptions(num_crops=4))
    assert {o["Key"]: o["ETag"] for o in s3.list_objects_v2(Bucket=bucket)["Contents"]} == before
    assert not Path("s3:").exists()


def first_shard(frozen, name="probability"):
    found = sorted(p for p in frozen.rglob("*") if p.is_file() and "teacher" in p.as_posix())
    shards = [
        p for p in found if p.suffix == ".h5" or (p.parent.name == name and p.name.startswith("c."))
    ]
    return shards[0].relative_to(frozen).as_posix()


@pytest.mark.sample(1)
@pytest.mark.parametrize("what", ["cut", "flipped", "longer", "gone", "swapped"])
def test_a_shard_that_changed_is_noticed(url, s3, frozen, what):
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    key = f"{prefix}/{first_shard(frozen)}"
    data = bytearray(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    if what == "gone":
        s3.delete_object(Bucket=bucket, Key=key)
    else:
        if what == "flipped":
            for at in range(0, len(data), 7):
                data[at] ^= 4
        changed = {"cut": data[:-5], "longer": data + b"x", "flipped": data, "swapped": data[::-1]}[
            what
        ]
        s3.put_object(Bucket=bucket, Key=key, Body=bytes(changed))
    with labelstore.open(url) as store:
        with pytest.raises(DamagedShard, match=f"{url}/.*upload the file again") as raised:
            everything(store.label_set())
        assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_processes_read_it_too(url):
    with labelstore.open(url) as store, block_map(workers=2) as workers:
        labels = store.label_set()
        assert histogram(labels, map_blocks=workers) == histogram(labels)


@pytest.mark.sample(2)
@pytest.mark.parametrize("frozen", ["zarr"], indirect=True)
@pytest.mark.parametrize("name", ["catalogue.db", "labelstore.json", "arrays.zarr/zarr.json"])
@pytest.mark.parametrize("what", ["cut", "flipped", "gone"])
def test_a_catalogue_or_manifest_that_changed_is_noticed(url, s3, frozen, name, what, tmp_path):
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    data = bytearray((frozen / name).read_bytes())
    # in the manifest a digest, elsewhere anything
    at = data.index(b'"sha256"') + 12 if name == "labelstore.json" else len(data) // 2
    data[at] ^= 1
    if what == "gone":
        s3.delete_object(Bucket=bucket, Key=f"{prefix}/{name}")
    else:
        body = bytes(data if what == "flipped" else data[: len(data) // 2])
        s3.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=body)
    missing = name == "labelstore.json" and what == "gone"
    with pytest.raises(StoreNotFound if missing else DamagedShard) as raised:
        labelstore.open(url)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


class TestTheCommands:
    def run(self, capsys, *arguments):
        code = errors.run(labelstore_app.commands, "labelstore", [str(a) for a in arguments])
        return code, *capsys.readouterr()

    def refused(self, capsys, code, words, *arguments):
        found, out, err = self.run(capsys, *arguments)
        assert (found, out) == (code, ""), err
        assert words in err
        assert err.count("\n") == 1

    @pytest.fixture
    def frozen(self, frozen_stores):
        return frozen_stores["zarr"]

    @pytest.mark.slow
    def test_those_that_read(self, url, capsys, tmp_path):
        code, out, _ = self.run(capsys, "--cache", tmp_path / "mine", "info", url, "--json")
        assert code == 0
        assert json.loads(out)["store"] == url
        assert list((tmp_path / "mine").iterdir())
        code, out, _ = self.run(capsys, "stats", url, "--json")
        assert code == 0
        assert json.loads(out)["store"] == url
        assert self.run(capsys, "calibrate", url, "--dry-run")[0] == 0

    def test_those_that_write(self, url, capsys):
        self.refused(capsys, 6, "never changes", "calibrate", url)
        self.refused(capsys, 6, "never changes", "variants", url, "--compression", "mr")
        self.refused(capsys, 2, "copy it to a disk", "verify", url)
        self.refused(capsys, 2, "copy it to a disk", "migrate", url)
        self.refused(capsys, 2, "copy it to a disk", "gc", url)

    def test_what_is_not_there(self, url, capsys, s3, monkeypatch):
        bucket = url.split("/")[2]
        self.refused(capsys, 4, "no such bucket", "info", "s3://no-such-bucket-1/x")
        self.refused(capsys, 4, "no frozen store there", "info", f"s3://{bucket}/elsewhere")
        for wrong in ("s3://", "s3:///x", "az://b", f"s3://{bucket}/../x"):
            self.refused(capsys, 2, "s3://BUCKET/PATH", "info", wrong)
        with monkeypatch.context() as patch:
            patch.delenv("AWS_ACCESS_KEY_ID")
            self.refused(capsys, 6, "no credentials", "info", url)
            patch.delenv("AWS_SECRET_ACCESS_KEY")
            patch.setenv("LABELSTORE_S3_UNSIGNED", "1")
            assert self.run(capsys, "info", url)[0] == 0
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
            self.refused(capsys, 6, "does not answer", "info", url)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "obstore.store", None)
            self.refused(capsys, 2, "labelstore[cloud]", "info", url)

    @pytest.mark.slow
    def test_an_unfrozen_store(self, s3, make_store, capsys):
        with make_store("plain", seed=2) as store:
            url = upload(s3, store.path, "plain-bucket", "x")
        self.refused(capsys, 4, "no frozen store there", "info", url)
