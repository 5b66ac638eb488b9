"""What a signal does to a process that asked to stop cleanly, by how it was met before."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trainer.stopping import SIGNALS, StopRequest

SCRIPT = """
import contextlib, signal, sys
from trainer.stopping import StopRequest
number = signal.Signals[sys.argv[1]]
signal.signal(number, {"default": signal.SIG_DFL, "ignored": signal.SIG_IGN}[sys.argv[2]])
with contextlib.ExitStack() as stack:
    stack.callback(print, "cleaned up")
    with StopRequest() as stop:
        for _ in range(int(sys.argv[3])):
            signal.raise_signal(number)
        print("step ended", stop.requested or 0)
print("went on")
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("before", "times", "said"),
    [
        ("default", 1, "step ended {n}|cleaned up"),
        # whoever asks twice does not want to wait
        ("default", 2, ""),
        ("ignored", 2, "step ended 0|cleaned up|went on"),
    ],
)
def test_a_process_cleans_up_before_it_ends(number, before, times, said):
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, number.name, before, str(times)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=600,
        check=False,
    )
    assert ended.stdout.splitlines() == [
        line for line in said.format(n=int(number)).split("|") if line
    ]
    assert ended.returncode == (
        0 if before == "ignored" else 128 + number if times == 1 else -number
    )
    assert "Traceback" not in ended.stderr


def test_a_handler_of_the_callers_is_asked_at_the_end_and_stays():
    asked = []

    def handler(number, frame):
        asked.append(number)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert (stop.requested, asked) == (signal.SIGTERM, [])
        assert asked == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_thread_that_other_ranks_stopped_does_not_go_on():
    ended = []

    def work():
        try:
            with StopRequest() as stop:
                stop.requested = signal.SIGTERM
        except SystemExit as error:
            ended.append(error.code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [128 + signal.SIGTERM]
