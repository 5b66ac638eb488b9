"""DataCompDR's files: embeddings and crops are those of the files, and what cannot be kept is refused or named."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import labelstore
from cli import errors, labelstore_app
from labelstore.care.verification import verify
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange import Stated
from labelstore.exchange.readers.datacompdr import teacher_values
from tests.exchange import foreign_files as foreign
from tests.exchange.malformed_files import Runs, torch_bytes
from tests.flat_options import import_labels

N, M, WIDTHS = 12, 4, (20, 28)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = foreign.make(tmp_path_factory.mktemp("i"), num_images=N, num_crops=M)
    rows = np.random.default_rng(0).normal(size=(N, M, sum(WIDTHS))).astype("f4")
    parts = np.split(rows, [WIDTHS[0]], axis=-1)
    # what CLIP.forward returns: every teacher's embedding at unit length
    made.logits = np.concatenate([p / np.linalg.norm(p, axis=-1, keepdims=True) for p in parts], -1)
    return made


def imported(made, source, store, *, dtype="float32", **stated):
    stated = Stated(**({"drop_augmentations": True} | stated))
    return import_labels(
        store, format="datacompdr", source=source, images=made.root, stated=stated, dtype=dtype
    )  # fmt: skip


@pytest.mark.parametrize("form", ["shards", "one-shard", "unpacked", "bfloat16", "flips"])
def test_embeddings_and_crops_are_those_of_the_files(made, tmp_path, form):
    options = {
        "unpacked": {"unpacked": True, "as_text": False},
        "bfloat16": {"half": True},
        "flips": {"flips": True, "randaug": False},
    }.get(form, {})
    per_shard = N if form == "one-shard" else 5
    source = foreign.write_datacompdr(made, tmp_path / "dr", per_shard=per_shard, **options)
    if form == "one-shard":
        source /= "00000000.tar"
    report = imported(made, source, tmp_path / "s", drop_augmentations=form != "flips")
    assert (report.num_images, report.num_crops, report.num_bad) == (N, M, 0)
    assert report.facts["teacher_values"] == list(WIDTHS)
    assert report.facts["images_of_this_sha256"] == [N, N]
    assert ("parameters of rand_augment" in report.lost) == (form != "flips")
    with labelstore.open(tmp_path / "s") as store:
        labels = store.label_set()
        assert (labels.outputs.kind, labels.codec.name) == ("embedding", "logits")
        wanted = made.logits
        if form == "bfloat16":
            wanted = torch.tensor(wanted).bfloat16().float().numpy()
        held = np.concatenate([labels.raw_outputs(block, None) for block in labels.blocks])
        np.testing.assert_array_equal(held, wanted)
        np.testing.assert_array_equal(labels.boxes(range(N)), made.boxes)
        flips = made.flips if form == "flips" else np.zeros((N, M), bool)
        np.testing.assert_array_equal(labels.flips(range(N)), flips)
    report = verify(tmp_path / "s", "deep", workers=1)
    assert report.is_sound, [str(problem) for problem in report.problems]


def test_what_a_store_cannot_keep_is_refused(made, tmp_path):
    source = foreign.write_datacompdr(made, tmp_path / "dr")
    with pytest.raises(UsageError, match=r"augmented further \(rand_augment\)"):
        imported(made, source, tmp_path / "s", drop_augmentations=False)
    with pytest.raises(UsageError, match="choose logits"):
        imported(made, source, tmp_path / "s", compression="ms", k=5)
    with pytest.raises(UsageError, match="hold up to 4"):
        imported(made, source, tmp_path / "s", num_crops=5)
    (source / "config.json").write_text(
        json.dumps({"center_crop": {"size": 224}, "random_resized_crop": {"size": 224}}) + "\n"
    )
    with pytest.raises(RejectedInput, match="enables center_crop: boxes are then in pixels of"):
        imported(made, source, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_configuration_says_the_input_size(made, tmp_path):
    source = foreign.write_datacompdr(made, tmp_path / "dr")
    crop = {"interpolation": "bicubic", "size": 256}
    enabled = {"random_resized_crop": crop, "rand_augment": {"enable": True, "p": 1.0}}
    (source / "config.json").write_text(json.dumps(enabled) + "\n\n")
    imported(made, source, tmp_path / "s", num_crops=2)
    with labelstore.open(tmp_path / "s") as store:
        assert store.teacher(store.label_set().row.teacher).input_size == 256
        assert store.num_crops == 2
    with pytest.raises(UsageError, match="says 256 pixels"):
        imported(made, source, tmp_path / "t", input_size=224)


def rewritten(source: Path, change) -> None:
    """A shard's members as `change(name, data)` gives them; None: left out."""
    (shard,) = source.glob("*.tar")
    with tarfile.open(shard) as tar:
        files = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]
    with tarfile.open(shard, "w") as tar:
        for name, data in files:
            changed = change(name, data)
            if changed is not None:
                info = tarfile.TarInfo(name)
                info.size = len(changed)
                tar.addfile(info, io.BytesIO(changed))


def npz(**arrays) -> bytes:
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()


CROP = [[0, 0, 20, 20], [[1, 0.5], [0, 0.0]]]
PAUG = {
    "beyond": [[[0, 0, 20, 900], [[1, 0.5]]]] * M,
    "not-whole": [[[0.5, 0, 20, 20]]] * M,
    "negative": [[[-1, 0, 20, 20]]] * M,
    "resized-first": [[224, [0, 0, 20, 20]]] * M,
    "mixed": [[None, [0, 0, 20, 20]]] * M,
    "unknown": [[[0, 0, 20, 20], {"op": 1}]] * M,
    "two-flips": [[[0, 0, 20, 20], True, False]] * M,
    "fewer": [CROP] * (M - 1),
    "none": [],
    "text": json.dumps("abc"),
    "deep": "[" * 100_000,
    "huge-number": "[[[" + "9" * 5000 + ", 0, 1, 1]]]",
}


@pytest.mark.parametrize("name", PAUG)
def test_crops_that_are_none_are_refused(made, tmp_path, name):
    source = foreign.write_datacompdr(made, tmp_path / "dr", per_shard=N)
    bad = json.dumps({"param_aug": PAUG[name]}).encode()
    rewritten(source, lambda file, data: bad if file == "im_003.paug.json" else data)
    with pytest.raises(RejectedInput, match=r"00000000.tar/im_003.npz: h") as error:
        imported(made, source, tmp_path / "s")
    assert str(error.value).isprintable()
    report = imported(made, source, tmp_path / "s", skip_bad=True)
    assert (report.num_bad, report.bad[0].image) == (1, made.keys[3])


def hostile(made, canary: Path) -> dict[str, tuple[str, bytes]]:
    good = made.logits[0]
    objects = io.BytesIO()
    np.save(objects, np.array([Runs(open, str(canary), "w")], object), allow_pickle=True)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("image_emb.npy", objects.getvalue())
    harm = torch_bytes({"image_emb": Runs(open, str(canary), "w")}, pickle_module=pickle)
    return {
        "objects": ("npz", zipped.getvalue()),
        "nan": ("npz", npz(image_emb=np.full_like(good, np.nan))),
        "integers": ("npz", npz(image_emb=np.ones(good.shape, int))),
        "flat": ("npz", npz(image_emb=good.ravel())),
        "narrow": ("npz", npz(image_emb=good[:, :-1])),
        "other-name": ("npz", npz(embedding=good)),
        "bomb": ("npz", npz(image_emb=np.zeros((M, 1 << 20), "f4"))),
        "no-zip": ("npz", b"PK\x03\x04" + bytes(90)),
        "empty": ("npz", b""),
        "pickle-that-runs": ("pth.gz", gzip.compress(harm)),
        "no-gzip": ("pth.gz", harm),
        "gzip-bomb": ("pth.gz", gzip.compress(bytes(100 << 20))),
        "cut-off": ("pth.gz", gzip.compress(harm)[:-20]),
        "list": ("pth.gz", gzip.compress(torch_bytes([torch.tensor(good)]))),
    }


HOSTILE = "objects nan integers flat narrow other-name bomb no-zip empty pickle-that-runs no-gzip gzip-bomb cut-off list"


@pytest.mark.parametrize("name", HOSTILE.split())
def test_embeddings_that_are_none_are_refused(made, tmp_path, name):
    canary = tmp_path / "was-run"
    ending, bad = hostile(made, canary)[name]
    half = ending == "pth.gz"
    source = foreign.write_datacompdr(made, tmp_path / "dr", unpacked=True, half=half)
    (source / f"im_003.{ending}").write_bytes(bad)
    with pytest.raises(RejectedInput, match=rf"im_003.{ending}: ") as error:
        imported(made, source, tmp_path / "s")
    assert str(error.value).isprintable()
    assert not canary.exists()


def test_samples_and_images_are_matched_by_name(made, tmp_path):
    source = foreign.write_datacompdr(made, tmp_path / "dr", per_shard=N)
    rewritten(source, lambda file, data: None if file.startswith("im_005") else data)
    with pytest.raises(RejectedInput, match=r"im_005.npz: is missing"):
        imported(made, source, tmp_path / "s")
    rewritten(source, lambda file, data: None if file == "im_004.paug.json" else data)
    with pytest.raises(RejectedInput, match=r"im_004.npz: has no paug.json beside it"):
        imported(made, source, tmp_path / "t")
    shutil.copy(source / "00000000.tar", source / "1.tar")
    with pytest.raises(RejectedInput, match="are samples of one key"):
        imported(made, source, tmp_path / "t")
    (source / "1.tar").unlink()
    few = tmp_path / "few" / "train" / "c"
    few.mkdir(parents=True)
    shutil.copy(made.root / made.keys[0], few / "im_000.v2.png")
    report = import_labels(
        tmp_path / "u", format="datacompdr", source=source, images=few.parent, stated=Stated(drop_augmentations=True)
    )  # fmt: skip
    assert (report.num_images, len(report.unmatched)) == (1, N - 2)
    shutil.copy(few / "im_000.v2.png", few / "im_000.png")
    with pytest.raises(RejectedInput, match="would both have the labels of"):
        import_labels(tmp_path / "v", format="datacompdr", source=source, images=few.parent)


def test_the_command_says_what_it_takes(made, tmp_path, capsys):
    source = foreign.write_datacompdr(made, tmp_path / "dr")
    arguments = ["import", "datacompdr", source, tmp_path / "s", "--images", made.root, "--dry-run"]
    arguments = [str(argument) for argument in (*arguments, "--drop-augmentations")]
    assert errors.run(labelstore_app.commands, "labelstore", arguments) == 0
    said = " ".join(capsys.readouterr())
    assert "4 crops of 48 values (embedding, float32)" in said
    assert "values of 2 teachers behind each other: 20 + 28" in said
    assert "12 of 12 images have the SHA-256" in said


def test_teachers_are_told_apart_by_unit_lengths():
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=(M, d)) for d in (768, 512, 1024)]
    whole = np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], 1)
    assert teacher_values(whole.astype("f4")) == [768, 512, 1024]
    assert teacher_values(whole[:, :768].astype("f4")) == [768]
    assert teacher_values(1.3 * whole.astype("f4")) is None
