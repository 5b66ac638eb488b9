"""Networks by name, of a library or of one's own, with or without pretrained weights, and how pixels are prepared."""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from io import StringIO
from typing import Any
from urllib.parse import urlparse

import torch
from huggingface_hub import constants
from torch import nn

from labelstore.errors import StorageError, UsageError
from labelstore.teachers.weights import by_plain_name, first_line

_LIBRARIES = ("timm", "torchvision", "hf-hub")


def is_function(source: str) -> bool:
    """Whether a source names a function: `package.module:function`, and no library.

    >>> is_function("mycode.ssl:moco_v2"), is_function("timm:resnet50"), is_function("teacher.pth")
    (True, False, False)
    """
    module, colon, function = source.partition(":")
    dotted = all(part.isidentifier() for part in module.split("."))
    return bool(colon) and module not in _LIBRARIES and dotted and function.isidentifier()


def call_function(source: str, options: Mapping[str, Any]) -> nn.Module:
    """The network that the function returns when called with `options`; UsageError where it returns none."""
    module_name, _, function_name = source.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{source}: {first_line(error)}; give package.module:function that can be imported (modules of the current "
            "folder are found where the command line names the function)"
        ) from error
    try:
        network = function(**options)
    except TypeError as error:
        raise UsageError(
            f"{source} cannot be called with {dict(options)}: {first_line(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"{source} returned {type(network).__name__}: it must return a torch.nn.Module"
        )
    return network


UNFIT = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""What libraries raise for arguments that make no network."""


def build(architecture: str, options: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    """A network by name: timm:NAME, torchvision:NAME, package.module:function, or a bare timm name.

    With `pretrained` and another `num_classes` in `options` than the weights have, the classifier is a new one, as
    timm does it. UsageError for a name or options that make no network, StorageError for weights that are not here.
    """
    if is_function(architecture):
        return call_function(architecture, options)
    if "checkpoint_path" in options:
        # timm would load it after its own fashion, and a run folder may name any file
        raise UsageError(
            f"checkpoint_path among the arguments of {architecture}: give weights as "
            "`trainer.TrainConfig(initial_checkpoint=FILE)`, `trainer.evaluate(checkpoint=FILE)` or "
            "`labelstore.create(teacher=FILE)`"
        )
    library, name = split_name(architecture)
    if library == "torchvision":
        return _fetch(
            architecture,
            lambda: _torchvision_network(name, options, pretrained=pretrained),
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


def classes_of(
    architecture: str, options: Mapping[str, Any], state: Mapping[str, torch.Tensor]
) -> int | None:
    """Number of classes of the network that these weights are of; None where its constructor does not tell.

    No layer's name is interpreted: the network is built for 2 and for 3 classes, without memory where it can be, and
    the weights that differ in shape between the two are those whose size is the number of classes.
    """
    held = by_plain_name(state)
    two, three = (_shapes(architecture, {**options, "num_classes": count}) for count in (2, 3))
    sizes = {
        held[name].shape[axis]
        for name in two.keys() & three.keys() & held.keys()
        if len(two[name]) == len(three[name]) == held[name].ndim
        for axis, pair in enumerate(zip(two[name], three[name], strict=True))
        if pair == (2, 3)
    }
    return sizes.pop() if len(sizes) == 1 else None


def _shapes(architecture: str, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's weights by name; none where it cannot be built so."""
    for device in ("meta", "cpu"):
        with (
            suppress(Exception),  # a function of the user's may raise anything
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(action="ignore"),
            torch.device(device),
        ):
            network = build(architecture, options, pretrained=False)
            return {
                name: tuple(tensor.shape)
                for name, tensor in by_plain_name(network.state_dict()).items()
            }
    return {}


def own_settings(architecture: str, module: nn.Module) -> dict[str, Any]:
    """How the weights of a library's name were evaluated: input_size, mean, std, interpolation, crop_pct, crop_mode.

    `module` is the network itself; of a function's it says so by a `pretrained_cfg`, as timm's do, and has timm's
    usual ones otherwise. UsageError for a network of images that are no squares of three channels.
    """
    library, name = split_name(architecture)
    if library == "torchvision":
        return _torchvision_settings(name)
    return _timm_settings(architecture, module)


def settings_by_name(architecture: str) -> dict[str, Any] | None:
    """`own_settings` without building the network; None for a name that does not say."""
    if is_function(architecture):
        return None
    library, name = split_name(architecture)
    # what is wrong with a name is for the builder of the network to say
    with suppress(UsageError, RuntimeError):
        if library == "torchvision":
            import torchvision

            return _torchvision_settings(name) if name in torchvision.models.list_models() else None
        import timm

        if not name.startswith("hf-hub:") and timm.is_model(name.partition(".")[0]):
            settings = timm.get_pretrained_cfg(name)
            return None if settings is None else _timm_settings(name, None, vars(settings))
    return None


def split_name(source: str) -> tuple[str, str]:
    """Library and name of its network.

    >>> split_name("torchvision:resnet50"), split_name("resnet50")
    (('torchvision', 'resnet50'), ('timm', 'resnet50'))
    """
    library, colon, name = source.partition(":")
    if colon and library in ("timm", "torchvision"):
        return library, name
    return "timm", source


def _torchvision_network(name: str, options: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    from torchvision import models

    if name not in models.list_models():
        raise UsageError(f"torchvision has no model {name!r}: see torchvision.models.list_models()")
    if not pretrained:
        return models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]
    others = {key: value for key, value in options.items() if key != "num_classes"}
    network: nn.Module = models.get_model(name, weights="DEFAULT", **others)
    own = len(models.get_model_weights(name).DEFAULT.meta["categories"])
    wanted = options.get("num_classes", own)
    if wanted != own:
        with warnings.catch_warnings(
            action="ignore"
        ):  # of how its weights are drawn, which few are kept of
            fresh = models.get_model(name, weights=None, num_classes=wanted, **others)
        _take_classifiers(network, fresh)
    return network


def _take_classifiers(network: nn.Module, fresh: nn.Module) -> None:
    """Put in the layers of a network built for other classes where their shapes differ, auxiliary classifiers too."""
    theirs = fresh.state_dict()
    differing = {
        name.rpartition(".")[0]
        for name, tensor in network.state_dict().items()
        if name in theirs and theirs[name].shape != tensor.shape
    }
    for name in differing:
        network.set_submodule(name, fresh.get_submodule(name))


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
    except UNFIT as error:
        raise _unfit(architecture, options, error) from error
    except (OSError, RuntimeError) as error:
        if not pretrained and "memory" not in str(error):
            raise _unfit(architecture, options, error) from error
        # no route to the hub ends in a dozen different classes below these two
        raise StorageError(
            f"cannot load the weights of {architecture}: they are not in the local cache and could not be fetched "
            f"({_reason(error)}); fetch them where there is a network and give that file: "
            f"`labelstore.create(teacher='FILE.safetensors', architecture={architecture!r}, ...)` for a teacher, "
            "`trainer.evaluate(checkpoint='FILE', ...)` for another network"
        ) from error


def _unfit(architecture: str, options: Mapping[str, Any], error: Exception) -> UsageError:
    given = json.dumps(dict(options), default=str)[:200]
    return UsageError(f"{architecture} cannot be built with {given}: {first_line(error)}")


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


def _timm_settings(
    architecture: str, module: nn.Module | None, described: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    from timm.data.config import resolve_data_config

    config = resolve_data_config(model=module, pretrained_cfg=described, verbose=False)  # type: ignore[no-untyped-call]
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise UsageError(
            f"{architecture} was made for images of {channels} channels and {height} x {width} pixels: choose a "
            "network of squares with 3 channels"
        )
    return {
        "input_size": int(width),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": str(config["interpolation"]),
        "crop_pct": float(config["crop_pct"]),
        "crop_mode": str(config["crop_mode"]),
    }


def _torchvision_settings(name: str) -> dict[str, Any]:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    transform = weights.transforms()
    if not hasattr(transform, "crop_size"):
        raise UsageError(
            f"torchvision:{name} is no classifier of images ({type(transform).__name__}): choose another"
        )
    crop, resize = transform.crop_size[0], transform.resize_size[0]
    return {
        "input_size": int(crop),
        "mean": tuple(transform.mean),
        "std": tuple(transform.std),
        "interpolation": str(transform.interpolation.value),
        "crop_pct": crop / resize,
        "crop_mode": "center",
    }
