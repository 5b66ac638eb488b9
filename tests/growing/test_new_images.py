"""A store that took in new images has, image by image, what a store made with all of them has; old files stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import labelstore
from labelstore import MarginalRenorm, MarginalSmoothing, RegionThresholds
from labelstore.analysis.disk import storage
from labelstore.analysis.histogram import histogram
from labelstore.analysis.summary import summary
from labelstore.calibration import calibrate, preview, update
from labelstore.care.freezing import freeze
from labelstore.care.repairing import repair
from labelstore.care.verification import verify
from labelstore.catalogue import Catalogue
from labelstore.catalogue.image_blocks import BLOCK_ROWS, MAX_FREE_ROWS, NO_IMAGE, head_checksum
from labelstore.errors import (
    ConflictError,
    DamagedShard,
    IncompleteError,
    RejectedInput,
    UsageError,
)
from labelstore.labelling.deriving import derive
from labelstore.labelling.growing import add_images, plan_new_images
from tests.flat_options import StoredPasses, generate, grow, label_images
from tests.generation.conftest import write_photographs, write_teacher
from trainer.sampler import PassSchedule

CODEC = MarginalSmoothing(k=2, dtype="float32")
RULE = RegionThresholds(low=0.36, middle=0.4, top=0.9)
WORK = {"batch_size": 12, "device": "cpu", "workers": 1}
LAYOUT = {"images_per_shard": 4, "crops_per_shard": 3}
LATE = 3
"""Per class so many photographs; the last one of each class comes late."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return str(write_teacher(tmp_path_factory.mktemp("runs") / "one", seed=0))


@pytest.fixture(scope="module")
def all_photographs(tmp_path_factory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("data") / "photographs", per_class=LATE)


@pytest.fixture
def photographs(all_photographs, tmp_path):
    """The folder without the late ones, and a function that brings them."""
    folder = Path(shutil.copytree(all_photographs, tmp_path / "photographs"))
    late = [sorted(path for path in kind.iterdir())[1] for kind in sorted(folder.iterdir())]
    for path in late:  # in the middle of its class, so that folder order and row order differ
        path.rename(path.with_suffix(".late"))

    def bring(count=3):
        for path in late[:count]:
            if not path.exists():
                path.with_suffix(".late").rename(path)

    return folder, bring


def create(path, folder, teacher, **options):
    settings = {**LAYOUT, **WORK, **options}
    label_images(path, images=folder, teacher=teacher, codec=CODEC, num_crops=6, **settings)
    return labelstore.open(path)


def shard_files(store):
    return {
        file.key: (file.sha256, (store.arrays.root / file.key).stat().st_mtime_ns)
        for group in store.group_names()
        for row in store.catalogue.ledger.shards(group)
        for file in row.files
    }


def by_key(labels):
    """Key -> (labels, boxes, flips)."""
    keys = list(labels.store.images()["key"])
    return {
        key: (label, box, flip)
        for key, label, box, flip in zip(
            keys, labels.recover(keys), labels.boxes(keys), labels.flips(keys), strict=True
        )
    }


def assert_same(one, other):
    one, other = by_key(one), by_key(other)
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_allclose(one[key][0], other[key][0], atol=2e-6)
        np.testing.assert_array_equal(one[key][1], other[key][1])
        np.testing.assert_array_equal(one[key][2], other[key][2])


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "stored_crops"), [("zarr", True), ("hdf5", False)])
def test_it_is_as_if_made_with_all_images(
    tmp_path, photographs, all_photographs, teacher, backend, stored_crops
):
    folder, bring = photographs
    options = {"backend": backend, "stored_crops": stored_crops}
    store = create(tmp_path / "grown", folder, teacher, **options)
    old, keys = shard_files(store), list(store.images()["key"])
    assert add_images(store, folder).num_new == 0
    bring(1)
    assert plan_new_images(store, folder).first_row == 8
    report = grow(store, teacher=teacher, images=folder, **WORK)
    assert report.num_crops == 6
    bring()
    report = grow(store, teacher=teacher, images=folder, **WORK)
    assert report.num_crops == 2 * 6
    # 6 images, then one from row 8 on, then two from row 12 on
    assert list(store.images()["image"]) == [*range(6), 8, 12, 13]
    assert list(store.images()["key"])[:6] == keys
    assert (store.num_rows, store.num_images, int(store.free.sum())) == (14, 9, 5)
    assert {key: shard_files(store)[key] for key in old} == old
    assert store.label_set().is_complete
    whole = create(tmp_path / "whole", all_photographs, teacher, **options)
    assert_same(store.label_set(), whole.label_set())
    assert verify(store.path, "deep").is_sound
    found, wanted = (histogram(s.label_set()).to_record() for s in (store, whole))
    assert found == wanted
    assert found["missing"] == 0
    found, wanted = (summary(s.label_set()) for s in (store, whole))
    assert (found.num_images, found.bad_images, found.sampled_crops) == (9, 0, 54)
    assert found.mean_ground_truth_probability == pytest.approx(
        wanted.mean_ground_truth_probability
    )
    assert storage(store).num_images == 9
    store.catalogue.verify_digests()
    store.close()
    whole.close()


@pytest.mark.slow
def test_everything_on_the_plan_follows(tmp_path, photographs, all_photographs, teacher):
    folder, bring = photographs
    store = create(tmp_path / "s", folder, teacher)
    derive(store.label_set(), MarginalRenorm(k=2), name="mr")
    mask = calibrate(store.label_set("one"), RULE, name="m")
    old = shard_files(store)
    bring()
    found = add_images(store, folder)
    assert (found.num_new, found.first_row, found.free_rows) == (3, 8, 2)
    assert (found.unfinished, found.masks) == (("mr", "one"), ("m",))
    for name in ("one", "mr"):
        assert not store.label_set(name).is_complete
    labels = store.label_set("one")
    assert labels.blocks == mask.blocks == (0, 1)
    # what was labelled is read as before, by row and by key
    assert labels.recover([5]).shape == (1, 6, 3)
    with pytest.raises(IncompleteError):
        labels.recover([8])
    for row in (6, 7):
        with pytest.raises(UsageError, match=f"image row {row}: no image has it"):
            labels.recover([row])
    schedule = PassSchedule.of(passes=3, crops_per_image=2)
    about = {"schedule": schedule, "scratch": tmp_path}
    with pytest.raises(IncompleteError, match="is not finished"):
        StoredPasses(labels, **about)
    passes = StoredPasses(labels, allow_incomplete=True, **about)
    assert (passes.counts.images, passes.counts.left_out) == (6, 0)
    passes.close()
    with pytest.raises(IncompleteError, match="labels/mr has"):
        freeze(store)

    grow(store, teacher=teacher, images=folder, label_set="one", **WORK)
    labels = store.label_set("one")
    with pytest.raises(IncompleteError, match="mask m does not cover all images"):
        StoredPasses(labels, mask=store.mask("m"), allow_empty_images=True, **about)
    update(store, "m")
    derive(labels, MarginalRenorm(k=2), name="mr")
    assert store.mask("m").is_complete
    assert store.label_set("mr").is_complete
    assert {key: shard_files(store)[key] for key in old} == old
    counts = preview(labels, {"m": RULE}).choices[0].counts
    assert (counts.images, counts.num_crops, counts.missing) == (9, 54, 0)
    whole = create(tmp_path / "whole", all_photographs, teacher)
    derive(whole.label_set(), MarginalRenorm(k=2), name="mr")
    for name in ("one", "mr"):
        assert_same(store.label_set(name), whole.label_set(name))

    passes = StoredPasses(labels, **about)
    assert (passes.counts.images, passes.counts.left_out) == (9, 0)
    assert sorted(passes.table.keys) == sorted(store.images()["key"])
    drawn = np.stack([passes.pass_labels(p).crops for p in range(3)], 1).reshape(9, -1)
    assert (np.sort(drawn, axis=1) == np.arange(6)).all()
    passes.close()

    # the block that was the last one is made again with its free rows
    row = next(row for row in store.catalogue.ledger.shards("labels/one") if row.block == 1)
    (store.arrays.root / row.files[0].key).unlink()
    assert not verify(store.path).is_sound
    repair(store, images=folder, teacher=teacher, device="cpu", whole_shards=True)
    assert verify(store.path, "deep").is_sound
    assert_same(store.label_set("one"), whole.label_set("one"))
    frozen = freeze(store, tmp_path / "frozen")
    assert verify(frozen.path, "deep").is_sound
    with labelstore.open(frozen.path) as copy:
        assert_same(copy.label_set("one"), whole.label_set("one"))
    store.close()
    whole.close()


def test_a_label_set_that_comes_later_leaves_the_free_rows_out(tmp_path, photographs, teacher):
    """Also one that was begun before: its last old block is committed after the growth."""
    folder, bring = photographs
    store = create(tmp_path / "s", folder, teacher)
    bring()
    add_images(store, folder)
    grow(store, teacher=teacher, images=folder, **WORK)
    codec = MarginalSmoothing(k=1, dtype="float32")
    report = generate(store, teacher=teacher, codec=codec, images=folder, name="k1", **WORK)
    assert (report.num_crops, report.bad) == (54, {})
    counts = [
        row.num_images for row in store.catalogue.ledger.shards("labels/k1") if row.crop_shard == 0
    ]
    assert counts == [4, 2, 3]
    assert verify(store.path, "deep").is_sound
    # crops of every image, on top of images: rows stay
    grow(store, num_crops=9, teacher=teacher, images=folder, label_set="k1", **WORK)
    assert store.label_set("k1").is_complete
    assert verify(store.path, "deep").is_sound
    store.close()


def test_other_tools_see_the_free_rows_as_missing(tmp_path, photographs, teacher):
    xarray = pytest.importorskip("xarray")
    folder, bring = photographs
    store = create(tmp_path / "s", folder, teacher)
    bring()
    grow(store, teacher=teacher, images=folder, **WORK)
    group = xarray.open_zarr(store.arrays.root, group="labels/one")
    probability = group["probability"].values
    assert probability.shape[0] == store.num_rows == 11
    assert list(group["image"].values) == list(range(11))
    assert np.isnan(probability[store.free]).all()
    assert not np.isnan(probability[~store.free]).any()
    store.close()


def test_what_is_refused_writes_nothing(tmp_path, photographs, teacher):
    folder, bring = photographs
    store = create(tmp_path / "s", folder, teacher)
    before = (store.path / "catalogue.db").read_bytes()
    bring()
    new_class = folder / "0-first"
    new_class.mkdir()
    picture = next(path for path in (folder / store.class_names[0]).iterdir())
    shutil.copy(picture, new_class / "a.png")
    with pytest.raises(RejectedInput, match=r"0-first is a class that .* does not have") as raised:
        add_images(store, folder)
    assert "\n" not in str(raised.value)
    new_class.rename(folder / "zz-last")
    with pytest.raises(RejectedInput, match="zz-last is a class"):
        grow(store, teacher=teacher, images=folder, **WORK)
    shutil.rmtree(folder / "zz-last")
    gone = folder / store.images()["key"][0]
    gone.rename(tmp_path / "aside")
    with pytest.raises(RejectedInput, match=r"is not in .* \(1 missing\)"):
        add_images(store, folder)
    (tmp_path / "aside").rename(gone)
    gone.write_bytes(gone.read_bytes() + b"x")
    with pytest.raises(RejectedInput, match="changed since the store was made"):
        add_images(store, folder)
    with pytest.raises(RejectedInput, match="is not a folder"):
        add_images(store, tmp_path / "nowhere")
    assert (store.path / "catalogue.db").read_bytes() == before
    store.close()


def test_killed_before_the_metadata_is_written(tmp_path, photographs, teacher, monkeypatch):
    """Rows are there, array metadata still says fewer: the next one finishes it."""
    folder, bring = photographs
    store = create(tmp_path / "s", folder, teacher)
    bring()
    with monkeypatch.context() as patch:
        patch.setattr("labelstore.store.store.Store.write_metadata", _killed)
        with pytest.raises(KeyboardInterrupt):
            add_images(store, folder)
    store.close()
    with labelstore.open(tmp_path / "s") as again:
        assert again.num_images == 9
        assert not verify(again.path).problems
        assert add_images(again, folder).num_new == 0
        described = json.loads((again.arrays.root / "labels/one/probability/zarr.json").read_text())
        assert described["shape"][0] == again.num_rows == 11


def _killed(self):
    raise KeyboardInterrupt


def test_two_processes_take_the_images_in_once(tmp_path, photographs, teacher, monkeypatch):
    folder, bring = photographs
    store = create(tmp_path / "s", folder, teacher)
    bring()
    with labelstore.open(tmp_path / "s") as other:
        other.image_columns  # noqa: B018 - read before the first one writes
        assert add_images(store, folder).num_new == 3
        found = add_images(other, folder)
        assert (found.num_new, found.num_images) == (0, 9)
        assert other.num_rows == 11
    store.close()


class TestTheCatalogue:
    def test_rows_are_left_free(self, tmp_path):
        with Catalogue.create(f"sqlite:///{tmp_path / 'c.db'}", uuid="u") as catalogue:
            assert catalogue.images.add(["a", "b"], [0, 1], [1, 2], [3, 4]) == range(2)
            assert catalogue.images.append(["c"], [0], [5], [6], multiple=4) == range(4, 5)
            assert catalogue.images.append(["d"], [1], [7], [8], multiple=5) == range(5, 6)
            assert (catalogue.images.num_images(), catalogue.images.num_rows()) == (4, 6)
            columns = catalogue.images.columns()
            assert columns["key"].tolist() == ["a", "b", "", "", "c", "d"]
            assert columns["class_id"].tolist() == [0, 1, -1, -1, 0, 1]
            assert columns["free"].tolist() == [False, False, True, True, False, False]
            assert columns["bad"].tolist() == [None, None, NO_IMAGE, NO_IMAGE, None, None]
            assert [row.image for row in catalogue.images.rows()] == [0, 1, 4, 5]
            assert catalogue.images.find(["c"]) == {"c": 4}
            with pytest.raises(ConflictError, match="'b' is in the store already"):
                catalogue.images.append(["e", "b"], [0, 0], [1, 1], [1, 1], multiple=1)
            with pytest.raises(UsageError, match="rows would have no image"):
                catalogue.images.append(["e"], [0], [1], [1], multiple=2 * MAX_FREE_ROWS)
            assert catalogue.images.num_images() == 4
            catalogue.verify_digests()

    def test_a_row_far_out_asks_for_no_memory(self, tmp_path):
        import sqlite3

        path = tmp_path / "c.db"
        with Catalogue.create(f"sqlite:///{path}", uuid="u") as catalogue:
            catalogue.images.add(["a", "b"], [0, 1], [1, 2], [3, 4])
            block = 2147483647 // BLOCK_ROWS
            for checksum in ("checksum", head_checksum(block, 2, 2)):
                with sqlite3.connect(path) as connection:
                    connection.execute(
                        f"UPDATE image_blocks SET block = {block}, checksum = {checksum}"
                    )
                connection.close()
                with pytest.raises(DamagedShard, match="restore the catalogue"):
                    catalogue.images.columns()


def test_the_command(tmp_path, photographs, teacher, labelstore_command):
    folder, bring = photographs
    path = tmp_path / "s"
    create(path, folder, teacher).close()

    assert labelstore_command("calibrate", path, "--low", "0", "--top", "1")[0] == 0
    take_in = ["grow", path, "--images", folder]
    code, out, _ = labelstore_command(*take_in)
    assert code == 0
    assert "has all 6 images" in out
    bring()
    code, out, _ = labelstore_command(*take_in, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["num_new"] == 3
    assert json.loads(labelstore_command("info", path, "--json")[1])["images"] == 6
    code, out, err = labelstore_command(*take_in)
    assert code == 0
    assert "3 images joined" in out
    assert "from row 8 on: 9 in all" in out
    assert "label set one lacks labels" in err
    assert f"mask ferkd does not cover all crops: labelstore calibrate {path} --update" in err
    assert labelstore_command("verify", path)[0] == 0
    code, out, err = labelstore_command(*take_in, "--teacher", teacher, "--device", "cpu", "--json")
    assert code == 0
    assert json.loads(out)["num_crops"] == 18
    assert json.loads(out)["incomplete_label_sets"] == []
    assert labelstore_command("calibrate", path, "--update")[0] == 0
    info = json.loads(labelstore_command("info", path, "--json")[1])
    assert (info["images"], info["bad_images"]) == (9, 0)
    code, _, err = labelstore_command("grow", path, "--num-crops", "9")
    assert code == 2
    assert "--num-crops needs --teacher" in err
    assert err.count("\n") == 1
