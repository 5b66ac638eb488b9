"""The library speaks of parameters and functions, the command line of flags and commands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import labelstore
import trainer
from cli import errors, labelstore_app, trainer_app
from cli.wording import COMMANDS, LIBRARY_NAMES, SPELLED, flags_of, in_flags

ROOT = Path(__file__).parents[2]
QUOTED = re.compile("`([^`]+)`")
OTHER_WORDS = {"datasets", "label", "path", "class", "name", "x"}
"""Between backticks in messages too: a library, columns of a list, a value."""


def strings(node: ast.AST) -> Iterator[str]:
    """The strings of a statement, `x` or `'x'` for what is put into them."""
    match node:
        case ast.JoinedStr(values=parts):
            yield "".join(
                str(part.value)
                if isinstance(part, ast.Constant)
                else "'x'"
                if part.conversion == ord("r")
                else "x"
                for part in parts
            )
        case ast.Constant(value=str(text)):
            yield text
        case _:
            for child in ast.iter_child_nodes(node):
                yield from strings(child)


@cache
def messages() -> tuple[tuple[str, str], ...]:
    """Every string of a `raise` in the library, or of a law of `trainer.config_checks`, and where it is."""
    return tuple(
        (f"{path.relative_to(ROOT)}:{node.lineno}", text)
        for package in ("labelstore", "trainer")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Raise) and node.exc is not None)
        or (isinstance(node, ast.Yield) and path.name == "config_checks.py")
        for text in strings(node)
    )


@pytest.fixture(scope="module")
def commands() -> dict[str, dict[str, str]]:
    """Every command's flags by the names that messages have for them."""
    found: dict[str, dict[str, str]] = {}
    for program, app in (("labelstore", labelstore_app), ("trainer", trainer_app)):
        group: Any = get_command(app.commands)
        for name in app.COMMANDS:
            found[f"{program} {name}"] = flags_of(group.load(name).params)
    return found


@pytest.mark.slow
def test_no_error_of_the_library_names_a_flag():
    found = messages()
    assert len(found) > 1000
    assert [(where, text) for where, text in found if re.search(r"(?<![\w-])--[a-z]", text)] == []


def test_errors_name_functions_and_not_the_commands_that_call_them():
    functions = {*labelstore.__all__, *trainer.__all__}
    have_one = {*labelstore_app.COMMANDS, *trainer_app.COMMANDS} & functions
    have_one |= {command.split(" ")[1] for command in COMMANDS.values()}
    words = re.compile(rf"`(labelstore|trainer) ({'|'.join(sorted(have_one))})\b")
    assert [(where, text) for where, text in messages() if words.search(text)] == []


def test_a_parameter_in_a_message_is_shown_as_the_flag_of_each_command_that_has_it(commands):
    known = {name for flags in commands.values() for name in flags}
    for where, text in messages():
        for quoted in QUOTED.findall(text):
            name, equals, _ = quoted.partition("=")
            if not re.fullmatch("[a-z][a-z0-9_]*", name) or quoted in SPELLED:
                continue
            carried = LIBRARY_NAMES.get(name, name)
            assert name in known or carried in known or name in OTHER_WORDS, (where, quoted)
            for flags in commands.values():
                flag = flags.get(name) or flags.get(carried)
                shown = in_flags(f"`{quoted}`", flags)
                assert shown.startswith(flag + " " * bool(equals) if flag else f"`{quoted}`"), where


def test_a_function_in_a_message_is_shown_as_a_command_that_is_there(commands):
    found = set()
    for where, text in messages():
        for quoted in QUOTED.findall(text):
            if re.match(r"(labelstore|trainer)\.", quoted):
                command = " ".join(in_flags(f"`{quoted}`", {}).strip("`").split(" ")[:2])
                assert command in commands, (where, quoted)
                found.add(command)
    assert {"labelstore verify", "labelstore repair", "labelstore create"} <= found


def test_names_of_the_library_and_of_the_command_line_stand_for_each_other(commands):
    known = {name for flags in commands.values() for name in flags}
    assert set(LIBRARY_NAMES.values()) <= known
    assert {command.partition(" --")[0] for command in COMMANDS.values()} <= commands.keys()


def test_a_command_says_its_own_flags(tmp_path, capsys):
    def run(*words: object) -> tuple[int, str]:
        code = errors.run(labelstore_app.commands, "labelstore", [str(word) for word in words])
        return code, capsys.readouterr().err

    code, err = run("stats", tmp_path / "is not there")
    assert code == 4
    assert f"`labelstore create '{tmp_path / 'is not there'}' --images DIR" in err
    words = ("create", tmp_path / "s", "--images", tmp_path, "--teacher", "timm:resnet18")
    code, err = run(*words, "--num-crops", "0")
    assert (code, err) == (
        2,
        "labelstore: --num-crops 0: store at least one crop per image\n",
    )
