"""Loading a teacher: timm:NAME, torchvision:NAME, a local checkpoint, or a folder that `trainer run` wrote."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from huggingface_hub import constants
from torch import nn

from labelstore.catalogue.records import TeacherRow
from labelstore.errors import RejectedInput, StorageError, UsageError
from labelstore.generation.functions import call_function, is_function
from labelstore.generation.weights import first_line, load_weights, read_weights, state_digest

WEIGHT_FILES = (".pth", ".pt", ".bin", ".tar", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network in evaluation mode with everything that turns an image into its probabilities."""

    module: nn.Module
    """(B, 3, S, S) normalised float -> (B, C) logits."""
    row: TeacherRow
    class_names: tuple[str, ...] | None = None
    """What the outputs mean, where the source says so."""


def load_teacher(
    source: str,
    *,
    name: str | None = None,
    architecture: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    input_size: int | None = None,
) -> Teacher:
    """The teacher that `source` names, with pretrained weights and its own preprocessing.

    `source`: "timm:NAME" (or a bare timm name), "torchvision:NAME", a run folder of `trainer run`,
    "package.module:function" that returns a network (an SSL teacher with its projection head; called with
    `model_options`; preprocessing from its `pretrained_cfg`, as timm's, or timm's defaults), or a checkpoint
    (.pth, .safetensors) together with `architecture`, which is again one of timm:NAME, torchvision:NAME and
    package.module:function. RejectedInput for a checkpoint that does not fit, StorageError where weights would
    have to come from a network and there is none, UsageError for a name that does not exist.
    """
    path = Path(source)
    if path.is_dir():
        teacher = _from_run_folder(path, source)
    elif path.is_file() or path.suffix in WEIGHT_FILES:
        teacher = _from_checkpoint(path, source, architecture, dict(model_options or {}))
    else:
        teacher = _from_library(source, dict(model_options or {}))
    row = teacher.row
    changes: dict[str, Any] = {"name": name or _short_name(source)}
    if input_size is not None:
        changes["input_size"] = input_size
    row = TeacherRow(**{**vars(row), **changes})
    module = teacher.module.eval().requires_grad_(False)
    return Teacher(module=module, row=row, class_names=teacher.class_names)


def load_recorded_teacher(row: TeacherRow, given: str | None = None) -> Teacher:
    """The teacher that a store recorded, from its own source or from `given`, with the recorded input size.

    Code that a store names is never imported: where the source is a function, `given` has to say so itself
    (UsageError).
    """
    source = given or row.source
    if given is None and is_function(row.source):
        raise UsageError(
            f"teacher {row.name} is {row.source}, and a store does not say which code to run: give --teacher "
            f"{row.source} if you trust it"
        )
    if is_function(row.architecture) and not is_function(source):
        raise UsageError(
            f"the network of teacher {row.name} is {row.architecture}, and a store does not say which code to run: "
            "give --teacher with a package.module:function that returns it with its weights"
        )
    architecture = None if is_function(source) else row.architecture
    return load_teacher(source, architecture=architecture, input_size=row.input_size)


def build(architecture: str, options: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    """A network by name: timm:NAME, torchvision:NAME, package.module:function, or a bare timm name."""
    if is_function(architecture):
        return call_function(architecture, options)
    library, name = _split(architecture)
    if library == "torchvision":
        import torchvision

        if name not in torchvision.models.list_models():
            raise UsageError(
                f"torchvision has no model {name!r}: see torchvision.models.list_models()"
            )
        weights = "DEFAULT" if pretrained else None
        return _fetch(
            architecture,
            lambda: torchvision.models.get_model(name, weights=weights, **options),
            options,
            pretrained=pretrained,
        )
    import timm

    base = name.partition(".")[0]
    if not name.startswith("hf-hub:") and not timm.is_model(base):
        raise UsageError(f"timm has no model {name!r}: timm.list_models() lists them")
    if pretrained and not name.startswith("hf-hub:") and not timm.list_pretrained(f"{name}*"):
        raise UsageError(f"timm has no pretrained weights for {name!r}: give a checkpoint instead")
    return _fetch(
        architecture,
        lambda: timm.create_model(name, pretrained=pretrained, **options),
        options,
        pretrained=pretrained,
    )


def _fetch(
    architecture: str,
    make: Callable[[], nn.Module],
    options: Mapping[str, Any],
    *,
    pretrained: bool,
) -> nn.Module:
    try:
        if pretrained and not _has_network():
            return _from_cache(make)
        with redirect_stdout(sys.stderr):  # where torch.hub says that it downloads
            return make()
    except TypeError as error:
        raise UsageError(
            f"{architecture} cannot be built with {json.dumps(dict(options))}: {first_line(error)}"
        ) from error
    except (OSError, RuntimeError) as error:
        # no route to the hub ends in a dozen different classes below these two
        raise StorageError(
            f"cannot load the weights of {architecture}: they are not in the local cache and could not be fetched "
            f"({_reason(error)}); fetch them where there is a network and give that file: as --teacher FILE.safetensors "
            f"--teacher-model {architecture}, to `trainer evaluate` as --checkpoint FILE"
        ) from error


def _has_network() -> bool:
    """Whether the Hub's name resolves: without that, its client retries for a minute and says so at every try."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    host = urlparse(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _from_cache(make: Callable[[], nn.Module]) -> nn.Module:
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        with redirect_stdout(StringIO()):  # torch.hub announces a download that cannot begin
            return make()
    finally:
        constants.HF_HUB_OFFLINE = before


def _reason(error: BaseException) -> str:
    return "no network" if not _has_network() else first_line(error)


def _from_library(source: str, options: dict[str, Any]) -> Teacher:
    try:
        module = build(source, options, pretrained=True)
    except UsageError as error:
        if ":" in source:
            raise
        # a bare name may have been meant for a path
        raise UsageError(f"{error}; and no file or folder {source} is there") from None
    library, _ = _split(source)
    settings = _torchvision_settings(source) if library == "torchvision" else _timm_settings(module)
    return _teacher(module, source, source, settings)


def _from_checkpoint(
    path: Path, source: str, architecture: str | None, options: dict[str, Any]
) -> Teacher:
    if architecture is None:
        raise UsageError(
            f"--teacher {path} is a checkpoint: name its network with --teacher-model, e.g. timm:resnet50"
        )
    state = read_weights(path)
    if "num_classes" not in options and not is_function(architecture):
        classes = _head_classes(state)
        if classes is not None:
            options["num_classes"] = classes
    module = build(architecture, options, pretrained=False)
    load_weights(module, path)
    library, _ = _split(architecture)
    settings = (
        _torchvision_settings(architecture) if library == "torchvision" else _timm_settings(module)
    )
    return _teacher(module, source, architecture, settings)


def _from_run_folder(path: Path, source: str) -> Teacher:
    import yaml

    config_path = path / "config.yaml"
    if not config_path.is_file():
        raise RejectedInput(
            f"{path} is not a run folder: it has no config.yaml; give one that `trainer run` wrote"
        )
    try:
        config = yaml.safe_load(config_path.read_text())
        model, classes = str(config["model"]), int(config["num_classes"])
        size = int(config["input_size"])
        mean, std = (tuple(float(x) for x in config[key]) for key in ("mean", "std"))
        options = dict(config.get("model_kwargs") or {})
        interpolation, crop_pct = str(config["interpolation"]), float(config["crop_pct"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise RejectedInput(
            f"{config_path} cannot be read ({first_line(error)}): is the run folder whole?"
        ) from error
    weights = next(
        (
            path / file
            for file in ("model.safetensors", "model_best.pth.tar", "last.pth.tar")
            if (path / file).is_file()
        ),
        None,
    )
    if weights is None:
        raise RejectedInput(
            f"{path} holds no weights yet (model.safetensors): wait for `trainer run` to finish"
        )
    if is_function(model):
        raise UsageError(
            f"{path} is a run of {model}, and a folder does not say which code to run: give --teacher {weights} "
            f"--teacher-model {model}"
        )
    if config.get("projection_head"):
        raise UsageError(
            f"{path} is a run of {model} with a projection head, which is no part of that network: give --teacher {weights} "
            "--teacher-model package.module:function, of a function that builds both"
        )
    module = build(model, {**options, "num_classes": classes}, pretrained=False)
    load_weights(module, weights)
    names = config.get("class_names")
    settings = {
        "input_size": size,
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
    }
    return _teacher(module, source, model, settings, tuple(names) if names else None)


def _teacher(
    module: nn.Module,
    source: str,
    architecture: str,
    settings: Mapping[str, Any],
    class_names: tuple[str, ...] | None = None,
) -> Teacher:
    module = module.eval()
    size = settings["input_size"]
    with torch.inference_mode():
        outputs = module(torch.zeros(1, 3, size, size))
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise RejectedInput(
            f"{source} does not return one row of class logits per image: choose a classifier"
        )
    row = TeacherRow(
        name=_short_name(source),
        source=source,
        architecture=architecture,
        digest=state_digest(module.state_dict()),
        num_classes=outputs.shape[1],
        versions={package: version(package) for package in ("torch", "torchvision", "timm")},
        **settings,
    )
    return Teacher(module=module, row=row, class_names=class_names)


def _timm_settings(module: nn.Module) -> dict[str, Any]:
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    return {
        "input_size": int(config["input_size"][-1]),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": str(config["interpolation"]),
        "crop_pct": float(config["crop_pct"]),
    }


def _torchvision_settings(architecture: str) -> dict[str, Any]:
    import torchvision

    _, name = _split(architecture)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transform = weights.transforms()
    crop, resize = transform.crop_size[0], transform.resize_size[0]
    return {
        "input_size": int(crop),
        "mean": tuple(transform.mean),
        "std": tuple(transform.std),
        "interpolation": str(transform.interpolation.value),
        "crop_pct": crop / resize,
    }


def _head_classes(state: Mapping[str, torch.Tensor]) -> int | None:
    heads = [
        key
        for key in state
        if key.endswith(("fc.weight", "head.weight", "classifier.weight", "head.fc.weight"))
    ]
    return int(state[heads[-1]].shape[0]) if heads else None


def _split(source: str) -> tuple[str, str]:
    library, colon, name = source.partition(":")
    if colon and library in ("timm", "torchvision"):
        return library, name
    return "timm", source


def _short_name(source: str) -> str:
    """A name for catalogue and folders: the model's name, or the file's or folder's."""
    if is_function(source):
        return source.rpartition(":")[2]
    path = Path(source)
    name = path.name if path.exists() or path.suffix in WEIGHT_FILES else _split(source)[1]
    for suffix in WEIGHT_FILES:
        name = name.removesuffix(suffix)
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".") or "teacher"
