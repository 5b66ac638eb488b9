"""docs/explanation/architecture.md is true: its rooms are the layers of pyproject.toml, and every walk follows imports.

And what CONTRIBUTING.md says of functions: options of more than a dozen parameters are a dataclass.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/explanation/architecture.md").read_text()
MOST_PARAMETERS = 12
WALKS = re.findall(r"^    (\S+\.py) +-> (\S+\.py) ", PAGE, re.MULTILINE)


def imported(path: str) -> set[str]:
    """Files that a file imports, a name of a package's face as the file that defines it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = node.module.replace(".", "/")
            found |= {f"{module}.py", *(f"{module}/{alias.name}.py" for alias in node.names)}
            face = ROOT / module / "__init__.py"
            if face.is_file() and f"{module}/__init__.py" != path:
                names = {alias.name for alias in node.names}
                for inner in ast.walk(ast.parse(face.read_text())):
                    if isinstance(inner, ast.ImportFrom) and inner.module:
                        own = {alias.asname or alias.name for alias in inner.names}
                        if own & names:
                            found.add(f"{inner.module.replace('.', '/')}.py")
    return found


def test_there_are_walks():
    assert len(WALKS) > 15


@pytest.mark.parametrize(("caller", "called"), WALKS)
def test_a_walk_follows_imports(caller, called):
    assert called in imported(caller)


def test_the_rooms_are_the_layers():
    rows = re.findall(r"^\| (`.+`) \|", PAGE, re.MULTILINE)
    rooms = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (
        contract["layers"]
        for contract in contracts["contracts"]
        if contract.get("containers") == ["labelstore"]
    )
    assert rooms == [set(re.findall(r"\w+", layer)) for layer in layers]
    folders = {path.name for path in (ROOT / "labelstore").iterdir() if path.name != "__pycache__"}
    stems = {name.removesuffix(".py") for name in folders} - {"__init__", "FORMAT.md"}
    assert set.union(*rooms) == stems


def test_no_function_takes_more_than_a_dozen_parameters():
    found = {}
    for package in ("labelstore", "trainer", "cli"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    given = node.args
                    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
                    every += [star for star in (given.vararg, given.kwarg) if star is not None]
                    count = sum(one.arg not in ("self", "cls") for one in every)
                    if count > MOST_PARAMETERS:
                        found[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = count
    assert not found
