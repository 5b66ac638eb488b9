"""`labelstore.devices`: what a machine has decides, whatever it is called; what a backend lacks is said in one line."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cli.teacher_options import device_of_this_process
from labelstore.devices import (
    backend_of,
    choose_device,
    copy_event,
    device_name,
    device_of_rank,
    devices_here,
    moved,
    native_half,
    resize_note,
    resized,
)
from labelstore.errors import UsageError
from trainer.ranks import Ranks, exchange
from trainer.shared_step import own_randomness, with_synced_batchnorm


@pytest.mark.parametrize("kind", [None, "cuda", "xpu", "mps"])
def test_auto_is_the_accelerator_that_is_there(machine, kind):
    machine(kind)
    wanted = torch.device(kind or "cpu")
    assert choose_device() == choose_device("auto") == wanted
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "count", "here"),
    [
        (None, 0, "auto or cpu, there is no other device here"),
        ("cuda", 1, "auto, cpu or cuda"),
        ("xpu", 4, "auto, cpu or xpu:0 to xpu:3"),
        ("mps", 1, "auto, cpu or mps"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine, kind, count, here):
    machine(kind, count)
    assert devices_here() == here
    for name in ("moon", "cuda:70", "xpu:9"):
        with pytest.raises(UsageError) as caught:
            choose_device(name)
        line = str(caught.value)
        assert line.startswith(f"`device={name}` cannot be used (")
        assert line.endswith(f"): give {here}")
        assert "\n" not in line


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_rank_has_the_device_of_its_number(machine, monkeypatch, kind):
    current = []
    machine(kind, 4, set_device=current.append)
    assert choose_device("auto", 3) == choose_device(kind, 3) == torch.device(f"{kind}:3")
    assert current == 2 * [torch.device(f"{kind}:3")]
    assert choose_device(f"{kind}:1", 3) == torch.device(f"{kind}:1")
    with pytest.raises(UsageError, match=f"`device={kind}:4` cannot be used"):
        choose_device("auto", 4)
    # workers on a store share nothing, so that more of them than devices take turns
    assert [device_of_rank(rank) for rank in (0, 3, 4)] == [f"{kind}:{n}" for n in (0, 3, 0)]
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert device_of_this_process() == f"{kind}:1"


def test_ranks_without_numbered_devices(machine):
    machine("mps")
    assert device_of_rank(1) is None
    with pytest.raises(UsageError, match="one process, or give device cpu"):
        choose_device("auto", 1)
    assert choose_device("cpu", 1) == torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "library"), [(None, None), ("cuda", "nccl"), ("xpu", "xccl"), ("mps", None)]
)
@pytest.mark.parametrize("has", [True, False])
def test_ranks_exchange_tensors_with_what_their_device_has(
    machine, monkeypatch, kind, library, has
):
    machine(kind)
    for name in ("nccl", "xccl"):
        monkeypatch.setattr(
            torch.distributed, f"is_{name}_available", lambda: has, raising=False
        )  # fmt: skip
    assert exchange() == (f"cpu:gloo,{kind}:{library}" if library and has else "gloo")


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
@pytest.mark.parametrize(("native", "half"), [(True, "bf16"), (False, "fp16")])
def test_half_floats_are_those_that_a_device_computes_in(machine, kind, native, half):
    asked = []
    machine(
        kind,
        device=lambda device: asked.append(device) or nullcontext(),
        is_bf16_supported=lambda including_emulation=True: native or including_emulation,
    )
    assert native_half(f"{kind}:1") == half
    assert asked == [torch.device(f"{kind}:1")]
    assert native_half("mps") == native_half("cpu") == "none"


def test_names_for_the_ledger(machine):
    machine("cuda", get_device_name=lambda device: f"a GPU, number {device.index}")
    assert device_name(torch.device("cuda:1")) == "a GPU, number 1"
    assert device_name(torch.device("mps")).startswith("mps (")
    assert device_name(torch.device("cpu")).startswith("cpu (")


@pytest.mark.parametrize("kind", ["cpu", "mps", "hpu"])
def test_copies_are_waited_for_where_nothing_pins_memory(kind):
    waited = []

    class Tensor:
        def to(self, device, *, non_blocking, copy):
            waited.append(not non_blocking)

    moved(Tensor(), kind)
    assert waited == [True]
    assert copy_event(torch.device(kind)) is None
    moved(Tensor(), "cuda:1")
    moved(Tensor(), "xpu")
    assert waited == [True, False, False]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_run_leaves_the_devices_generator_as_it_was(machine, kind):
    states, given = ["before"], []

    def set_rng_state(state, *which):
        given.append(which)
        states.append(state)

    machine(kind, get_rng_state=lambda *which: given.append(which) or states[-1], set_rng_state=set_rng_state)  # fmt: skip
    device = torch.device(kind)
    with own_randomness(device):
        states.append("drawn")
    assert states == ["before", "drawn", "before"]
    assert given == 2 * [(device,) if kind == "cuda" else ()]


def test_batch_norm_over_ranks_is_refused_where_torch_has_none():
    for kind in ("cpu", "mps"):
        with pytest.raises(UsageError, match=f"sync_batchnorm on {kind}"):
            with_synced_batchnorm(torch.nn.BatchNorm2d(3), torch.device(kind))
    assert Ranks().world_size == 1
    assert not backend_of("mps").numbered


class WithoutAntialiasing(TorchDispatchMode):
    """A device that has no such kernels, as mps before torch 2.8; counts what reaches it."""

    def __init__(self):
        super().__init__()
        self.refused = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_aa" in str(func) and args[0].device.type == "cuda":
            self.refused += 1
            raise NotImplementedError(f"The operator {func} is not implemented")
        return func(*args, **(kwargs or {}))


def test_what_resizes_with_antialiasing(fake):
    with fake:
        pixels = torch.rand(2, 3, 40, 30, device="cuda")
        assert resize_note(pixels.device, "bicubic") is None
        assert resized(pixels, (8, 8), "bicubic").device == pixels.device


def test_a_device_without_the_kernel_has_the_cpu_do_it(fake):
    with fake, WithoutAntialiasing() as device:
        pixels = torch.rand(2, 3, 40, 30, device="cuda")
        made = resized(pixels, (8, 8), "bilinear")
        note = resize_note(pixels.device, "bilinear")
    assert made.device == pixels.device
    assert made.shape == (2, 3, 8, 8)
    assert device.refused == 1  # asked once
    assert "no antialiased bilinear resize on cuda: the CPU does it" in note
    assert "\n" not in note
