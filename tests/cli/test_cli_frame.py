"""The frame of the programs: help without imports, one-line errors, exit codes, spelling of flags."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer

from cli import errors, labelstore_app, trainer_app
from cli.examples import EXAMPLES
from cli.lazy_group import lazy_group
from cli.shared_options import seconds
from labelstore.errors import (
    ConflictError,
    DamagedShard,
    FormatVersionError,
    IncompleteError,
    LabelStoreError,
    LeaseLost,
    NotGenerated,
    RejectedInput,
    StorageError,
    StoreNotFound,
    UsageError,
)

PROGRAMS = {"labelstore": labelstore_app, "trainer": trainer_app}
COMMANDS = [(program, name) for program, app in PROGRAMS.items() for name in app.COMMANDS]


def loaded(program, name):
    """The command itself, as the program finds it when it is called."""
    group = typer.main.get_command(PROGRAMS[program].commands)
    with group.make_context(program, [name]) as context:
        return group.resolve_command(context, [name])[1]


@pytest.fixture
def program(monkeypatch):
    """A program with one command `act`, whose body the test gives: run(body, *arguments) -> exit code."""

    def run(body, *arguments):
        def act(times: int = 1, kind: str = "") -> None:
            """Act."""
            body(times, kind)

        monkeypatch.setitem(sys.modules, "cli.commands.act", types.SimpleNamespace(act=act))
        app = typer.Typer(cls=lazy_group({"act": "Act."}), rich_markup_mode=None)
        app.callback()(lambda: None)
        return errors.run(app, "prog", ["act", *arguments])

    return run


def raising(error):
    def body(times, kind):
        raise error

    return body


@pytest.mark.parametrize(("name", "app"), PROGRAMS.items())
@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_command_with_its_whole_summary(name, app, arguments, capsys):
    assert errors.run(app.commands, name, arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for command, summary in app.COMMANDS.items():
        assert f"{command} {summary}" in shown


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_every_option_says_what_it_is(name, command):
    found = loaded(name, command)
    assert found.name == command
    assert [param.name for param in found.params if not param.help] == []


@pytest.mark.sample(25)
@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_every_command_has_an_example_that_it_reads(name, command, capsys):
    example = EXAMPLES[f"{name} {command}"]
    with loaded(name, command).make_context(command, shlex.split(example)):
        pass
    assert errors.run(PROGRAMS[name].commands, name, [command, "--help"]) == 0
    assert f"\n  {name} {command} {example}\n" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_the_list_of_commands_says_what_the_command_says_of_itself(name, command):
    def opening(text):
        return " ".join(text.split("\n\n")[0].split()).rstrip(".")

    assert opening(loaded(name, command).help) == opening(PROGRAMS[name].COMMANDS[command])


@pytest.mark.sample(1)
@pytest.mark.parametrize("program_name", PROGRAMS)
def test_help_of_no_command_loads_torch(program_name):
    # one interpreter for all: whatever one help loads stays loaded
    names = [name for program, name in COMMANDS if (program, name) != ("trainer", "evaluate")]
    code = (
        f"import sys; from cli import errors, {program_name}_app as app\n"
        f"for name in {[name for name in names if name in PROGRAMS[program_name].COMMANDS]}:\n"
        f"    assert errors.run(app.commands, '{program_name}', [name, '--help']) == 0, name\n"
        "    assert 'torch' not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LabelStoreError("m"), 1),
        (UsageError("m"), 2),
        (DamagedShard("m"), 3),
        (StoreNotFound("m"), 4),
        (FormatVersionError("m"), 4),
        (ConflictError("m"), 5),
        (LeaseLost("m"), 5),
        (StorageError("m"), 6),
        (RejectedInput("m"), 7),
        (IncompleteError("m"), 8),
        (NotGenerated("m"), 8),
    ],
)
def test_errors_on_purpose_are_their_message_and_code(program, capsys, error, code):
    assert program(raising(error)) == code
    assert capsys.readouterr() == ("", "prog: m\n")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--json"], 7), (["--json", "--nope"], 2), (["--", "--json"], 2)]
)
def test_a_failure_is_a_json_object_too(monkeypatch, capsys, arguments, code):
    def act(json: bool = False) -> None:
        """Act."""
        raise RejectedInput("first\n  second")

    monkeypatch.setitem(sys.modules, "cli.commands.act", types.SimpleNamespace(act=act))
    app = typer.Typer(cls=lazy_group({"act": "Act."}), rich_markup_mode=None)
    app.callback()(lambda: None)
    assert errors.run(app, "prog", ["act", *arguments]) == code
    out, err = capsys.readouterr()
    assert err.startswith("prog: ")
    assert err.count("\n") == 1
    if arguments[0] == "--":
        assert out == ""
        return
    assert out.count("\n") == 1
    assert f"prog: {json.loads(out)['error']}\n" == err
    assert json.loads(out)["exit"] == code


def test_a_message_of_several_lines_becomes_one(program, capsys):
    assert program(raising(RejectedInput("first\n   second\n"))) == 7
    assert capsys.readouterr().err == "prog: first second\n"


def test_full_disk_is_six_and_names_the_file(program, capsys):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")
    assert program(raising(error)) == 6
    assert capsys.readouterr().err == "prog: No space left on device: /data/x\n"


def test_unexpected_error_is_one_line_with_the_way_to_more(program, capsys, monkeypatch):
    assert program(raising(ZeroDivisionError("by\nzero"))) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("prog: internal error: ZeroDivisionError: by zero (set ")
    monkeypatch.setenv(errors.TRACEBACK_VARIABLE, "1")
    assert errors.TRACEBACK_VARIABLE in line
    assert program(raising(ZeroDivisionError("by zero"))) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nope"], "No such option"),
        (["--times", "x"], "valid integer.*'x'"),
        (["surplus"], "surplus"),
    ],
)
def test_usage_errors_are_one_line_and_two(program, capsys, arguments, says):
    assert program(lambda times, kind: None, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"prog: .*{says}.* See: prog act --help\n", err)


def test_unknown_command_is_two_and_names_the_nearest(capsys):
    assert errors.run(labelstore_app.commands, "labelstore", ["cretae"]) == 2
    err = capsys.readouterr().err
    assert "'create'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "prog: interrupted\n"),
        (typer.Abort(), 130, "prog: interrupted\n"),
        (SystemExit(143), 143, "prog: terminated\n"),
        (typer.Exit(8), 8, ""),
    ],
)
def test_ways_to_leave(program, capsys, error, code, says):
    assert program(raising(error)) == code
    assert capsys.readouterr().err == says


@pytest.mark.parametrize("spelling", ["--num-crops", "--num_crops", "--num_crops=4"])
def test_underscores_in_flags(spelling):
    given = [spelling] if "=" in spelling else [spelling, "4_0"]
    expected = ["--num-crops=4"] if "=" in spelling else ["--num-crops", "4_0"]
    assert errors.hyphenate(given) == expected


def test_underscored_flags_reach_the_command(program):
    seen = []
    assert (
        program(lambda times, kind: seen.append((times, kind)), "--times=3", "--kind", "a_b") == 0
    )
    assert seen == [(3, "a_b")]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_signals_clean_up_first(tmp_path: Path, sent):
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, time, types, typer\n"
        "from cli.errors import main\n"
        "from cli.lazy_group import lazy_group\n"
        "def act() -> None:\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        print('cleaned up', flush=True)\n"
        "sys.modules['cli.commands.act'] = types.SimpleNamespace(act=act)\n"
        "app = typer.Typer(cls=lazy_group({'act': 'Act.'}), rich_markup_mode=None)\n"
        "app.callback()(lambda: None)\n"
        "main(app, 'prog')\n"
    )
    with subprocess.Popen(
        [sys.executable, script, "act"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(sent)
        out, err = process.communicate(timeout=300)
    assert out == "cleaned up\n"
    assert process.returncode == 128 + sent
    assert err == f"prog: {'interrupted' if sent == signal.SIGINT else 'terminated'}\n"


@pytest.mark.parametrize(("target", "code"), [("closed pipe", 141), ("/dev/full", 6)])
def test_stdout_that_takes_no_more(target, code):
    command = [sys.executable, "-m", "cli.labelstore_app", "--help"]
    if target == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        if not Path(target).exists():
            pytest.skip(f"this system has no {target}")
        writing = os.open(target, os.O_WRONLY)
    try:
        done = subprocess.run(
            command, check=False, stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (code == 6)


@pytest.mark.parametrize("text", ["", "m", "1x", "-5", "1m1h"])
def test_time_spans_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="--max-time"):
        seconds(text, "--max-time")
