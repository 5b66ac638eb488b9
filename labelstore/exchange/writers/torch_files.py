"""Files of `torch.save` for other projects: plain tensors and values, which `torch.load` takes without trusting
them."""

from __future__ import annotations

import io
from pathlib import Path

import torch


def save_torch(value: object, path: Path) -> None:
    """`torch.save` into a file whose folder may not be there yet. OSError where the disk refuses."""
    # torch's own writer makes a RuntimeError of a full disk
    data = io.BytesIO()
    torch.save(value, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.getbuffer())
