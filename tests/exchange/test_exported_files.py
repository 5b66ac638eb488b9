"""What exports share: the part that was asked for, whole or not there; HDF5 and WebDataset as others read them."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import tarfile

import h5py
import numpy as np
import pytest
import torch

import labelstore
from labelstore.errors import ConflictError, NotGenerated, RejectedInput, StorageError, UsageError
from labelstore.exchange import EXPORTS, Form, Selection, Stated, export_labels, exporting
from labelstore.exchange.readers.label_values import tail_mass
from labelstore.exchange.readers.tables import read_npz
from labelstore.exchange.writers import webdataset_export as webdataset
from labelstore.images import open_images
from labelstore.untrusted.refusal import Refused
from tests.exchange import foreign_files as foreign
from tests.flat_options import import_labels

MAPS = ("relabel", "tokenlabeling")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return foreign.make(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def store(made, tmp_path_factory):
    """Label sets `ms`, `logits` and `maps` of 8 images x 6 crops, in image blocks of 3."""
    root = tmp_path_factory.mktemp("store")
    crops = {"box": made.boxes, "flip": made.flips.astype("u1")}
    ids, probs = made.kept(3)
    kept = {"class_id": ids.astype("u2"), "prob": probs}
    maps = np.random.default_rng(0).normal(size=(8, 12, 5, 7)).astype("f4") * 3
    sources = {
        "ms": (
            "npz",
            foreign.write_npz(made, root / "k.npz", **crops, **kept),
            {"temperature": 1.0},
        ),
        "logits": ("npz", foreign.write_npz(made, root / "l.npz", **crops, logit=made.logits), {}),
        "maps": ("relabel", foreign.write_maps(made, root / "maps", maps), {"num_crops": 6}),
    }
    for name, (format_name, source, stated) in sources.items():
        import_labels(
            root / "s.labels",
            format=format_name,
            source=source,
            images=made.root,
            stated=Stated(num_classes=12, **stated),
            dtype="float32",
            name=name,
            plan_name="maps" if name == "maps" else None,
            images_per_shard=3,
        )
    with labelstore.open(root / "s.labels", readonly=True) as opened:
        yield opened


def labels_for(store, format_name):
    return store.label_set("maps" if format_name in MAPS else "ms")


def samples(folder):
    """Name -> {ending: bytes} of all shards, grouped as webdataset groups them."""
    found, last = {}, None
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                name, ending = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]*)", entry.name).groups()
                if name != last:
                    assert name not in found, "files of a sample lie together"
                last = name
                assert ending not in found.setdefault(name, {})
                found[name][ending] = tar.extractfile(entry).read()
    return found


def array(data):
    return np.load(io.BytesIO(data), allow_pickle=False)


def went_out(format_name, target, keys):
    """Key -> number of crops, as each format's files say."""
    if format_name == "hdf5":
        with h5py.File(target) as file:
            return dict.fromkeys(file["key"].asstr()[...], file["flip"].shape[1])
    if format_name == "webdataset":
        return {
            json.loads(sample["json"])["key"]: len(array(sample["flips.npy"]))
            for sample in samples(target).values()
        }
    if format_name == "npz":
        parts = [read_npz(path) for path in target.glob("*.npz")]
        return {str(key): part["flip"].shape[1] for part in parts for key in part["key"]}
    if format_name == "parquet":
        import pandas as pd

        return pd.read_parquet(target).groupby("key").size().to_dict()
    if format_name == "ml-dr":
        found = [torch.load(path) for path in target.glob("[0-9]*.pth.tar")]
        return {keys[index]: len(crops) for index, crops in found}
    ending = {"fkd": ".tar"}.get(format_name, ".pt")
    files = {path.relative_to(target).as_posix(): path for path in target.rglob(f"*{ending}")}
    stems = {key.replace(".png", ending): key for key in keys}
    return {stems[name]: len(torch.load(path)[1]) for name, path in files.items()}


@pytest.mark.sample(2)
@pytest.mark.parametrize("format_name", EXPORTS)
def test_the_part_that_was_asked_for_goes_out(made, store, tmp_path, format_name):
    labels = labels_for(store, format_name)
    some = [made.keys[5], made.keys[2], made.keys[5]]
    crops = None if format_name in MAPS else range(1, 4)
    wanted = {
        "all": (Selection(), set(made.keys), None),
        "classes": (
            Selection(classes=["c01", "c03"]),
            {k for k in made.keys if k[2] in "13"},
            None,
        ),
        "part": (Selection(images=some, crops=crops), set(some), crops),
        "both": (Selection(images=some, classes=["c02"]), {made.keys[5]}, None),
    }
    for name, (selection, keys, part) in wanted.items():
        target = tmp_path / name
        planned = export_labels(
            labels, format=format_name, target=target, selection=selection, dry_run=True
        )
        assert not target.exists()
        report = export_labels(labels, format=format_name, target=target, selection=selection)
        assert (report.images, report.crops) == (planned.images, planned.crops)
        m = 3 if format_name in MAPS else len(part or range(6))  # of maps: their K
        assert went_out(format_name, target, made.keys) == dict.fromkeys(keys, m)
        assert report.images == len(keys)
        files = [path for path in target.rglob("*") if path.is_file()] or [target]
        assert len(files) == report.files
    wrong = {
        "no class 'nowhere'": Selection(classes=["nowhere"]),
        "no image with key": Selection(images=["c00/none.png"]),
        "relative path": Selection(images=["../c00/im_000.png"]),
        "holds no image": Selection(images=[made.keys[0]], classes=["c03"]),
    }
    if format_name not in MAPS:
        wrong["crops 0-6: this plan has crops 0-5"] = Selection(crops=range(7))
        wrong["empty range"] = Selection(crops=range(3, 3))
        wrong["crops -1-2"] = Selection(crops=range(-1, 3))
    for message, selection in wrong.items():
        with pytest.raises((UsageError, RejectedInput), match=message) as caught:
            export_labels(labels, format=format_name, target=tmp_path / "x", selection=selection)
        assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == set(wanted)


@pytest.mark.parametrize("format_name", EXPORTS)
def test_nothing_is_replaced_and_nothing_is_half_there(store, tmp_path, format_name, monkeypatch):
    labels = labels_for(store, format_name)
    target = tmp_path / "deep" / "target"

    def export(**options):
        export_labels(labels, format=format_name, target=target, **options)

    def stopped(done, total):
        assert not target.exists()
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(progress=stopped)
    assert not list(target.parent.iterdir())

    def overtaken(done, total):
        if done == total:
            target.mkdir()
            (target / "precious").touch()

    with pytest.raises(ConflictError, match="exists already"):
        export(progress=overtaken)
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert [path.name for path in target.iterdir()] == ["precious"]
    with pytest.raises(ConflictError, match="exists already"):
        export()
    target.rename(tmp_path / "away")
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConflictError, match="exists already"):
        export()
    target.unlink()
    monkeypatch.setattr(exporting, "MANY_FILES", 3)
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links")))
    export()
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("format_name", EXPORTS)
def test_a_disk_that_refuses_is_one_line(store, tmp_path, format_name):
    labels = labels_for(store, format_name)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def refusal(size):
        """What an export says on a disk whose files end at `size` bytes; nothing where they fit."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            export_labels(labels, format=format_name, target=tmp_path / "x")
        except StorageError as error:
            return str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    try:
        for size in (0, 700, 2000):
            said = refusal(size)
            if said is None:
                assert size, "no file is empty"
                (tmp_path / "x").rename(tmp_path / f"fits-{size}")
                continue
            assert str(tmp_path / "x") in said
            assert "\n" not in said
            assert not list(tmp_path.glob("*x*"))
    finally:
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("format_name", ["fkd", "hdf5"])
def test_a_killed_export_leaves_no_target(store, tmp_path, format_name):
    child = os.fork()
    if not child:
        with labelstore.open(store.path, readonly=True) as opened:
            export_labels(
                opened.label_set("ms"),
                format=format_name,
                target=tmp_path / "target",
                progress=lambda done, total: os._exit(7),
            )
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".target.")
    assert left.name.endswith(".tmp")


@pytest.mark.parametrize("name", ["ms", "logits", "maps"])
def test_hdf5_is_read_without_this_package(made, store, tmp_path, name):
    labels = store.label_set(name)
    rows = list(range(2, 8))
    selection = Selection(images=[made.keys[row] for row in rows], crops=range(2, 6))
    export_labels(labels, format="hdf5", target=tmp_path / "l.h5", selection=selection)
    with h5py.File(tmp_path / "l.h5") as file:
        assert file["key"].asstr()[...].tolist() == made.keys[2:]
        assert file["crop"][...].tolist() == [2, 3, 4, 5]
        np.testing.assert_array_equal(file["box"][...], labels.boxes(rows)[:, 2:])
        np.testing.assert_array_equal(file["flip"][...], labels.flips(rows)[:, 2:])
        np.testing.assert_array_equal(file["ground_truth"][...], made.truth[2:])
        sides = np.stack([file["height"][...], file["width"][...]], 1)
        np.testing.assert_array_equal(sides, made.sizes[2:])
        names = file["class_names"].asstr()[...].tolist()
        assert names == ["c00", "c01", "c02", "c03"]
        assert json.loads(file.attrs["codec"])["name"] == labels.codec.name
        assert file.attrs["num_classes"] == 12
        assert all(each.attrs["about"] for each in file.values())
        if name == "logits":
            np.testing.assert_array_equal(file["logit"][...], made.logits[2:, 2:])
            return
        ids, probs, tail = (file[field][...] for field in ("class_id", "prob", "tail"))
        others = max(12 - ids.shape[-1], 1)
        dense = np.repeat(tail[..., None] / np.float32(others), 12, -1)
        np.put_along_axis(dense, ids.astype(int), probs, -1)
        wanted = labels.recover(rows, [range(2, 6)] * 6)
        np.testing.assert_allclose(dense, wanted, rtol=2**-20, atol=2**-24)


def test_hdf5_keeps_what_crops_were_mixed_with(made, tmp_path):
    source = foreign.write_ml_dr(made, tmp_path / "theirs", mixing=True)
    path = tmp_path / "s.labels"
    import_labels(
        path, format="ml-dr", source=source, images=made.root, stated=Stated(num_classes=12)
    )
    with labelstore.open(path, readonly=True) as store:
        labels = store.label_set()
        export_labels(labels, format="hdf5", target=tmp_path / "l.h5")
        for format_name in ("fkd", "npz", "parquet", "webdataset"):
            with pytest.raises(UsageError, match="mixed with others"):
                export_labels(labels, format=format_name, target=tmp_path / "x")
    with h5py.File(tmp_path / "l.h5") as file:
        partners = file["mix_key"].asstr()[...]
        assert partners[0].tolist() == [made.keys[0], made.keys[1]] * 3
        np.testing.assert_array_equal(file["mix_from"][0, 1], made.boxes[1, 0])
        assert file["mix_share"][0].tolist() == [1] * 6  # cut into, and not blended
        assert json.loads(file.attrs["crop_plan"])["law"] == "imported/2"
        assert file["mix_box"][0, 1].tolist() == [2, 3, 10, 20]


def test_webdataset_holds_labels_and_images(made, store, tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MEGABYTE", 50_000)
    labels = store.label_set("ms")
    form = Form(images=made.root, shard_mb=1)
    for name in ("one", "two"):
        export_labels(labels, format="webdataset", target=tmp_path / name, form=form)
    shards = sorted((tmp_path / "one").glob("*.tar"))
    info = json.loads((tmp_path / "one" / "info.json").read_text())
    assert len(shards) > 2
    assert [shard["file"] for shard in info["shards"]] == [path.name for path in shards]
    assert info["samples"] == sum(shard["samples"] for shard in info["shards"]) == 8
    for path, said in zip(shards, info["shards"], strict=True):
        assert path.stat().st_size == said["bytes"] <= 50_000
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    found = samples(tmp_path / "one")
    for row, key in enumerate(made.keys):
        sample = found[key.removesuffix(".png")]
        assert int(sample["cls"]) == made.truth[row]
        about = json.loads(sample["json"])
        assert (about["key"], about["class"]) == (key, key[:3])
        np.testing.assert_array_equal(array(sample["boxes.npy"]), made.boxes[row])
        np.testing.assert_array_equal(array(sample["flips.npy"]), made.flips[row])
        ids, probs = made.kept(3)
        np.testing.assert_array_equal(array(sample["class_ids.npy"]), ids[row])
        np.testing.assert_array_equal(array(sample["probs.npy"]), probs[row])
        assert sample["png"] == (made.root / key).read_bytes()
    # such shards are images again
    again = open_images(tmp_path / "one")
    assert list(again.keys) == made.keys
    assert again.class_ids.tolist() == made.truth.tolist()
    assert again.file(made.keys[3]).read_bytes() == (made.root / made.keys[3]).read_bytes()


def test_webdataset_takes_the_labelled_images_only(made, store, tmp_path):
    labels, other = store.label_set("ms"), foreign.make(tmp_path / "other", seed=1)
    wrong = {
        "is not the image that was labelled": Form(images=other.root),
        "nothing is there": Form(images=tmp_path / "nowhere"),
        "`shard_mb=0`: a shard has 1 to": Form(shard_mb=0),
        "`axis_order=rows-first`: webdataset has no such choice": Form(axis_order="rows-first"),
    }
    for message, form in wrong.items():
        with pytest.raises((RejectedInput, UsageError), match=message):
            export_labels(labels, format="webdataset", target=tmp_path / "x", form=form)
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


def test_a_sample_is_named_up_to_its_only_dot():
    assert webdataset.sample_name("a.b/c.d.JPEG") == "a.b/c_d"
    assert webdataset.sample_name("a/.jpg") == "a/_jpg"


def test_maps_can_be_written_turned(made, store, tmp_path):
    labels = store.label_set("maps")
    for order in ("rows-first", "columns-first"):
        export_labels(
            labels, format="relabel", target=tmp_path / order, form=Form(axis_order=order)
        )
    path = made.keys[0].replace(".png", ".pt")
    plain, turned = (
        torch.load(tmp_path / order / path) for order in ("rows-first", "columns-first")
    )
    assert plain.shape == (2, 3, 5, 7)
    assert torch.equal(turned, plain.mT)
    with pytest.raises(UsageError, match="rows-first or columns-first"):
        export_labels(
            labels, format="relabel", target=tmp_path / "x", form=Form(axis_order="diagonal")
        )


def test_labels_that_a_format_cannot_hold(store, tmp_path):
    wrong = [("fkd", "logits"), ("fkd", "maps"), ("ml-dr", "logits"), ("relabel", "ms")]
    for format_name, name in wrong:
        with pytest.raises(UsageError, match=name):
            export_labels(store.label_set(name), format=format_name, target=tmp_path / "x")
    with pytest.raises(UsageError, match="choose one of fkd"):
        export_labels(store.label_set("ms"), format="zip", target=tmp_path / "x")
    with pytest.raises(UsageError, match="a map is of a whole image"):
        export_labels(
            store.label_set("maps"),
            format="relabel",
            target=tmp_path / "x",
            selection=Selection(crops=range(2)),
        )
    assert not list(tmp_path.iterdir())


def test_images_without_labels_are_not_an_empty_export(store, tmp_path, monkeypatch):
    labels = store.label_set("ms")
    monkeypatch.setattr(labels.store, "bad", np.ones(8, bool))
    with pytest.raises(NotGenerated, match="none of the 8 chosen images"):
        export_labels(labels, format="npz", target=tmp_path / "x")


@pytest.mark.parametrize(
    "tail", [[-0.1, 0.1], [np.nan, 0.1], [0.5, 0.1], [0.09, 0.1], [[0.1], [0.1]], [0, 1]]
)
def test_a_tail_that_is_none_is_refused(tail):
    probs = np.array([[0.6, 0.3], [0.8, 0.1]], "f4")
    with pytest.raises(Refused, match="tails"):
        tail_mass(np.array(tail), probs)
    assert tail_mass(np.array([0.1, 0.1], "f2"), probs).dtype == np.float32
