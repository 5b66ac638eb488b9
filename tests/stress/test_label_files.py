"""R9: label files of other projects, crafted and mutated: refused in one line, in bounds of memory and time."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXCHANGE = Path(__file__).parents[1] / "exchange"
CORPORA = sorted(EXCHANGE.glob("test_*hostile*.py")) + sorted(EXCHANGE.glob("test_*crafted*.py"))


@pytest.mark.skipif(
    importlib.util.find_spec("labelstore.exchange") is None, reason="no importer exists yet"
)
@pytest.mark.skipif(not CORPORA, reason="tests/exchange has no corpus of crafted files yet")
def test_the_importers_corpus(scale, matrix):
    """Their own tests, counted here; `make test` runs them where they are."""
    if scale < 2:
        pytest.skip("tests/exchange runs in the same command")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"--stress-scale={scale}", *map(str, CORPORA)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = int(done.stdout.split(" passed")[0].split()[-1])
    matrix.record("R9", tests=passed, crashes=0)
