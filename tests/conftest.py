"""What every test shares: one thread per process, no hypothesis deadlines, GPU tests only with a GPU."""

import gc
import os
import signal
import sqlite3
from collections import defaultdict
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import event
from sqlalchemy.pool import Pool

# before the first import of torch or NumPy: test processes run side by side on few cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# time depends on the machine, so no test fails for being slow. A law gets a sample of its examples in `make test`, and
# more in `make test-slow`, which asks for the second profile
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("sample", patient, max_examples=40)
settings.register_profile("thorough", patient, max_examples=200)
settings.load_profile("sample")

# A kill loses nothing that was written, synced or not, and a store syncs 60 times for each image block: in the tests' own
# process nothing waits for the disk. What a power cut could lose is tested on the calls of other processes, which do sync
DISK = SimpleNamespace(waits=False, fsync=os.fsync)


def fsync(descriptor: int) -> None:
    (DISK.fsync if DISK.waits else os.fstat)(descriptor)


os.fsync = fsync


@event.listens_for(Pool, "connect")
def sqlite_waits_not_either(connection: object, _: object) -> None:
    if isinstance(connection, sqlite3.Connection) and not DISK.waits:
        connection.execute("PRAGMA synchronous=OFF").close()


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and catalogues wait for the disk, as outside of tests."""
    monkeypatch.setattr(DISK, "waits", True)


# a shell lets jobs in the background ignore Ctrl-C, and so would everything that the tests start and interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_what_is_beyond_the_samples(items)
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_tests:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


def mark_what_is_beyond_the_samples(items: list[pytest.Item]) -> None:
    """Cases of a test marked `sample(n)`: n of them, from the first to the last at equal distances, are not slow."""
    cases = defaultdict(list)
    for item in items:
        if sample := item.get_closest_marker("sample"):
            cases[item.nodeid.partition("[")[0], sample.args[0]].append(item)
    for (_, size), of_one_test in cases.items():
        step = max(1.0, (len(of_one_test) - 1) / max(1, size - 1))
        kept = {round(step * number) for number in range(size)}
        for number, item in enumerate(of_one_test):
            if number not in kept:
                item.add_marker(pytest.mark.slow)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stress-scale",
        type=float,
        default=0.3,
        help="size of the tests in tests/stress; `make stress` gives a larger one",
    )
    parser.addoption(
        "--matrix-report",
        metavar="FILE",
        help="file to which the tests in tests/stress append their figures, a JSON object a line",
    )


@pytest.fixture
def new_store(tmp_path):
    """new_store(labels (N, M, C), codec, **options of filled_store): a store, closed afterwards."""
    from tests.kept_stores import kept_store

    opened = []

    def make(labels, codec, **options):
        opened.append(kept_store(tmp_path / f"{len(opened)}.labels", labels, codec, **options))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def command(program: str, capsys: pytest.CaptureFixture[str]):
    """command(*words): (exit code, stdout, stderr) of the program, in this process."""
    from cli import errors, labelstore_app, trainer_app

    commands = {"labelstore": labelstore_app, "trainer": trainer_app}[program].commands

    def run(*words: object) -> tuple[int, str, str]:
        code = errors.run(commands, program, [str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def labelstore_command(capsys):
    return command("labelstore", capsys)


@pytest.fixture
def trainer_command(capsys):
    return command("trainer", capsys)
