"""R22: a store, its images, scratch and outputs under any path: it works, or is refused before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.generation.conftest import OPTIONS
from tests.stress.commands import TEACHING, make_given, run

ODD = (
    "my%20data", "%2e%2e", "100%", "%s%d", "q?x", "?mode=memory", "a#b", "a&b=c", "a b", " before", "after ",
    "it's", 'a "b"', "`id`", "$(id)", "$HOME", "{name}", "{0}", "ü", "日本 語", "🙂🙂", "e\u0301", "line\nbreak",
    "tab\there", "-dash", "--json", "x" * 200, "{0..3}", "s-{00..01}.tar", "*", "[a]", "[red]b[/red]", "a,b", "a:b",
    "a.csv:b", "a;b", "~", "file:x", "s3:", ".hidden", "back\\slash", "select'--",
)  # fmt: skip
"""Names of folders that mean something to a shell, a URL, SQL, a pattern, a format string, a terminal or a file system."""
PLACES = ("absolute", "relative", "linked")
NUM_COMMANDS = 6


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    return make_given(tmp_path_factory.mktemp("given"))


def commands(place: Path, teacher: Path) -> list[tuple[str, list[object]]]:
    """Six commands whose every path is below `place`, each from what the one before made."""
    store, images = place / "store", place / "data" / "train"
    return [
        ("labelstore", [
            "create", store, "--images", images, "--teacher", teacher, "--num-crops", "4", "--k", "2",
            "--crops-per-shard", "2", "--images-per-shard", "3", *TEACHING,
        ]),
        ("labelstore", ["verify", store]),
        ("labelstore", ["report", store, "--images", images, "--out", place / "page.html"]),
        ("labelstore", ["export", "npz", store, place / "labels.npz"]),
        ("labelstore", ["freeze", store, place / "frozen"]),
        ("trainer", [
            "run", "--data", place / "data", "--labels", "fkd", "--store", store, "--model", "resnet18",
            "--model-kwargs", str(OPTIONS).replace("'", ""), "--input-size", "32", "--batch-size", "4",
            "--crops-per-image", "2", "--epochs", "2", "--device", "cpu", "--workers", "1",
            "--scratch", place / "scratch", "--output", place / "run",
        ]),
    ]  # fmt: skip


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_every_path_works_or_is_refused_before_anything_is_written(
    given, tmp_path, scale, matrix, monkeypatch, capfd
):
    """R22: nothing is written anywhere but below the odd folder, and a refused command writes nothing at all."""
    chosen = ODD if scale >= 2 else ODD[:: round(10 / scale)]
    tried, harmed = 0, []
    for number, name in enumerate(chosen):
        outside = tmp_path / f"{number}"
        home = outside / name
        (home / "scratch").mkdir(parents=True)
        shutil.copytree(given / "data", home / "data")
        place = {
            "absolute": home,
            "relative": Path(name),
            "linked": outside / "link",
        }[PLACES[number % len(PLACES)]]
        if place.name == "link":
            place.symlink_to(home)
        monkeypatch.chdir(outside)
        for program, arguments in commands(place, given / "teacher"):
            before = everything(outside)
            code = run(program, arguments)
            said = capfd.readouterr().err
            new = everything(outside) - before
            tried += 1
            if code and new:
                harmed.append(
                    f"{name!r}: {arguments[0]} ended with {code} and wrote {min(new)}: {said}"
                )
            if code == 1 or "Traceback" in said or (code and place.is_absolute()):
                harmed.append(f"{name!r}: {arguments[0]} ended with {code}: {said}")
            if stray := [path for path in new if not path.is_relative_to(home) and path != place]:
                harmed.append(f"{name!r}: {arguments[0]} wrote {min(stray)}")
        shutil.rmtree(outside)
    matrix.record("R22", paths=len(chosen), tried=tried, harmed=len(harmed))
    assert not harmed, "\n".join(harmed)
