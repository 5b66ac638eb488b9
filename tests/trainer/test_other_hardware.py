"""Settings of the hardware: what they choose by themselves, what they leave as it is, and runs that change machines."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
import yaml

import labelstore
import trainer
import trainer.engine
from cli import errors, trainer_app
from labelstore import MarginalSmoothing
from labelstore.devices import choose_device
from labelstore.errors import ConflictError, UsageError
from tests.flat_options import label_images
from tests.generation.conftest import OPTIONS, write_photographs, write_teacher
from tests.trainer.small_runs import small_run
from trainer.checkpoint import read_checkpoint
from trainer.models import autocast, chosen_amp, create_model, load_run

STEPS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_photographs(root / "train", per_class=2)
    return root


def config(data, output=None, **changes):
    return small_run(changes, data=data, labels="ground-truth", epochs=4, output=output)


@pytest.mark.parametrize(
    ("device", "native", "amp"),
    [("cuda", True, "bf16"), ("cuda:1", False, "fp16"), ("cpu", True, "none")],
)
def test_auto_takes_what_the_device_computes_in(monkeypatch, device, native, amp):
    asked = []

    def supported(including_emulation=True):
        return native or including_emulation

    class OnDevice:
        def __init__(self, chosen):
            asked.append(chosen)

        def __enter__(self):
            return self

        def __exit__(self, *given):
            pass

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "device", OnDevice)
    assert chosen_amp(device, "auto") == amp
    assert asked == ([] if device == "cpu" else [torch.device(device)])
    assert [chosen_amp(device, name) for name in ("none", "bf16", "fp16")] == [
        "none",
        "bf16",
        "fp16",
    ]


def test_autocast_is_what_was_chosen():
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    for amp, dtype in (("auto", torch.float32), ("bf16", torch.bfloat16)):
        with autocast("cpu", amp):
            assert (left @ right).dtype is dtype


def on_a_device_that_chooses(monkeypatch, amp):
    monkeypatch.setattr(trainer.engine, "chosen_amp", lambda device, asked: amp)


def stopped_after(wanted, step):
    class Killed(BaseException):
        pass

    def stop(taken, steps):
        if taken == step:
            raise Killed

    with pytest.raises(Killed):
        trainer.run(wanted, progress=stop)


def test_what_auto_chose_stays_on_another_device(data, tmp_path, monkeypatch):
    wanted = config(data, tmp_path / "run")
    on_a_device_that_chooses(monkeypatch, "bf16")
    whole = trainer.run(dataclasses.replace(wanted, output=tmp_path / "whole"))
    assert "amp auto is bf16" in (tmp_path / "whole" / "log.txt").read_text()
    explicit = trainer.run(config(data, amp="bf16"))
    float32 = trainer.run(config(data, amp="none"))
    assert whole.train_loss == explicit.train_loss != float32.train_loss

    stopped_after(wanted, STEPS + 1)
    on_a_device_that_chooses(monkeypatch, "fp16")
    again, notes = dataclasses.replace(wanted, resume=True), []
    copy = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    resumed = trainer.run(again, note=notes.append)
    assert resumed.train_loss == whole.train_loss
    (line,) = [note for note in notes if "stays" in note]
    assert line.startswith("amp stays bf16")
    assert line in (tmp_path / "run" / "log.txt").read_text()
    held = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (held["amp"], held["provenance"]["amp"]) == ("auto", "bf16")

    # and where it is asked for, what this device takes
    moved = dataclasses.replace(again, output=copy, may_differ=("amp",))
    assert trainer.run(moved).config.provenance["changed"] == [
        {"step": STEPS, "autocast": ["bf16", "fp16"]}
    ]
    saved = read_checkpoint(copy / "last.pth.tar")
    assert saved.amp_scaler is not None


def test_a_run_goes_on_with_settings_that_may_differ(data, tmp_path, monkeypatch):
    wanted = config(data, tmp_path / "run")
    stopped_after(wanted, STEPS + 1)
    again = dataclasses.replace(wanted, resume=True, accumulation_steps=2, channels_last=False)
    with pytest.raises(ConflictError, match="`may_differ=accumulation_steps`"):
        trainer.run(again)
    with pytest.raises(
        ConflictError, match=r"channels_last=True, now False.* `may_differ=channels_last`"
    ):
        trainer.run(dataclasses.replace(again, may_differ=("accumulation_steps",)))
    with pytest.raises(
        ConflictError, match=r"lr=0\.05, now 0\.1: resume with the same settings, or"
    ):
        trainer.run(dataclasses.replace(wanted, resume=True, lr=0.1))
    may, notes = dataclasses.replace(again, may_differ=("accumulation_steps", "channels_last")), []
    parts = []
    split = trainer.engine.micro_batches
    monkeypatch.setattr(
        trainer.engine,
        "micro_batches",
        lambda batch, count, deal: parts.append(count) or split(batch, count, deal),
    )
    run = trainer.run(may, note=notes.append)
    assert parts == [2] * STEPS
    line = "from step 2 on with accumulation_steps=2, before 1"
    assert line in notes
    assert line in (tmp_path / "run" / "log.txt").read_text()
    changed = [{"step": 2, "accumulation_steps": [1, 2], "channels_last": [True, False]}]
    held = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert held["provenance"]["changed"] == run.config.provenance["changed"] == changed
    # allowed once
    assert held["may_differ"] == []
    with pytest.raises(ConflictError, match="accumulation_steps=2, now 1"):
        trainer.run(dataclasses.replace(wanted, resume=True))
    assert trainer.run(again).config.provenance["changed"] == changed


def test_may_differ_is_for_runs_that_go_on_and_for_few_settings(data, tmp_path, capsys):
    with pytest.raises(UsageError, match="without resume"):
        config(data, may_differ=("amp",))
    with pytest.raises(UsageError, match="may_differ"):
        config(data, resume=True, may_differ=("lr",))
    trainer.run(config(data, tmp_path / "run", epochs=2))
    run = ["run", "--resume", "--output", str(tmp_path / "run"), "--accumulation-steps", "2"]
    assert errors.run(trainer_app.commands, "trainer", run) == ConflictError.exit_code
    assert "--may-differ accumulation_steps" in capsys.readouterr().err
    allowed = [*run, "--may-differ", "accumulation_steps,amp"]
    assert errors.run(trainer_app.commands, "trainer", allowed) == 0


def test_a_run_that_moved_is_one_run_of_the_store(data, tmp_path):
    label_images(
        tmp_path / "s", images=data / "train", teacher=str(write_teacher(tmp_path / "teacher")),
        codec=MarginalSmoothing(k=2), num_crops=4, images_per_shard=8, device="cpu",
    )  # fmt: skip
    wanted = config(data, tmp_path / "run", labels="fkd", store=tmp_path / "s")
    stopped_after(wanted, STEPS + 1)
    trainer.run(
        dataclasses.replace(
            wanted, resume=True, accumulation_steps=2, may_differ=("accumulation_steps",)
        )
    )
    catalogue = labelstore.open(tmp_path / "s").catalogue
    (row,) = catalogue.runs.all()
    assert [r.epoch for r in catalogue.results.all(row.name) if r.name == "train_loss"] == [2, 4]


VIT = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"img_size": 32, "depth": 2, "embed_dim": 12, "num_heads": 3},
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("network", [VIT, {"model_kwargs": {**OPTIONS, "drop_rate": 0.2}}])
def test_gradient_checkpointing_changes_memory_and_nothing_else(data, network, monkeypatch):
    """Batch norm sees the crops twice, and counts them once."""
    calls = []
    plain = trainer.run(config(data, **network))
    forward = torch.nn.Linear.forward if network is VIT else torch.nn.BatchNorm2d.forward
    kind = torch.nn.Linear if network is VIT else torch.nn.BatchNorm2d
    monkeypatch.setattr(
        kind, "forward", lambda self, x: calls.append(torch.is_grad_enabled()) or forward(self, x)
    )
    saving = trainer.run(config(data, **network, grad_checkpointing=True))
    often = len(calls)
    calls.clear()
    trainer.run(config(data, **network))
    assert often > len(calls)
    assert saving.train_loss == pytest.approx(plain.train_loss, rel=1e-6)
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(saving.model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_a_network_that_cannot_says_so(data, monkeypatch):
    wanted = config(data, grad_checkpointing=True, num_classes=3)
    for model in ("torchvision:resnet18", "trainer.models.reactnet:reactnet_a"):
        changed = dataclasses.replace(wanted, model=model, model_kwargs={})
        with pytest.raises(UsageError, match="this network cannot") as caught:
            create_model(changed)
        assert "\n" not in str(caught.value)

    def refuse(self, enable=True):
        assert not enable, "gradient checkpointing not supported"

    network = create_model(config(data, num_classes=3))
    monkeypatch.setattr(type(network), "set_grad_checkpointing", refuse)
    with pytest.raises(UsageError, match="this network cannot"):
        create_model(wanted)


def test_a_trained_network_is_loaded_without(data, tmp_path):
    run = trainer.run(config(data, tmp_path / "run", epochs=2, grad_checkpointing=True))
    network, held = load_run(str(tmp_path / "run"))
    assert held.grad_checkpointing
    assert (run.model.grad_checkpointing, network.grad_checkpointing) == (True, False)


def test_every_rank_makes_its_gpu_the_current_one(monkeypatch):
    current = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device: empty(*size))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("cuda", 3) == torch.device("cuda:3")
    assert current == [torch.device("cuda:3")]
    choose_device("cuda:1")  # one process: the caller's current device is the caller's
    assert len(current) == 1


def test_images_are_decoded_on_the_device(data, tmp_path):
    """Here that is the CPU, with the device's code."""
    notes = []
    there = config(data, tmp_path / "run", decode_device="device")
    run = trainer.run(there, note=notes.append)
    assert any("1 of 6 images looked at are decoded by the CPU" in note for note in notes)
    assert "decoded by the CPU" in (tmp_path / "run" / "log.txt").read_text()
    assert run.train_loss == pytest.approx(trainer.run(config(data)).train_loss, rel=0.05)
    again = dataclasses.replace(there, resume=True, epochs=4, decode_device="cpu")
    with pytest.raises(ConflictError, match="`may_differ=decode_device`"):
        trainer.run(again)
    trainer.run(dataclasses.replace(again, may_differ=("decode_device",)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rand_augment": 9.0}, "run on the CPU"),
        ({"interpolation": "lanczos"}, "resizes by bilinear or bicubic alone"),
    ],
)
def test_what_cannot_be_made_on_the_device_is_refused(data, tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        trainer.run(config(data, tmp_path / "run", decode_device="device", **changes))
