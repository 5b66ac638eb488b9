import csv
import dataclasses
import json
import os
import sys
import types

import pytest

import labelstore
import trainer
from cli import errors, trainer_app
from labelstore.catalogue.named_rows import Results
from labelstore.catalogue.records import ResultRow
from labelstore.codecs import MarginalSmoothing
from labelstore.errors import StorageError, UsageError
from labelstore.testing.filled_store import filled_store
from tests.loader.conftest import soft_labels
from tests.trainer.small_runs import small_run, write_data
from trainer.checkpoint import read_checkpoint, weights_file
from trainer.config import TrainConfig
from trainer.run_outputs import RunRegister, TensorBoardLogger, open_loggers, run_name


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), 3, 1)


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package: keeps what it is told."""
    fake = types.ModuleType("wandb")
    fake.calls, fake.rows, fake.finished = [], [], 0

    class Run:
        def log(self, row, step):
            fake.rows.append((step, row))

        def finish(self):
            fake.finished += 1

    def init(**options):
        fake.calls.append(options)
        return Run()

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def config(data, output, **changes):
    return small_run(
        changes, data=data, labels="ground-truth", batch_size=6, epochs=4, output=output
    )


def scalars(folder):
    """{name: {epoch: value}} as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }


def test_a_run_writes_the_same_figures_everywhere(data, tmp_path, wandb):
    output = tmp_path / "run"
    trainer.run(config(data, output, loggers=("tensorboard", "wandb"), ema_decay=0.5))
    with (output / "summary.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [step for step, _ in wandb.rows] == [2, 4]
    found = scalars(output / "tensorboard")
    for row, (step, logged) in zip(rows, wandb.rows, strict=True):
        assert {"train_loss", "eval_top1", "ema_top1", "lr"} <= set(logged)
        for name, value in logged.items():
            assert value == pytest.approx(float(row[name]))
            assert found[name][step] == pytest.approx(value, rel=1e-5)
    assert wandb.finished == 1
    assert wandb.calls[0]["resume"] is None
    assert wandb.calls[0]["config"]["model"] == "resnet18"
    trainer.run(config(data, output, loggers=("wandb",), ema_decay=0.5, resume=True))
    assert wandb.calls[1]["id"] == wandb.calls[0]["id"]
    assert wandb.calls[1]["resume"] == "allow"


def test_tensorboard_forgets_passes_that_are_repeated(tmp_path):
    first = TensorBoardLogger(tmp_path, resumed_at=0)
    for epoch in (2, 4, 6):
        first.add({"epoch": epoch, "train_loss": 1.0, "eval_top1": None})
    first.close()
    again = TensorBoardLogger(tmp_path, resumed_at=2)
    again.add({"epoch": 4, "train_loss": 2.0})
    again.close()
    assert scalars(tmp_path) == {"train_loss": {2: 1.0, 4: 2.0}}


@pytest.mark.parametrize(
    ("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install 'labelstore\[{name}\]'"):
        open_loggers([name], tmp_path, {}, resumed_at=0)


def test_logs_need_a_run_folder(data):
    with pytest.raises(UsageError, match="give output"):
        config(data, None, loggers=("tensorboard",))


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "store"
    with filled_store(
        path, soft_labels(4, 4, 3), MarginalSmoothing(k=2, class_ids="plain")
    ) as filled:
        yield filled


def listed(store, output):
    return TrainConfig(store=store.path, labels="fkd", label_set="teacher", output=output)


def test_runs_and_results_are_listed_once(store, tmp_path):
    notes = []
    wanted = listed(store, tmp_path / "my run")
    for top1 in (10.0, None):
        register = RunRegister(wanted, notes.append)
        register.add(4, {"top1": 10.0, "top5": top1})
    register.add(8, {"top1": 19.0})
    register.add(8, {"top1": 20.0})
    assert notes == []
    (row,) = labelstore.open(store.path).catalogue.runs.all()
    assert row.name == run_name(wanted)
    assert row.name.startswith("my-run-")
    assert (row.label_sets, row.masks) == (("teacher",), ())
    assert row.config["lr"] == wanted.lr
    found = [(r.name, r.epoch, r.value) for r in store.catalogue.results.all(row.name)]
    assert sorted(found) == [("top1", 4, 10.0), ("top1", 8, 20.0), ("top5", 4, 10.0)]


def disk_full(self, row):
    raise StorageError("the disk is full")


def test_a_store_that_cannot_be_written_never_fails_a_training(store, tmp_path, monkeypatch):
    notes = []
    register = RunRegister(listed(store, tmp_path / "run"), notes.append)
    register.add(4, {"top1": 10.0})
    with monkeypatch.context() as broken:
        broken.setattr(Results, "add", disk_full)
        register.add(6, {"top1": 11.0})
    assert "not listed in the store any more" in notes[0]
    register.add(8, {"top1": 12.0})
    assert len(notes) == 1, "said once"
    missing = TrainConfig(store=tmp_path / "gone", output=tmp_path / "run")
    RunRegister(missing, notes.append).add(1, {"top1": 1.0})
    assert "not listed in the store:" in notes[1]
    labelstore.freeze(store, tmp_path / "frozen")
    frozen = labelstore.open(tmp_path / "frozen")
    RunRegister(listed(frozen, tmp_path / "run"), notes.append).add(1, {"top1": 1.0})
    assert len(notes) == 2, "a frozen store is passed over in silence"
    (tmp_path / "link").symlink_to(tmp_path / os.fsdecode(b"nu\xff"))
    RunRegister(listed(store, tmp_path / "link"), notes.append).add(1, {"top1": 1.0})
    assert "is not UTF-8" in notes[2]
    assert notes[2].isprintable()
    assert frozen.catalogue.runs.all() == store.catalogue.runs.all()


def test_an_evaluation_is_listed_under_the_epoch_of_the_weights(data, store, tmp_path, capsys):
    output = tmp_path / "run"
    run = trainer.run(config(data, output))
    # the store is of other images: only its catalogue matters here
    kept = dataclasses.replace(run.config, store=store.path)
    (output / "config.yaml").write_text(kept.to_yaml(), encoding="utf-8")
    RunRegister(kept)
    (name,) = (row.name for row in store.catalogue.runs.all())
    # the best pass was the first one
    last = read_checkpoint(output / "last.pth.tar")
    (output / "model.safetensors").write_bytes(weights_file(dataclasses.replace(last, epoch=2)))

    def listed_after(*more):
        arguments = ["evaluate", str(output), "--workers", "1", "--json", *map(str, more)]
        assert errors.run(trainer_app.commands, "trainer", arguments) == 0
        found = json.loads(capsys.readouterr().out)
        rows = store.catalogue.results.all(name)
        return found, {row.epoch: row.value for row in rows if row.name == "evaluate/top1"}

    # other images first: their figure is not the run's own
    elsewhere, listed = listed_after("--val", data / "train")
    assert (elsewhere["images"], listed) == (9, {})
    own, listed = listed_after("--data", data)
    assert listed == {2: own["top1"]}
    store.catalogue.results.add(ResultRow(run=name, name="evaluate/top1", epoch=2, value=-1.0))
    again, listed = listed_after()
    assert listed == {2: again["top1"]} == {2: own["top1"]}
