"""Command-line options made from the fields of dataclasses: name, type and default of a field, its docstring as help.

A command takes the dataclass as one parameter, and is called with an instance of it:

    @with_options
    def create(store: Store, crops: CropOptions, work: WorkOptions) -> None: ...

A field may say more about its option by `Annotated[..., option(...)]`; for a dataclass of the library, which knows no
command line, the parameter does: `Annotated[Stated, Shown(...)]`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import copy
from functools import cache, wraps
from itertools import pairwise
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import typer

Option: TypeAlias = Any
"""The type of an `option`; typer's own name of it is not public."""


def option(*flags: str, unset: str | None = None, **more: Any) -> Option:  # noqa: ANN401 - typer's
    """An option beyond its name, type, default and help; `unset` says what happens where it is not given."""
    # where typer finds dots for a default, it takes that of the parameter; why a path may not be read and what to do
    # about it says the library, which exits with 6
    return typer.Option(..., *flags, show_default=unset or True, readable=False, **more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """How the fields of a dataclass become options."""

    panels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """First field of each group of options -> its heading; a group ends where the next begins."""
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    """Field -> what `option` says of it."""
    left_out: Collection[str] = ()
    """Fields that are no options."""
    text_of: type | None = None
    """A dataclass that reads texts itself: options only carry text, the command gets a mapping; None: not given."""


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """A command for typer with one option per field instead of each parameter that is a dataclass.

    UsageError where a value is none that the field's type allows.
    """
    own = inspect.signature(function, eval_str=True).parameters
    groups: dict[str, tuple[type, Shown]] = {}
    parameters: dict[str, inspect.Parameter] = {}
    for parameter in own.values():
        kind, shown = _group(parameter.annotation)
        if kind is None:
            parameters[parameter.name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        else:
            groups[parameter.name] = kind, shown
            parameters |= {each.name: each for each in _parameters(kind, shown)}

    @wraps(function)
    def command(**values: Any) -> None:  # noqa: ANN401 - what typer read
        for name, (kind, shown) in groups.items():
            given = {field: values.pop(field) for field in _fields(kind, shown)}
            values[name] = given if shown.text_of is not None else _filled(kind, shown, given)
        function(**values)

    # typer reads the signature and the annotations, each by its own way
    command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    # for none: see `trainer_options.parsed`
    command.takes_empty = any(shown.text_of is not None for _, shown in groups.values())  # type: ignore[attr-defined]
    return command


def _group(annotation: Any) -> tuple[type | None, Shown]:  # noqa: ANN401 - any annotation
    kind, *about = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    shown = next((each for each in about if isinstance(each, Shown)), Shown())
    kind = shown.text_of or kind
    return (kind if dataclasses.is_dataclass(kind) else None), shown


def _fields(kind: type, shown: Shown) -> dict[str, dataclasses.Field[Any]]:
    return {
        field.name: field for field in dataclasses.fields(kind) if field.name not in shown.left_out
    }


def _parameters(kind: type, shown: Shown) -> Iterator[inspect.Parameter]:
    hints, extras = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    about = field_docs(kind)
    panel = getattr(kind, "PANEL", None)
    for name, field in _fields(kind, shown).items():
        panel = shown.panels.get(name, panel)
        hint, said = hints[name], getattr(extras[name], "__metadata__", ())
        # beside an option there may be bounds
        own = next((each for each in said if isinstance(each, type(option()))), None)
        made = copy(own or shown.options.get(name) or option())
        made.help = about.get(name) or made.help or ""
        made.rich_help_panel = made.rich_help_panel or panel
        flag = f"--{name.replace('_', '-')}"
        if not made.param_decls:
            made.param_decls = (flag,)
        if shown.text_of is not None:
            is_switch = hint is bool
            if is_switch:
                made.param_decls = (f"{flag}/--no-{flag[2:]}", *made.param_decls[1:])
            else:
                made.metavar = metavar(hint)
            made.help, made.show_default = made.help + _default(field), False
            hint, default = bool | None if is_switch else str | None, None
        else:
            plain = _without_none(hint)
            if get_origin(plain) in (Literal, tuple):
                made.metavar = made.metavar or metavar(plain)
                hint = str if plain is hint else str | None
            default = (
                inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            )
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[hint, made],
        )


def _filled(kind: type, shown: Shown, given: Mapping[str, Any]) -> object:
    """The dataclass with the values that were given, read as its fields' types want them."""
    hints = get_type_hints(kind)
    values = dict(given)
    for each in _parameters(kind, shown):
        value, hint = given[each.name], _without_none(hints[each.name])
        if not isinstance(value, str):
            continue
        made = get_args(each.annotation)[1]
        flag = made.param_decls[0]
        if get_origin(hint) is tuple:
            values[each.name] = numbers(value, flag, *made.metavar.split(","))
        elif get_origin(hint) is Literal and value not in get_args(hint):
            from labelstore.errors import UsageError

            raise UsageError(f"{flag} {value}: choose one of {', '.join(get_args(hint))}")
    return kind(**values)


def numbers(text: str, flag: str, *names: str) -> tuple[float, ...]:
    """As many numbers as there are names, with commas between them; UsageError for anything else.

    >>> numbers("0.08,1", "--scale", "LOW", "HIGH")
    (0.08, 1.0)
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != len(names):
        from labelstore.errors import UsageError

        raise UsageError(f"{flag} {text}: give {len(names)} numbers as {','.join(names)}")
    return values


def _without_none(hint: Any) -> Any:  # noqa: ANN401 - a type
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    rest = [part for part in get_args(hint) if part is not type(None)]
    return rest[0] if len(rest) == 1 else hint


def metavar(hint: object) -> str:
    """The placeholder of a value of this type on a help page.

    >>> metavar(int), metavar(Literal["a", "b"] | None), metavar(tuple[float, float])
    ('INT', 'a|b', 'FLOAT,FLOAT')
    """
    hint = _without_none(hint)
    kind = get_origin(hint)
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
    """The docstring under each field of a dataclass and of those that it is made from, lines joined."""
    docs: dict[str, str] = {}
    for kind in reversed(dataclass.__mro__[:-1]):
        body = _classes(kind.__module__)[kind.__name__].body
        for statement, following in pairwise(body):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    docs[name] = inspect.cleandoc(text)
    return docs


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {each.name: each for each in tree.body if isinstance(each, ast.ClassDef)}


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
