"""A grown store is the store that would have been made with more crops; what was there is not touched."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import labelstore
from labelstore import MarginalRenorm, MarginalSmoothing, RegionThresholds
from labelstore.calibration import Region, calibrate, update
from labelstore.codecs import densify
from labelstore.errors import ConflictError, IncompleteError, LabelStoreError, UsageError
from labelstore.labelling.deriving import derive
from labelstore.teachers.labeller import Labeller
from labelstore.teachers.teacher import load_teacher
from tests.flat_options import StoredPasses, generate, grow, label_images
from tests.generation.conftest import write_photographs, write_teacher
from tests.stopped_teacher import teacher_stops
from trainer.sampler import PassSchedule

CODEC = MarginalSmoothing(k=2, dtype="float32")
RULE = RegionThresholds(low=0.36, middle=0.4, top=0.9)
WORK = {"batch_size": 10, "device": "cpu", "workers": 2}
BEFORE, AFTER = 6, 12


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("data") / "photographs", per_class=3)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        write_teacher(root / name, seed=seed) for seed, name in enumerate(("one", "two", "three"))
    ]


def create(path, photographs, teacher, num_crops, **options):
    settings = {"images_per_shard": 4, "crops_per_shard": 3, **WORK, **options}
    label_images(
        path, images=photographs, teacher=str(teacher), codec=CODEC, num_crops=num_crops, **settings
    )
    return labelstore.open(path)


def shard_files(store, crop_shards=range(100)):
    return {
        file.key: (file.sha256, (store.arrays.root / file.key).stat().st_mtime_ns)
        for group in store.group_names()
        for row in store.catalogue.ledger.shards(group)
        if row.crop_shard in crop_shards
        for file in row.files
    }


def everything(labels):
    return np.concatenate([labels.dense(block) for block in labels.blocks])


@pytest.mark.sample(1)
@pytest.mark.parametrize("stored_crops", [True, False])
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_grown_is_as_if_made_so(tmp_path, photographs, teachers, stored_crops, backend):
    options = {"stored_crops": stored_crops, "backend": backend}
    store = create(tmp_path / "grown", photographs, teachers[0], BEFORE, **options)
    old = shard_files(store)
    report = grow(store, num_crops=AFTER, teacher=str(teachers[0]), images=photographs, **WORK)
    assert report.num_crops == 9 * (AFTER - BEFORE)
    assert shard_files(store, range(2)) == old
    labels = store.label_set()
    assert (labels.num_crops, labels.is_complete, store.num_crops) == (AFTER, True, AFTER)
    whole = create(tmp_path / "whole", photographs, teachers[0], AFTER, **options)
    np.testing.assert_allclose(everything(labels), everything(whole.label_set()), atol=2e-6)
    for block in labels.blocks:
        for one, other in zip(labels.crops(block), whole.label_set().crops(block), strict=True):
            np.testing.assert_array_equal(one, other)
    again = grow(store, num_crops=AFTER, teacher=str(teachers[0]), images=photographs, **WORK)
    assert (again.num_crops, again.already_committed) == (0, 9 * AFTER)
    store.catalogue.verify_digests()
    store.close()
    whole.close()


def test_what_makes_no_sense_is_refused_and_nothing_written(tmp_path, photographs, teachers):
    store = create(tmp_path / "s", photographs, teachers[0], BEFORE)
    catalogue = (store.path / "catalogue.db").read_bytes()
    about = {"images": photographs, **WORK}
    for num_crops, why in ((3, "never shrinks"), (8, "choose 6 or 9"), (10, "choose 9 or 12")):
        with pytest.raises(UsageError, match=why):
            grow(store, num_crops=num_crops, teacher=str(teachers[0]), **about)
    with pytest.raises(UsageError, match=r"labelstore\.generate"):
        grow(store, num_crops=AFTER, teacher=str(teachers[1]), **about)
    with pytest.raises(UsageError, match="whose weights or input size are others"):
        grow(store, num_crops=AFTER, teacher=str(teachers[1]), label_set="one", **about)
    assert (store.path / "catalogue.db").read_bytes() == catalogue
    with pytest.raises(ConflictError, match=r"labelstore\.grow"):
        create(tmp_path / "s", photographs, teachers[0], AFTER)
    store.close()


@pytest.mark.slow
def test_what_generate_refuses_does_not_grow_the_plan(tmp_path, photographs, teachers):
    source = shutil.copytree(photographs, tmp_path / "photographs")
    store = create(tmp_path / "s", source, teachers[0], BEFORE)
    (tmp_path / "classes.csv").write_text("strange,0\n")
    held = load_teacher(str(teachers[0]))
    other = replace(held, row=replace(held.row, mean=(0.1, 0.2, 0.3)))
    lanczos = replace(held, row=replace(held.row, interpolation="lanczos"))

    def files():
        return {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}

    before = files()
    refused = [
        ({"autocast": "bf16"}, "leave `autocast` out"),
        ({"autocast": "fp8"}, "`autocast=fp8`: choose one of"),
        ({"device": "cuda:70"}, "`device=cuda:70` cannot be used"),
        ({"device": "nonsense"}, "`device=nonsense` cannot be used"),
        ({"crop_device": "cuda"}, "leave `crop_device` out"),
        ({"crop_device": "disk"}, "`crop_device=disk`: choose one of"),
        ({"class_map": tmp_path / "classes.csv"}, "no line for class"),
        ({"batch_size": 0}, "`batch_size=0`: give 1 or more"),
        ({"workers": -1}, "`workers=-1`: give 1 or more"),
        ({"teacher": other}, "mean"),
        ({"teacher": lanczos}, "interpolation"),
        ({"images": tmp_path / "elsewhere"}, "elsewhere"),
    ]
    shutil.copy(source / "cat" / "1.jpg", source / "cat" / "new.jpg")
    for num_crops in (AFTER, None):  # None: a new image is to join
        for options, why in refused:
            about = {"teacher": held, "images": source, **WORK, **options}
            with pytest.raises(LabelStoreError, match=why):
                grow(store, num_crops=num_crops, **about)
            assert files() == before, options
    report = grow(store, num_crops=AFTER, teacher=held, images=source, **WORK)
    assert (report.num_crops, store.num_images) == (9 * (AFTER - BEFORE), 9)
    notes = []
    report = grow(store, teacher=held, images=source, note=notes.append, **WORK)
    assert (report.num_crops, store.num_images, notes) == (AFTER, 10, [])
    store.close()


@pytest.mark.slow
def test_a_stopped_growth_goes_on_where_it_was(tmp_path, photographs, teachers):
    store = create(tmp_path / "s", photographs, teachers[0], BEFORE)
    about = {"teacher": str(teachers[0]), "images": photographs, **WORK}
    with teacher_stops(after_crops=30):
        grow(store, num_crops=AFTER, **about)
    store.refresh()
    assert not store.label_set().is_complete
    report = grow(store, num_crops=AFTER, **about)
    # thirty crops are five images' new crops: a block of four and one image in the spool
    assert report.num_crops == 9 * 6 - 30
    whole = create(tmp_path / "whole", photographs, teachers[0], AFTER)
    np.testing.assert_allclose(
        everything(store.label_set()), everything(whole.label_set()), atol=2e-6
    )
    assert not list((store.path / "spool").rglob("*.spool"))
    store.close()
    whole.close()


@pytest.mark.slow
def test_an_unfinished_store_may_grow(tmp_path, photographs, teachers):
    """Blocks with and without labels side by side, and a spool of fewer crops than are wanted now."""
    with teacher_stops(after_crops=30):
        create(tmp_path / "s", photographs, teachers[0], BEFORE)
    assert list((tmp_path / "s" / "spool").rglob("*.spool"))
    store = labelstore.open(tmp_path / "s")
    grow(store, num_crops=AFTER, teacher=str(teachers[0]), images=photographs, **WORK)
    whole = create(tmp_path / "whole", photographs, teachers[0], AFTER)
    np.testing.assert_allclose(
        everything(store.label_set()), everything(whole.label_set()), atol=2e-6
    )
    store.close()
    whole.close()


@pytest.mark.slow
def test_every_label_set_grows_with_its_own_teacher(tmp_path, photographs, teachers):
    store = create(tmp_path / "s", photographs, teachers[0], BEFORE)
    generate(store, teacher=str(teachers[1]), codec=CODEC, images=photographs, **WORK)
    derive(store.label_set("one"), MarginalRenorm(k=2), name="mr")
    about = {"images": photographs, **WORK}
    grow(store, num_crops=AFTER, teacher=str(teachers[0]), **about)
    complete = {name: store.label_set(name).is_complete for name in store.label_sets}
    assert complete == {"one": True, "two": False, "mr": False}
    report = grow(store, num_crops=AFTER, teacher=str(teachers[1]), **about)
    assert (report.label_set, report.num_crops) == ("two", 9 * (AFTER - BEFORE))
    derive(store.label_set("one"), MarginalRenorm(k=2), name="mr")
    assert all(store.label_set(name).is_complete for name in store.label_sets)
    # the same teacher in another form: which one is meant has to be said
    generate(store, teacher=str(teachers[0]), codec=MarginalSmoothing(k=1), name="k1", **about)
    with pytest.raises(UsageError, match="k1, one: choose with `label_set`"):
        grow(store, num_crops=15, teacher=str(teachers[0]), **about)
    grow(store, num_crops=15, teacher=str(teachers[0]), label_set="k1", **about)
    assert [n for n in store.label_sets if store.label_set(n).is_complete] == ["k1"]
    store.close()


@pytest.mark.slow
def test_a_mask_covers_its_crops_until_it_is_updated(tmp_path, photographs, teachers):
    store = create(tmp_path / "s", photographs, teachers[0], BEFORE)
    calibrate(store.label_set(), RULE, name="ferkd")
    old = shard_files(store)
    schedule = PassSchedule.of(passes=2, crops_per_image=2)
    with store.catalogue.transaction() as connection:
        store.catalogue.plans.change(connection, "plan", num_crops=AFTER)
    store.refresh()
    with pytest.raises(IncompleteError, match=r"labelstore\.grow"):
        update(store, "ferkd")  # the plan has grown, its labels have not
    grow(store, num_crops=AFTER, teacher=str(teachers[0]), images=photographs, **WORK)
    mask, labels = store.mask("ferkd"), store.label_set()
    assert (mask.num_crops, mask.is_complete) == (BEFORE, True)
    for block in mask.blocks:
        codes = mask.regions(block)
        assert (codes[:, :BEFORE] == RULE.regions(labels.max_probability(block)[:, :BEFORE])).all()
        assert (codes[:, BEFORE:] == Region.MISSING).all()
        assert (mask.regions(block, range(1, 4)) == codes[:, 3:12]).all()
        assert (mask.regions(block, range(2, 4)) == Region.MISSING).all()
    with pytest.raises(ConflictError, match=r"calibration.update.* name='ferkd'"):
        calibrate(labels, RULE, name="ferkd")

    options = {"schedule": schedule, "scratch": tmp_path, "allow_empty_images": True}
    with pytest.raises(IncompleteError, match=r"covers 6 of 12 crops.*calibration.update"):
        StoredPasses(labels, mask=mask, **options)
    passes = StoredPasses(labels, mask=mask, allow_incomplete=True, **options)
    drawn = passes.pass_labels(0)
    assert drawn.crops.max() < BEFORE
    passes.close()

    updated = update(store, "ferkd")
    assert (updated.num_crops, updated.is_complete) == (AFTER, True)
    assert {key: shard_files(store)[key] for key in old} == old
    for block in updated.blocks:
        expected = RULE.regions(labels.max_probability(block))
        np.testing.assert_array_equal(updated.regions(block), expected)
    assert calibrate(store.label_set(), RULE, name="ferkd").is_complete
    StoredPasses(store.label_set(), mask=updated, **options).close()
    store.close()


def test_a_worker_that_began_before_the_growth_ends(tmp_path, photographs, teachers, monkeypatch):
    """Another process grows the plan while this one labels: it finishes what it knows of and stops."""
    real, grown = Labeller.__call__, []
    path = tmp_path / "s"

    def grows(self, pixels):
        if not grown:
            grown.append(True)
            with labelstore.open(path) as other, other.catalogue.transaction() as connection:
                other.catalogue.plans.change(connection, "plan", num_crops=AFTER)
        return real(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "__call__", grows)
        create(path, photographs, teachers[0], BEFORE).close()
    with labelstore.open(path) as store:
        assert sorted(store.catalogue.ledger.committed("labels/one").values()) == [(0, 1)] * 3
        grow(store, num_crops=AFTER, teacher=str(teachers[0]), images=photographs, **WORK)
        assert store.label_set().is_complete


@pytest.mark.slow
def test_the_commands(tmp_path, photographs, teachers, labelstore_command):
    path = tmp_path / "s"
    create(path, photographs, teachers[0], BEFORE).close()

    source = ["--images", photographs]
    work = ["--device", "cpu", "--workers", "2"]
    two = ["add-teacher", path, *source, "--teacher", teachers[1], "--k", "2"]
    code, out, _ = labelstore_command(*two, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["crops"] == 9 * BEFORE
    code, out, _ = labelstore_command(*two, *work, "--json")
    assert code == 0
    assert json.loads(out)["label_set"] == "two"
    code, out, _ = labelstore_command("calibrate", path, "--label-set", "one")
    assert code == 0

    for words in (["grow", path], ["audit", path, "--label-set", "one"]):
        code, _, err = labelstore_command(*words, "--teacher-model", "timm:resnet18")
        assert code == 2
        assert "--teacher-model timm:resnet18 names the network of a checkpoint" in err

    one = ["grow", path, *source, "--teacher", teachers[0], "--num-crops"]
    code, out, _ = labelstore_command(*one, AFTER, "--dry-run")
    assert code == 0
    assert "from 6 to 12 crops" in out
    code, _, err = labelstore_command(*one, 10)
    assert code == 2
    assert "choose 9 or 12" in err
    assert err.count("\n") == 1
    code, out, err = labelstore_command(*one, AFTER, *work)
    assert code == 0
    assert "label set one" in out
    assert "label set two lacks labels" in err
    assert "mask ferkd does not cover all crops" in err
    code, out, _ = labelstore_command("info", path, "--json")
    assert json.loads(out)["masks"][0]["num_crops"] == BEFORE
    code, _, err = labelstore_command("calibrate", path, "--update", "--low", "0.1")
    assert code == 2
    assert "--update keeps the mask's rule" in err
    code, _, err = labelstore_command("calibrate", path, "--update", "--dry-run")
    assert code == 0
    assert "would cover 12 crops" in err
    code, _, err = labelstore_command("calibrate", path, "--update")
    assert code == 0
    assert "covers 12 crops of each image, before 6" in err


def test_a_teacher_given_as_an_object(tmp_path, photographs, teachers):
    store = create(tmp_path / "s", photographs, teachers[0], BEFORE)
    teacher = load_teacher(str(teachers[0]))
    assert grow(store, num_crops=9, teacher=teacher, images=photographs, **WORK).num_crops == 9 * 3
    store.close()


def test_a_store_that_grew_under_a_copy(tmp_path, photographs, teachers):
    """A copy stays what it was and says why it has no more; the store opened again gets another one."""
    store = create(tmp_path / "s", photographs, teachers[0], BEFORE)
    labels = store.label_set()
    flat = labels.unpacked(tmp_path / "cache")
    before = flat.batch([0, 5], [[0, 5], [3, 2]])
    grow(store, num_crops=AFTER, teacher=str(teachers[0]), images=photographs, **WORK)
    for source in (labels, flat):
        with pytest.raises(
            UsageError, match=r"crop 6 asked for: .*0-5; the store has grown"
        ) as caught:
            source.batch([0], [[6]])
        assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)
        np.testing.assert_array_equal(source.batch([0, 5], [[0, 5], [3, 2]]).probs, before.probs)
    store.close()
    with labelstore.open(tmp_path / "s") as opened:
        grown = opened.label_set()
        again = grown.unpacked(tmp_path / "cache")
        assert again.path != flat.path
        np.testing.assert_array_equal(
            densify(again.batch([0, 5], [[6, 5], [3, 11]]).labels, grown.num_classes),
            grown.recover([0, 5], [[6, 5], [3, 11]]),
        )
