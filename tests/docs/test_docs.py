"""Every page of documentation runs: its Python, its commands with their output, its links.

Blocks of a page run in order, in one namespace and one temporary folder. A page says with
`<!-- given: demo teacher store student -->` what that folder starts with (none of these where it says nothing):
`demo/` has train/ and val/, `teacher/` is a run folder, `demo.labels` a store of 40 images x 8 crops, `student/` a run
on it. They are made once. `make test` runs the pages that need none of them and say no `<!-- slow: why -->`.

    ```python       executed; its asserts are the tests
    ```console      `$ command` lines, each followed by what it prints; `...` stands for anything. A command that
                    fails must be followed by `$ echo $?`
    <!-- not run: why -->   before a block: Python is compiled, commands are held against the programs' options
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from cli import errors, labelstore_app, trainer_app
from cli.progress import Progress

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "labelstore/FORMAT.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = {"labelstore": labelstore_app.commands, "trainer": trainer_app.commands}
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+?) -->\s*\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
TEACHER_RUN = (
    "trainer run --data demo --train demo/teacher --labels ground-truth --model resnet18 "
    "--model-kwargs '{layers: [1, 1, 1, 1], channels: [8, 8, 8, 8], stem_width: 8}' --input-size 32 "
    "--crops-per-image 2 --batch-size 20 --epochs 4"
)
CREATE = (
    "labelstore create demo.labels --images demo/train --teacher teacher --num-crops 8 "
    "--images-per-shard 16"
)
STUDENT_RUN = (
    "trainer run --data demo --store demo.labels --labels fkd --model resnet18 "
    "--model-kwargs '{layers: [1, 1, 1, 1], channels: [8, 8, 8, 8], stem_width: 8}' --input-size 32 "
    "--crops-per-image 4 --batch-size 40 --epochs 8 --output student"
)
GIVEN_BY = re.compile(r"<!-- given: ([\w ]+) -->")
SLOW = re.compile(r"<!-- (?:given|slow): ")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    line: int
    """Of the fence, from 1."""
    reason: str | None
    """Why it is not run."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A `$` line of a console block and the output below it."""

    text: str
    output: str


def blocks(page: str) -> Iterator[Block]:
    for found in BLOCK.finditer(page):
        indent = len(found["indent"])
        text = "".join(line[indent:] for line in found["text"].splitlines(keepends=True))
        line = page.count("\n", 0, found.start("indent")) + 1
        yield Block(language=found["language"], text=text, line=line, reason=found["reason"])


def commands(text: str) -> list[Command]:
    """The commands of a console block; a command goes on after a backslash at the end of its line."""
    found: list[list[str]] = []
    goes_on = False
    for line in text.splitlines():
        if goes_on:
            found[-1][0] += "\n" + line.removeprefix("> ")
        elif line.startswith("$ "):
            found.append([line[2:]])
        else:
            assert found, f"output {line!r} before the first command"
            found[-1].append(line)
        goes_on = len(found[-1]) == 1 and line.endswith("\\")
    return [Command(text=lines[0], output="\n".join(lines[1:])) for lines in found]


def program_arguments(command: str) -> tuple[str, list[str]] | None:
    """(labelstore or trainer, its arguments) of a command line, also under torchrun."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    while words and re.match(r"\w+=", words[0]):
        words.pop(0)
    if words and words[0] == "torchrun":
        # a module's name would be looked for in the reader's own folder first
        words = words[words.index("--no-python") + 1 :]
    if words and words[0] in PROGRAMS:
        stops = [i for i, word in enumerate(words) if word in ("|", "&", "&&", ";", ">", "2>")]
        return words[0], words[1 : min(stops, default=len(words))]
    return None


def check_options(command: str) -> None:
    """Hold a command line against the program's own parser; an ellipsis stands for what is left out."""
    called = program_arguments(command)
    if called is None:
        target = re.match(r"make (\w+)", command)
        if target:
            makefile = (ROOT / "Makefile").read_text()
            assert re.search(rf"^{target[1]}:", makefile, re.MULTILINE), f"no target: {command}"
        return
    program, arguments = called
    left_out = any(word in ("...", "…") for word in arguments)
    arguments = [word for word in errors.hyphenate(arguments) if word not in ("...", "…")]
    name, *rest = arguments or ["--help"]
    if name in ("--help", "--version"):
        return
    group = get_command(PROGRAMS[program])
    assert name in group.commands, f"{command}: {program} has no command {name}"
    try:
        group.load(name).make_context(name, rest)
    except typer.Exit:
        return  # --help
    except errors.ClickError as error:
        if left_out and type(error).__name__ == "MissingParameter":
            return
        pytest.fail(f"{command}: {errors.outcome(error)[1]}")


class Shell:
    """Runs commands in one folder; those of our programs in this process, so that torch is imported once."""

    def __init__(self) -> None:
        self.code = 0

    def run(self, command: str) -> str:
        called = program_arguments(command)
        plain = not set("|<>;&$`*") & set(command)
        if called is not None and plain and shlex.split(command)[0] == called[0]:
            program, arguments = called
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                self.code = errors.run(PROGRAMS[program], program, arguments)
            return out.getvalue()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", f"(exit {self.code}); {command}"],
            env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.code = done.returncode
        return done.stdout


def matches(wanted: str, printed: str) -> bool:
    if not wanted.strip():
        return not printed.strip()
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(wanted.strip(), printed.strip(), options)


def run_console(block: Block, shell: Shell) -> None:
    wanted = commands(block.text)
    for number, command in enumerate(wanted):
        printed = shell.run(command.text)
        assert matches(command.output, printed), (
            f"line {block.line}, $ {command.text}\nwanted:\n{command.output}\nprinted:\n{printed}"
        )
        following = wanted[number + 1].text if number + 1 < len(wanted) else ""
        assert shell.code == 0 or following.startswith("echo $?"), (
            f"line {block.line}, $ {command.text}: exit code {shell.code}\n{printed}"
        )


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, a teacher that learnt it for two passes, its labels, and a student of these."""
    folder = tmp_path_factory.mktemp("given")
    with contextlib.chdir(folder):
        shell = Shell()
        for command in (
            "labelstore demo-images demo --teacher 60 --train 40 --val 20",
            f"{TEACHER_RUN} --device cpu --workers 1 --output teacher",
            f"{CREATE} --device cpu --workers 1",
            f"{STUDENT_RUN} --device cpu --workers 1",
        ):
            printed = shell.run(command)
            assert shell.code == 0, printed
    return folder


GIVEN = {"demo": "demo", "teacher": "teacher", "store": "demo.labels", "student": "student"}


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if SLOW.search(page.read_text()) else [])
        for page in PAGES
    ],
    ids=page_name,
)
def test_page_runs(page, tmp_path, monkeypatch, request):
    text = page.read_text()
    wanted = GIVEN_BY.search(text)
    for name in wanted[1].split() if wanted else ():
        made = request.getfixturevalue("given") / GIVEN[name]
        shutil.copytree(made, tmp_path / GIVEN[name])
    monkeypatch.chdir(tmp_path)
    # on a busy machine a command takes longer than the ten seconds after which a line says how far it is
    monkeypatch.setitem(Progress.__init__.__kwdefaults__, "every", float("inf"))
    shell = Shell()
    # a real module: classes that a page defines must be picklable
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks(text):
        if block.language == "python":
            # as many empty lines before it as in the page, so that a traceback names the page's line
            source = "\n" * block.line + block.text
            code = compile(source, str(page), "exec", dont_inherit=True)
            if block.reason is None:
                exec(code, module.__dict__)  # noqa: S102 - running the page is the test
        elif block.language == "console":
            if block.reason is None:
                run_console(block, shell)
                continue
            for command in commands(block.text):
                check_options(command.text)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_pages_name_no_folder_of_the_writer(page):
    assert not re.search(r"/(?:home|root|work|Users|tmp)/\w", page.read_text())


def test_an_unknown_option_is_found():
    check_options("labelstore info STORE --json")
    check_options("torchrun --nproc-per-node 8 --no-python labelstore create S ... --num-crops 4")
    with pytest.raises(pytest.fail.Exception, match="--colour"):
        check_options("torchrun --nproc-per-node 8 --no-python trainer run --colour red")
    with pytest.raises(pytest.fail.Exception, match="--colour"):
        check_options("labelstore info STORE --colour red")
    with pytest.raises(AssertionError, match="no command paint"):
        check_options("labelstore paint STORE")


def test_other_output_is_found():
    block = Block(language="console", text="$ echo one\ntwo\n", line=1, reason=None)
    with pytest.raises(AssertionError, match=r"printed:\s+one"):
        run_console(block, Shell())
    with pytest.raises(AssertionError, match="exit code 3"):
        run_console(Block(language="console", text="$ exit 3\n", line=1, reason=None), Shell())
    run_console(
        Block(language="console", text="$ exit 3\n$ echo $?\n3\n", line=1, reason=None), Shell()
    )


def test_format_lists_the_table_of_the_code():
    """FIRST_ODDS of FORMAT.md is the code's, to the last bit."""
    import numpy as np

    from labelstore.codecs import eight_bit

    text = (ROOT / "labelstore/FORMAT.md").read_text()
    listing = text.split("FIRST_ODDS = [", 1)[1].split("]", 1)[0]
    listed = np.array([float(word) for word in listing.replace(",", " ").split()], np.float32)
    np.testing.assert_array_equal(listed, eight_bit._FIRST_ODDS[:254])
