"""The direction of imports (contracts in pyproject.toml), and what a light import must not load."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "timm", "pandas", "typer"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after the statement."""
    report = (
        f"import sys; {statement}; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_contracts_hold():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def imports_of(file: Path, modules: set[str]) -> set[str]:
    """Modules of ours that are imported with this one: not inside functions, not for type checkers."""
    statements, found = ast.parse(file.read_text()).body, set()
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.ImportFrom):
            names = {f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= names & modules or {statement.module}
        elif isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.Try | ast.If) and "TYPE_CHECKING" not in ast.dump(statement):
            statements += [*statement.body, *statement.orelse]
    return found & modules


def test_no_modules_import_each_other():
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for package in ("labelstore", "trainer", "cli")
        for file in (ROOT / package).rglob("*.py")
    }
    graph = {module: imports_of(file, set(files)) - {module} for module, file in files.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_every_package_is_under_contract():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = config["tool"]["importlinter"]["contracts"]
    packages = set(config["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packages == set(config["tool"]["importlinter"]["root_packages"])
    # exhaustive: a module that no layer lists breaks the contract
    exhaustive = {
        container
        for contract in contracts
        if contract.get("exhaustive")
        for container in contract["containers"]
    }
    assert exhaustive == packages - {"cli"}


@pytest.mark.parametrize("statement", ["import labelstore", "import labelstore.errors"])
def test_labelstore_is_light(statement):
    assert not loaded_by(statement) & HEAVY


def test_import_of_torch_would_be_seen():
    assert "decimal" in loaded_by("import decimal")


@pytest.mark.parametrize("app", ["labelstore_app", "trainer_app"])
def test_programs_start_with_typer_alone(app):
    heavy = (HEAVY - {"typer"}) | {"numpy", "zarr", "sqlalchemy", "rich", "labelstore", "trainer"}
    assert not loaded_by(f"import cli.{app}") & heavy
