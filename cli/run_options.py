"""One command-line option per field of `TrainConfig`, made from the dataclass: name, type, default, help.

Values are checked in one place, `TrainConfig` itself; an option only carries text there.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
import yaml

from cli.named_functions import importable_here
from labelstore.errors import UsageError
from trainer.config import TrainConfig

PANELS = {
    "data": "What is learnt from",
    "model": "Which network",
    "input_size": "Which pixels",
    "batch_size": "How long, how fast",
    "seed": "Where and with what",
}
"""First field of each group of options -> its heading; a group ends where the next begins."""

FILLED_IN = ("class_names", "provenance")
"""Fields that a run writes down about itself."""

FLAG_ALIASES = {
    "temperature": ("--temp",),
    "loggers": ("--log",),
    "train": ("--images",),
    "checkpoint_weights": ("--weights",),
}
"""torchrun takes `--log` for the beginning of an option of its own, so the long name comes first."""


def options(kept: Mapping[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """Keyword parameters for typer: one per field of `TrainConfig`, then those in `kept`."""
    hints, about = get_type_hints(TrainConfig), field_docs(TrainConfig)
    parameters = {}
    panel = ""
    for field in dataclasses.fields(TrainConfig):
        panel = PANELS.get(field.name, panel)
        if field.name in FILLED_IN:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        is_switch = hints[field.name] is bool
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if is_switch else flag,
            *FLAG_ALIASES.get(field.name, ()),
            help=about.get(field.name, "") + _default(field),
            metavar=None if is_switch else metavar(hints[field.name]),
            show_default=False,
            rich_help_panel=panel,
        )
        parameters[field.name] = inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[bool | None if is_switch else str | None, option],
        )
    return parameters | dict(kept)


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command `f(a, b, **fields)` one option per field of `TrainConfig` in the place of `**fields`."""
    own = inspect.signature(function, eval_str=True).parameters
    parameters = options(
        {
            name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in own.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
    )
    # typer reads the signature and the annotations, each by its own way
    function.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    function.__annotations__ = {name: p.annotation for name, p in parameters.items()}
    function.takes_empty = True  # type: ignore[attr-defined]  # for none: see `parsed`
    return function


def assemble(
    base: Mapping[str, Any], fields: Mapping[str, Any], settings: list[str]
) -> TrainConfig:
    """The settings of a file, overridden by the options that were given, overridden by `key=value` settings."""
    return TrainConfig.from_mapping({**base, **overrides(fields, settings)})


def overrides(fields: Mapping[str, Any], settings: list[str]) -> dict[str, object]:
    """The options that were given and the `key=value` settings, by name; the latter count."""
    values: dict[str, object] = {}
    for name, given in fields.items():
        if given is not None:
            values[name] = given if isinstance(given, bool) else parsed(name, given)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: give key=value, for example --set lr=0.1")
        name = name.strip().replace("-", "_")
        values[name] = parsed(name, text)
    for name in ("model", "teacher", "teacher_model"):
        if isinstance(source := values.get(name), str):
            importable_here(source)
    return values


def parsed(name: str, text: str) -> object:
    """The value that a text means for a field: `none`, a list `0.9,0.999`, a mapping `{a: 1}`, or the text.

    >>> parsed("betas", "0.9,0.95"), parsed("clip_grad", "none"), parsed("lr", "0.1")
    (['0.9', '0.95'], None, '0.1')
    """
    hint = get_type_hints(TrainConfig).get(name)
    if not text.strip() and Path in get_args(hint):
        raise UsageError(f"--{name.replace('_', '-')} is empty: give a path, or none")
    if type(None) in get_args(hint) and text.lower() in ("none", "null", ""):
        return None
    kind = get_origin(hint)
    if kind is tuple:
        return [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
    if kind is not None and isinstance(kind, type) and issubclass(kind, Mapping):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"{name}={text!r}: give a mapping such as '{{depth: 2}}'") from None
    return text


def metavar(hint: object) -> str:
    """What a help page shows for a value of this type.

    >>> metavar(int), metavar(Literal["a", "b"] | None), metavar(tuple[float, float])
    ('INT', 'a|b', 'FLOAT,FLOAT')
    """
    kind = get_origin(hint)
    if kind in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
        return metavar(hint)
    if kind is Literal:
        return "|".join(map(str, get_args(hint)))
    if kind is tuple:
        return ",".join("..." if part is Ellipsis else metavar(part) for part in get_args(hint))
    if kind is not None:
        return "{KEY: VALUE}"
    if hint is str:
        return "TEXT"
    return "PATH" if hint is Path else str(getattr(hint, "__name__", "text")).upper()


def field_docs(dataclass: type) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
    body = ast.parse(inspect.getsource(dataclass)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = inspect.cleandoc(str(following.value.value))
    return docs


def _default(field: dataclasses.Field[Any]) -> str:
    """The default as it would be written on the command line; nothing for what is off or empty."""
    default = field.default
    if default is dataclasses.MISSING or default in (None, False, ()):
        return ""
    if default is True:
        return "  [default: on]"
    if isinstance(default, tuple):
        return f"  [default: {','.join(f'{value:.4g}' for value in default)}]"
    return f"  [default: {default}]"
