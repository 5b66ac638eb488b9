"""Labels do not depend on what the images lie in: folder, list, tar shards or a saved data set."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import labelstore
from cli import errors, labelstore_app, trainer_app
from labelstore import Full
from labelstore.care.auditing import audit
from labelstore.care.repairing import repair
from labelstore.errors import ConflictError, RejectedInput, UsageError
from labelstore.images import open_images
from labelstore.labelling.growing import add_images
from tests.flat_options import CropDataset, generate, grow, label_images
from tests.generation.conftest import CLASSES, OPTIONS, write_photographs, write_teacher

WORK = {"batch_size": 16, "device": "cpu", "workers": 2}


def write_shards(folder: Path, images: Path, keys: list[str], *, shards: int = 2) -> None:
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for key in keys[shard::shards]:
                archive.add(images / key, key)
                truth = key.partition("/")[0].encode()
                about = tarfile.TarInfo(key.rpartition(".")[0] + ".cls")
                about.size = len(truth)
                archive.addfile(about, io.BytesIO(truth))


def write_list(path: Path, keys: list[str]) -> None:
    lines = [f'{key.partition("/")[0]},"{key}"' for key in keys]
    path.write_text("\n".join(["class,path", *lines]) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and the same in other forms, and a teacher."""
    import datasets

    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("any")
    images = write_photographs(root / "images", per_class=4)
    keys = sorted(str(path.relative_to(images)) for path in images.rglob("*.jpg"))
    write_list(root / "list.csv", keys)
    write_shards(root / "shards", images, keys)
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    rows = {
        "image": [{"bytes": (images / key).read_bytes(), "path": None} for key in keys],
        "label": [CLASSES.index(key.partition("/")[0]) for key in keys],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(root / "saved")
    write_teacher(root / "teacher")
    return root


def made(store: Path, images: str | Path, place: Path, **options: object) -> labelstore.Store:
    settings = {
        "teacher": str(place / "teacher"),
        "codec": Full(dtype="float32"),
        "num_crops": 2,
        "images_per_shard": 8,
        **WORK,
        **options,
    }
    label_images(store, images=images, **settings)
    return labelstore.open(store)


def by_key(store: labelstore.Store) -> dict[str, np.ndarray]:
    keys = store.image_columns["key"]
    rows = np.flatnonzero(~store.free)
    return dict(zip(keys[rows].tolist(), store.label_set().recover(rows.tolist()), strict=True))


@pytest.fixture(scope="module")
def from_folder(place, tmp_path_factory):
    with made(tmp_path_factory.mktemp("folder") / "s", place / "images", place) as store:
        yield store


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["list", "tar", "datasets"])
def test_the_same_labels_whatever_they_lie_in(place, from_folder, tmp_path, kind):
    images = {
        "list": f"{place / 'list.csv'}:{place / 'images'}",
        "tar": str(place / "shards"),
        "datasets": str(place / "saved"),
    }[kind]
    with made(tmp_path / "s", images, place) as store:
        facts = store.label_set().row.facts
        assert (facts["images"], facts["images_kind"]) == (images, kind)
        assert store.class_names == CLASSES
        ours, theirs = by_key(store), by_key(from_folder)
        if kind == "datasets":  # other keys have other crops
            assert ours.keys() == {f"{row:08d}" for row in range(12)}
        else:
            assert ours.keys() == theirs.keys()
            for key, labels in ours.items():
                # images come in another order, and so together in other batches
                np.testing.assert_allclose(labels, theirs[key], atol=2e-6)
        # without --images: as recorded
        assert audit(store, sample=24, device="cpu", workers=2).largest < 1e-5
        file = next(f for row in store.catalogue.ledger.shards("labels/teacher") for f in row.files)
        path = store.arrays.root / file.key
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with labelstore.open(tmp_path / "s", checked=False) as store:
        repair(store, device="cpu", workers=2, batch_size=16, whole_shards=True)
        assert path.read_bytes() == whole


def test_another_form_of_the_same_images_will_do(place, from_folder, tmp_path):
    shutil.copytree(from_folder.path, tmp_path / "s")
    with labelstore.open(tmp_path / "s") as store:
        again = {"teacher": str(place / "teacher"), "codec": Full(dtype="float32"), "name": "more"}
        generate(store, images=place / "shards", **again, **WORK)
        old, new = store.label_set("teacher"), store.label_set("more")
        rows = list(range(12))
        np.testing.assert_allclose(old.recover(rows), new.recover(rows), atol=2e-6)
        # keys of another kind are other images
        with pytest.raises(RejectedInput, match=r"bird/0.jpg of the store is not in .*saved"):
            generate(store, images=place / "saved", **{**again, "name": "x"}, **WORK)


def test_a_shard_more_joins_the_store(place, tmp_path):
    keys = sorted(open_images(place / "images").keys)
    shards, more = tmp_path / "shards", tmp_path / "more"
    write_shards(shards, place / "images", keys[::2], shards=1)
    with made(tmp_path / "s", shards, place) as store:
        write_shards(more, place / "images", keys[1::2], shards=1)
        other = bytearray((more / "0.tar").read_bytes())
        at = other.index(b"bird" + bytes(508))  # the class of the first image
        other[at : at + 4] = b"fish"
        (shards / "1.tar").write_bytes(other)
        with pytest.raises(RejectedInput, match="fish is a class that"):
            add_images(store, shards)
        shutil.move(more / "0.tar", shards / "1.tar")
        grow(store, teacher=str(place / "teacher"), **WORK)
        assert store.num_images == 12
        assert len(by_key(store)) == 12


def test_images_that_changed_in_their_shard_are_refused(place, tmp_path):
    keys = sorted(open_images(place / "images").keys)
    write_shards(tmp_path / "shards", place / "images", keys, shards=1)
    with made(tmp_path / "s", tmp_path / "shards", place) as store:
        shard = tmp_path / "shards" / "0.tar"
        data = bytearray(shard.read_bytes())
        image = open_images(shard).file("cat/1.jpg")
        data[image.offset + image.size // 2] ^= 1
        shard.write_bytes(data)  # of the same size, at another time
        with pytest.raises(RejectedInput, match=r"0.tar: cat/1.jpg changed since"):
            audit(store, sample=24, device="cpu")


def test_an_image_that_cannot_be_decoded_is_named_by_its_shard(place, tmp_path):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "a.jpg").write_bytes(b"\xff\xd8\xff nothing")
    for name in CLASSES:
        source = next((place / "images" / name).iterdir())
        (tmp_path / "images" / name).mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / "images" / name / "b.jpg")
    keys = sorted(open_images(tmp_path / "images").keys)
    write_shards(tmp_path / "shards", tmp_path / "images", keys, shards=1)
    with pytest.raises(RejectedInput, match=r"0.tar: cat/a.jpg cannot be decoded .*`skip_bad`"):
        made(tmp_path / "s", tmp_path / "shards", place)
    with made(tmp_path / "s", tmp_path / "shards", place, skip_bad=True) as store:
        assert int((store.bad & ~store.free).sum()) == 1


def test_class_maps_fit_every_kind(place, tmp_path):
    keys = sorted(open_images(place / "images").keys)
    numbered = tmp_path / "numbered.csv"
    lines = [f"{key},{2 - CLASSES.index(key.partition('/')[0])}" for key in keys]
    numbered.write_text("\n".join(["path,class", *lines]) + "\n")
    images = f"{numbered}:{place / 'images'}"
    with pytest.raises(UsageError, match=r"not trained on class '0'.*class map"):
        made(tmp_path / "s", images, place)
    (tmp_path / "map.csv").write_text("0,2\n1,1\n2,0\n")
    with (
        made(tmp_path / "s", images, place, class_map=tmp_path / "map.csv") as store,
        made(tmp_path / "f", place / "images", place) as named,
    ):
        assert store.class_names == ("0", "1", "2")
        ours, theirs = by_key(store), by_key(named)
        for key, labels in ours.items():
            np.testing.assert_allclose(labels, theirs[key][:, ::-1], atol=2e-6)
    with pytest.raises(UsageError, match="class map wnid knows"):
        made(tmp_path / "w", images, place, class_map="wnid")


def run(app, *arguments: object) -> int:
    name = "trainer" if app is trainer_app else "labelstore"
    return errors.run(app.commands, name, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_on_the_command_line(place, tmp_path, capsys):
    images = f"{place / 'list.csv'}:{place / 'images'}"
    about = ("--teacher", place / "teacher", "--num-crops", 2, "--k", 2, "--images-per-shard", 8)
    create = ("create", tmp_path / "s", *about, "--device", "cpu", "--images")
    assert run(labelstore_app, *create, images, "--dry-run") == 0
    assert "12 images of 3 classes" in capsys.readouterr().out
    assert run(labelstore_app, *create, images) == 0
    assert run(labelstore_app, *create, place / "nothing.csv") == 7
    assert run(labelstore_app, "show", tmp_path / "s", "cat/1.jpg", "--images", images,
               "--out", tmp_path / "shown.png") == 0  # fmt: skip
    with Image.open(tmp_path / "shown.png") as shown:
        assert shown.width > 500
    assert run(labelstore_app, "show", tmp_path / "s", "cat/1.jpg", "--images", place / "saved",
               "--out", tmp_path / "x.png") == 7  # fmt: skip
    assert "no image cat/1.jpg in" in capsys.readouterr().err
    page = tmp_path / "page.html"
    assert (
        run(labelstore_app, "report", tmp_path / "s", "--images", place / "shards", "--out", page)
        == 0
    )
    assert page.read_text().count("data:image/jpeg") == 12


def test_a_student_learns_from_shards(place, from_folder, tmp_path, capsys):
    done = run(
        trainer_app, "run", "--store", from_folder.path, "--images", place / "shards", "--val",
        place / "shards", "--model", "timm:resnet18", "--set", f"model_kwargs={OPTIONS}", "--epochs", 2,
        "--crops-per-image", 2, "--batch-size", 24, "--input-size", 32, "--device", "cpu",
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert done == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_the_data_set_for_plain_torch_takes_any_kind(place, from_folder):

    labels = from_folder.label_set()
    data = [place / "images", str(place / "shards"), f"{place / 'list.csv'}:{place / 'images'}"]
    first, *others = (
        CropDataset(labels, d, crops_per_image=2, input_size=32, passes=1) for d in data
    )
    for other in others:
        for i in range(len(first)):
            assert torch.equal(first[i]["pixels"], other[i]["pixels"])
        other.close()
    first.close()
    with pytest.raises(RejectedInput, match=r"has no image bird/0.jpg"):
        CropDataset(labels, place / "saved", crops_per_image=2, passes=1)


def test_joining_from_other_images_is_refused(place, from_folder, tmp_path):
    (tmp_path / "list.csv").write_text("path,class\n" + "bird/0.jpg,bird\ncat/1.jpg,cat\n")
    with pytest.raises((RejectedInput, ConflictError), match="is not in"):
        label_images(
            from_folder.path,
            images=f"{tmp_path / 'list.csv'}:{place / 'images'}",
            teacher=str(place / "teacher"),
            codec=Full(dtype="float32"),
            num_crops=2,
            **WORK,
        )
