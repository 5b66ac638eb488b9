"""Outputs that are no classes, through a store's life: made, grown, repaired, frozen, merged, derived, compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import labelstore
from cli import errors, labelstore_app
from labelstore import Full, Logits, MarginalSmoothing, ProductCodes
from labelstore.analysis.output_cosine import cosine, mean_cosine
from labelstore.care.auditing import audit
from labelstore.care.freezing import freeze
from labelstore.care.repairing import repair
from labelstore.care.verification import verify
from labelstore.codecs.product_codes import from_text
from labelstore.errors import ConflictError, RejectedInput, UsageError
from labelstore.labelling.stating import state_classes
from labelstore.sharing.merge import merge
from tests.flat_options import generate, grow, label_images
from tests.generation.conftest import OPTIONS, write_photographs

WORK = {"device": "cpu", "workers": 2, "batch_size": 32}
CODEC = ProductCodes(values_per_code=4)
D = 24


class Embedding(torch.nn.Module):
    """A network whose outputs are a point in space; in double precision, so that they do not depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet18", num_classes=D, **OPTIONS).double()
        self.pretrained_cfg = {
            "input_size": (3, 32, 32),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "interpolation": "bilinear",
            "crop_pct": 0.875,
        }

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 3 * self.backbone(pixels.double()).float()


def embedding() -> Embedding:
    torch.manual_seed(3)
    return Embedding()


TEACHER = f"{__name__}:embedding"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("embedded") / "photographs", per_class=3)


@pytest.fixture(scope="module", params=["zarr", "hdf5"])
def made(images, tmp_path_factory, request) -> Path:
    path = tmp_path_factory.mktemp("stores") / "e.labels"
    layout = {"images_per_shard": 4, "crops_per_shard": 2, "backend": request.param}
    label_images(
        path, images=images, teacher=TEACHER, codec=CODEC, num_crops=4, name="pq",
        classes="embedding", **layout, **WORK,
    )  # fmt: skip
    with labelstore.open(path) as store:
        options = {"teacher": TEACHER, "classes": "embedding", **WORK}
        generate(store, codec=Logits(dtype="float32"), name="all", **options)
    return path


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made, tmp_path / "store")
    with labelstore.open(tmp_path / "store") as opened:
        yield opened


def codebook(labels) -> str:
    return labels.row.codec["codebook"]


def everything(labels):
    return np.concatenate([labels.raw_outputs(block) for block in labels.blocks])


def test_codes_are_those_of_the_teachers_outputs_and_the_codebook_stays_what_it_was(store, images):
    codes, every = store.label_set("pq"), store.label_set("all")
    assert codes.outputs.kind == every.outputs.kind == "embedding"
    book, before = codebook(codes), everything(codes)
    assert from_text(book, 4).shape == (D // 4, 255, 4)
    expected = codes.codec.encode(everything(every), D)
    np.testing.assert_allclose(codes.codec.outputs(expected, D), before, atol=1e-5)
    assert mean_cosine(every, codes)[0] > 0.9
    assert verify(store, "deep").is_sound
    # resumed: nothing is learnt or labelled again
    options = {"teacher": TEACHER, **WORK}
    assert generate(store, codec=CODEC, name="pq", **options).num_crops == 0
    # grown: new crops in the same codebook, old ones as they were
    grow(store, num_crops=8, label_set="pq", **options)
    grown = store.label_set("pq")
    assert codebook(grown) == book
    np.testing.assert_array_equal(everything(grown)[:, :4], before)
    assert not np.isnan(everything(grown)).any()
    assert audit(store, label_set="pq", sample=30, **options).is_sound


def test_repair_and_freeze_keep_the_codebook(store, tmp_path, images):
    before, book = everything(store.label_set("pq")), codebook(store.label_set("pq"))
    row = store.catalogue.ledger.shards("labels/pq")[1]
    path = store.arrays.root / row.files[0].key
    path.write_bytes(path.read_bytes()[:-7])
    report = repair(store, images=images, teacher=TEACHER, **WORK)
    assert [shard.same_bytes for shard in report.shards] == [True]
    freeze(store, tmp_path / "frozen")
    with labelstore.open(tmp_path / "frozen") as frozen:
        assert codebook(frozen.label_set("pq")) == book
        np.testing.assert_array_equal(everything(frozen.label_set("pq")), before)
        assert verify(frozen, "deep").is_sound


def test_stores_merge_with_one_codebook_and_not_with_two(store, made, images, tmp_path):
    def another(name: str, codec: ProductCodes) -> Path:
        path = tmp_path / name
        label_images(
            path, images=images, teacher=TEACHER, codec=codec, num_crops=4, name="pq",
            classes="embedding", images_per_shard=4, crops_per_shard=2, **WORK,
        )  # fmt: skip
        return path

    one = store.label_set("pq").codec
    same = another("same", one)
    merge(tmp_path / "out", [store.path, same])
    with labelstore.open(tmp_path / "out") as out:
        assert codebook(out.label_set("pq")) == one.codebook
        np.testing.assert_array_equal(
            everything(out.label_set("pq")), everything(store.label_set("pq"))
        )
    other = one.trained(np.random.default_rng(0).normal(size=(50, D)).astype("f4"))
    with pytest.raises(ConflictError, match="codebook") as refused:
        merge(tmp_path / "no", [store.path, another("other", other)])
    assert len(str(refused.value)) < 600


def test_variants_to_and_from(store, capsys):
    every = store.label_set("all")
    eight = labelstore.derive(every, Logits(dtype="uint8"), name="eight")
    codes = labelstore.derive(every, CODEC, name="codes")
    book = codebook(codes)
    # again: what is there is finished, in its own codebook
    assert codebook(labelstore.derive(every, CODEC, name="codes")) == book
    half = labelstore.derive(codes, Logits(), name="half")
    assert mean_cosine(every, eight)[1] > 0.9999
    assert mean_cosine(codes, half)[1] > 0.9999
    expected = codes.codec.encode(everything(every), D)
    np.testing.assert_array_equal(codes.codec.outputs(expected, D), everything(codes))
    assert {one.outputs.kind for one in (eight, codes, half)} == {"embedding"}
    with pytest.raises(UsageError, match="an embedding, of which no softmax"):
        labelstore.derive(every, MarginalSmoothing(k=2))
    command = ["variants", str(store.path), "--from", "all", "--compression", "pq"]
    command += ["--values-per-code", "8", "--json"]
    assert errors.run(labelstore_app.commands, "labelstore", command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["label_set"] == "all-pq8"
    assert len(found["codec"]["codebook"]) == 16
    with labelstore.open(store.path) as opened:
        again = opened.label_set("all-pq8")
        near = cosine(everything(opened.label_set("all")), everything(again))
    assert found["cosine"]["mean"] == pytest.approx(near.mean(), abs=1e-5)


def test_what_outputs_are_is_asked_and_kept(store, images):
    options = {"teacher": TEACHER, "images": images, **WORK}
    with pytest.raises(UsageError, match="classes='embedding' with full labels"):
        generate(store, codec=Full(), name="probs", classes="embedding", **options)
    generate(store, codec=Logits(), name="head", **options)
    assert store.label_set("head").outputs.kind == "not classes"
    with pytest.raises(ConflictError, match="asked for others"):
        generate(store, codec=Logits(), name="head", classes="embedding", **options)
    assert state_classes(store.label_set("head"), embedding=True).outputs.kind == "embedding"
    with pytest.raises(RejectedInput, match="values of an embedding"):
        _ = store.label_set("head").true_output
