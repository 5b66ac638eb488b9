"""One checkpoint file: everything that continues a run, in timm's `.pth.tar` form, written all or nothing.

torch stores a CRC-32 with every tensor but does not compare it when it loads, so reading does that first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import secrets
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from labelstore.arrays.durable import fsync_folder, write_file
from labelstore.errors import RejectedInput, StorageError
from labelstore.teachers.weights import state_digest
from trainer.models import DIGEST_KEY

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run after `step` optimiser steps. All values are tensors or plain Python values."""

    step: int
    """Optimiser steps taken, over the whole run: with the config it says pass, images and crops to come."""
    epoch: int
    """Whole epochs of N crops seen (timm's word)."""
    arch: str
    """Model name (timm's word)."""
    state_dict: Mapping[str, Tensor]
    """Weights and buffers of the bare network: no DistributedDataParallel or torch.compile prefix."""
    optimizer: Mapping[str, Any]
    """The optimiser's state dict."""
    amp_scaler: Mapping[str, Any] | None = None
    """State dict of the gradient scaler, with fp16."""
    state_dict_ema: Mapping[str, Tensor] | None = None
    """Moving average of weights and buffers (timm's word), of a run with one."""
    state_dict_discriminator: Mapping[str, Tensor] | None = None
    """State of MEAL V2's discriminator, in runs with one."""
    metric: float | None = None
    """Best top-1 so far, percent."""
    metric_ema: float | None = None
    """The same of the moving average."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The run's config as plain values."""
    counters: Mapping[str, float] = field(default_factory=dict)
    """Running sums of an unfinished pass, so that its summary row comes out the same after a resume."""
    is_whole_pass: bool = True
    """Whether a pass ended here and its row is written; a checkpoint inside a pass is replaced by the next one."""
    owed: Mapping[str, float] | None = None
    """Facts of a pass that ended but was not evaluated: what its row takes from its training (`RunState.owed`)."""


def save_checkpoint(path: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Write a checkpoint so that a reader finds the old one or the new one; StorageError names the file.

    With `previous`, what `path` held before is kept under that name.
    """
    data = checkpoint_bytes(checkpoint)
    if previous is not None and path.is_file():
        _keep(path, previous)
    write_file(path, data)


def checkpoint_bytes(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint file."""
    buffer = io.BytesIO()
    values = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)}
    torch.save({"version": VERSION, **values, "state_dict": dict(checkpoint.state_dict)}, buffer)
    return buffer.getvalue()


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file, tensors on the CPU, nothing that the file names executed.

    RejectedInput for one that is damaged, or is no checkpoint of a run.
    """
    values = _load(path)
    names = {f.name for f in dataclasses.fields(Checkpoint)}
    if not isinstance(values, dict) or not {"version", "step", "state_dict", "optimizer"} <= set(
        values
    ):
        raise RejectedInput(f"{path} is no checkpoint of a run: give a run folder's last.pth.tar")
    if values["version"] > VERSION:
        raise RejectedInput(
            f"{path} is of version {values['version']}, this trainer reads {VERSION}: update it"
        )
    return Checkpoint(**{name: value for name, value in values.items() if name in names})


def weights_file(checkpoint: Checkpoint, *, ema: bool = False) -> bytes:
    """The network's weights as a safetensors file, their digest in its metadata; `ema` takes their average."""
    state = (checkpoint.state_dict_ema or {}) if ema else checkpoint.state_dict
    metadata = {
        "format": "pt",
        DIGEST_KEY: state_digest(state),
        "arch": checkpoint.arch,
        "epoch": str(checkpoint.epoch),
    }
    # cloned, since safetensors refuses tensors that share memory
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    return save_safetensors(plain, metadata)


def epoch_of(path: Path) -> int | None:
    """Whole epochs after which a run saved these weights; None where the file does not say.

    RejectedInput for a file that is damaged.
    """
    if path.suffix != ".safetensors":
        return read_checkpoint(path).epoch
    try:
        with safe_open(path, framework="pt") as file:
            epoch = (file.metadata() or {}).get("epoch", "")
    except (OSError, SafetensorError) as error:
        raise RejectedInput(f"{path} cannot be read ({error})") from error
    return int(epoch) if epoch.isdecimal() else None


def _load(path: Path) -> Any:  # noqa: ANN401  # whatever a foreign file holds
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"bad CRC-32 of {damaged}")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RejectedInput(f"no checkpoint at {path}") from error
    except pickle.UnpicklingError as error:
        raise RejectedInput(
            f"{path} holds more than tensors and plain values: it is not loaded"
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:
        # zipfile and torch raise a dozen classes for malformed bytes, NotImplementedError and KeyError among them
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RejectedInput(f"{path} is damaged ({reason})") from error


def _keep(path: Path, previous: Path) -> None:
    """Give the file at `path` the name `previous` too; on a disk without hard links, instead."""
    link = previous.with_name(f".{previous.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        try:
            os.link(path, link)
            link.replace(previous)
            # nothing is renamed where both are names of one file already
            link.unlink(missing_ok=True)
        except OSError:
            with contextlib.suppress(OSError):
                link.unlink()
            path.replace(previous)
        fsync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{previous} cannot be written ({error.strerror or error})") from error
