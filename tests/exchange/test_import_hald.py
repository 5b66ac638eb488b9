"""HALD's files: what they hold is what the store has, their order is proved, and what is none is refused unread."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import labelstore
from labelstore.care.verification import verify
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange import Stated
from labelstore.exchange.labels import softmax
from tests.exchange import foreign_files as foreign
from tests.exchange.malformed_files import Runs, torch_bytes
from tests.flat_options import import_labels

N, M, BATCH = 40, 3, 16


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return foreign.make(tmp_path_factory.mktemp("images"), num_images=N, num_crops=M, classes=12)


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    return foreign.write_hald(made, tmp_path_factory.mktemp("files") / "hald", batch=BATCH)


@pytest.fixture
def source(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "hald"))


def imported(made, source, store, **stated):
    return import_labels(
        store, format="hald", source=source, images=made.root, stated=Stated(**stated), dtype="float32"
    )  # fmt: skip


def test_labels_boxes_and_mixtures_are_those_of_the_files(made, written, tmp_path):
    report = imported(made, written, tmp_path / "s")
    assert (report.num_images, report.num_crops, report.facts["order"]) == (N, M, "listed")
    assert report.facts["order_is"] == "proved"
    assert report.facts["proof"]["p"] < 1e-4
    assert report.facts["rows_left_out"] == 0
    with labelstore.open(tmp_path / "s") as store:
        labels = store.label_set()
        assert (labels.temperature, labels.num_classes) == (20.0, 12)
        assert store.teacher(labels.row.teacher).input_size == 96
        half = softmax(made.logits, 20.0).astype("f2").astype("f4")
        np.testing.assert_allclose(labels.recover(range(N)), half, atol=1e-7, rtol=1e-3)
        np.testing.assert_array_equal(labels.boxes(range(N)), made.boxes)
        np.testing.assert_array_equal(labels.flips(range(N)), made.flips)
        group = store.group(f"crops/{store.plan().name}")
        kept = {
            name: np.concatenate([group.read(block, None, name) for block in group.blocks])
            for name in ("mix_image", "mix_from", "mix_flip", "mix_share", "mix_box")
        }
    for epoch in range(M):
        order = np.array(torch.load(written / "sampler_indices_dict.pt")[str(epoch)])
        batches = torch.load(written / f"epoch_{epoch}.tar", weights_only=False)
        for rows, entries in zip(np.split(order, [BATCH, 2 * BATCH]), batches, strict=True):
            partner = rows[entries[2].numpy()]
            np.testing.assert_array_equal(kept["mix_image"][rows, epoch], partner)
            np.testing.assert_array_equal(kept["mix_from"][rows, epoch], made.boxes[partner, epoch])
            np.testing.assert_array_equal(kept["mix_flip"][rows, epoch], made.flips[partner, epoch])
            top, left, bottom, right = (int(edge) for edge in entries[4])
            assert (kept["mix_box"][rows, epoch] == [top, left, bottom - top, right - left]).all()
    report = verify(tmp_path / "s", "deep", workers=1)
    assert report.is_sound, [str(problem) for problem in report.problems]


def test_fewer_classes_and_crops(made, written, tmp_path):
    imported(made, written, tmp_path / "s", compression="ms", k=3, num_crops=2)
    with labelstore.open(tmp_path / "s") as store:
        labels = store.label_set()
        assert (labels.temperature, store.num_crops) == (20.0, 2)
        wanted = softmax(made.logits, 20.0)[:, :2].max(-1)
        np.testing.assert_allclose(labels.recover(range(N)).max(-1), wanted, rtol=1e-3)
    with pytest.raises(UsageError, match="made at temperature 20"):
        imported(made, written, tmp_path / "t", temperature=1.0)
    with pytest.raises(UsageError, match=f"hold up to {M}"):
        imported(made, written, tmp_path / "t", num_crops=M + 1)


def _other_order(folder):
    """Of a run with another seed: no row is the image's that it is said to be."""
    path = folder / "sampler_indices_dict.pt"
    rng = np.random.default_rng(7)
    torch.save({epoch: rng.permutation(N).tolist() for epoch in torch.load(path)}, path)


def _no_sampler(folder):
    (folder / "sampler_indices_dict.pt").unlink()


def _an_epoch_is_not_listed(folder):
    path = folder / "sampler_indices_dict.pt"
    listed = torch.load(path)
    torch.save({epoch: rows for epoch, rows in listed.items() if epoch != "1"}, path)


def _another_image(folder):
    path = folder / "sampler_indices_dict.pt"
    listed = torch.load(path)
    listed["0"][0] = N
    torch.save(listed, path)


def _fewer_images(folder):
    path = folder / "sampler_indices_dict.pt"
    torch.save({epoch: list(range(N - 1)) for epoch in torch.load(path)}, path)


def _a_batch_is_missing(folder):
    path = folder / "epoch_0.tar"
    torch.save(torch.load(path, weights_only=False)[:-1], path)


def _logits(folder):
    for path in folder.glob("epoch_*.tar"):
        batches = torch.load(path, weights_only=False)
        torch.save([[*batch[:5], batch[5].float().log().half()] for batch in batches], path)


def _code_in_the_sampler(folder):
    canary = folder / "was-run"
    call = Runs(os.system, f"touch {canary}")
    (folder / "sampler_indices_dict.pt").write_bytes(torch_bytes({"0": call}))


def _code_in_an_epoch(folder):
    canary = folder / "was-run"
    (folder / "epoch_0.tar").write_bytes(torch_bytes([Runs(os.system, f"touch {canary}")]))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_other_order, "order listed was stated, and fits as well as any other"),
        (_no_sampler, "sampler_indices_dict.pt: is missing"),
        (_an_epoch_is_not_listed, "lists no indices of epoch 1"),
        (_another_image, f"names image {N}, and the folder has {N}"),
        (_fewer_images, f"an epoch is of {N - 1} images"),
        (_a_batch_is_missing, f"holds 32 rows, and the sampler drew {N}"),
        (_logits, "has probabilities from"),
        (_code_in_the_sampler, "posix.system, which no label file needs; it was not run"),
        (_code_in_an_epoch, "posix.system, which no label file needs; it was not run"),
    ],
)
def test_what_is_none_of_it_is_refused(made, source, tmp_path, harm, message):
    harm(source)
    with pytest.raises(RejectedInput, match=message):
        imported(made, source, tmp_path / "s")
    assert not (source / "was-run").exists()
