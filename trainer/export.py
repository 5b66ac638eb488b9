"""A student's weights in the form that other programs load: timm, torchvision, plain safetensors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from labelstore.arrays.durable import refuse_in_store, write_file
from labelstore.errors import ConflictError, UsageError
from trainer.config import TrainConfig

Format = Literal["timm", "torchvision", "safetensors"]


def export_weights(
    model: nn.Module,
    config: TrainConfig,
    out: Path,
    *,
    format: Format,
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, object]:
    """Write a network's weights; returns what is needed to load them: format, model, arguments, file, parameters.

    timm: `timm.create_model(model, checkpoint_path=file, **arguments)`. torchvision: its network of the same
    name loads the file's state dict, and so do detection backbones built on it. UsageError where the network
    is not one of theirs, ConflictError for a file that exists.
    """
    if out.exists() and not overwrite:
        raise ConflictError(f"{out} exists: give another file, or --overwrite")
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    arguments: dict[str, object] = {**config.model_kwargs, "num_classes": config.num_classes}
    library, _, name = config.model.rpartition(":")
    if format == "safetensors" and out.suffix != ".safetensors":
        raise UsageError(
            f"--out {out} with --format safetensors: give a file that ends with .safetensors"
        )
    refuse_in_store(out, "--out")
    if config.projection_head and format != "safetensors":
        raise UsageError(
            f"{config.model} ends in a projection head, which {format}'s network of that name does not have: export it "
            "with --format safetensors"
        )
    if format == "timm":
        _check_timm(config, library, name)
    elif format == "torchvision":
        arguments = {"num_classes": config.num_classes}  # its own network of that name
        name = name.partition(".")[0]  # timm's tags say which weights
        _check_torchvision(config, state, name)
    data = _file(state, out, config.model)
    if not dry_run:
        write_file(out, data)
    return {
        "format": format,
        "model": name if format != "safetensors" else config.model,
        "arguments": arguments,
        "file": str(out),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _file(state: dict[str, Tensor], out: Path, arch: str) -> bytes:
    if out.suffix == ".safetensors":
        plain = {name: tensor.contiguous() for name, tensor in state.items()}
        return save_safetensors(plain, {"format": "pt", "arch": arch})
    if out.suffix not in (".pth", ".pt"):
        raise UsageError(f"{out}: give a file that ends with .safetensors or .pth")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _check_timm(config: TrainConfig, library: str, name: str) -> None:
    import timm

    if library not in ("", "timm") or not timm.is_model(name):
        raise UsageError(f"{config.model} is no timm network: export it with --format safetensors")


def _check_torchvision(config: TrainConfig, state: dict[str, Tensor], name: str) -> None:
    """Load the weights into torchvision's own network of that name, on no memory."""
    from torchvision import models

    if name not in models.list_models():
        raise UsageError(
            f"torchvision has no network {name}: export it with --format timm or safetensors"
        )
    with torch.device("meta"):
        theirs = models.get_model(name, num_classes=config.num_classes).state_dict()
    differing = [
        key
        for key in {*theirs, *state}
        if key not in theirs or key not in state or theirs[key].shape != state[key].shape
    ]
    if differing:
        raise UsageError(
            f"torchvision's {name} has other weights ({min(differing)} and {len(differing) - 1} more differ): "
            "only networks of equal structure and names can be exported to it"
        )
