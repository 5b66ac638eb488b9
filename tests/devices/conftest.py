"""Devices that are not there: tensors on a fake `cuda`, and a machine that says it has another accelerator."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from labelstore import devices


@pytest.fixture
def fake(monkeypatch):
    """`with fake:` tensors on `cuda` have shapes, dtypes, strides and a device, and no values; NumPy gets zeros.

    An operation of tensors of two devices raises, as it does on a GPU. Backward passes do not run.
    """
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    # an event is the driver's
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: Stream())
    kept, from_numpy, numpy = [], torch.from_numpy, torch.Tensor.numpy

    def kept_from_numpy(array):
        # the mode knows a tensor by its memory, which another one could be given
        kept.append(from_numpy(array))
        return kept[-1]

    def values(tensor, *more, **named):
        if not isinstance(tensor, FakeTensor):
            return numpy(tensor, *more, **named)
        assert tensor.device.type == "cpu", "a tensor on a GPU has no NumPy array"
        return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))

    monkeypatch.setattr(torch, "from_numpy", kept_from_numpy)
    monkeypatch.setattr(torch.Tensor, "numpy", values)
    devices.resizes.cache_clear()
    yield FakeTensorMode(allow_non_fake_inputs=True)
    devices.resizes.cache_clear()


class Stream:
    """Of a fake device."""

    def record_event(self):
        """An event that has happened."""
        return types.SimpleNamespace(synchronize=lambda: None)


@pytest.fixture
def machine(monkeypatch):
    """machine(type, count=1, **functions): torch says that there is such an accelerator; tensors on it lie on the CPU.

    The functions become those of the device's module (torch.cuda, torch.xpu, torch.mps).
    """
    empty = torch.empty

    def there_is(kind, count=1, **functions):
        accelerator = torch.accelerator
        monkeypatch.setattr(accelerator, "is_available", lambda: kind is not None)
        monkeypatch.setattr(accelerator, "device_count", lambda: count)
        found = None if kind is None else torch.device(kind)
        monkeypatch.setattr(accelerator, "current_accelerator", lambda: found)

        def on_cpu(*size, device=None, **more):
            number = torch.device(device or "cpu").index
            if torch.device(device or "cpu").type not in ("cpu", kind):
                raise AssertionError(f"Torch not compiled with {device} enabled")
            if number is not None and number >= count:
                raise RuntimeError("invalid device ordinal\nmore lines of the driver")
            return empty(*size, **more)

        monkeypatch.setattr(torch, "empty", on_cpu)
        module = types.SimpleNamespace(**functions)
        modules = torch.get_device_module
        monkeypatch.setattr(
            torch, "get_device_module",
            lambda device: module if torch.device(device).type == kind else modules(device),
        )  # fmt: skip

    yield there_is
    devices.resizes.cache_clear()
