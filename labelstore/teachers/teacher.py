"""Loading a teacher: timm:NAME, torchvision:NAME, a local checkpoint, or a folder that `trainer run` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labelstore.catalogue.records import TeacherRow
from labelstore.errors import RejectedInput, UsageError, check_utf8
from labelstore.teachers.functions import is_function
from labelstore.teachers.named_networks import build, own_settings, split_name
from labelstore.teachers.weights import (
    RUN_WEIGHTS,
    first_line,
    head_classes,
    load_weights,
    read_weights,
    state_digest,
)
from labelstore.untrusted.yaml_files import read_mapping

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
    check_utf8(source)
    path = Path(source)
    is_checkpoint = _is_checkpoint(path)
    if architecture is not None and not is_checkpoint:
        named = path.is_dir() or ":" in source
        why = "this teacher says its own" if named else f"no file or folder {source} is there"
        raise UsageError(
            f"--teacher-model {architecture} with --teacher {source}: it names the network of a checkpoint, and {why}; "
            "leave it out"
        )
    if path.is_dir():
        teacher = _from_run_folder(path, source)
    elif is_checkpoint:
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
    architecture = row.architecture if _is_checkpoint(Path(source)) else None
    return load_teacher(source, architecture=architecture, input_size=row.input_size)


def _is_checkpoint(path: Path) -> bool:
    return not path.is_dir() and (path.is_file() or path.suffix in WEIGHT_FILES)


def _from_library(source: str, options: dict[str, Any]) -> Teacher:
    try:
        module = build(source, options, pretrained=True)
    except UsageError as error:
        if ":" in source:
            raise
        # a bare name may have been meant for a path
        raise UsageError(f"{error}; and no file or folder {source} is there") from None
    return _teacher(module, source, source, own_settings(source, module))


def _from_checkpoint(
    path: Path, source: str, architecture: str | None, options: dict[str, Any]
) -> Teacher:
    if architecture is None:
        raise UsageError(
            f"--teacher {path} is a checkpoint: name its network with --teacher-model, e.g. timm:resnet50"
        )
    state = read_weights(path)
    if "num_classes" not in options and not is_function(architecture):
        classes = head_classes(state)
        if classes is not None:
            options["num_classes"] = classes
    module = build(architecture, options, pretrained=False)
    load_weights(module, path)
    return _teacher(module, source, architecture, own_settings(architecture, module))


def _from_run_folder(path: Path, source: str) -> Teacher:
    config_path = path / "config.yaml"
    if not config_path.is_file():
        raise RejectedInput(
            f"{path} is not a run folder: it has no config.yaml; give one that `trainer run` wrote"
        )
    config = read_mapping(config_path)
    try:
        model, classes = str(config["model"]), int(config["num_classes"])
        size = int(config["input_size"])
        mean, std = (tuple(float(x) for x in config[key]) for key in ("mean", "std"))
        options = dict(config.get("model_kwargs") or {})
        interpolation, crop_pct = str(config["interpolation"]), float(config["crop_pct"])
    except (KeyError, TypeError, ValueError) as error:
        raise RejectedInput(
            f"{config_path} cannot be read ({first_line(error)}): is the run folder whole?"
        ) from error
    weights = next(
        (path / file for file in RUN_WEIGHTS if (path / file).is_file()),
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
            f"{path} is a run of {model} with a projection head, which is no part of that network: give --teacher "
            f"{weights} --teacher-model package.module:function, of a function that builds both"
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


def _short_name(source: str) -> str:
    """A name for catalogue and folders: the model's name, or the file's or folder's."""
    if is_function(source):
        return source.rpartition(":")[2]
    path = Path(source)
    name = path.name if path.exists() or path.suffix in WEIGHT_FILES else split_name(source)[1]
    for suffix in WEIGHT_FILES:
        name = name.removesuffix(suffix)
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".") or "teacher"
