"""labels='embedding': a student learns the teacher's outputs themselves, whatever form they are kept in."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import labelstore
import trainer
from labelstore import Logits, ProductCodes
from labelstore.errors import RejectedInput, UsageError
from tests.flat_options import StoredPasses, label_images
from tests.trainer.small_runs import write_data
from tests.trainer.test_supervision import config, losses
from trainer.config import TrainConfig
from trainer.losses import EmbeddingLoss
from trainer.sampler import PassSchedule

TEACHER = "tests.generation.test_embeddings:embedding"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), 4, 1)


@pytest.fixture(scope="module")
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s"
    label_images(
        path, images=data / "train", teacher=TEACHER, codec=Logits(), num_crops=8, name="half",
        classes="embedding", images_per_shard=8, device="cpu", workers=1,
    )  # fmt: skip
    with labelstore.open(path) as opened:
        half = opened.label_set("half")
        labelstore.derive(half, Logits(dtype="uint8"), name="eight")
        labelstore.derive(half, ProductCodes(values_per_code=4), name="codes")
    return path


def learns(data: Path, store: Path, label_set: str, **changes: object) -> TrainConfig:
    given = {"labels": "embedding", "store": store, "label_set": label_set}
    return config(data, **{**given, **changes})


@pytest.mark.parametrize("label_set", ["half", "eight", "codes"])
def test_passes_hold_the_outputs_themselves(store, label_set):
    with labelstore.open(store) as opened:
        labels = opened.label_set(label_set)
        every = np.concatenate([labels.raw_outputs(block) for block in labels.blocks])
        with StoredPasses(
            labels, schedule=PassSchedule.of(passes=2, crops_per_image=2), as_outputs=True
        ) as passes:
            found = passes.pass_labels(1)
            expected = every[found.images[:, None], found.crops]
            np.testing.assert_array_equal(found.labels.probs, expected)
            assert not found.labels.rest.any()


@pytest.mark.sample(1)
@pytest.mark.parametrize("distance", ["cosine", "mse"])
@pytest.mark.parametrize("label_set", ["eight", "codes"])
def test_a_student_comes_nearer_and_its_network_is_kept(
    store, data, tmp_path, monkeypatch, distance, label_set
):
    wanted = learns(
        data, store, label_set, embedding_loss=distance, projection_head=True, epochs=16, lr=0.02,
        output=tmp_path / "r",
    )  # fmt: skip
    found, run = losses(monkeypatch, wanted)
    assert run.top1 is None
    assert run.config.num_classes == 24
    assert np.mean(found[-6:]) < 0.9 * np.mean(found[:6])
    with (tmp_path / "r" / "summary.csv").open() as lines:
        assert {row["eval_top1"] for row in csv.DictReader(lines)} == {""}
    outputs = run.model.eval()(torch.rand(2, 3, 32, 32))
    assert outputs.shape == (2, 24)
    assert not torch.allclose(outputs.norm(dim=1), torch.ones(2))
    again = trainer.run(TrainConfig.from_mapping({**wanted.to_mapping(), "resume": True}))
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value)


def test_the_loss_is_that_of_dense_vectors_also_where_crops_are_mixed():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 7, generator=generator, requires_grad=True)
    one, other = torch.randn(2, 5, 7, generator=generator)
    ids = torch.arange(7).expand(5, 7)
    listed = torch.cat([ids, ids], 1), torch.cat([0.3 * one, 0.7 * other], 1), torch.zeros(5)
    mean = 0.3 * one + 0.7 * other
    expected = {
        "mse": (outputs - mean).square().mean(),
        "cosine": (1 - (outputs * mean).sum(1) / outputs.norm(dim=1) / mean.norm(dim=1)).mean(),
    }
    for distance, value in expected.items():
        loss = EmbeddingLoss(distance)(outputs, *listed)
        torch.testing.assert_close(loss, value)
        (gradient,) = torch.autograd.grad(loss, outputs, retain_graph=True)
        (wanted,) = torch.autograd.grad(value, outputs, retain_graph=True)
        torch.testing.assert_close(gradient, wanted)


def test_ssl_learns_from_codes_too(store, data, monkeypatch):
    found, _ = losses(
        monkeypatch,
        learns(data, store, "codes", labels="ssl", temperature=1.0, projection_head=True),
    )
    assert all(np.isfinite(found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 2.0}, "temperature with labels='embedding'"),
        ({"probability_range": (0.1, 0.9)}, "no softmax is taken"),
        ({"order": "easy-to-hard"}, "no softmax is taken"),
        ({"soft_loss": "kl"}, "soft_loss with labels='embedding'"),
        ({"ground_truth_weight": 0.5}, "no classes"),
        ({"discriminator": True}, "discriminator with labels='embedding'"),
        ({"labels": "fkd", "embedding_loss": "mse"}, "belongs to labels='embedding'"),
    ],
)
def test_settings_that_an_embedding_does_not_have_are_refused(store, data, changes, words):
    with pytest.raises(UsageError, match=words):
        learns(data, store, "half", **changes)


def test_outputs_of_which_nothing_says_that_they_are_an_embedding_are_refused(data, tmp_path):
    label_images(
        tmp_path / "s", images=data / "train", teacher=TEACHER, codec=Logits(), num_crops=2,
        name="head", device="cpu", workers=1,
    )  # fmt: skip
    with pytest.raises(RejectedInput, match="nothing says that they are an embedding"):
        trainer.run(learns(data, tmp_path / "s", "head"))
    with pytest.raises(RejectedInput, match="labels='fkd'"):
        trainer.run(learns(data, tmp_path / "s", "head", labels="fkd"))
