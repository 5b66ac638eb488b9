"""Whole runs: what is learnt is what the store returned, and stopping changes nothing."""

from __future__ import annotations

import csv
import dataclasses
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import labelstore
import labelstore.cropping.crop_plan
import trainer
from labelstore import Full, PlanOptions, RegionThresholds
from labelstore.cropping.replay import read_image, replay
from labelstore.errors import ConflictError, IncompleteError, RejectedInput, UsageError
from labelstore.teachers.teacher import load_teacher
from tests.flat_options import StoredPasses, grow, label_images
from tests.generation.conftest import CLASSES, OPTIONS, write_photographs, write_teacher
from tests.trainer.small_runs import label_twice, small_run, write_data
from trainer import TrainConfig
from trainer.checkpoint import read_checkpoint, save_checkpoint
from trainer.mixing import Mixture, mixture
from trainer.models import Normalise, create_model
from trainer.phase_training import StudentView
from trainer.sampler import Deal, DrawingOrder, PassSchedule, image_order

M = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return label_twice(tmp_path_factory.mktemp("store") / "s", data / "train", M)


def config(data: Path, **changes: object) -> TrainConfig:
    return small_run(changes, data=data, labels="ground-truth", epochs=4, workers=2)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_fkd_equals_a_plain_loop_over_recovered_labels(data: Path, store: Path) -> None:
    """The same crops and the store's dense labels, one at a time, in plain torch."""
    wanted = config(data, labels="fkd", store=store, label_set="full", epochs=2, lr=0.1)
    run = trainer.run(wanted)

    labels = labelstore.open(store).label_set("full")
    columns = labels.store.image_columns
    streams = labelstore.cropping.crop_plan.image_streams(list(columns["key"]))
    schedule = PassSchedule.of(passes=1, crops_per_image=2)
    deal = Deal(schedule=schedule, num_images=21, batch_size=8)
    order = DrawingOrder(seed=0, num_crops=M, crops_per_chunk=labels.plan.crops_per_chunk)
    drawn = order.crops(streams, range(2))
    images = image_order(0, 0, streams)
    model = create_model(run.config).train()
    normalise = Normalise(wanted.mean, wanted.std)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    losses = []
    for step in range(deal.steps(0)):
        rows = images[deal.share(0, step)]
        pixels, targets = [], []
        for row in rows:
            image = read_image(data / "train" / columns["key"][row])
            boxes, flips = labels.boxes([int(row)])[0], labels.flips([int(row)])[0]
            pixels.extend(
                replay(image, boxes[crop], bool(flips[crop]), 32, "bilinear") for crop in drawn[row]
            )
            targets.append(labels.recover([int(row)], [drawn[row]])[0])
        logits = model(normalise(torch.stack(pixels)).contiguous(memory_format=torch.channels_last))
        dense = torch.from_numpy(np.concatenate(targets))
        loss = -(dense * torch.log_softmax(logits, 1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((float(loss.detach()), len(dense)))
    mean = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    assert run.train_loss == pytest.approx(mean, abs=1e-5)
    for name, tensor in weights(run.model).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_thresholds_that_discard_nothing_change_nothing(data: Path, store: Path) -> None:
    opened = labelstore.open(store)
    labelstore.calibrate(
        opened.label_set("ms"), RegionThresholds(low=0.0, middle=0.0, top=1.0), name="all"
    )
    plain = trainer.run(config(data, labels="fkd", store=store, label_set="ms"))
    masked = trainer.run(config(data, labels="ferkd", store=store, label_set="ms", mask="all"))
    for name, tensor in weights(plain.model).items():
        assert torch.equal(tensor, weights(masked.model)[name]), name


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("supervision", "stop_at"), [("ground-truth", 1), ("fkd", 6), ("fkd", 7), ("fkd", 11)]
)
def test_resuming_equals_not_stopping(
    data: Path, store: Path, tmp_path: Path, stop_at: int, supervision: str
) -> None:
    options: dict[str, object] = {
        "labels": supervision,
        "model_kwargs": {**OPTIONS, "drop_rate": 0.2},
        "mixing": "selfmix",
    }
    if supervision == "fkd":
        options |= {"store": store, "label_set": "ms", "discriminator": stop_at == 7}
    whole = trainer.run(config(data, **options))

    def stop(step: int, steps: int) -> None:
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)

    halves = config(data, **options, output=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        trainer.run(halves, progress=stop)
    # 6 steps are a pass: stopped in the last one, the checkpoint is that of the pass's end
    left = read_checkpoint(tmp_path / "run" / "last.pth.tar")
    assert (left.step, left.epoch) == (stop_at, 2 * (stop_at // 6))
    resumed = trainer.run(dataclasses.replace(halves, resume=True))
    assert (left.state_dict_discriminator is not None) == (stop_at == 7)
    assert resumed.train_loss == whole.train_loss
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, weights(resumed.model)[name]), name
    with (tmp_path / "run" / "summary.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["epoch"] for row in rows] == ["2", "4"]
    assert float(rows[-1]["eval_top1"]) == whole.top1
    if stop_at == 6:
        finished = trainer.run(dataclasses.replace(halves, resume=True))
        assert (finished.top1, finished.top5) == (whole.top1, whole.top5)


@pytest.mark.slow
def test_a_run_goes_on_with_the_data_that_it_began_with(
    data: Path, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(store, tmp_path / "s")
    stored = config(tmp_path / "data", labels="fkd", store=tmp_path / "s", label_set="ms")
    plain, stored = (
        dataclasses.replace(one, epochs=2, output=tmp_path / f"run-{one.labels}")
        for one in (config(tmp_path / "data"), stored)
    )

    def stop(step: int, steps: int) -> None:
        signal.raise_signal(signal.SIGINT)

    for one in (plain, stored):
        with pytest.raises(KeyboardInterrupt):
            trainer.run(one, progress=stop)
    grow(
        labelstore.open(tmp_path / "s"),
        num_crops=2 * M,
        label_set="ms",
        teacher=str(store.parent / "teacher"),
        images=data / "train",
        device="cpu",
    )
    with pytest.raises(
        ConflictError, match=r"run-fkd began with other data \(num_crops 8, now 16\)"
    ):
        trainer.run(dataclasses.replace(stored, resume=True))
    (last,) = (tmp_path / "data" / "train" / "dog").glob("1.*")
    shutil.copy(last, last.with_stem("more"))
    with pytest.raises(ConflictError, match=r"\(images 21, now 22\)"):
        trainer.run(dataclasses.replace(plain, resume=True))
    # of two images with each other's names only the digest tells
    last.unlink()
    with pytest.raises(ConflictError, match="images_sha256"):
        trainer.run(dataclasses.replace(plain, resume=True))
    # the checkpoint of a trainer that wrote none of it down
    path = plain.output / "last.pth.tar"
    left = read_checkpoint(path)
    save_checkpoint(path, dataclasses.replace(left, config={**left.config, "provenance": {}}))
    assert trainer.run(dataclasses.replace(plain, resume=True)).steps == 6


def test_what_is_drawn_from_is_told_by_the_digests_of_its_shards(
    store: Path, tmp_path: Path
) -> None:
    opened = labelstore.open(store)
    found = []
    for name in ("full", "ms", "ms"):
        with StoredPasses(
            opened.label_set(name),
            schedule=PassSchedule.of(passes=1, crops_per_image=2),
            scratch=tmp_path,
        ) as source:
            found.append(source.drawn_from())
    full, ms, again = found
    assert ms == again
    assert {key for key in ms if ms[key] != full[key]} == {"labels_sha256"}


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_network_sees_the_memory_format_that_was_asked_for(
    data: Path, monkeypatch: pytest.MonkeyPatch, channels_last: bool
) -> None:
    seen = []
    look = StudentView.__call__

    def watch(*given: Any, **named: Any) -> Any:
        seen.append(look(*given, **named)[0])
        raise LookupError("seen enough")

    monkeypatch.setattr(StudentView, "__call__", watch)
    with pytest.raises(LookupError):
        trainer.run(config(data, channels_last=channels_last))
    assert seen[0].is_contiguous() is not channels_last
    assert seen[0].is_contiguous(memory_format=torch.channels_last) is channels_last


def test_mixing_ends_with_the_passes_that_it_is_off_in(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes begin with epochs 0, 2 and 4 of 5: with one epoch off, the single-crop pass at 4 is not mixed."""
    mixed: dict[int, set[bool]] = {}

    def spied(settings: TrainConfig, *given: Any, epoch: int, **named: Any) -> Mixture | None:
        found = mixture(settings, *given, epoch=epoch, **named)
        mixed.setdefault(epoch, set()).add(found is not None)
        return found

    monkeypatch.setattr("trainer.phase_training.mixture", spied)
    trainer.run(
        config(data, epochs=5, single_crop_last=1, mixing="cutmix", mixing_off_epochs=1, val=None)
    )
    assert mixed == {0: {True}, 2: {True}, 4: {False}}


def test_a_run_folder_is_a_teacher(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    of_the_caller = torch.get_rng_state()
    run = trainer.run(config(data, output=tmp_path / "run", epochs=2))
    assert torch.equal(torch.get_rng_state(), of_the_caller)
    teacher = load_teacher(str(tmp_path / "run"))
    assert teacher.class_names == CLASSES
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(teacher.module(pixels), run.model.eval()(pixels))
    with pytest.raises(ConflictError, match="holds a run already"):
        trainer.run(config(data, output=tmp_path / "run", epochs=2))
    with pytest.raises(ConflictError, match="lr"):
        trainer.run(config(data, output=tmp_path / "run", epochs=2, lr=0.3, resume=True))


def test_accumulation_sees_the_same_crops(data: Path) -> None:
    """Batch norm aside, two half batches give the gradient of the whole one."""
    options = {
        "model": "vit_tiny_patch16_224",
        "model_kwargs": {"img_size": 32, "depth": 1, "embed_dim": 12, "num_heads": 3},
        "epochs": 2,
    }
    seen: list[tuple[int, int]] = []
    one = trainer.run(config(data, **options), evaluated=lambda *counts: seen.append(counts))
    # every evaluation is told of, up to its last image
    assert seen
    assert seen[-1][0] == seen[-1][1]
    two = trainer.run(config(data, **options, accumulation_steps=2))
    assert two.train_loss == pytest.approx(one.train_loss, rel=1e-5)
    for name, tensor in weights(one.model).items():
        torch.testing.assert_close(weights(two.model)[name], tensor, atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_refused(data: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="classes"):
        trainer.run(config(data, labels="fkd", store=store, label_set="ms", num_classes=7))
    other = tmp_path / "other"
    write_photographs(other / "train", per_class=1)
    with pytest.raises(RejectedInput, match="not in"):
        trainer.run(config(other, labels="fkd", store=store, label_set="ms"))
    labelstore.create(tmp_path / "empty", images=data / "train", plan=PlanOptions(num_crops=M))
    teacher = write_teacher(tmp_path / "teacher")
    with pytest.raises(IncompleteError):
        label_images(
            tmp_path / "empty",
            images=data / "train",
            teacher=str(teacher),
            codec=Full(),
            num_crops=M,
            max_seconds=0.0,
        )
    with pytest.raises(IncompleteError, match="`allow_incomplete`"):
        trainer.run(config(data, labels="fkd", store=tmp_path / "empty"))


def test_a_loss_that_is_not_finite_names_the_step(data: Path) -> None:
    with pytest.raises(labelstore.LabelStoreError, match="at step"):
        trainer.run(config(data, lr=1e12, optimizer="sgd", epochs=40))
