"""What was labelled in parts and merged is what would have been labelled as a whole."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore import (
    Full,
    Hard,
    Logits,
    MarginalRenorm,
    MarginalSmoothing,
    RegionThresholds,
    Smoothing,
)
from labelstore.care.freezing import freeze
from labelstore.care.verification import verify
from labelstore.errors import DamagedShard, NotGenerated
from labelstore.testing.filled_store import add_label_set, fill_blocks
from tests.dying_child import killed_at
from tests.merging.parts import (
    ALL,
    CLASSES,
    EVEN,
    KEYS,
    ODD,
    C,
    M,
    N,
    by_key,
    digests,
    fill_maps,
    part,
    regions_by_key,
    soft_labels,
)

CODECS = {
    "ms": MarginalSmoothing(k=2),
    "ms8": MarginalSmoothing(k=3, dtype="uint8", class_ids="table"),
    "mr": MarginalRenorm(k=2, dtype="float32"),
    "smoothing": Smoothing(dtype="float32"),
    "full": Full(),
    "hard": Hard(),
    "logits": Logits(),
}
RULE = RegionThresholds(low=0.3, middle=0.5, top=0.9)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Two halves with every codec and a mask, cut differently, in different formats; the whole."""
    root = tmp_path_factory.mktemp("halves")
    other_form = {**CODECS, "ms8": MarginalSmoothing(k=3, dtype="uint8")}
    for name, images, codecs, options in (
        ("even", EVEN, CODECS, {"images_per_shard": 8, "backend": "zarr"}),
        ("odd", ODD, other_form, {"images_per_shard": 5}),
        ("whole", ALL, CODECS, {"images_per_shard": 8, "backend": "zarr"}),
    ):
        with part(root / name, images, codecs, bad={5, 8}, **options) as store:
            fill_maps(store, images, bad={5, 8})
            labelstore.calibrate(store.label_set("ms"), RULE, name="ferkd")
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two halves with one label set and a mask, boxes computed; the whole."""
    root = tmp_path_factory.mktemp("small")
    for name, images in (("even", EVEN), ("odd", ODD), ("whole", ALL)):
        with part(root / name, images, stored_crops=False) as store:
            labelstore.calibrate(store.label_set(), RULE, name="ferkd")
    return root


def same_as_whole(out, path, label_sets=("teacher",)):
    with labelstore.open(out) as merged, labelstore.open(path) as whole:
        for name in label_sets:
            assert merged.label_set(name).is_complete
            assert by_key(merged, name) == by_key(whole, name), name
        assert regions_by_key(merged, "ferkd") == regions_by_key(whole, "ferkd")
        # rows are numbered as a store of the whole folder would, with the same facts
        for name, column in whole.image_columns.items():
            np.testing.assert_array_equal(merged.image_columns[name], column, err_msg=name)
        assert merged.class_names == whole.class_names == CLASSES


@pytest.mark.slow
def test_two_halves_are_the_whole(halves, tmp_path):
    out, before = tmp_path / "out", {name: digests(halves / name) for name in ("even", "odd")}
    report = labelstore.merge(out, [halves / "even", halves / "odd"])
    assert report.is_complete
    assert (report.num_images, report.num_bad, report.overlapping) == (N, 2, 0)
    assert report.masks == ("ferkd",)
    same_as_whole(out, halves / "whole", (*CODECS, "map"))
    # the format is the first store's, and shard by shard the very bytes of the whole
    a, b = (
        {key: digest for key, digest in digests(path).items() if "/c." in key}
        for path in (out, halves / "whole")
    )
    assert a == b
    with labelstore.open(out) as store:
        spent = sum(row.seconds for row in store.catalogue.ledger.shards("labels/ms"))
        assert spent == pytest.approx(N - 2)
        assert store.label_set_row("ms8").codec["class_ids"] == "table"
    assert verify(out, "deep").is_sound
    assert {name: digests(halves / name) for name in before} == before


def test_the_other_way_round_from_frozen_stores(halves, tmp_path):
    for name in ("even", "odd"):
        with labelstore.open(halves / name) as store:
            freeze(store, tmp_path / name)
    labelstore.merge(tmp_path / "out", [tmp_path / "odd", tmp_path / "even"], images_per_shard=5)
    same_as_whole(tmp_path / "out", halves / "whole", (*CODECS, "map"))
    with labelstore.open(tmp_path / "out") as store:
        assert store.arrays.name == "hdf5"
        assert not store.catalogue.readonly
        assert store.label_set_row("ms8").codec["class_ids"] == "plain"
    assert verify(tmp_path / "out", "deep").is_sound


def test_what_no_store_has_stays_not_generated(tmp_path):
    a = part(tmp_path / "a", EVEN, blocks=[0])  # images 0 to 6 of the whole
    b = part(tmp_path / "b", ODD, blocks=[1])  # images 9 to 13
    with a, b:
        add_label_set(b, Hard(), C, name="other", teacher="teacher")
        fill_blocks(b, soft_labels()[list(ODD)], name="other", blocks=[0])
        expected = by_key(a, "teacher") | by_key(b, "teacher")
        others = by_key(b, "other")
    out, parts = tmp_path / "out", [tmp_path / "a", tmp_path / "b"]
    other, teacher = sorted(labelstore.merge(out, parts).label_sets, key=lambda row: row.name)
    assert (teacher.from_stores, teacher.lacking) == ((4, 3), N - 7)
    assert (other.from_stores, other.lacking) == ((0, 4), N - 4)
    with labelstore.open(out) as store:
        assert by_key(store, "teacher") == expected
        assert by_key(store, "other") == others
        lacking = next(key for key in KEYS if key not in expected)
        with pytest.raises(NotGenerated):
            store.label_set("teacher").recover([lacking])
    assert verify(out, "deep").is_sound
    # the stores get on, and the same command takes what they have got
    with labelstore.open(tmp_path / "a") as a, labelstore.open(tmp_path / "b") as b:
        fill_blocks(a, soft_labels()[list(EVEN)], name="teacher")
        fill_blocks(b, soft_labels()[list(ODD)], name="teacher")
        add_label_set(a, Hard(), C, name="late", teacher="teacher")
        fill_blocks(a, soft_labels()[list(EVEN)], name="late")
    again = labelstore.merge(out, parts)
    found = {labels.name: labels.lacking for labels in again.label_sets}
    assert found == {"teacher": 0, "other": N - 4, "late": len(ODD)}
    with labelstore.open(out) as store:
        assert len(by_key(store, "teacher")) == N
    assert verify(out, "deep").is_sound


def test_a_plan_that_grew_and_labels_that_did_not(tmp_path):
    """Per crop shard: the old crops of all images are there, the new ones of nobody."""
    for name, images in (("a", EVEN), ("b", ODD)):
        with part(tmp_path / name, images, num_crops=2, labels=soft_labels()[:, :2]) as store:
            with store.catalogue.transaction() as conn:
                store.catalogue.plans.change(conn, "plan", num_crops=M)
            store.refresh()
            store.write_metadata()
    before = labelstore.merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert before.shards == -(-N // 4)
    assert [labels.lacking for labels in before.label_sets] == [N]
    with labelstore.open(tmp_path / "out") as store:
        for group in ("labels/teacher", "crops/plan"):
            assert {row.crop_shard for row in store.catalogue.ledger.shards(group)} == {0}
    assert verify(tmp_path / "out").is_sound


def test_an_image_that_one_store_could_not_read(tmp_path):
    part(tmp_path / "a", range(8), bad={2, 6}).close()
    part(tmp_path / "b", range(5, N), bad={2, 12}).close()
    report = labelstore.merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert report.num_bad == 2
    assert report.is_complete
    with labelstore.open(tmp_path / "out") as out, labelstore.open(tmp_path / "b") as b:
        assert set(out.image_columns["key"][out.bad]) == {KEYS[2], KEYS[12]}
        assert by_key(out, "teacher")[KEYS[6]] == by_key(b, "teacher")[KEYS[6]]
    assert verify(tmp_path / "out", "deep").is_sound


def test_one_store_that_two_machines_went_on_with(tmp_path):
    part(tmp_path / "a", ALL, blocks=[]).close()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name, blocks in (("a", [0, 1]), ("b", [1, 2, 3])):
        with labelstore.open(tmp_path / name) as store:
            fill_blocks(store, soft_labels(), name="teacher", blocks=blocks)
    report = labelstore.merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert report.is_complete
    assert (report.overlapping, report.label_sets[0].compared) == (N, 4 * M)


def test_a_damaged_part_is_named_and_what_was_good_stays(small, tmp_path):
    shutil.copytree(small / "even", tmp_path / "even")
    path = tmp_path / "even/arrays/labels/teacher/1.1.h5"
    good = path.read_bytes()
    path.write_bytes(good[:-100])
    parts = [tmp_path / "even", small / "odd"]
    with pytest.raises(DamagedShard, match=r"labelstore\.repair"):
        labelstore.merge(tmp_path / "out", parts)
    assert verify(tmp_path / "out", "digests").is_sound
    path.write_bytes(good)
    assert labelstore.merge(tmp_path / "out", parts).already > 0
    same_as_whole(tmp_path / "out", small / "whole")


@pytest.mark.parametrize("at", [0, 15, 40])
def test_killed_anywhere_the_same_command_finishes(at, small, tmp_path):
    stores = [small / "even", small / "odd"]
    points = ("write", "fsync", "replace", "link", "rename")
    assert killed_at(at, points, lambda: labelstore.merge(tmp_path / "out", stores))
    labelstore.merge(tmp_path / "out", stores)
    same_as_whole(tmp_path / "out", small / "whole")
    assert verify(tmp_path / "out", "digests").is_sound


def test_the_command(small, tmp_path, capsys):
    def run(*arguments):
        words = ["merge", tmp_path / "out", *arguments]
        code = errors.run(labelstore_app.commands, "labelstore", [str(word) for word in words])
        return code, *capsys.readouterr()

    both = (small / "even", small / "odd")
    code, out, _ = run(*both, "--dry-run")
    assert code == 0
    assert f"{tmp_path / 'out'}: {N} images" in out
    assert not list(tmp_path.iterdir())
    code, out, err = run(*both)
    assert code == 0
    assert "7 + 7 images" in out
    assert "merge: " in err
    code, out, _ = run(*both, "--json")
    found = json.loads(out)
    assert (code, found["shards"], found["complete"]) == (0, 0, True)
    assert found["already"] > 0
    assert run(small / "even", small / "nowhere")[0] == 4
    assert run(small / "even")[0] == 2
