"""A command group that lists its commands without importing them, so that `--help` starts at once.

The app states one line per command: its name and its summary. The command's code lives in a module of
`cli.commands` and is imported when the command is called. Help is plain text, with one heading per
`rich_help_panel`: rich would double the start-up time.
"""

# ruff: noqa: ANN401 - typer's contexts and formatters have no public names

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from keyword import iskeyword
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cli.examples import EXAMPLES, MOSTLY_USED
from cli.wording import speak_of


class PlainCommand(TyperCommand):
    """A command whose help is plain text, its options under the headings of their help panels."""

    takes_empty = False
    """Whether an empty value means something; `Path("")` would be the folder that this runs in."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click does it; UsageError for an argument that is empty, as `"$UNSET"` is in a script."""
        speak_of(self.get_params(ctx))
        before = ""
        for arg in () if self.takes_empty else args:
            name, _, value = arg.partition("=")
            if not arg or (name.startswith("--") and name != arg and not value):
                from labelstore.errors import UsageError

                flag = name or before
                what = f"{flag} is empty" if flag.startswith("--") else "an argument is empty"
                raise UsageError(f"{what}: give a value, or leave it out (`.` is this folder)")
            before = arg
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per help panel, in the order of the parameters; panel-less options last.

        Of a command with many options, those that most people use stand before all in one line each.
        """
        sections: dict[str, list[tuple[str, str]]] = {}
        others: list[tuple[str, str]] = []
        used = MOSTLY_USED.get(ctx.command_path, {})
        if used:
            sections["Mostly used (all options are below)"] = list(used.items())
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row is not None:
                panel = getattr(param, "rich_help_panel", None)
                heading = panel or ("Arguments" if param.param_type_name == "argument" else None)
                (others if heading is None else sections.setdefault(heading, [])).append(row)
        if others:
            sections["Options"] = others
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the command's example, on one line that can be copied."""
        if ctx.command_path in EXAMPLES:
            with formatter.section("Example"):
                formatter.write(f"  {ctx.command_path} {EXAMPLES[ctx.command_path]}\n")


class LazyGroup(TyperGroup):
    """Commands by name and summary; the module of a command is imported when it is called."""

    summaries: ClassVar[Mapping[str, str]] = {}
    """Command name -> one line of help."""
    homes: ClassVar[Mapping[str, str]] = {}
    """Command name -> module of `cli.commands`, where it is not that of its function's name."""
    prefix: ClassVar[str] = ""
    """Start of the functions' names."""

    def __init__(self, **attributes: Any) -> None:
        attributes["commands"] = {
            # as short help, a long summary is wrapped and not cut
            name: PlainCommand(name=name, help=summary, short_help=summary, rich_markup_mode=None)
            for name, summary in self.summaries.items()
        }
        super().__init__(**attributes)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the command that only knows its summary by the real one."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and self.load(str(name)), rest

    def load(self, name: str) -> Any:
        """Import the command's module and build the command from the function of its name."""
        called = f"{self.prefix}{name}".replace("-", "_")
        if iskeyword(called):
            called += "_labels"  # no function can be called `import`
        function = vars(import_module(f"cli.commands.{self.homes.get(name, called)}"))[called]
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name=name, cls=PlainCommand)(function)
        command: Any = get_command(app)
        command.takes_empty = getattr(function, "takes_empty", False)
        return command


def lazy_group(
    summaries: Mapping[str, str], homes: Mapping[str, Sequence[str]] | None = None, prefix: str = ""
) -> type[LazyGroup]:
    """The group of these commands, for `typer.Typer(cls=...)`; `homes` are modules with several of them."""
    of_command = {name: home for home, names in (homes or {}).items() for name in names}
    attributes = {"summaries": summaries, "homes": of_command, "prefix": prefix}
    return type("Commands", (LazyGroup,), attributes)
