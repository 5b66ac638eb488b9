"""Weight files: read without running anything they name, told apart by a digest, fitted to a network."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from labelstore.errors import RejectedInput

RUN_WEIGHTS = ("model.safetensors", "model_best.pth.tar", "last.pth.tar")
"""Files of a run folder that hold weights, the first that is there counts: of the best top-1, its checkpoint, the
last one."""
RUN_AVERAGE = "model_ema.safetensors"
"""A run's moving average of the weights, where it keeps one."""

Weights = Literal["ema", "raw"]
"""Which weights of a checkpoint that holds both: their moving average, or the plain ones."""
PLAIN_NAMES = ("state_dict", "model")
AVERAGED_NAMES = ("state_dict_ema", "model_ema")
"""Names of state dicts in checkpoints of timm, torchvision, DeiT and trainer: the first that is there counts."""
WRAPPERS = ("module", "_orig_mod")
"""What DistributedDataParallel and torch.compile put into the names of a network's weights, anywhere."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The weights that were taken from a file, under the names that the file gives them."""

    path: Path
    state: Mapping[str, torch.Tensor]
    taken: Weights | None = None
    """Which ones, of a checkpoint with a moving average; None for a file that holds no average."""
    note: str | None = None
    """A line that says which weights were taken by default."""


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names, shapes, dtypes and bytes of a state dict, in its order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: Path, weights: Weights | None = None) -> WeightFile:
    """A checkpoint's state dict, read without running anything that the file names.

    Takes the state dict itself, one under "state_dict" or "model", or a moving average under "state_dict_ema" or
    "model_ema". Of a file with both, `weights` chooses; None takes the plain weights, and the average where there
    are no others. RejectedInput for a file that cannot be read, or that lacks the chosen weights.
    """
    if not path.is_file():
        raise RejectedInput(
            f"no checkpoint at {path}: give a .pth or .safetensors file or a run folder"
        )
    loaded = _load(path)
    state: Any
    plain, averaged = (_first(loaded, names) for names in (PLAIN_NAMES, AVERAGED_NAMES))
    if plain is None and averaged is None:
        plain = loaded
    taken = weights or ("ema" if plain is None else "raw")
    state = averaged if taken == "ema" else plain
    if state is None:
        lacking = "moving average" if taken == "ema" else "plain weights"
        names = AVERAGED_NAMES if taken == "ema" else PLAIN_NAMES
        raise RejectedInput(
            f"{path} has no {lacking} ({' or '.join(names)}), which weights={taken!r} asks for: leave weights out"
        )
    if not _is_state(state):
        raise RejectedInput(f"{path} holds no state dict: give a file of named tensors")
    return WeightFile(
        path=path,
        state=_without_counter(state),
        taken=None if averaged is None else taken,
        note=None if averaged is None or weights else _note(path, has_plain=plain is not None),
    )


def run_weights(run: Path, weights: Weights | None = None) -> Path:
    """The weight file of a run folder: the best plain weights there are, or with "ema" their moving average.

    RejectedInput where the run has not written it.
    """
    names = (RUN_AVERAGE,) if weights == "ema" else RUN_WEIGHTS
    for name in names:
        if (run / name).is_file():
            return run / name
    if weights == "ema":
        raise RejectedInput(
            f"{run} has no {RUN_AVERAGE}: give a run that averaged its weights "
            "(`trainer.TrainConfig(ema_decay=DECAY)`) and was evaluated"
        )
    raise RejectedInput(
        f"{run} holds no weights yet ({names[0]}): wait for the run's first pass to end"
    )


def has_average(path: Path) -> bool:
    """Whether a checkpoint or run folder holds a moving average of its weights."""
    if path.is_dir():
        return (path / RUN_AVERAGE).is_file()
    return path.is_file() and read_weights(path).taken is not None


def load_weights(module: nn.Module, file: WeightFile) -> None:
    """Fill a network with a file's weights; RejectedInput naming the first thing that does not fit.

    Names are compared without what torch.compile and DistributedDataParallel add to them.
    """
    own, state = by_plain_name(module.state_dict()), by_plain_name(file.state)
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
            f"{file.path} does not fit the network: {what} "
            f"({len(missing)} missing, {len(extra)} unknown, {len(shapes)} of another shape); check the model name"
        )
    # both have the same names, in orders of their own
    names = dict(zip(own, module.state_dict(), strict=True))
    module.load_state_dict({names[key]: tensor for key, tensor in state.items()})


def by_plain_name(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict by the names of the bare network; by its own names where two would become one.

    >>> list(by_plain_name({"module._orig_mod.fc.weight": torch.zeros(2, 2)}))
    ['fc.weight']
    """
    plain = {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): tensor
        for name, tensor in state.items()
    }
    return plain if len(plain) == len(state) else dict(state)


def first_line(error: BaseException) -> str:
    """Shorten an exception to one line of an error message; without codes that colour a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = text.strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _load(path: Path) -> Any:  # noqa: ANN401 - what a foreign file holds
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # a Namespace is a bag of values: making one runs nothing
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RejectedInput(
            f"{path} is not a readable checkpoint ({_foreign_names(path) or first_line(error)}): "
            "give plain weights (torch.save of a state dict) or .safetensors"
        ) from error


def _foreign_names(path: Path) -> str:
    """List for an error message what a checkpoint names beside tensors and plain values; empty where unknown."""
    if path.suffix == ".safetensors":
        return ""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001 - damaged bytes raise anything
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"it names {names[0]}{more}, which would be code to run" if names else ""


def _first(checkpoint: object, names: tuple[str, ...]) -> Mapping[str, Any] | None:
    if not isinstance(checkpoint, Mapping):
        return None
    values = (checkpoint.get(name) for name in names)
    return next((state for state in values if isinstance(state, Mapping)), None)


def _is_state(held: object) -> bool:
    return isinstance(held, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in held.items()
    )


def _without_counter(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the number of updates that torch's AveragedModel keeps beside the weights it wraps."""
    is_averaged = any(name.startswith("module.") for name in state)
    return {
        name: value for name, value in state.items() if not (is_averaged and name == "n_averaged")
    }


def _note(path: Path, *, has_plain: bool) -> str:
    if not has_plain:
        return f"{path} holds only a moving average of the weights: it is taken"
    return f"{path} holds a moving average beside the plain weights: the plain ones are taken; weights='ema' takes it"
