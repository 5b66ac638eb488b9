"""System calls of a worker, recorded, counted and made to fail by strace, attached after its imports."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

CHANGING = (
    "openat",
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "rename",
    "unlink",
    "mkdir",
    "ftruncate",
)
"""Calls with which a worker changes the disk."""


def can_trace() -> bool:
    """Whether strace is there and allowed to trace."""
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return done.returncode == 0


needs_strace = pytest.mark.skipif(not can_trace(), reason="strace is missing or may not trace")


def traced(nursery, task: str, result: Path, path: Path, log: Path, *options: str) -> int:
    """Run a worker with strace attached before it touches the store; its status."""
    go = result.with_name(f"{result.name}.go")
    go.unlink(missing_ok=True)
    pid = nursery.start(task, result, path, go)
    command = ["strace", "-f", "-y", "-qq", "-s", "0", "-o", str(log), *options, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        _wait_until_attached(pid, strace)
        go.touch()
        status = nursery.wait(pid)
        strace.wait(600)
    return status


def _wait_until_attached(pid: int, strace: subprocess.Popen[str]) -> None:
    status = Path(f"/proc/{pid}/status")
    for _ in range(150_000):  # five minutes
        if f"TracerPid:\t{strace.pid}" in status.read_text():
            return
        assert strace.poll() is None, strace.stderr.read()
        time.sleep(0.002)
    raise AssertionError("strace did not attach")


def calls(log: Path) -> list[tuple[str, str]]:
    """(name, rest of the line) of every call, in order of their ends."""
    found, begun = [], {}
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(\d+) +(.*)", line)
        if match is None:
            continue
        pid, text = match.groups()
        if text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>").rstrip()
            continue
        resumed = re.match(r"<\.\.\. \w+ resumed>(.*)", text)
        if resumed:
            text = begun.pop(pid, "") + resumed[1]
        match = re.match(r"(\w+)\((.*)", text)
        if match:
            found.append((match[1], match[2]))
    return found
