"""The one place where what went wrong becomes one line on stderr and an exit code (design: exit codes).

    0 ok · 1 internal · 2 usage · 3 damage found · 4 no store · 5 conflict · 6 I/O · 7 input rejected ·
    8 incomplete · 130 Ctrl-C · 141 stdout was closed · 143 SIGTERM

Errors raised on purpose carry their code (`labelstore.errors`). Ctrl-C and SIGTERM unwind the stack like
an exception, so that every `finally` and `with` cleans up first.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command

from cli.output import visible
from cli.shared_options import start_clock
from cli.wording import speak_of, spoken

TRACEBACK_VARIABLE = "LABELSTORE_TRACEBACK"

# typer may use its own copy of click, so the class is taken from typer's public face
ClickError = cast("type[Exception]", typer.BadParameter.__mro__[2])


def main(app: typer.Typer, program: str) -> None:
    """Run the program on the command line's arguments and leave with its exit code."""
    _open_streams()
    # a command is stopped by SIGTERM as by Ctrl-C: from inside, so that it cleans up
    signal.signal(signal.SIGTERM, _on_sigterm)
    # torch's threads would otherwise spin while they wait for each other; where threads that decode images
    # (or another program) want the same cores, a training step then takes up to seven times as long.
    # Read by the OpenMP library when torch is imported, which no command has done yet
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if f"_{program.upper()}_COMPLETE" in os.environ:
        # a shell asks what may follow (`--install-completion`): typer's own main answers and exits
        get_command(app)(prog_name=program)
    sys.exit(run(app, program, sys.argv[1:]))


def run(app: typer.Typer, program: str, arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; a failure is one line on stderr.

    Without arguments, the help.
    """
    speak_of(())
    start_clock()
    try:
        _check_utf8(arguments)
        return _call(
            cast("TyperGroup", get_command(app)), program, hyphenate(arguments) or ["--help"]
        )
    except BrokenPipeError:
        # what is still buffered would raise again at interpreter exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        message = {130: "interrupted", 143: "terminated"}.get(code)
    except BaseException as error:  # noqa: BLE001 - the last place that can say it in one line
        if os.environ.get(TRACEBACK_VARIABLE):
            import traceback

            traceback.print_exc()
        code, message = outcome(error)
    if message:
        print(f"{program}: {one_line(message)}", file=sys.stderr)
        if _wants_json(arguments):
            _print_failure(one_line(message), code)
    return code


def _call(command: TyperGroup, program: str, arguments: list[str]) -> int:
    code = 0
    try:
        # not main(), which translates some exceptions in its own way
        with command.make_context(program, arguments) as context:
            command.invoke(context)
    except typer.Exit as exit_:
        code = exit_.exit_code
    # a full disk behind stdout must show here and not at interpreter exit
    sys.stdout.flush()
    return code


def _open_streams() -> None:
    """Something to print to where a stream was closed (`>&-`), and no name that cannot be printed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for the whole process
        with contextlib.suppress(AttributeError, ValueError):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _check_utf8(arguments: Sequence[str]) -> None:
    """UsageError for bytes that are not UTF-8: no catalogue, config file or page could hold such a path."""
    for argument in arguments:
        if not argument.isascii():
            from labelstore.errors import check_utf8

            check_utf8(argument)


def _wants_json(arguments: Sequence[str]) -> bool:
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return "--json" in arguments[:end]


def _print_failure(message: str, code: int) -> None:
    """The one JSON object that `--json` promises, for a command that failed."""
    import json

    # stdout may be closed, or its disk full
    with contextlib.suppress(OSError):
        print(json.dumps({"error": message, "exit": code}), flush=True)


def outcome(error: BaseException) -> tuple[int, str]:
    """Exit code and message for what a command raised."""
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return _NO_MEMORY
    try:
        return _outcome(error)
    except MemoryError:
        return _NO_MEMORY  # to say it takes some, too


def _outcome(error: BaseException) -> tuple[int, str]:
    # here and not above: what is never needed costs no start-up time
    from labelstore.errors import LabelStoreError, not_utf8

    if isinstance(error, LabelStoreError):
        return error.exit_code, spoken(str(error))
    if isinstance(error, ClickError):
        return 2, _usage_message(error)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return 130, "interrupted"
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename is not None else ""
        return 6, f"{error.strerror or error}{where}"
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        # the folder that this runs in, or one that a configuration names
        return 2, not_utf8(error.object)
    return 1, (
        f"internal error: {type(error).__name__}: {error} "
        f"(set {TRACEBACK_VARIABLE}=1 for the traceback)"
    )


_NO_MEMORY = (6, "not enough memory; give the command more, or smaller pieces of work")
_NO_ROOM = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says so, in its own ways for the memory of CPU and GPU, or the loader of a library, or Python.

    (`ulimit -v` leaves no room for a library, a thread's stack, or the exception that a C function means to raise.)
    Torch is not imported for that.
    """
    said = str(error)
    if isinstance(error, ImportError):
        return any(words in said for words in _NO_ROOM)
    if isinstance(error, SystemError):
        import resource

        is_limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
        return is_limited and ("without exception set" in said or "without setting" in said)
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in said
        or "can't start new thread" in said
    )


def hyphenate(arguments: Sequence[str]) -> list[str]:
    """Spell flags in kebab-case: FKD's `--num_crops=4` is `--num-crops=4`; values stay as they are.

    >>> hyphenate(["create", "--num_crops", "4", "--class_map=a_b", "--", "--as_is"])
    ['create', '--num-crops', '4', '--class-map=a_b', '--', '--as_is']
    """
    spelled = list(arguments)
    end = spelled.index("--") if "--" in spelled else len(spelled)
    for position, argument in enumerate(spelled[:end]):
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            spelled[position] = flag.replace("_", "-") + equals + value
    return spelled


def one_line(message: str) -> str:
    """Join a message's lines into one, and write control characters out.

    >>> one_line("no such folder\\n  try another ")
    'no such folder try another'
    """
    return visible(re.sub(r"\s*[\r\n]\s*", " ", message).strip())


def _usage_message(error: Exception) -> str:
    click_error = cast("Any", error)
    context = getattr(click_error, "ctx", None)
    hint = f" See: {context.command_path} --help" if context is not None else ""
    message = one_line(click_error.format_message()).removesuffix(".")
    # what could not be read as the option's type; typer's text may leave it out
    reasons: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    given = [str(reason["input"])[:80] for reason in reasons if "input" in reason]
    if given and given[0] not in message:
        message += f" (given: {given[0]!r})"
    return f"{message}{'' if message.endswith(('.', '?')) else '.'}{hint}"


def _on_sigterm(*_: object) -> None:
    raise SystemExit(143)
