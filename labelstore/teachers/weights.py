"""Weight files: read without running anything they name, told apart by a digest, fitted to a network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labelstore.errors import RejectedInput

RUN_WEIGHTS = ("model.safetensors", "model_best.pth.tar", "last.pth.tar")
"""Files of a run folder that hold weights, the first that is there counts: of the best top-1, its checkpoint, the
last one."""


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names, shapes, dtypes and bytes of a state dict, in its order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's state dict, read without running anything that the file names.

    Takes the state dict itself, or one under "state_dict", "model" or "state_dict_ema", with or without
    the "module." of DistributedDataParallel.
    """
    if not path.is_file():
        raise RejectedInput(
            f"no checkpoint at {path}: give a .pth or .safetensors file or a run folder"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RejectedInput(
            f"{path} is not a readable checkpoint ({first_line(error)}): "
            "give plain weights (torch.save of a state dict) or .safetensors"
        ) from error
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise RejectedInput(f"{path} holds no state dict: give a file of named tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a network from a checkpoint; RejectedInput naming the first thing that does not fit."""
    state = read_weights(path)
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or extra or shapes:
        what = (
            f"{missing[0]} is missing"
            if missing
            else f"{shapes[0]} has shape {tuple(state[shapes[0]].shape)}, "
            f"the network wants {tuple(own[shapes[0]].shape)}"
            if shapes
            else f"{extra[0]} is not in the network"
        )
        raise RejectedInput(
            f"{path} does not fit the network: {what} "
            f"({len(missing)} missing, {len(extra)} unknown, {len(shapes)} of another shape); check the model name"
        )
    module.load_state_dict(state)


def head_classes(state: Mapping[str, torch.Tensor]) -> int | None:
    """Outputs of the classifier of a state dict, by the names that libraries give it; None where there is none."""
    heads = [
        key
        for key in state
        if key.endswith(("fc.weight", "head.weight", "classifier.weight", "head.fc.weight"))
    ]
    return int(state[heads[-1]].shape[0]) if heads else None


def first_line(error: BaseException) -> str:
    """What an exception says, for the one line of an error message."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
