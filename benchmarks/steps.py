"""Commands as a user would type them: each is printed, run and timed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
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
    clock: list[float] = field(default_factory=list)
    """Seconds of each call, of which some ran several commands."""

    def run(self, what: str, command: str) -> Step:
        """Print a command, run it, and say how long it took; SystemExit where it fails."""
        return self.run_together({what: command})[0]

    def run_together(self, commands: Mapping[str, str]) -> list[Step]:
        """As `run`, at the same time, each with its share of the cores; what they print comes when they have ended.

        Seconds of a step are until it and those before it have ended.
        """
        share = max(1, (os.cpu_count() or 1) // len(commands))
        environment = dict(os.environ, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}")
        if len(commands) > 1:
            environment["OMP_NUM_THREADS"] = str(share)
        started, steps = time.perf_counter(), []
        with ExitStack() as stack:
            running = []
            for what, command in commands.items():
                print(f"\n$ {command}", flush=True)
                words = shlex.split(command)
                said = stack.enter_context(tempfile.TemporaryFile()) if len(commands) > 1 else None
                process = subprocess.Popen(
                    [str(BIN / words[0]), *words[1:]], env=environment, stdout=said, stderr=said
                )
                running.append((what, words, process, said))
            for what, words, process, said in running:
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                seconds = time.perf_counter() - started
                steps.append(
                    Step(what=what, seconds=seconds, cpu_seconds=used.ru_utime + used.ru_stime)
                )
                if said is not None:
                    said.seek(0)
                    print(f"\n{what}:\n{said.read().decode(errors='replace')}", end="")
                print(f"({what}: {seconds:.1f} s)", flush=True)
                if process.returncode:
                    self._stop(running)
                    sys.exit(
                        f"{self.title}: `{' '.join(words[:2])}` ended with {process.returncode}"
                    )
        self.done.extend(steps)
        self.clock.append(time.perf_counter() - started)
        return steps

    @staticmethod
    def _stop(running: Iterable[tuple[str, list[str], subprocess.Popen[bytes], object]]) -> None:
        for _, _, process, _ in running:
            if process.returncode is None:
                process.terminate()
                process.wait()

    def table(self) -> str:
        """One line per step and their sum: seconds on the clock and of the processors."""
        rows = [*self.done, Step(what="together", seconds=sum(self.clock),
                                 cpu_seconds=sum(s.cpu_seconds for s in self.done))]  # fmt: skip
        lines = [f"{'step':<26}{'seconds':>9}{'CPU s':>9}"]
        lines += [f"{s.what:<26}{s.seconds:>9.1f}{s.cpu_seconds:>9.1f}" for s in rows]
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        return "\n".join([*lines, f"({os.cpu_count()} cores, load average {load})"])
