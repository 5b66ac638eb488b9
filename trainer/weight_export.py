"""A student's weights in the form that other programs load: timm, torchvision, plain safetensors, a folder for a hub.

A folder (`hf`) has timm's form of a repository: config.json says architecture, classes and how images are prepared,
model.safetensors holds the weights.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from labelstore.arrays.durable import check_new_place, make_folders, write_file
from labelstore.errors import ConflictError, UsageError
from trainer.config import TrainConfig

Format = Literal["timm", "torchvision", "safetensors", "hf"]
CONFIG, FOLDER_WEIGHTS = "config.json", "model.safetensors"
"""Files of a folder, under the names that timm looks for."""


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

    hf: `timm.create_model("local-dir:FOLDER", pretrained=True)`. timm:
    `timm.create_model(model, checkpoint_path=file, **arguments)`. torchvision: its network of the same name loads
    the file's state dict, and so do detection backbones built on it. UsageError where the network is not one of
    theirs, ConflictError for a file that exists.
    """
    _check_free(out, is_folder=format == "hf", overwrite=overwrite)
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    arguments: dict[str, object] = {**config.model_kwargs, "num_classes": config.num_classes}
    library, _, name = config.model.rpartition(":")
    if format == "safetensors" and out.suffix != ".safetensors":
        raise UsageError(
            f"`out={out}` with `format=safetensors`: give a file that ends with .safetensors"
        )
    check_new_place(out, "`out`")
    if config.projection_head and format != "safetensors":
        raise UsageError(
            f"{config.model} ends in a projection head, which {format}'s network of that name does not have: export it "
            "with `format=safetensors`"
        )
    if format in ("timm", "hf"):
        _check_timm(config, library, name)
    elif format == "torchvision":
        arguments = {"num_classes": config.num_classes}  # its own network of that name
        name = name.partition(".")[0]  # timm's tags say which weights
        _check_torchvision(config, state, name)
    if format == "hf":
        # the config last: timm looks for it first
        described = json.dumps(_described(model, config, name), indent=2, ensure_ascii=False)
        files = {
            out / FOLDER_WEIGHTS: _file(state, out / FOLDER_WEIGHTS, config.model),
            out / CONFIG: f"{described}\n".encode(),
        }
    else:
        files = {out: _file(state, out, config.model)}
    if not dry_run:
        if format == "hf":
            make_folders(out)
        for path, data in files.items():
            write_file(path, data)
    return {
        "format": format,
        "model": name if format != "safetensors" else config.model,
        "arguments": arguments,
        "file": str(out),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _check_free(out: Path, *, is_folder: bool, overwrite: bool) -> None:
    if not is_folder:
        if out.exists() and not overwrite:
            raise ConflictError(f"{out} exists: give another file, or `overwrite`")
        return
    if out.suffix in (".safetensors", ".pth", ".pt") or (out.exists() and not out.is_dir()):
        raise UsageError(f"`out={out}` with `format=hf`: give a folder")
    there = [name for name in (CONFIG, FOLDER_WEIGHTS) if (out / name).exists()]
    if there and not overwrite:
        raise ConflictError(f"{out / there[0]} exists: give another folder, or `overwrite`")


def _described(model: nn.Module, config: TrainConfig, name: str) -> dict[str, Any]:
    """config.json: everything that timm needs to build the network and to prepare its images."""
    own: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    # which layers timm replaces where somebody wants other classes or channels
    layers = {key: own[key] for key in ("first_conv", "classifier") if own.get(key)}
    size = config.input_size
    return {
        "architecture": name.partition(".")[0],
        "num_classes": config.num_classes,
        "num_features": getattr(model, "num_features", None),
        **({"model_args": dict(config.model_kwargs)} if config.model_kwargs else {}),
        **({"label_names": list(config.class_names)} if config.class_names else {}),
        "pretrained_cfg": {
            "num_classes": config.num_classes,
            "input_size": [3, size, size],
            "interpolation": config.interpolation,
            "crop_pct": config.crop_pct,
            "crop_mode": config.crop_mode,
            "mean": list(config.mean),
            "std": list(config.std),
            **layers,
        },
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
        raise UsageError(f"{config.model} is no timm network: export it with `format=safetensors`")


def _check_torchvision(config: TrainConfig, state: dict[str, Tensor], name: str) -> None:
    """Load the weights into torchvision's own network of that name, on no memory."""
    from torchvision import models

    if name not in models.list_models():
        raise UsageError(
            f"torchvision has no network {name}: export it with `format=timm` or safetensors"
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
