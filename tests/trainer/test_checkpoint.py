import contextlib
import csv
import dataclasses
import pickle
import random

import pytest
import torch
from torch import nn

from labelstore.errors import ConflictError, LabelStoreError, RejectedInput, StorageError
from trainer.checkpoint import Checkpoint, RunFolder, read_checkpoint, save_checkpoint
from trainer.config import TrainConfig

CONFIG = TrainConfig(labels="ground-truth", num_classes=3)


def state(step=1, fill=0.0):
    """A run's state after one real step, so that the optimiser has momentum."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    nn.init.constant_(model[0].weight, fill)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return Checkpoint(
        step=step,
        epoch=0,
        arch="tiny",
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        config=CONFIG.to_mapping(),
        counters={"loss_sum": 1.5},
        metric=12.5,
    )


def flat(value):
    """Nested state as comparable plain values."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, list):
        return [flat(item) for item in value]
    return value


def same(one, two):
    names = [f.name for f in dataclasses.fields(one)]
    return all(flat(getattr(one, name)) == flat(getattr(two, name)) for name in names)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = tmp_path / "last.pth.tar"
    saved = state()
    save_checkpoint(path, saved)
    assert same(read_checkpoint(path), saved)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth.tar"]


def test_timm_reads_it(tmp_path):
    from timm.models import load_state_dict

    path = tmp_path / "last.pth.tar"
    saved = state()
    save_checkpoint(path, saved)
    assert flat(dict(load_state_dict(str(path)))) == flat(dict(saved.state_dict))


def test_the_one_before_is_kept(tmp_path):
    path, previous = tmp_path / "last.pth.tar", tmp_path / "previous.pth.tar"
    for step in (1, 2, 3):
        save_checkpoint(path, state(step), previous)
    assert read_checkpoint(path).step == 3
    assert read_checkpoint(previous).step == 2
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("links", [True, False])
def test_a_kill_at_any_rename_leaves_a_checkpoint(tmp_path, monkeypatch, links):
    """Stop at every rename and link in turn: what is there must be the old state or the new one."""
    from pathlib import Path

    class Killed(BaseException):
        pass

    def refuse(*_args, **_kwargs):
        raise OSError(95, "no hard links here")

    for kill_at in range(4):
        folder = RunFolder(tmp_path / f"run{kill_at}{links}")
        folder.start(CONFIG)
        folder.save(state(1))
        folder.save(state(2))
        calls = 0
        replace = Path.replace

        def counted(self, target, kill_at=kill_at, replace=replace):
            nonlocal calls
            calls += 1
            if calls > kill_at:
                raise Killed
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", counted)
            if not links:
                patch.setattr("os.link", refuse)
            with contextlib.suppress(Killed):
                folder.save(state(3))
        resumed = folder.start(dataclasses.replace(CONFIG, resume=True))
        assert resumed is not None
        assert resumed.step in (2, 3)
        folder.save(state(4))
        assert folder.start(dataclasses.replace(CONFIG, resume=True)).step == 4


def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "last.pth.tar"
    saved = state()
    save_checkpoint(path, saved)
    data = path.read_bytes()
    rng = random.Random(0)
    noticed = 0
    for _ in range(300):
        bit = rng.randrange(8 * len(data))
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            loaded = read_checkpoint(path)
        except LabelStoreError:
            noticed += 1
        else:
            assert same(loaded, saved)
    assert noticed > 50


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_files_are_rejected(tmp_path, keep):
    path = tmp_path / "last.pth.tar"
    save_checkpoint(path, state())
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(RejectedInput):
        read_checkpoint(path)


def test_foreign_files_are_rejected_and_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    evil, plain, weights = (
        tmp_path / "evil.pth.tar",
        tmp_path / "plain.pkl",
        tmp_path / "weights.pth",
    )
    torch.save({"version": 1, "step": Evil()}, evil)
    plain.write_bytes(pickle.dumps(Evil()))
    torch.save({"a": torch.zeros(1)}, weights)
    for path in (evil, plain, weights, tmp_path / "missing.pth.tar"):
        with pytest.raises(RejectedInput) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_damage_names_the_checkpoint_before_it(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG)
    folder.save(state(1))
    folder.save(state(2))
    last = folder.path / "last.pth.tar"
    last.write_bytes(last.read_bytes()[:-100])
    resume = dataclasses.replace(CONFIG, resume=True)
    with pytest.raises(RejectedInput, match=r"previous\.pth\.tar"):
        folder.start(resume)
    last.unlink()
    assert folder.start(resume).step == 1


def test_a_folder_is_not_overwritten_nor_resumed_with_other_settings(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.start(CONFIG) is None
    assert folder.start(CONFIG) is None, "nothing is lost without a checkpoint"
    folder.save(state())
    with pytest.raises(ConflictError, match="holds a run already"):
        folder.start(CONFIG)
    with pytest.raises(ConflictError, match=r"lr=0\.1, now 0\.5"):
        folder.start(dataclasses.replace(CONFIG, resume=True, lr=0.5))
    assert folder.start(dataclasses.replace(CONFIG, resume=True, workers=1)).step == 1


def test_best_checkpoint_and_its_weights(tmp_path):
    from safetensors.torch import load_file

    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG)
    best = state(1, fill=1.0)
    folder.save(best, best=True)
    folder.save(state(2, fill=2.0))
    assert same(read_checkpoint(folder.path / "model_best.pth.tar"), best)
    assert flat(load_file(folder.path / "model.safetensors")) == flat(dict(best.state_dict))


def test_tied_weights_are_saved_whole(tmp_path):
    from safetensors.torch import load_file

    shared = torch.arange(6.0).view(2, 3)
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG)
    tied = dataclasses.replace(state(), state_dict={"a": shared, "b": shared, "c": shared.t()})
    folder.save(tied, best=True)
    assert load_file(folder.path / "model.safetensors")["c"].tolist() == shared.t().tolist()


def test_summary_rows_of_repeated_passes_are_replaced_and_columns_may_come_later(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG)
    for epoch in (4, 8, 12):
        folder.add_summary({"epoch": epoch, "train_loss": epoch / 10})
    folder.add_summary({"epoch": 8, "train_loss": 0.5, "eval_top1": 60.0})
    with (folder.path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"epoch": "4", "train_loss": "0.4", "eval_top1": ""},
        {"epoch": "8", "train_loss": "0.5", "eval_top1": "60.0"},
    ]


def test_log_lines_are_appended(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG)
    folder.log("one")
    folder.log("two")
    lines = (folder.path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["one", "two"]


def test_a_file_where_the_folder_should_be_is_a_storage_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="run"):
        RunFolder(tmp_path / "run").start(CONFIG)
