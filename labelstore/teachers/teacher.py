"""Loading a teacher: timm:NAME, torchvision:NAME, a local checkpoint, or a folder that `trainer.run` wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labelstore.catalogue.records import TeacherRow
from labelstore.errors import RejectedInput, UsageError, check_utf8
from labelstore.teachers.named_networks import (
    UNFIT,
    build,
    classes_of,
    is_function,
    own_settings,
    split_name,
)
from labelstore.teachers.weights import (
    RUN_AVERAGE,
    Weights,
    first_line,
    has_average,
    load_weights,
    read_weights,
    run_weights,
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
    weights: Weights | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> Teacher:
    """The teacher that `source` names, with pretrained weights and its own preprocessing.

    `source`: "timm:NAME" (or a bare timm name), "torchvision:NAME", a run folder of `trainer run`,
    "package.module:function" that returns a network (an SSL teacher with its projection head; called with
    `model_options`; preprocessing from its `pretrained_cfg`, as timm's, or timm's defaults), or a checkpoint
    (.pth, .safetensors) together with `architecture`, which is again one of timm:NAME, torchvision:NAME and
    package.module:function. `weights` chooses between the plain weights of a checkpoint or run folder ("raw", also
    the default) and their moving average ("ema"); without it `note` says which were taken where there are both.
    RejectedInput for a checkpoint that does not fit, StorageError where weights would have to come from a network
    and there is none, UsageError for a name that does not exist.
    """
    check_utf8(source)
    if weights not in (None, "ema", "raw"):
        raise UsageError(f"weights={weights!r}: give ema or raw")
    path = Path(source)
    is_checkpoint = _is_checkpoint(path)
    if architecture is not None and not is_checkpoint:
        named = path.is_dir() or ":" in source
        why = "this teacher says its own" if named else f"no file or folder {source} is there"
        raise UsageError(
            f"`architecture={architecture}` with `teacher={source}`: it names the network of a checkpoint, and {why}; "
            "leave it out"
        )
    options = dict(model_options or {})
    if path.is_dir():
        network = _from_run_folder(path, source, weights, note)
    elif is_checkpoint:
        network = _from_checkpoint(path, architecture, options, weights, note)
    elif weights is not None:
        raise UsageError(
            f"weights={weights!r} with teacher {source}: it chooses between the weights of a checkpoint or run folder; "
            "leave it out"
        )
    else:
        network = _from_library(source, options)
    if input_size is not None:
        network = replace(network, settings={**network.settings, "input_size": input_size})
    return _teacher(network, source, name or _short_name(source))


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A network with its weights, and what its source says about it."""

    module: nn.Module
    architecture: str
    settings: Mapping[str, Any]
    """input_size, mean, std, interpolation, crop_pct, crop_mode."""
    class_names: tuple[str, ...] | None = None
    weights: Weights | None = None
    """Which weights of a source that has several."""


def load_recorded_teacher(row: TeacherRow, given: str | None = None) -> Teacher:
    """The teacher that a store recorded, from its own source or from `given`, with the recorded input size.

    Code that a store names is never imported: where the source is a function, `given` has to say so itself
    (UsageError).
    """
    source = given or row.source
    if given is None and is_function(row.source):
        raise UsageError(
            f"teacher {row.name} is {row.source}, and a store does not say which code to run: give "
            f"`teacher={row.source}` if you trust it"
        )
    if is_function(row.architecture) and not is_function(source):
        raise UsageError(
            f"the network of teacher {row.name} is {row.architecture}, and a store does not say which code to run: "
            "give `teacher` with a package.module:function that returns it with its weights"
        )
    architecture = row.architecture if _is_checkpoint(Path(source)) else None
    weights = row.facts.get("weights")
    if weights == "ema" and not has_average(Path(source)):
        weights = None  # the average may lie alone in another file: the digest tells whether it is the same
    return load_teacher(
        source, architecture=architecture, input_size=row.input_size, weights=weights
    )


def recorded_architecture(source: str, recorded: Iterable[TeacherRow]) -> str | None:
    """The network of a checkpoint that is a teacher of a store already; None where none is recorded, or only code."""
    path = Path(source)
    if not _is_checkpoint(path):
        return None
    named = {row.architecture for row in recorded if Path(row.source).absolute() == path.absolute()}
    return named.pop() if len(named) == 1 and not any(map(is_function, named)) else None


def _is_checkpoint(path: Path) -> bool:
    return not path.is_dir() and (path.is_file() or path.suffix in WEIGHT_FILES)


def _from_library(source: str, options: dict[str, Any]) -> _Network:
    try:
        module = build(source, options, pretrained=True)
    except UsageError as error:
        if ":" in source:
            raise
        # a bare name may have been meant for a path
        raise UsageError(f"{error}; and no file or folder {source} is there") from None
    return _Network(module=module, architecture=source, settings=own_settings(source, module))


def _from_checkpoint(
    path: Path,
    architecture: str | None,
    options: dict[str, Any],
    weights: Weights | None,
    note: Callable[[str], None],
) -> _Network:
    if architecture is None:
        raise UsageError(
            f"`teacher={path}` is a checkpoint: name its network with `architecture`, e.g. timm:resnet50"
        )
    file = read_weights(path, weights)
    if "num_classes" not in options and not is_function(architecture):
        classes = classes_of(architecture, options, file.state)
        if classes is not None:
            options["num_classes"] = classes
    module = build(architecture, options, pretrained=False)
    load_weights(module, file)
    if file.note is not None:
        note(file.note)
    return _Network(
        module=module,
        architecture=architecture,
        settings=own_settings(architecture, module),
        weights=file.taken,
    )


def _from_run_folder(
    path: Path, source: str, weights: Weights | None, note: Callable[[str], None]
) -> _Network:
    config_path = path / "config.yaml"
    if not config_path.is_file():
        raise RejectedInput(
            f"{path} is not a run folder: it has no config.yaml; give one that `trainer.run` wrote"
        )
    config = read_mapping(config_path)
    try:
        model, classes = str(config["model"]), int(config["num_classes"])
        options = dict(config.get("model_kwargs") or {})
        mean, std = (tuple(float(x) for x in config[key]) for key in ("mean", "std"))
        settings = {
            "input_size": int(config["input_size"]),
            "mean": mean,
            "std": std,
            "interpolation": str(config["interpolation"]),
            "crop_pct": float(config["crop_pct"]),
            # runs from before there was a choice were evaluated so
            "crop_mode": str(config.get("crop_mode", "center")),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise RejectedInput(
            f"{config_path} cannot be read ({first_line(error)}): is the run folder whole?"
        ) from error
    file = run_weights(path, weights)
    if is_function(model):
        raise UsageError(
            f"{path} is a run of {model}, and a folder does not say which code to run: give `teacher={file}` "
            f"`architecture={model}`"
        )
    if config.get("projection_head"):
        raise UsageError(
            f"{path} is a run of {model} with a projection head, which is no part of that network: give "
            f"`teacher={file}` `architecture=package.module:function`, of a function that builds both"
        )
    module = build(model, {**options, "num_classes": classes}, pretrained=False)
    load_weights(module, read_weights(file, "raw"))
    names = config.get("class_names")
    if has_average(path) and weights is None:
        note(
            f"{path} holds a moving average too: {file.name} is taken; weights='ema' takes {RUN_AVERAGE}"
        )
    return _Network(
        module=module,
        architecture=model,
        settings=settings,
        class_names=tuple(names) if names else None,
        weights=(weights or "raw") if has_average(path) else None,
    )


def _teacher(network: _Network, source: str, name: str) -> Teacher:
    module = network.module.eval().requires_grad_(False)
    settings = dict(network.settings)
    size, crop_mode = settings["input_size"], settings.pop("crop_mode")
    try:
        with torch.inference_mode():
            outputs = module(torch.zeros(1, 3, size, size))
    except (*UNFIT, RuntimeError) as error:
        raise UsageError(
            f"{source} does not take {size} x {size} pixels ({first_line(error)}): leave input_size out"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise RejectedInput(
            f"{source} does not return one row of class logits per image: choose a classifier"
        )
    row = TeacherRow(
        name=name,
        source=source,
        architecture=network.architecture,
        digest=state_digest(module.state_dict()),
        num_classes=outputs.shape[1],
        versions={package: version(package) for package in ("torch", "torchvision", "timm")},
        facts={
            "crop_mode": crop_mode,
            **({} if network.weights is None else {"weights": network.weights}),
        },
        **settings,
    )
    return Teacher(module=module, row=row, class_names=network.class_names)


def _short_name(source: str) -> str:
    """A name for catalogue and folders: the model's name, or the file's or folder's."""
    if is_function(source):
        return source.rpartition(":")[2]
    path = Path(source)
    name = path.name if path.exists() or path.suffix in WEIGHT_FILES else split_name(source)[1]
    for suffix in WEIGHT_FILES:
        name = name.removesuffix(suffix)
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".") or "teacher"
