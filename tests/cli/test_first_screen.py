"""What a user who types something wrong, or asks for help, sees first; and what the shell completes."""

import os
import re
import subprocess
import sys

import pytest

from cli import errors
from cli.examples import MOSTLY_USED
from tests.cli.test_cli_frame import COMMANDS, PROGRAMS, loaded

LINES = 24
"""Of a terminal, below the line of the usage."""


@pytest.mark.parametrize("command", MOSTLY_USED)
def test_the_first_screen_of_help_has_the_ten_options_that_people_use(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    program, name = command.split()
    assert errors.run(PROGRAMS[program].commands, program, [name, "--help"]) == 0
    screen = capsys.readouterr().out.splitlines()[1 : LINES + 1]
    assert len(MOSTLY_USED[command]) == 10
    options = {flag for param in loaded(program, name).params for flag in param.opts}
    for wanted in MOSTLY_USED[command]:
        assert wanted.split()[0] in options
        assert any(line.startswith(f"  {wanted} ") for line in screen), wanted


def test_every_command_names_the_nearest_of_a_mistyped_flag_and_of_its_own_name(capsys):
    for program, name in COMMANDS:
        app = PROGRAMS[program].commands
        flag = next(
            flag
            for param in loaded(program, name).params
            for flag in param.opts
            if flag.startswith("--") and len(flag) > 5
        )
        mistyped = flag[:4] + flag[5:]
        assert errors.run(app, program, [name, mistyped]) == 2
        said = capsys.readouterr().err
        assert flag in re.findall(r"--[\w-]+", said.removeprefix(f"{program}: ")), said
        assert f"See: {program} {name} --help" in said
        if len(name) > 2:
            assert errors.run(app, program, [name[:-1]]) == 2
            assert f"'{name}'" in capsys.readouterr().err


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("words", "completed"),
    [("labelstore calib", ["calibrate"]), ("labelstore calibrate --qua", ["--quantiles"])],
)
def test_a_shell_completes_commands_and_their_flags(words, completed):
    environment = {
        **os.environ,
        "_LABELSTORE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    code = "import sys; sys.argv = ['labelstore']; from cli.labelstore_app import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == completed, done.stderr


def test_completion_is_installed_for_bash(tmp_path):
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    code = "import sys; from cli.labelstore_app import app; sys.argv = ['labelstore', '--install-completion', 'bash']; app()"
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert ".bash_completions" in (tmp_path / ".bashrc").read_text()
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_LABELSTORE_COMPLETE=complete_bash" in script.read_text()
