"""Metadata files say what the catalogue says, whoever writes them at the same moment, and wherever somebody was
killed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import labelstore
from labelstore import MarginalSmoothing
from labelstore.arrays.durable import StagedFiles
from labelstore.calibration import RegionThresholds
from labelstore.care.repairing import repair
from labelstore.care.verification import verify
from labelstore.store import metadata
from labelstore.store.store import Store
from labelstore.testing.filled_store import filled_store

RULE = RegionThresholds(low=0.25, middle=0.4, top=0.9)
N, M, C = 8, 2, 5


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    made = {}
    for backend in ("zarr", "hdf5"):
        made[backend] = tmp_path_factory.mktemp(backend) / "s.labels"
        dense = np.random.default_rng(1).dirichlet(np.full(C, 0.3), (N, M)).astype("f4")
        codec = MarginalSmoothing(k=2, class_ids="plain")
        filled_store(made[backend], dense, codec, images_per_shard=4, backend=backend).close()
    return made


@pytest.fixture(params=["zarr", "hdf5"])
def path(templates, request, tmp_path):
    return shutil.copytree(templates[request.param], tmp_path / "s.labels")


def shapes(path):
    """Shape per array, as other programs find it."""
    if (path / "arrays").is_dir():
        record = json.loads((path / "arrays/arrays.json").read_bytes())["arrays"]
    else:
        root = json.loads((path / "arrays.zarr/zarr.json").read_bytes())
        record = root["consolidated_metadata"]["metadata"]
        for key in record:
            own = path / "arrays.zarr" / key / "zarr.json"
            assert json.loads(own.read_bytes()).get("shape") == record[key].get("shape")
    return {key: tuple(node["shape"]) for key, node in record.items() if "shape" in node}


def add(store, name):
    row = store.label_set_row("teacher")
    store.catalogue.label_sets.add(replace(row, name=name, uuid=name * 32))


def killed(self):
    raise Killed


@pytest.mark.sample(1)
def test_two_label_sets_registered_at_once_keep_both_metadata(path, monkeypatch):
    with labelstore.open(path) as one, labelstore.open(path) as other:
        add(one, "a")
        real, calls = type(one.arrays).metadata, []

        def slow(self, *given):
            files = real(self, *given)
            calls.append(None)
            if len(calls) == 1:  # the first has read the catalogue and computed its files
                add(other, "b")
                other.write_metadata()
            return files

        monkeypatch.setattr(type(one.arrays), "metadata", slow)
        one.write_metadata()
        assert one.catalogue.metadata.pending() == {}
        assert {"labels/a/probability", "labels/b/probability"} <= set(shapes(path))
        assert verify(one).is_sound


def test_a_process_that_was_open_before_growth_does_not_shrink_the_arrays(path):
    with labelstore.open(path) as old, labelstore.open(path) as growing:
        assert old.num_rows == N
        keys = [f"class0000/new{at}.jpg" for at in range(4)]
        growing.catalogue.images.append(keys, [0] * 4, [1] * 4, [1] * 4, multiple=4)
        growing.refresh()
        growing.write_metadata()
        old.write_metadata()
        assert shapes(path)["labels/teacher/probability"][0] == N + 4


def register_mask(store):
    labelstore.calibrate(store.label_set(), RULE, name="m")


def register_label_set(store):
    add(store, "x")
    store.finish_metadata()


def settle(store):
    row = store.label_set_row("teacher")
    open_codec = {**row.codec, "class_ids": None}
    store.catalogue.label_sets.add(replace(row, name="x", uuid="x" * 32, codec=open_codec))
    assert store.catalogue.metadata.pending() == {}  # nothing is decided yet
    store.settle_codec("x", row.codec)


def grow_plan(store):
    with store.catalogue.transaction() as conn:
        store.catalogue.plans.change(conn, "plan", num_crops=2 * M)
    store.write_metadata()


def grow_images(store):
    store.catalogue.images.append(["class0000/new.jpg"], [0], [1], [1], multiple=4)
    store.write_metadata()


CHANGES = {
    register_mask: ("masks/m/region", (N, M)),
    register_label_set: ("labels/x/probability", (N, M, 2)),
    settle: ("labels/x/probability", (N, M, 2)),
    grow_plan: ("labels/teacher/probability", (N, 2 * M, 2)),
    grow_images: ("labels/teacher/probability", (N + 1, M, 2)),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_opening_finishes_what_a_kill_left(path, change, monkeypatch):
    with labelstore.open(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write_metadata", killed)
            with pytest.raises(Killed):
                change(store)
        array, shape = CHANGES[change]
        assert shapes(path).get(array) != shape
    with labelstore.open(path, readonly=True) as reader:
        # interrupted is not damaged: what is committed can be read, and nothing is lost
        assert reader.catalogue.metadata.pending()
        assert verify(reader).is_sound
    with labelstore.open(path) as store:
        assert shapes(path)[array] == shape
        assert store.catalogue.metadata.pending() == {}
        assert verify(store).is_sound


def test_the_next_caller_in_the_same_process_finishes_too(path, monkeypatch):
    with labelstore.open(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write_metadata", killed)
            with pytest.raises(Killed):
                register_mask(store)
        register_mask(store)
        assert shapes(path)["masks/m/region"] == (N, M)


@pytest.mark.sample(1)
def test_what_older_versions_lost_is_named_and_repaired(path, monkeypatch):
    with labelstore.open(path) as store:
        monkeypatch.setattr("labelstore.catalogue.named_rows.mark_metadata", lambda conn: None)
        add(store, "x")
        problems = verify(store, "fast").problems
        assert any("labels/x" in f"{problem.key} {problem.what}" for problem in problems)
        assert all(problem.key.endswith(".json") and not problem.group for problem in problems)
        repair(store)
        assert shapes(path)["labels/x/probability"] == (N, M, 2)
        assert verify(store).is_sound
        with store.catalogue.transaction() as conn:
            store.catalogue.plans.change(conn, "plan", num_crops=2 * M)
        what = " ".join(problem.what for problem in verify(store, "fast").problems)
        assert "has shape" in what


def test_a_label_set_more_costs_what_the_second_did(path, monkeypatch):
    """Files written and read; those of the groups around it say more, and are as many."""
    written, read = [], []
    stage, look = StagedFiles.stage, metadata.read_limited
    monkeypatch.setattr(
        StagedFiles, "stage", lambda self, *file: (written.append(file), stage(self, *file))[1]
    )
    monkeypatch.setattr(metadata, "read_limited", lambda *file: (read.append(file), look(*file))[1])
    costs = []
    with labelstore.open(path) as store:
        read.clear()
        for number in range(12):
            written.clear()
            add(store, f"set{number:02}")
            store.write_metadata()
            costs.append(
                sorted((str(file).replace(f"{number:02}", ""), len(data)) for file, data in written)
            )
    assert not read
    around = ("labels/zarr.json", "arrays.zarr/zarr.json", "arrays.json")
    own = [[cost for cost in each if not cost[0].endswith(around)] for each in costs]
    assert own[1] == own[11]
    assert [len(each) for each in costs] == [len(costs[0])] * 12
    assert shapes(path).keys() >= {"labels/set00/class_id", "labels/set11/class_id"}
