"""The benchmark of the interpreter's lock, in small: its figure tells a thread that holds the lock from none."""

from __future__ import annotations

import sys
import threading

import pytest

from benchmarks import lock_share


@pytest.fixture
def slow_handover():
    """A thread keeps the lock for 30 ms, so that its share does not depend on how often the machine lets it run."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.03)
    yield
    sys.setswitchinterval(interval)


def test_a_thread_of_python_takes_the_lock(slow_handover):
    alone = lock_share.run(range(10), 0.04, 0.9).gil_share
    stop = threading.Event()

    def hog():
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=hog)
    thread.start()
    try:
        shared = lock_share.run(range(10), 0.04, 0.9).gil_share
    finally:
        stop.set()
        thread.join()
    assert shared > alone + 0.1


@pytest.mark.slow
def test_the_figures_that_were_promised(tmp_path):
    result = lock_share.measure(tmp_path, 32, 1, 1)
    for held in (30, 60, 90):
        for name in lock_share.SIDES[1:]:
            assert 0 < result[f"of_ready_{name}_{held}"] < 2
            assert result[f"gil_share_{name}_{held}"] < 1
    assert "| 90 % |" in lock_share.page(result)
