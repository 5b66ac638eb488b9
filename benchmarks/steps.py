"""Commands as a user would type them: each is printed, run and timed."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command that ran."""

    what: str
    seconds: float
    cpu_seconds: float
    """Of the command and all that it started."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What ran so far, for a table at the end."""

    title: str
    """What stops where a command fails."""
    done: list[Step] = field(default_factory=list)

    def run(self, what: str, command: str) -> Step:
        """Print a command, run it, and say how long it took; SystemExit where it fails."""
        print(f"\n$ {command}", flush=True)
        words = shlex.split(command)
        environment = dict(os.environ, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}")
        started, cpu = time.perf_counter(), _cpu_of_children()
        ended = subprocess.run([str(BIN / words[0]), *words[1:]], env=environment, check=False)
        step = Step(
            what=what,
            seconds=time.perf_counter() - started,
            cpu_seconds=_cpu_of_children() - cpu,
        )
        print(f"({what}: {step.seconds:.1f} s)", flush=True)
        if ended.returncode:
            sys.exit(f"{self.title}: `{' '.join(words[:2])}` ended with {ended.returncode}")
        self.done.append(step)
        return step

    def table(self) -> str:
        """One line per step and their sum: seconds on the clock and of the processors."""
        rows = [*self.done, Step(what="together", seconds=sum(s.seconds for s in self.done),
                                 cpu_seconds=sum(s.cpu_seconds for s in self.done))]  # fmt: skip
        lines = [f"{'step':<26}{'seconds':>9}{'CPU s':>9}"]
        lines += [f"{s.what:<26}{s.seconds:>9.1f}{s.cpu_seconds:>9.1f}" for s in rows]
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        return "\n".join([*lines, f"({os.cpu_count()} cores, load average {load})"])


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
