"""R20: every command: help, exit codes, one JSON object, and --dry-run writes nothing."""

import json
import shutil

import pytest

from tests.stress.commands import (
    CASES,
    COMMANDS,
    MAKES_A_STORE,
    PREPARE,
    copy_world,
    flags,
    make_given,
    run,
    with_missing_store,
)

IDS = [f"{program}-{name}" for program, name in COMMANDS]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_given(tmp_path_factory.mktemp("given"))


@pytest.fixture
def world(given, tmp_path):
    return copy_world(given, tmp_path)


def tree(folder):
    """Every file with its bytes, every folder."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def one_object(out):
    assert out.count("\n") == 1, out
    record = json.loads(out)
    assert isinstance(record, dict)
    return record


@pytest.mark.sample(11)
@pytest.mark.parametrize(("program", "name"), COMMANDS, ids=IDS)
def test_help_flags_and_missing_stores(program, name, world, capsys, matrix):
    assert run(program, [name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert (out.startswith(f"Usage: {program} {name}"), err) == (True, "")
    assert run(program, [name, "--no-such-flag"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    arguments = with_missing_store(program, name, world, world.folder / "nowhere")
    if arguments is not None and name not in MAKES_A_STORE:
        assert run(program, arguments) == 4, arguments
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert not (world.folder / "nowhere").exists()
        if "--json" in flags(program, name):
            assert run(program, [*arguments, "--json"]) == 4
            record = one_object(capsys.readouterr().out)
            assert record["exit"] == 4
            assert record["error"] in err
    # whatever it does, it says it as JSON or tries it without writing
    assert flags(program, name) & {"--json", "--dry-run"}
    matrix.record("R20", commands=1, violations=0)


@pytest.mark.parametrize(("program", "name"), COMMANDS, ids=IDS)
def test_usage_errors_are_one_object_too(program, name, capsys):
    if "--json" not in flags(program, name):
        pytest.skip(f"{name} has no --json")
    assert run(program, [name, "--json", "--no-such-flag"]) == 2
    out, err = capsys.readouterr()
    record = one_object(out)
    assert record["exit"] == 2
    assert record["error"] in err


@pytest.mark.sample(6)
@pytest.mark.parametrize(("program", "name"), COMMANDS, ids=IDS)
def test_dry_run_writes_nothing_and_json_is_one_object(program, name, world, capsys, matrix):
    if (program, name) not in CASES:
        matrix.record("R20", untried=1)
        pytest.skip(f"{name}: add its line to tests/stress/commands.py")
    has = flags(program, name)
    if (program, name) in PREPARE:
        PREPARE[program, name](world)
    arguments = CASES[program, name](world)
    capsys.readouterr()
    if "--dry-run" in has:
        before = tree(world.folder)
        for more in ((), ("--json",)) if "--json" in has else ((),):
            assert run(program, [*arguments, "--dry-run", *more]) == 0, capsys.readouterr()
            out = capsys.readouterr().out
            assert out
            if more:
                one_object(out)
            assert tree(world.folder) == before
    if "--json" in has:
        assert run(program, [*arguments, "--json"]) == 0, capsys.readouterr()
        one_object(capsys.readouterr().out)
    if "--dry-run" not in has:
        # it reads: what it was given is as it was
        keep = world.folder.parent / f"{world.folder.name}-copy"
        shutil.copytree(world.folder, keep)
        assert run(program, arguments) == 0, capsys.readouterr()
        assert capsys.readouterr().out
        assert tree(world.folder) == tree(keep)
    matrix.record("R20", dry_runs=int("--dry-run" in has), json=int("--json" in has), violations=0)
