"""Reads files that want to do harm, in a process with 1 GiB of memory and 10 s of processor time per file.

`python -m tests.exchange.malformed_child` reads lines of JSON [mode, format, source, image folder, store,
arguments] and answers each with a line [exit code, lines on stderr, seconds]: mode "command" runs
`labelstore import` as the command line does; mode "read" opens the source and reads every image (exit code 0 or
7), without a store.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

MEMORY, SECONDS = 1 << 30, 10
WAITING = 600
"""Seconds by the clock: a file may also make its reader wait."""


class Hangs(BaseException):
    """Not an Exception: nothing on the way may catch it."""


def ring(*_: object) -> None:
    raise Hangs


def read(format_name: str, source: Path, images: Path, arguments: list[str]) -> int:
    from labelstore.errors import RejectedInput
    from labelstore.exchange import Stated
    from labelstore.exchange.importing import open_source
    from labelstore.images import image_size, scan_folder

    folder = scan_folder(images)
    stated = Stated(**json.loads(arguments[0]))
    try:
        found = open_source(format_name, source, folder, stated)
        try:
            found.prepare(None, lambda done, total: None)
            if found.bad:
                return 7
            for row, key in enumerate(folder.keys):
                found.read(row, *image_size(folder.file(key)))
        finally:
            found.close()
    except RejectedInput as error:
        # the answer is -2 where it is not one line that names the source
        return 7 if str(error).isprintable() and str(source) in str(error) else -2
    return 0


def main() -> None:
    from cli import errors, labelstore_app

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, ring)
    signal.signal(signal.SIGPROF, ring)
    for line in sys.stdin:
        mode, format_name, source, images, store, arguments = json.loads(line)
        said = io.StringIO()
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(WAITING)
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                if mode == "read":
                    code = read(format_name, Path(source), Path(images), arguments)
                else:
                    command = ["import", format_name, source, store, "--images", images, *arguments]
                    code = errors.run(labelstore_app.commands, "labelstore", command)
        except Hangs:
            code = -1
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
        lines = said.getvalue().splitlines()
        answer = json.dumps([code, lines, time.monotonic() - started])
        os.write(sys.__stdout__.fileno(), answer.encode() + b"\n")


if __name__ == "__main__":
    main()
