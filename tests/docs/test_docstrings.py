"""Examples in docstrings say what happens. Modules without any are not imported, as `--doctest-modules` would."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for room in ("labelstore", "trainer", "cli", "benchmarks")
    for path in sorted((ROOT / room).rglob("*.py"))
    if "    >>> " in path.read_text()
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings_run(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried
    assert not failed, "the output above says which"
