"""Phases: what each learns from, that drawing goes on over them, and that stopping anywhere changes nothing."""

from __future__ import annotations

import csv
import dataclasses
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import labelstore
import trainer
from cli import errors, trainer_app
from labelstore.calibration import RegionQuery
from labelstore.errors import UsageError
from tests.trainer.small_runs import label_twice, small_run, write_data
from trainer import TrainConfig
from trainer.phase_training import StudentView
from trainer.phases import Phase
from trainer.report import read_run, write_report
from trainer.training_data import open_training_data

M = 8
# 21 images, 4 of them in a step of 2 crops each, 8 in a step of single crops
STEPS = (6, 6, 6, 3, 6)
"""Of each pass of PHASES."""
PHASES = "fkd:4,ground-truth:3:cutmix,fkd:2"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return label_twice(tmp_path_factory.mktemp("store") / "s", data / "train", M)


def config(data: Path, store: Path | None, **changes: object) -> TrainConfig:
    return small_run(changes, data=data, store=store, label_set=None if store is None else "full")


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: trainer.Run, other: trainer.Run) -> bool:
    mine, theirs = weights(one.model), weights(other.model)
    return all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


@pytest.fixture(scope="module")
def whole(data: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> trainer.Run:
    """A run that went through."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    return trainer.run(config(data, store, phases=PHASES, label_smoothing=0.2, output=output))


@pytest.mark.sample(2)
@pytest.mark.parametrize("stop_at", [4, 12, 15, 19, 21, 24])
def test_stopped_in_any_phase_or_between_two_a_run_goes_on_bit_equal(
    data: Path, store: Path, tmp_path: Path, whole: trainer.Run, stop_at: int
) -> None:
    assert whole.steps == sum(STEPS)

    def stop(step: int, steps: int) -> None:
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)

    halves = config(data, store, phases=PHASES, label_smoothing=0.2, output=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        trainer.run(halves, progress=stop)
    resumed = trainer.run(dataclasses.replace(halves, resume=True))
    assert resumed.train_loss == whole.train_loss
    assert same(resumed, whole)


def test_summary_report_and_page_say_which_phase_an_epoch_was_in(whole: trainer.Run) -> None:
    folder = whole.config.output
    assert folder is not None
    with (folder / "summary.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["epoch"], row["phase"], row["labels"]) for row in rows] == [
        ("2", "1", "fkd"),
        ("4", "1", "fkd"),
        ("6", "2", "ground-truth"),
        ("7", "2", "ground-truth"),
        ("9", "3", "fkd"),
    ]
    # one cosine over all of it, a stair per pass
    cosine = [0.05 * (1 + np.cos(np.pi * begun / 9)) / 2 for begun in (0, 2, 4, 6, 7)]
    np.testing.assert_allclose([float(row["lr"]) for row in rows], cosine, rtol=1e-6)
    with labelstore.open(whole.config.store, readonly=True) as opened_store:
        (row,) = (r for r in opened_store.catalogue.runs.all() if r.folder == str(folder))
        assert row.label_sets == ("full",)
    record = read_run(folder)
    assert [row["phase"] for row in record.rows] == [1, 1, 2, 2, 3]
    assert record.status == "finished"
    write_report([folder], folder / "page.html")
    text = (folder / "page.html").read_text()
    assert "ground-truth:3:cutmix" in text
    assert '"phase":[1.0,1.0,2.0,2.0,3.0]' in text.replace(" ", "")
    assert "phase 2 (ground-truth)" in (folder / "log.txt").read_text()


@pytest.mark.sample(1)
@pytest.mark.parametrize("labels", ["fkd", "ground-truth"])
def test_one_phase_is_a_run_without_phases(data: Path, store: Path, labels: str) -> None:
    kept = store if labels == "fkd" else None
    plain = trainer.run(config(data, kept, labels=labels, epochs=4, mixing="cutmix"))
    phased = trainer.run(config(data, kept, phases=f"{labels}:2:cutmix,{labels}:2:cutmix"))
    assert same(plain, phased)


@contextmanager
def opened(wanted: TrainConfig) -> Any:
    with open_training_data(wanted) as found:
        yield found, [found.source.pass_labels(n) for n in range(found.source.schedule.num_passes)]


def test_stored_crops_go_on_in_drawing_order_and_fresh_ones_are_no_stored_ones(
    data: Path, store: Path
) -> None:
    """The soft phases draw as a run of their epochs alone, also where their temperature changes; the store has the
    run's own seed."""
    phases = [
        {"labels": "fkd", "epochs": 4},
        {"labels": "ground-truth", "epochs": 3},
        {"labels": "fkd", "epochs": 4, "temperature": 4.0},
        {"labels": "ground-truth", "epochs": 2},
    ]
    with opened(config(data, store, phases=phases)) as (found, passes):
        kinds = [found.phases[found.phase(n)].config.labels for n in range(len(passes))]
        fresh = [labels for labels, kind in zip(passes, kinds, strict=True) if kind != "fkd"]
        soft = [labels for labels, kind in zip(passes, kinds, strict=True) if kind == "fkd"]
        crops = np.concatenate([labels.crops for labels in fresh], 1)
        boxes = np.concatenate([labels.boxes for labels in fresh], 1)
        assert np.array_equal(crops, np.broadcast_to(M + np.arange(5), crops.shape))
        stored = labelstore.open(store).label_set("full").boxes(range(21))
        assert not (boxes[:, :, None] == np.asarray(stored)[:, None]).all(-1).any()
        warm = np.concatenate([soft[2].labels.probs, soft[3].labels.probs], 1)
    with opened(config(data, store, epochs=8)) as (_, plain):
        for mine, theirs in zip(soft, plain, strict=True):
            assert np.array_equal(mine.crops, theirs.crops)
        assert np.array_equal(np.sort(np.concatenate([p.crops for p in plain], 1))[0], np.arange(M))
        cold = np.concatenate([plain[2].labels.probs, plain[3].labels.probs], 1)
    powers = cold ** (1 / 4)
    np.testing.assert_allclose(warm, powers / powers.sum(-1, keepdims=True), rtol=1e-4)


def test_other_processes_of_the_node_map_the_phases_labels(data: Path, store: Path) -> None:
    phases = [
        {"labels": "ground-truth", "epochs": 2},
        {"labels": "fkd", "epochs": 2},
        {"labels": "fkd", "epochs": 3, "label_set": "ms"},
    ]
    with opened(config(data, store, phases=phases)) as (found, passes):
        assert len(set(found.source.folders)) == 3
        wanted = config(data, store, phases=phases)
        with open_training_data(wanted, attach=found.source.folders) as other:
            for number, mine in enumerate(passes):
                theirs = other.source.pass_labels(number)
                assert np.array_equal(theirs.boxes, mine.boxes)
                assert np.array_equal(theirs.labels.probs, mine.labels.probs)
            assert other.config == found.config
            assert [phase.config for phase in other.phases] == [p.config for p in found.phases]


def test_every_phase_has_its_own_labels_mixing_and_smoothing(
    data: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[TrainConfig, torch.Tensor]] = []
    look = StudentView.__call__

    def watch(self: StudentView, crops: Any, *given: Any, **named: Any) -> Any:
        pixels, labels, truth = look(self, crops, *given, **named)
        seen.append((self._config, torch.stack([labels[1].sum(-1), labels[1].amax(-1)])))
        return pixels, labels, truth

    monkeypatch.setattr(StudentView, "__call__", watch)
    phases = [
        {"labels": "fkd", "epochs": 2, "mixing": "selfmix", "temperature": 2},
        {"labels": "ground-truth", "epochs": 2, "label_smoothing": 0.6},
    ]
    trainer.run(config(data, store, phases=phases))
    soft, hard = seen[:6], seen[6:]
    assert {(one.mixing, one.temperature_in_force) for one, _ in soft} == {("selfmix", 2.0)}
    assert {(one.mixing, one.temperature_in_force) for one, _ in hard} == {("none", 1.0)}
    for _, found in hard:
        torch.testing.assert_close(found[1], torch.full_like(found[1], 1 - 0.6 + 0.6 / 3))


def test_all_phases_have_the_images_that_each_has_crops_of(data: Path, store: Path) -> None:
    labels = labelstore.open(store).label_set("full")
    key = labels.store.image_columns["key"][5]
    labelstore.calibrate(labels, RegionQuery(discard="image = 5"), name="without")
    wanted = config(
        data, store, phases="fkd:2,ferkd:2,ground-truth:2", mask="without", allow_empty_images=True
    )
    with opened(wanted) as (found, passes):
        assert len(found.source.table) == 20
        assert key not in found.source.table.keys
        assert found.source.counts.left_out == 1
        truth = found.source.table.ground_truth
        assert np.array_equal(passes[2].labels.class_ids[:, 0, 0], truth)
        with open_training_data(config(data, store, epochs=2)) as plain:
            theirs = plain.source.pass_labels(0)
            kept = np.flatnonzero(np.arange(21) != 5)
            assert np.array_equal(passes[0].crops, theirs.crops[kept])
            assert np.array_equal(passes[0].boxes, theirs.boxes[kept])
            assert np.array_equal(passes[0].labels.probs, theirs.labels.probs[kept])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": "fkd:2,ground-truth:2", "epochs": 5}, "epochs=5 with phases of 4 epochs"),
        ({"phases": "fkd:2,soft:2"}, "a phase of labels 'soft': choose one of ground-truth, fkd"),
        ({"phases": "fkd:2,fkd"}, "phase 'fkd': give LABELS:EPOCHS"),
        ({"phases": "fkd:0"}, "phase 'fkd:0': give LABELS:EPOCHS"),
        ({"phases": "fkd:2:blur"}, "phases="),
        ({"phases": "ssl:2,ground-truth:2"}, "outputs of labels='ssl' are no classes"),
        ({"phases": "fkd:2,ground-truth:2", "mask": "m"}, "mask='m' with phases fkd:2, ground-tr"),
        ({"phases": "ground-truth:2"}, "store="),
        ({"phases": "fkd:2", "single_crop_last": 1}, "single_crop_last=1 with phases fkd:2"),
        ({"phases": "fkd:2", "mixing_off_epochs": 1}, "give a last phase with mixing='none'"),
        ({"phases": "fkd:2", "labels": "ferkd"}, "labels='ferkd' with phases fkd:2"),
        ({"phases": "fkd:2,ferkd:2"}, r"phase 2 \(ferkd:2\): labels='ferkd' without a mask"),
        ({"phases": [{"labels": "fkd", "epochs": 2, "lr": 1}]}, "lr: no setting of a phase"),
        ({"phases": [{"labels": "fkd"}]}, "a phase of labels 'fkd' without epochs"),
        (
            {"phases": [{"labels": "fkd", "epochs": 2, "label_smoothing": 0.1}]},
            r"phase 1 \(fkd:2\): label_smoothing=0.1",
        ),
        (
            {"phases": [{"labels": "ground-truth", "epochs": 2, "temperature": 2}, "fkd:1"]},
            r"phase 1 \(ground-truth:2\): temperature=2.0 with ground-truth labels",
        ),
        ({"phases": "fkd:2,ground-truth:2", "cosine_eta": 2, "scheduler": "step"}, "cosine_eta=2"),
    ],
)
def test_phases_that_cannot_be_meant_are_refused_in_one_line(
    data: Path, store: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        config(data, store, **{"label_set": None, **changes})
    assert "\n" not in str(caught.value)


def test_a_config_with_phases_comes_back_from_its_file(
    data: Path, store: Path, tmp_path: Path
) -> None:
    wanted = config(data, store, phases=PHASES, mixing="mixup")
    assert wanted.epochs == wanted.whole_epochs == 9
    assert wanted.phases[1] == Phase(labels="ground-truth", epochs=3, mixing="cutmix")
    (tmp_path / "config.yaml").write_text(wanted.to_yaml())
    assert TrainConfig.from_yaml(tmp_path / "config.yaml") == wanted


def test_the_flag_and_set_take_phases(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--store", "s", "--print-config", "--phases", "fkd:2,ground-truth:4:cutmix"]
    assert errors.run(trainer_app.commands, "trainer", command) == 0
    assert "mixing: cutmix" in capsys.readouterr().out
    more = ["run", "--print-config", "--set"]
    more.append("phases=[{labels: ground-truth, epochs: 3, label_smoothing: 0.8}]")
    assert errors.run(trainer_app.commands, "trainer", more) == 0
    shown = capsys.readouterr().out
    assert "label_smoothing: 0.8" in shown
    assert "epochs: 3" in shown
