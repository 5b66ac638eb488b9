"""Which devices there are and what they can do: the one place that knows accelerators by name.

torch.accelerator says which accelerator a machine has: cuda (NVIDIA's, and AMD's under ROCm, which torch calls cuda
too), xpu (Intel's) or mps (Apple's). What their backends have is listed in `BACKENDS`; whether a kernel is there is
found by calling it, as newer versions of torch have more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from labelstore.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What torch can do on one type of device."""

    numbered: bool = False
    """A machine may have several, cuda:0 and cuda:1, each with its own generator of random numbers."""
    copies_ahead: bool = False
    """Copies from pinned memory run beside the program, and an event says when one has ended."""
    ranks: str | None = None
    """What torch.distributed exchanges its tensors with; None: it cannot."""
    half: bool = False
    """16-bit floats are faster than float32."""


BACKENDS = {
    "cpu": Backend(ranks="gloo"),
    "cuda": Backend(numbered=True, copies_ahead=True, ranks="nccl", half=True),
    "xpu": Backend(numbered=True, copies_ahead=True, ranks="xccl", half=True),
    # a copy that is not waited for may read pixels that the loader has replaced, as nothing pins them
    "mps": Backend(),
}


def backend_of(device: torch.device | str) -> Backend:
    """Return what the device's backend can do; of one that is not listed, nothing is expected."""
    return BACKENDS.get(torch.device(device).type, Backend())


def accelerator() -> str | None:
    """The type of this machine's accelerator; None where there is none that can be used."""
    if not torch.accelerator.is_available():
        return None
    found = torch.accelerator.current_accelerator()
    return None if found is None else found.type


def devices_here() -> str:
    """List for people what can be given as a device on this machine: "auto, cpu, cuda:0 to cuda:7"."""
    found = accelerator()
    if found is None:
        return "auto or cpu, there is no other device here"
    count = torch.accelerator.device_count() if backend_of(found).numbered else 1
    return f"auto, cpu or {found if count == 1 else f'{found}:0 to {found}:{count - 1}'}"


def choose_device(name: str | None = None, local_rank: int | None = None) -> torch.device:
    """The device of this name; None and "auto" are the accelerator, or the CPU where there is none.

    `local_rank` is this process's number among several that exchange gradients: an accelerator without a number is
    then the one of that number, and becomes the current device. UsageError for a device that cannot be used.
    """
    chosen = (accelerator() or "cpu") if name in (None, "auto") else name
    assert chosen is not None
    backend = BACKENDS.get(chosen, Backend())
    if local_rank is not None and backend.numbered:
        chosen = f"{chosen}:{local_rank}"
    try:
        device = torch.device(chosen)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(
            f"`device={chosen}` cannot be used ({reason}): give {devices_here()}"
        ) from error
    if local_rank is not None:
        if backend_of(device).ranks is None:
            raise UsageError(
                f"`device={chosen}` with several processes: torch exchanges no gradients between devices of type "
                f"{device.type}; train with one process, or give device cpu"
            )
        if backend_of(device).numbered:
            # pinned memory belongs to the current device: left at the first GPU, every rank would open a context there
            torch.get_device_module(device).set_device(device)
    return device


def device_of_rank(local_rank: int) -> str | None:
    """The device of one of several processes that share nothing but the store, in turn where there are more processes
    than devices; None where all have the same choice."""
    found = accelerator()
    if found is None or not backend_of(found).numbered:
        return None
    return f"{found}:{local_rank % torch.accelerator.device_count()}"


def device_name(device: torch.device) -> str:
    """Name a device for the cost ledger: its maker's name where torch knows it."""
    if backend_of(device).numbered:
        name: str = torch.get_device_module(device).get_device_name(device)
        return name
    threads = torch.get_num_threads()
    return f"{device.type} ({threads} thread{'' if threads == 1 else 's'})"


def native_half(device: torch.device | str) -> Literal["none", "bf16", "fp16"]:
    """The 16-bit floats that a device computes in: bf16, fp16 where bf16 would be emulated, or none."""
    device = torch.device(device)
    if not backend_of(device).half:
        return "none"
    module = torch.get_device_module(device)
    with module.device(device):
        native = module.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp16"


def moved(tensor: Tensor, device: torch.device | str, *, copy: bool = False) -> Tensor:
    """The tensor on a device. From pinned memory the program goes on before the copy has ended, where that is safe:
    `copy_event` says when."""
    return tensor.to(device, non_blocking=backend_of(device).copies_ahead, copy=copy)


def copy_event(device: torch.device) -> torch.Event | None:
    """An event behind all copies to a device that this thread has begun; None where `moved` waits for each."""
    if not backend_of(device).copies_ahead:
        return None
    return torch.accelerator.current_stream(device).record_event()


@cache
def resizes(device: torch.device, mode: str) -> bool:
    """Whether a device has a kernel that resizes with antialiasing; `mode` is bilinear or bicubic."""
    try:
        _resized(torch.zeros(1, 1, 4, 4, device=device), (2, 2), mode)
    except NotImplementedError:
        return False
    return True


def resized(pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Floats (B, 3, H, W) resized to (B, 3, *size) with antialiasing, on their device.

    A device without such a kernel has it done by the CPU: `resize_note` says so.
    """
    if resizes(pixels.device, mode):
        return _resized(pixels, size, mode)
    return _resized(pixels.cpu(), size, mode).to(pixels.device)


def resize_note(device: torch.device, mode: str) -> str | None:
    """The line for people where `resized` takes the CPU; None where the device can."""
    if resizes(device, mode):
        return None
    return f"torch {torch.__version__} has no antialiased {mode} resize on {device.type}: the CPU does it"


def _resized(pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return functional.interpolate(pixels, size, mode=mode, align_corners=False, antialias=True)
