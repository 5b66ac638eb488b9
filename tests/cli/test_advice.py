"""What a message tells to do is done, and then the command that failed works: advice leads somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.wording import flags_of
from tests.exchange import foreign_files as foreign
from tests.generation.conftest import OPTIONS
from tests.stress.commands import (
    CASES,
    COMMANDS,
    TEACHING,
    World,
    copy_world,
    damage,
    leased,
    loaded,
    make_given,
    run,
)

Arguments = list[object]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    return make_given(tmp_path_factory.mktemp("given"))


@pytest.fixture
def world(given, tmp_path) -> World:
    return copy_world(given, tmp_path)


@dataclass(frozen=True)
class Advice:
    """A command that is refused, what is said, and what it tells to do; `again` where the command then works as it was."""

    wrong: Callable[[World], Arguments]
    says: str
    follow: Callable[[World, Arguments, re.Match[str]], Arguments]
    program: str = "labelstore"
    before: Callable[[World], object] = lambda world: None
    again: bool = False


# -- commands that go wrong, and how an argument changes -----------------------------------------------


def create(world: World, store: str, *more: object, num_crops: int = 4) -> Arguments:
    return [
        "create", world.folder / store, "--images", world.images, "--teacher", world.teacher,
        "--num-crops", num_crops, "--crops-per-shard", "2", "--images-per-shard", "3", *more, *TEACHING,
    ]  # fmt: skip


def train(world: World, *more: object) -> Arguments:
    return [
        "run", "--data", world.given / "data", "--store", world.store, "--model", "resnet18", "--model-kwargs",
        str(OPTIONS).replace("'", ""), "--input-size", "32", "--batch-size", "4", "--crops-per-image", "4",
        "--epochs", "4", "--device", "cpu", "--workers", "1", "--output", world.folder / "run", *more,
    ]  # fmt: skip


def given_too(*more: object) -> Callable[[World, Arguments, re.Match[str]], Arguments]:
    return lambda world, wrong, said: [*wrong, *more]


def without(flag: str, number: int = 2) -> Callable[[World, Arguments, re.Match[str]], Arguments]:
    def follow(world: World, wrong: Arguments, said: re.Match[str]) -> Arguments:
        at = wrong.index(flag)
        return wrong[:at] + wrong[at + number :]

    return follow


def replaced(flag: str, value: object = None) -> Callable[..., Arguments]:
    """The option's value, or the one that the message names."""

    def follow(world: World, wrong: Arguments, said: re.Match[str]) -> Arguments:
        at = wrong.index(flag) + 1
        return [*wrong[:at], value if value is not None else said[1], *wrong[at + 1 :]]

    return follow


def first(value: str) -> Callable[..., Arguments]:
    """The command with another first argument."""
    return lambda world, wrong, said: [wrong[0], world.folder / value, *wrong[2:]]


def quoted(*more: object) -> Callable[[World, Arguments, re.Match[str]], Arguments]:
    """The command that the message shows, with the folder of the images where it says DIR."""

    def follow(world: World, wrong: Arguments, said: re.Match[str]) -> Arguments:
        program, *words = shlex.split(said[1])
        assert program == "labelstore"
        shown: Arguments = [
            world.images if word == "DIR" else word for word in words if word != "..."
        ]
        return [*shown, *more]

    return follow


def spoil(world: World) -> None:
    path = world.store / "arrays.zarr" / "labels" / "teacher" / "class_id"
    next(path.glob("c.*")).write_bytes(b"")


def half(world: World) -> None:
    """A label set that a deadline cut short."""
    stopped = create(
        world, "store", "--name", "half", "--k", "2", "--max-time", "0.001s", "--batch-size", "4"
    )
    assert run("labelstore", stopped) == 8


def whole(world: World, wrong: Arguments, said: re.Match[str]) -> Arguments:
    return create(world, "store", "--name", "half", "--k", "2", "--batch-size", "4")


def variant(world: World) -> None:
    assert run("labelstore", CASES["labelstore", "variants"](world)) == 0


def with_broken_image(world: World) -> Arguments:
    images = shutil.copytree(world.images, world.folder / "images")
    min(images.rglob("*.jpg")).write_bytes(b"x")
    wrong = create(world, "new", "--k", "2")
    wrong[wrong.index("--images") + 1] = images
    return wrong


def imported(*left_out: str) -> Callable[[World], Arguments]:
    def wrong(world: World) -> Arguments:
        return [each for each in CASES["labelstore", "import"](world) if each not in left_out]

    return wrong


def lpld(*more: object, bad: bool = False) -> Callable[[World], Arguments]:
    """An import of LPLD's files, one of which may be none."""

    def wrong(world: World) -> Arguments:
        made = foreign.make(world.folder / "foreign")
        source, _ = foreign.write_batches(made, world.folder / "labels", "lpld")
        if bad:
            (source / "epoch_2" / "batch_1.tar").write_bytes(b"x")
        return [
            "import", "lpld", source, world.folder / "imported", "--images", made.root, "--compression", "ms",
            "--k", "3", "--temperature", "1", "--images-per-shard", "2", *more,
        ]  # fmt: skip

    return wrong


ADVICE = {
    "no store: create": Advice(
        lambda w: ["stats", w.folder / "none"], r"make one with `(labelstore create [^`]*)`",
        quoted("--teacher", "TEACHER", "--num-crops", "4", "--k", "2", *TEACHING), again=True,
    ),
    "no catalogue: the folder that create made": Advice(
        lambda w: ["info", w.given], r"give the folder that `labelstore create` made",
        lambda w, wrong, said: ["info", w.given / "store"],
    ),
    "other number of crops: the same": Advice(
        lambda w: create(w, "store", "--k", "2", num_crops=6), r"exists with num crops (\d+), .*use the same",
        replaced("--num-crops"),
    ),
    "other number of crops: grow": Advice(
        lambda w: create(w, "store", "--k", "2", num_crops=6), r"use the same, `labelstore grow`",
        lambda w, wrong, said: [
            "grow", w.store, "--images", w.images, "--teacher", w.teacher, "--num-crops", "6", *TEACHING,
        ],
        again=True,
    ),
    "other number of crops: another store": Advice(
        lambda w: create(w, "store", "--k", "2", num_crops=6), r"or give another STORE", first("new"),
    ),
    "other seed: the same": Advice(
        lambda w: create(w, "store", "--k", "2", "--seed", "7"), r"exists with seed (\d+), .*use the same",
        replaced("--seed"),
    ),
    "other plan": Advice(
        lambda w: create(w, "store", "--k", "2", "--plan-name", "x"), r"use --plan-name (\w+)",
        replaced("--plan-name"),
    ),
    "other codec: another label set": Advice(
        lambda w: create(w, "store", "--k", "1"), r"make another label set with --name NAME",
        given_too("--name", "other"),
    ),
    "other temperature: another label set": Advice(
        lambda w: create(w, "store", "--k", "2", "--temperature", "4"), r"another label set with --name NAME",
        given_too("--name", "hot"),
    ),
    "K above C": Advice(
        lambda w: create(w, "new", "--k", "5"), r"K is 1 to (\d+), choose a smaller --k", replaced("--k"),
    ),
    "K without a use": Advice(
        lambda w: create(w, "new", "--compression", "hard", "--k", "2"), r"leave --k out", without("--k"),
    ),
    "dtype without a use": Advice(
        lambda w: create(w, "new", "--compression", "hard", "--dtype", "float16"), r"leave --dtype out",
        without("--dtype"),
    ),
    "tail without a use": Advice(
        lambda w: create(w, "new", "--compression", "hard", "--tail-classes", "2"), r"leave it out",
        without("--tail-classes"),
    ),
    "unknown codec": Advice(
        lambda w: create(w, "new", "--compression", "mss"), r"choose one of (\w+), .* with --compression",
        replaced("--compression"),
    ),
    "broken image": Advice(with_broken_image, r"--skip-bad leaves such images out", given_too("--skip-bad")),
    "deadline: the same command again": Advice(
        lambda w: ["stats", w.store, "--label-set", "half"], r"run the same `labelstore create` again", whole,
        before=half, again=True,
    ),
    "deadline: training": Advice(
        lambda w: train(w, "--labels", "fkd", "--label-set", "half"), r"run the same `labelstore create` again",
        whole, program="trainer", before=half, again=True,
    ),
    "freeze: finish it": Advice(
        lambda w: ["freeze", w.store], r"finish it with `labelstore create`", whole, before=half, again=True,
    ),
    "freeze: incomplete": Advice(
        lambda w: ["freeze", w.store], r"or give --allow-incomplete", given_too("--allow-incomplete"), before=half,
    ),
    "push: freeze first": Advice(
        lambda w: ["push", w.store, w.folder / "remote"], r"run `(labelstore freeze [^`]*)`", quoted(), again=True,
    ),
    "frozen: there already": Advice(
        lambda w: ["freeze", w.store, w.store], r"give another path", lambda w, wrong, said: [*wrong[:2], w.folder / "f"],
    ),
    "damage: repair labels": Advice(
        lambda w: ["stats", w.store], r"run `(labelstore repair [^`]*)`", quoted(), before=spoil, again=True,
    ),
    "damage: repair crops": Advice(
        lambda w: ["verify", w.store], r"run `(labelstore repair [^`]*)`", quoted(), before=damage, again=True,
    ),
    "mask with other values: another name": Advice(
        lambda w: ["calibrate", w.store, "--low", "0.3", "--name", "kept"], r"choose another", replaced("--name", "new"),
    ),
    "plot of a mask": Advice(
        lambda w: ["plot", w.store, "regions", "--out", w.folder / "a.png"], r"give --mask NAME", given_too("--mask", "kept"),
    ),
    "column of a mask": Advice(
        lambda w: ["crops", w.store, "--where", "region == 'kept'"], r"name one with --mask", given_too("--mask", "kept"),
    ),
    "unknown column": Advice(
        lambda w: ["crops", w.store, "--where", "arae < 0.1"], r"choose from .*\b(area)\b",
        lambda w, wrong, said: ["crops", w.store, "--where", f"{said[1]} < 0.1"],
    ),
    "two label sets": Advice(
        lambda w: ["export", "fkd", w.store, w.folder / "out"], r"2 label sets \((\w+), (\w+)\): choose one with --label-set",
        lambda w, wrong, said: [*wrong, "--label-set", said[2]], before=variant,
    ),
    "variant with other values: another name": Advice(
        lambda w: ["variants", w.store, "--from", "teacher", "--compression", "hard", "--name", "s"],
        r"choose another --name", replaced("--name", "new"), before=variant,
    ),
    "variant that needs more": Advice(
        lambda w: ["variants", w.store, "--compression", "full", "--name", "f"], r"derive K=(\d+) or less",
        lambda w, wrong, said: ["variants", w.store, "--compression", "mr", "--k", said[1], "--name", "f"],
    ),
    "lease of nobody": Advice(
        lambda w: ["leases", w.store, "--break", "process 2 on elsewhere"], r"give an owner as `labelstore leases` lists it",
        replaced("--break", "process 1 on elsewhere"), before=leased,
    ),
    "drop": Advice(lambda w: ["drop", "label-set", "teacher", w.store], r"give --yes to do it", given_too("--yes")),
    "export there already": Advice(
        CASES["labelstore", "export"], r"give another path", lambda w, wrong, said: [*wrong[:3], w.folder / "o"],
        before=lambda w: run("labelstore", CASES["labelstore", "export"](w)),
    ),
    "import: temperature": Advice(
        imported("--temperature", "1"), r"--temperature is needed: .* (1) for a plain softmax", given_too("--temperature", "1"),
    ),
    "import: no boxes": Advice(imported("--whole-images"), r"--whole-images is needed", given_too("--whole-images")),
    "import: other number of classes": Advice(
        lpld("--num-classes", "40"), r"hold 12 of each crop; leave it out", without("--num-classes"),
    ),
    "import: a file that cannot be used": Advice(
        lpld(bad=True), r"or pass --skip-bad to leave such images out", given_too("--skip-bad"),
    ),
    "unknown command": Advice(lambda w: ["veriffy", w.store], r"Did you mean '(\w+)'", lambda w, wrong, said: [said[1], w.store]),
    "unknown option": Advice(
        lambda w: ["verify", w.store, "--fsat"], r"Possible options: (--\w+)", lambda w, wrong, said: [*wrong[:2], said[1]],
    ),
    "FerKD without a mask": Advice(
        lambda w: train(w, "--labels", "ferkd"), r"give one that `labelstore info` lists", given_too("--mask", "kept"),
        program="trainer",
    ),
    "no images to train on": Advice(
        lambda w: without("--data")(w, train(w, "--labels", "fkd"), None), r"give --data DIR",
        lambda w, wrong, said: [*wrong, "--data", w.given / "data"], program="trainer",
    ),
    "crops that do not fill a batch": Advice(
        lambda w: train(w, "--labels", "fkd", "--batch-size", "6"), r"must be a multiple of .*, e\.g\. (\d+)",
        lambda w, wrong, said: [*wrong, "--batch-size", said[1]], program="trainer",
    ),
    "run folder in use: resume": Advice(
        lambda w: train(w, "--labels", "fkd"), r"holds a run already: resume it", given_too("--resume"),
        program="trainer", before=lambda w: run("trainer", train(w, "--labels", "fkd")),
    ),
    "run folder in use: another": Advice(
        lambda w: train(w, "--labels", "fkd"), r"give another output folder",
        lambda w, wrong, said: [*wrong, "--output", w.folder / "second"],
        program="trainer", before=lambda w: run("trainer", train(w, "--labels", "fkd")),
    ),
    "sources of no recipe": Advice(
        lambda w: ["recipes", "--sources"], r"give its name; `trainer recipes` lists them",
        lambda w, wrong, said: ["recipes", "fkd-resnet50", "--sources"], program="trainer",
    ),
    "frozen: the store that it was frozen from": Advice(
        lambda w: ["calibrate", w.folder / "frozen", "--low", "0.2", "--name", "x"], r"work on the store that it was frozen from",
        first("store"), before=lambda w: run("labelstore", ["freeze", w.store, w.folder / "frozen"]),
    ),
}  # fmt: skip


def names_of_the_library(told: str) -> list[str]:
    """What is shown between backticks by a name of the library, where people have a flag."""
    known = {
        name for program, command in COMMANDS for name in flags_of(loaded(program, command).params)
    }
    quoted = re.findall("`([a-z][a-z0-9_]*)(?:=[^`]*)?`", told)
    return [name for name in quoted if name in known - {"name", "path", "class", "label"}]


@pytest.mark.parametrize("name", ["-x", "a\nb", "\x1b[1m", "it's", "\\"])
def test_a_path_that_is_shown_is_the_path(name, tmp_path, capfd, monkeypatch):
    """As bash reads it, and no option."""
    monkeypatch.chdir(tmp_path)
    assert run("labelstore", ["info", f"./{name}"]) == 4
    shown = re.search(r"`labelstore create (.*) --images DIR", capfd.readouterr().err)
    assert shown is not None
    said = subprocess.run(["bash", "-c", f"printf %s {shown[1]}"], capture_output=True, check=True)
    assert said.stdout.decode().removeprefix("./") == name


def test_notes_name_flags_too(world, capfd):
    """A preview speaks of training, another command's option."""
    strict = ["--name", "strict", "--low", "0.62", "--middle", "0.63", "--top", "0.64"]
    mask = ["mask", world.store, "--name", "small", "--discard", "image < 2 or crop < 3"]
    for arguments in (["calibrate", world.store, *strict], mask, ["advise", world.store]):
        assert (
            run("labelstore", [*arguments, *([] if arguments[0] == "advise" else ["--dry-run"])])
            == 0
        )
        told = capfd.readouterr()
        assert not names_of_the_library(told.err + told.out)
        if arguments is mask:
            assert "unless it is told to allow empty images" in told.err + told.out


@pytest.mark.sample(12)
@pytest.mark.parametrize("name", ADVICE)
def test_advice_can_be_followed(name, world, capfd):
    advice = ADVICE[name]
    advice.before(world)
    wrong = advice.wrong(world)
    capfd.readouterr()
    code = run(advice.program, wrong)
    told = capfd.readouterr()
    assert code not in (0, 1), told
    assert not names_of_the_library(told.err + told.out)
    said = re.search(advice.says, told.err + told.out)
    assert said is not None, told.err + told.out
    # what is told to do may be another program's
    follow = [
        world.teacher if word == "TEACHER" else word for word in advice.follow(world, wrong, said)
    ]
    program = "labelstore" if advice.again else advice.program
    code = run(program, follow)
    assert code == 0, (follow, capfd.readouterr().err)
    if advice.again:
        assert run(advice.program, wrong) == 0, capfd.readouterr().err
