"""Importing FKD's files: what is wrong is named, what is right is committed, and the command goes on where it was."""

from __future__ import annotations

import csv
import errno
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import labelstore
from cli import errors, labelstore_app
from labelstore import PlanOptions
from labelstore.analysis.teacher_time import cost
from labelstore.blocks.block_map import block_map
from labelstore.care.repairing import repair
from labelstore.care.verification import verify
from labelstore.cropping.crop_plan import CropPlan
from labelstore.errors import ConflictError, NotGenerated, RejectedInput, UsageError
from labelstore.exchange import RejectedFiles, Stated
from labelstore.exchange.block_import import ImportedBlocks
from labelstore.exchange.readers.boxes import BoxShares
from labelstore.exchange.readers.fkd import open_fkd
from labelstore.exchange.readers.label_values import class_ids, kept_probabilities
from labelstore.images import scan_folder
from labelstore.labelling.growing import plan_growth
from labelstore.untrusted.refusal import Refused
from tests.exchange import foreign_files as foreign
from tests.flat_options import import_labels
from trainer.config import TrainConfig
from trainer.loader.supervision import chosen_labels

MS = Stated(compression="ms", num_classes=12, temperature=1.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return foreign.make(tmp_path_factory.mktemp("images"), num_images=10, num_crops=4)


@pytest.fixture(scope="module")
def labels(made, tmp_path_factory):
    return foreign.write_fkd(made, tmp_path_factory.mktemp("fkd"))


@pytest.fixture(scope="module")
def imported(made, labels, tmp_path_factory):
    path = tmp_path_factory.mktemp("imported") / "s.labels"
    run(path, made, labels)
    return path


@pytest.fixture
def copy(labels, tmp_path):
    """The label files, to be changed."""
    return Path(shutil.copytree(labels, tmp_path / "labels"))


@pytest.fixture
def command(capsys):
    """Run `labelstore ...`: exit code, stdout, stderr."""

    def call(*arguments):
        code = errors.run(labelstore_app.commands, "labelstore", [str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call


def run(path, made, source, stated=MS, **options):
    options = {"dtype": "float32", "images_per_shard": 4, **options}
    return import_labels(
        path, format="fkd", source=source, images=made.root, stated=stated, **options
    )


def file_of(folder: Path, made, row: int) -> Path:
    return folder / "train" / made.keys[row].replace(".png", ".tar")


def command_line(made, source, store, *more):
    flags = (
        "--compression",
        "ms",
        "--num-classes",
        12,
        "--temperature",
        1,
        "--images-per-shard",
        4,
    )
    return ("import", "fkd", source, store, "--images", made.root, *flags, *more)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_wrong_files_are_listed_and_the_other_blocks_kept(made, copy, tmp_path, command):
    file_of(copy, made, 1).write_bytes(b"nothing")
    file_of(copy, made, 2).unlink()
    (copy / "train" / "c00" / "stranger.tar").write_bytes(b"?")
    store, listed = tmp_path / "s", tmp_path / "bad.csv"
    code, _, said = command(*command_line(made, copy, store, "--report", listed))
    assert code == 7
    assert said.splitlines()[-1].startswith(
        f"labelstore: {file_of(copy, made, 1)}: is no file of torch.save (1 more"
    )
    assert "6 images of other blocks are committed" in said
    assert "1 label files belong to no image, the first is c00/stranger.tar" in said
    rows = list(csv.DictReader(listed.read_text().splitlines()))
    assert [row["image"] for row in rows] == [made.keys[1], made.keys[2]]
    assert [row["reason"] for row in rows] == ["is no file of torch.save", "is missing"]
    code, out, again = command(*command_line(made, copy, store, "--json"))
    found = json.loads(out)  # one object, with what there is to tell and the error
    assert (code, found["exit"], found["num_bad"], found["rejected_blocks"]) == (7, 7, 2, 1)
    assert again.splitlines()[-1] == f"labelstore: {found['error']}"
    # mended, the same command does the rest
    shutil.copy(file_of(copy, made, 0), file_of(copy, made, 1))
    value = torch.load(file_of(copy, made, 1), weights_only=False)
    value[0] = made.shares[1]
    torch.save(value, file_of(copy, made, 1))
    shutil.copy(file_of(copy, made, 1), file_of(copy, made, 2))
    value[0] = made.shares[2]
    torch.save(value, file_of(copy, made, 2))
    code, out, _ = command(*command_line(made, copy, store, "--json"))
    assert code == 0
    report = json.loads(out)
    assert (report["num_images"], report["already_committed"], report["blocks"]) == (4, 2, 3)
    with labelstore.open(store) as opened:
        np.testing.assert_array_equal(opened.label_set().boxes(range(10)), made.boxes)


def test_skip_bad_records_the_holes(made, copy, tmp_path, command):
    file_of(copy, made, 3).write_bytes(b"")
    store = tmp_path / "s"
    code, out, said = command(*command_line(made, copy, store, "--skip-bad"))
    assert code == 0, said
    assert "1 left out" in out
    assert f"cannot be used: {file_of(copy, made, 3)}: is empty" in said
    with labelstore.open(store) as opened:
        assert opened.bad.tolist() == [row == 3 for row in range(10)]
        assert opened.images()["bad"][3] == "no labels: is empty"
        found = opened.label_set()
        assert np.isnan(found.recover([3])).all()
        assert (found.boxes([3]) == 65535).all()
        assert found.present.sum() == 9
    assert verify(store, "deep", workers=1).is_sound


@pytest.mark.sample(1)
@pytest.mark.parametrize("what", ["image", "labels"])
def test_a_disk_that_fails_leaves_no_hole(made, copy, tmp_path, command, monkeypatch, what):
    failing = made.root / made.keys[3] if what == "image" else file_of(copy, made, 3)
    real_bytes, real_file = Path.read_bytes, io.FileIO

    def stale(path):
        if Path(path) == failing:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))

    def read_bytes(path):
        stale(path)
        return real_bytes(path)

    def file_io(path, *arguments, **options):
        stale(path)
        return real_file(path, *arguments, **options)

    store = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        patch.setattr("labelstore.untrusted.refusal.io.FileIO", file_io)
        code, _, said = command(*command_line(made, copy, store, "--skip-bad"))
    assert code == 6
    assert said.splitlines()[-1] == f"labelstore: cannot read {failing}: Stale file handle"
    with labelstore.open(store) as opened:
        assert not opened.bad.any()
    code, _, said = command(*command_line(made, copy, store, "--skip-bad"))
    assert code == 0, said
    with labelstore.open(store) as opened:
        assert opened.label_set().present.all()


def test_skip_bad_takes_nothing_from_other_label_sets(made, copy, imported, tmp_path):
    store = Path(shutil.copytree(imported, tmp_path / "s"))
    with pytest.raises(UsageError, match="`skip_bad` would take images away from label set fkd"):
        run(store, made, copy, Stated(**{**vars(MS), "skip_bad": True}), name="other")


def test_dry_run_says_what_would_be_done_and_writes_nothing(made, labels, tmp_path, command):
    before = tree(tmp_path)
    code, out, _ = command(*command_line(made, labels, tmp_path / "s", "--dry-run"))
    assert code == 0
    assert "would import 10 images x 4 crops of 12 classes (kept, K=3, float32)" in out
    code, out, _ = command(*command_line(made, labels, tmp_path / "s", "--dry-run", "--json"))
    assert json.loads(out)["codec"]["k"] == 3
    assert tree(tmp_path) == before


def test_the_same_command_again_changes_nothing(made, labels, imported, command):
    before = tree(imported)
    code, out, _ = command(*command_line(made, labels, imported, "--dtype", "float32"))
    assert (code, out) == (
        0,
        "label set fkd in " + str(imported) + " is complete: 4 crops per image\n",
    )
    assert tree(imported) == before


def test_a_stopped_import_goes_on(made, labels, imported, tmp_path, monkeypatch):
    """Whatever it had committed stays, and in the end all is as if it had not been stopped."""
    original, calls = ImportedBlocks.arrays, []

    def stops(self, block):
        calls.append(block)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, block)

    monkeypatch.setattr(ImportedBlocks, "arrays", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "s", made, labels)
    monkeypatch.setattr(ImportedBlocks, "arrays", original)
    report = run(tmp_path / "s", made, labels)
    assert (report.already_committed, report.num_images) == (1, 6)
    with labelstore.open(tmp_path / "s") as one, labelstore.open(imported) as other:
        found, wanted = one.label_set().recover(range(10)), other.label_set().recover(range(10))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
def test_processes_share_the_blocks(made, labels, imported, tmp_path):
    with block_map(workers=2) as map_blocks:
        report = run(tmp_path / "s", made, labels, map_blocks=map_blocks)
    assert report.num_images == 10
    with labelstore.open(tmp_path / "s") as one, labelstore.open(imported) as other:
        np.testing.assert_array_equal(
            one.label_set().recover(range(10)), other.label_set().recover(range(10))
        )
    assert verify(tmp_path / "s", "deep", workers=1).is_sound


def test_an_interruption_by_another_worker_is_waited_for(made, labels, imported, tmp_path):
    """A block that somebody else holds is not imported twice."""
    store = Path(shutil.copytree(imported, tmp_path / "s"))
    with labelstore.open(store) as opened:
        lease = opened.catalogue.leases.acquire("labels/other", [0], "somebody", 1.0, 1)
        assert lease is not None
    report = run(store, made, labels, name="other")
    assert report.num_images == 10


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stated": Stated(compression="mr", num_classes=12, temperature=1.0)}, "has compression"),
        (
            {"stated": Stated(compression="ms", num_classes=13, temperature=1.0)},
            "has classes 12, asked for 13",
        ),
        (
            {"stated": Stated(compression="ms", num_classes=12, temperature=2.0)},
            "has temperature",
        ),
        (
            {"stated": Stated(compression="ms", num_classes=12, temperature=1.0, num_crops=2)},
            "of 4 crops per image",
        ),
        ({"plan_name": "second"}, "has crop plan plan, asked for second"),
    ],
)
def test_what_is_there_is_not_overwritten(made, labels, imported, change, says):
    with pytest.raises(ConflictError, match=says):
        run(imported, made, labels, **change)


def test_other_images_are_a_conflict(labels, imported, tmp_path):
    other = foreign.make(tmp_path / "fewer", num_images=6, num_crops=4)
    source = foreign.write_fkd(other, tmp_path / "fkd")
    with pytest.raises(ConflictError, match="holds 10 images"):
        run(imported, other, source)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        (Stated(num_classes=12), "`compression` is needed"),
        (Stated(compression="ms"), "`num_classes` is needed"),
        (Stated(compression="ms", num_classes=0, temperature=1.0), "`num_classes=0`"),
        (Stated(compression="ms", num_classes=12, temperature=1.0, k=4), "choose 1 to 3"),
        (Stated(compression="full", num_classes=12), "choose ms, mr, smoothing, hard"),
        (Stated(compression="logits", num_classes=12), "choose ms, mr, smoothing, hard"),
        (Stated(compression="ms", num_classes=12, temperature=1.0, num_crops=5), "hold up to 4"),
        (
            Stated(compression="ms", num_classes=12, temperature=1.0, axis_order="rows-first"),
            "sides or swapped",
        ),
        (
            Stated(compression="ms", num_classes=12, temperature=float("nan")),
            "temperature nan",
        ),
        (Stated(compression="ms", num_classes=12, temperature=1.0, teacher="a\nb"), "`teacher`"),
        (
            Stated(compression="ms", num_classes=12, temperature=1.0, input_size=-1),
            "`input_size=-1`",
        ),
    ],
)
def test_what_has_to_be_said_is_asked_for(made, labels, tmp_path, stated, says):
    with pytest.raises(UsageError, match=says):
        run(tmp_path / "s", made, labels, stated)
    assert not (tmp_path / "s").exists()


def test_an_import_is_no_teacher_time(imported, command):
    with labelstore.open(imported) as store:
        found = cost(store)
    (teacher,), (label_set,) = found.teachers, found.label_sets
    assert (teacher.seconds, teacher.crops, teacher.seconds_saved) == (0, 0, None)
    assert label_set.derived
    assert label_set.seconds > 0  # the import's own, under its own device
    assert [device.device for device in label_set.devices] == ["imported"]
    _, out, _ = command("info", imported, "--cost")
    assert "labelled no crop here, what its labels cost is not known" in out


def test_odd_sources_are_one_line(made, tmp_path, command):
    for source, code, says in [
        (tmp_path / "nothing", 7, "is not a folder"),
        (tmp_path, 7, "holds no fkd file for the images of"),
    ]:
        found, _, said = command(*command_line(made, source, tmp_path / "s"))
        assert found == code
        assert says in said
        assert said.count("\n") == 1
    code, _, said = command("import", "tfrecord", tmp_path, tmp_path / "s", "--images", made.root)
    assert code == 2
    assert "choose one of fkd, relabel" in said


def test_facts_say_what_was_stated_and_what_assumed(made, labels, tmp_path):
    stated = Stated(
        compression="ms", num_classes=12, teacher="timm:tf_efficientnet_l2", temperature=2.0
    )
    run(tmp_path / "s", made, labels, stated)
    with labelstore.open(tmp_path / "s") as store:
        row = store.label_set_row()
        assert row.name == row.teacher == "tf_efficientnet_l2"
        assert row.temperature == 2
        assert row.facts["stated"] == {
            "compression": "ms",
            "num_classes": 12,
            "teacher": "timm:tf_efficientnet_l2",
            "temperature": 2.0,
        }
        assert row.facts["imported_from"] == {"format": "fkd", "source": str(labels)}
        assert store.teacher(row.teacher).facts["assumed"][0] == "input_size"


def test_more_boxes_than_labels(made, copy, tmp_path):
    """Where M is no multiple of the generator's segments, the last boxes have no label."""
    for row in range(10):
        value = torch.load(file_of(copy, made, row), weights_only=False)
        value[2] = value[2][:3]
        torch.save(value, file_of(copy, made, row))
    assert run(tmp_path / "s", made, copy).num_crops == 3
    with labelstore.open(tmp_path / "s") as store:
        np.testing.assert_array_equal(store.label_set().boxes(range(10)), made.boxes[:, :3])


def test_files_with_other_numbers_of_crops_are_named(made, copy, tmp_path):
    value = torch.load(file_of(copy, made, 9), weights_only=False)
    torch.save([part[:2] for part in value], file_of(copy, made, 9))
    with pytest.raises(RejectedFiles, match="holds 2 crops, and the other files 4"):
        run(tmp_path / "s", made, copy)


def test_images_that_would_share_a_file(tmp_path):
    made = foreign.make(tmp_path / "images", num_images=4, num_crops=2)
    shutil.copy(made.root / made.keys[0], made.root / made.keys[0].replace(".png", ".v2.png"))
    source = foreign.write_fkd(made, tmp_path / "fkd")
    with pytest.raises(RejectedInput, match=r"would both have label file c00/im_000\.tar"):
        run(tmp_path / "s", made, source)


def test_swapped_axes_are_noticed_and_read_when_said(made, copy, tmp_path):
    for row, (height, width) in enumerate(made.sizes):
        value = torch.load(file_of(copy, made, row), weights_only=False)
        value[0] = (made.boxes[row] / np.array([width, height] * 2, float)).astype("f4")
        torch.save(value, file_of(copy, made, row))
    with pytest.raises(RejectedFiles, match="they fit with `axis_order=swapped`"):
        run(tmp_path / "s", made, copy)
    run(
        tmp_path / "t",
        made,
        copy,
        Stated(compression="ms", num_classes=12, temperature=1.0, axis_order="swapped"),
    )
    with labelstore.open(tmp_path / "t") as store:
        np.testing.assert_array_equal(store.label_set().boxes(range(10)), made.boxes)


@given(
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    seed=st.integers(0, 2**32),
    half=st.booleans(),
)
def test_boxes_come_back_to_the_pixel(height, width, seed, half):
    """pixels / side, rounded to float32 or float16, times side is the pixels: FKD's way there and ours back."""
    boxes, _ = CropPlan(seed=seed, scale=(2**-20, 1)).crops("a", height, width, np.arange(50))
    shares = (boxes / np.array([height, width] * 2, float)).astype("f2" if half else "f4")
    found = BoxShares().pixels(shares, height, width)
    np.testing.assert_array_equal(found, boxes)


def test_boxes_of_a_resized_copy_are_refused_or_rounded():
    boxes, _ = CropPlan().crops("a", 375, 500, np.arange(200))
    shares = (boxes / np.array([375, 500] * 2, float)).astype("f4")
    with pytest.raises(Refused, match="pixels off whole pixels of an image of 188 x 250"):
        BoxShares().pixels(shares, 188, 250)
    rounded = BoxShares(round_boxes=True).pixels(shares, 188, 250)
    exact = shares * np.array([188, 250] * 2)
    assert np.abs(rounded - exact)[:, :2].max() <= 1
    assert np.abs(rounded - exact).max() <= 1.5
    assert (rounded[:, :2] + rounded[:, 2:] <= [188, 250]).all()
    with pytest.raises(Refused, match="not exact on an image of 5000"):
        BoxShares().pixels(shares.astype("f2"), 5000, 4000)


@given(
    num_classes=st.integers(1, 65_000),
    wanted=st.lists(st.integers(0, 64_999), min_size=1, max_size=20),
)
def test_class_ids_in_float16_come_back_or_are_refused(num_classes, wanted):
    """Never another class: every id that is given back is the only one that rounds to what was written."""
    ids = np.array(wanted) % num_classes
    written = ids.astype("f4").astype("f2")
    every = np.arange(num_classes).astype("f4").astype("f2")
    alone = [int((every == value).sum()) == 1 for value in written]
    if all(alone):
        np.testing.assert_array_equal(class_ids(written, num_classes), ids)
    else:
        with pytest.raises(Refused, match="float16 keeps class ids up to 2048 apart"):
            class_ids(written, num_classes)


def test_float16_has_exact_ids_above_2048_too():
    every = np.arange(10_450)
    written = every.astype("f4").astype("f2")
    exact = [i for i in every if (written == written[i]).sum() == 1]
    assert {2050, 2054, 4094} <= set(exact)
    assert not any(2051 <= i <= 2053 for i in exact)
    np.testing.assert_array_equal(class_ids(written[exact], 10_450), exact)
    assert len(exact) < 2600


def test_unsorted_probabilities_are_sorted():
    found = kept_probabilities(np.array([[7, 3, 5]]), np.array([[0.125, 0.5, 0.25]], "f4"))
    assert found.class_ids.tolist() == [[3, 5, 7]]
    assert found.probs.tolist() == [[0.5, 0.25, 0.125]]
    assert found.tail.tolist() == [0.125]


def test_an_imported_plan_does_not_grow(imported):
    with (
        labelstore.open(imported) as store,
        pytest.raises(UsageError, match="imported with their labels and follow from no seed"),
    ):
        plan_growth(store, 8)


def test_further_teachers_see_the_imported_crops(made, imported, tmp_path):
    """`add-teacher` on imported boxes: the crops that are labelled are those of the plan."""
    with labelstore.open(imported) as store:
        planned = store.planned_crops()
        for row in (0, 9):
            boxes, flips = planned.crops(made.keys[row], *made.sizes[row].tolist(), np.arange(4))
            np.testing.assert_array_equal(boxes, made.boxes[row])
            np.testing.assert_array_equal(flips, made.flips[row])
        with pytest.raises(RejectedInput, match="its imported crops are of"):
            planned.crops(made.keys[0], 5, 5, np.arange(4))
        with pytest.raises(UsageError, match="were imported with their labels"):
            store.crop_plan()


def test_crops_that_were_not_imported_yet_are_said_to_be_missing(made, copy, tmp_path):
    file_of(copy, made, 9).unlink()
    with pytest.raises(RejectedFiles):
        run(tmp_path / "s", made, copy)
    with labelstore.open(tmp_path / "s") as store, pytest.raises(NotGenerated):
        store.planned_crops().crops(made.keys[9], *made.sizes[9].tolist(), np.arange(4))


def test_imported_labels_are_not_repaired_by_a_teacher(imported, tmp_path):
    store = Path(shutil.copytree(imported, tmp_path / "s"))
    file = next((store / "arrays.zarr" / "labels" / "fkd" / "probability").glob("c.0*"))
    file.write_bytes(file.read_bytes()[:-1])
    with (
        labelstore.open(store) as opened,
        pytest.raises(ConflictError, match="was imported from fkd files and cannot be made again"),
    ):
        repair(opened)


def test_labels_of_mixed_crops_have_no_one_ground_truth(tmp_path):
    made = foreign.make(tmp_path / "images", num_images=6, num_crops=2)
    source, _ = foreign.write_batches(made, tmp_path / "b", mix="cutmix")
    stated = Stated(input_size=32, order="two-permutations", sampler_seed=42)
    import_labels(tmp_path / "s", format="sre2l", source=source, images=made.root, stated=stated)
    with labelstore.open(tmp_path / "s") as store:
        config = TrainConfig(data=str(made.root), store=str(tmp_path / "s"), labels="ssl")
        assert chosen_labels(store, config).blocks
        config = replace(config, labels="fkd")
        config = replace(config, ground_truth_weight=0.5)
        for wrong in (config, replace(config, labels="ground-truth", ground_truth_weight=0.0)):
            with pytest.raises(UsageError, match="they have no one class"):
                chosen_labels(store, wrong)


@pytest.mark.slow
def test_a_teacher_labels_imported_crops(made, imported, tmp_path, command):
    from tests.generation.conftest import write_teacher

    store = Path(shutil.copytree(imported, tmp_path / "s"))
    teacher = write_teacher(tmp_path / "teacher", classes=tuple(sorted({k[:3] for k in made.keys})))
    code, _, said = command(
        "add-teacher", store, "--images", made.root, "--teacher", teacher, "--compression", "full",
        "--device", "cpu", "--workers", 1,
    )  # fmt: skip
    assert code == 0, said
    with labelstore.open(store) as opened:
        np.testing.assert_array_equal(opened.label_set("teacher").boxes(range(10)), made.boxes)
        assert opened.label_set("teacher").is_complete


def test_a_store_that_grew_by_images_is_imported_into(made, labels, imported, tmp_path):
    """Growth begins a new image block, so that rows without an image stand in between."""
    grown = tmp_path / "train"
    shutil.copytree(made.root, grown)
    for name in ("c04/im_100.png", "c04/im_101.png"):
        (grown / name).parent.mkdir(exist_ok=True)
        shutil.copy(made.root / made.keys[0], grown / name)
    images = labelstore.images.scan_folder(grown)
    store = tmp_path / "s"
    with labelstore.create(
        store, images=made.root, plan=PlanOptions(num_crops=4, images_per_shard=4)
    ) as opened:
        new = images.keys[10:]
        opened.catalogue.images.append(
            new, [0, 0], images.sizes[10:], images.mtimes_ns[10:], multiple=4
        )
    source = tmp_path / "fkd"
    shutil.copytree(labels / "train", source)
    for name in new:
        path = source / name.replace(".png", ".tar")
        path.parent.mkdir(exist_ok=True)
        shutil.copy(file_of(labels, made, 0), path)
    import_labels(
        store,
        format="fkd",
        source=source,
        images=images,
        stated=MS,
        plan_name="fkd",
        dtype="float32",
    )
    with labelstore.open(store) as opened:
        found = opened.label_set()
        np.testing.assert_array_equal(found.boxes(range(10)), made.boxes)
        np.testing.assert_array_equal(found.boxes([12, 13]), made.boxes[[0, 0]])


def same_labels(one, other):
    parts = [
        (found.boxes, found.flips)
        + (
            (found.labels,)
            if isinstance(found.labels, np.ndarray)
            else (found.labels.class_ids, found.labels.probs, found.labels.tail)
        )
        for found in (one, other)
    ]
    assert [(a.dtype, a.shape, a.tobytes()) for a in parts[0]] == [
        (a.dtype, a.shape, a.tobytes()) for a in parts[1]
    ]


@pytest.mark.parametrize("form", [{}, {"half": True}, {"tensors": True}])
@pytest.mark.parametrize("kind", ["ms", "mr", "smoothing", "hard", "full"])
def test_files_read_together_are_files_read_one_by_one(made, tmp_path, kind, form):
    """The faster way gives the same labels, and steps back where a single file is not as it must be."""
    source = foreign.write_fkd(made, tmp_path / "labels", kind, **form)
    stated = Stated(compression=kind, num_classes=12, temperature=1.0, num_crops=3)
    opened = open_fkd(source, scan_folder(made.root), stated)
    sizes = [(int(height), int(width)) for height, width in made.sizes]
    together = opened.read_many(range(10), sizes)
    for row, found in enumerate(together):
        same_labels(found, opened.read(row, *sizes[row]))
    path, turned = opened.file_of(4), [*sizes[:4], sizes[4][::-1], *sizes[5:]]
    assert opened.read_many(range(10), turned) is None  # an image of another shape
    value = torch.load(path, weights_only=False)
    for at, wrong in [(0, 1.5), (0, np.nan), (2, 12 if kind == "hard" else np.nan)]:
        bad = [torch.as_tensor(each).clone() for each in value]
        bad[at][0].view(-1)[-1] = wrong
        torch.save(bad if form.get("tensors") else [np.asarray(each) for each in bad], path)
        assert opened.read_many(range(10), sizes) is None
        with pytest.raises(RejectedInput, match=path.name):
            opened.read(4, *sizes[4])
    path.unlink()
    assert opened.read_many(range(10), sizes) is None
