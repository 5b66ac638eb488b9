"""What the programs do where stdout is cut off or closed, and with names that commands a terminal or are no text."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from cli import errors, labelstore_app, trainer_app
from cli.output import PIPE_WIDTH, print_fields, print_table, say
from labelstore.errors import RejectedInput
from labelstore.images import scan_folder

ROOT = Path(__file__).parents[2]


def program(*words, **options):
    return subprocess.run(
        [*options.pop("before", ()), sys.executable, "-m", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=600,
        check=False,
        **options,
    )


def test_a_reader_that_went_away_is_141_also_for_tables():
    """`trainer recipes | true`: the table is drawn by rich, which would leave with 1."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = program("cli.trainer_app", "recipes", stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_is_no_internal_error(tmp_path, closed):
    words = ("cli.labelstore_app", "demo-images", str(tmp_path / "d"), "--teacher", "10")
    words += ("--train", "10", "--val", "10")
    before = ("bash", "-c", f'exec "$@" {closed}', "bash")
    done = program(*words, before=before, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert b"internal error" not in done.stderr + done.stdout
    assert (tmp_path / "d" / "val").is_dir()


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (labelstore_app, ["create", "nu\udcff/s.labels", "--images", "x", "--teacher", "y"]),
        (labelstore_app, ["merge", "nu\udcff.labels", "a", "b"]),
        (trainer_app, ["run", "--output", "runs/x\udcff", "--train", "x"]),
    ],
)
def test_paths_that_are_no_text_are_refused_before_any_work(app, words, capsys):
    assert errors.run(app.commands, "program", words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "\\udcff" in message
    assert "is not UTF-8" in message


def test_names_do_not_command_the_terminal(capsys):
    table = Table("name", title="title\x1b]0;owned\x07")
    table.add_row("a\x1b[2Jb\x9bc")
    print_table(table)
    print_fields({"name": "a\x1b[2Jb"})
    say("a\x1b[2Jb")
    print_fields({"line": errors.one_line("a\n\x1b[31mb\x85")})
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "a\\x1b[2Jb\\x9bc" in out
    assert "\x07" not in out
    assert "a\\x1b[2Jb" in err
    assert "a \\x1b[31mb" in out


def test_tables_look_as_rich_draws_them(capsys):
    from rich.console import Console

    def table():
        drawn = Table("a", "b", title="t [x]")
        drawn.add_row("1", "naïve 日本")
        return drawn

    print_table(table())
    held = io.StringIO()
    Console(file=held, width=PIPE_WIDTH).print(table())
    assert capsys.readouterr().out == held.getvalue()


def test_files_with_control_characters_in_their_names_are_no_images_of_a_store(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a\x1b[31m\n.jpg").write_bytes(b"")
    with pytest.raises(RejectedInput, match=r"a\\x1b\[31m\\n.jpg' has a control character"):
        scan_folder(tmp_path)


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (labelstore_app, ["create", "s", "--images", "", "--teacher", "t"]),
        (labelstore_app, ["create", "s", "--images=", "--teacher", "t"]),
        (labelstore_app, ["stats", ""]),
        (labelstore_app, ["pull", "./shared", ""]),
        (trainer_app, ["run", "--output", "", "--train", "x"]),
        (trainer_app, ["run", "--set", "store=", "--train", "x"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_empty_path_is_not_the_folder_that_this_runs_in(
    app, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert errors.run(app.commands, "program", words) == 2
    message = capsys.readouterr().err
    assert "is empty: give a" in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_empty_value_of_a_run_is_none(capsys):
    words = ["run", "--labels", "ground-truth", "--train", "x", "--clip-grad", "", "--print-config"]
    assert errors.run(trainer_app.commands, "trainer", words) == 0
    assert "clip_grad: null" in capsys.readouterr().out


def test_values_that_end_with_an_equals_sign_are_not_empty(capsys, tmp_path):
    words = ["crops", str(tmp_path / "none"), "--where=area="]
    assert errors.run(labelstore_app.commands, "labelstore", words) == 4
    assert "no store at" in capsys.readouterr().err


def test_no_room_for_a_batch_is_a_resource_and_no_internal_error():
    told = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")
    assert errors.outcome(told)[0] == 6
    assert errors.outcome(RuntimeError("anything else"))[0] == 1


def test_a_folder_whose_name_is_no_text_is_no_internal_error():
    """As where a relative path is made absolute in it."""
    with pytest.raises(UnicodeEncodeError) as caught:
        "/nu\udcff/s".encode()
    assert errors.outcome(caught.value) == (
        2,
        "/nu\\udcff/s is not UTF-8: rename the file or folder, or give another",
    )
