"""Autocast of the forward pass: what `amp` means on a device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from labelstore.devices import native_half
from trainer.config import Autocast


def autocast(device: torch.device | str, amp: Autocast) -> AbstractContextManager[object]:
    """The autocast of a config's `amp` on a device; nothing for "none"."""
    chosen = chosen_amp(device, amp)
    if chosen == "none":
        return nullcontext()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[chosen]
    return torch.autocast(torch.device(device).type, dtype)


def chosen_amp(device: torch.device | str, amp: Autocast) -> Autocast:
    """What "auto" is on a device: bf16 on a GPU that computes in it, fp16 on an older one, none elsewhere.

    Others stay. (GPUs before Ampere emulate bf16, in more time than float32 takes.)
    """
    return native_half(device) if amp == "auto" else amp
