"""Networks of one's own: `package.module:function`, which returns a torch module."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from labelstore.errors import UsageError
from labelstore.teachers.weights import first_line

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
