"""Every command with arguments that make it do its work on small real files. A new command adds its line here."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from cli import errors, labelstore_app, trainer_app
from tests.generation.conftest import OPTIONS, write_photographs, write_teacher

PROGRAMS = {"labelstore": labelstore_app, "trainer": trainer_app}
COMMANDS = [(program, name) for program, app in PROGRAMS.items() for name in app.COMMANDS]
TEACHING = ("--device", "cpu", "--workers", "1")
MAKES_A_STORE = {"create", "import", "merge", "pull"}
"""Commands for which a store that is not there yet is no error."""


@dataclass(frozen=True)
class World:
    """Files to try commands on. `folder` is what may be written to; the rest lies elsewhere."""

    folder: Path
    given: Path

    @property
    def store(self) -> Path:
        """A finished store with a label set and a mask."""
        return self.folder / "store"

    @property
    def images(self) -> Path:
        return self.given / "data" / "train"

    @property
    def teacher(self) -> Path:
        return self.given / "teacher"

    @property
    def other_teacher(self) -> Path:
        return self.given / "other"


def run(program: str, arguments) -> int:
    """The command's exit code, in this process."""
    return errors.run(PROGRAMS[program].commands, program, [str(each) for each in arguments])


def make_given(folder: Path) -> Path:
    """Photographs, two teachers and a finished store."""
    write_photographs(folder / "data" / "train", per_class=2)
    write_photographs(folder / "data" / "val", per_class=1)
    write_teacher(folder / "teacher")
    with (folder / "teacher" / "config.yaml").open("a") as config:
        config.write("labels: ground-truth\n")  # `trainer evaluate` reads it as a run's
    write_teacher(folder / "other", seed=1)
    world = World(folder, folder)
    assert run("labelstore", CASES["labelstore", "create"](world, "store")) == 0
    assert run("labelstore", ["calibrate", world.store, "--low", "0", "--name", "kept"]) == 0
    keys = sorted(path.relative_to(world.images).as_posix() for path in world.images.rglob("*.jpg"))
    probs = np.full((len(keys), 4, 3), [0.7, 0.2, 0.1], np.float32)
    np.savez(folder / "labels.npz", key=np.array(keys), prob=probs)
    return folder


def damage(world: World) -> None:
    """Something for `repair`: boxes come from the plan, so that no image is needed."""
    next((world.store / "arrays.zarr" / "crops" / "plan" / "box").glob("c.*")).write_bytes(b"")


def litter(world: World) -> None:
    """Something for `gc`."""
    import os

    path = world.store / "arrays.zarr" / ".c.0.0.1-0123abcd.tmp"
    path.write_bytes(b"x" * 1000)
    os.utime(path, (0, 0))


def leased(world: World) -> None:
    """Something for `leases` to break."""
    import labelstore

    with labelstore.open(world.store) as store:
        name = store.label_sets[0]
        owner = "elsewhere/pid:[1]/boot/1/1/abcdef"
        store.catalogue.leases.acquire(f"labels/{name}", [0], owner, 60, done=99)


def frozen(world: World) -> None:
    """Something for `push`."""
    assert run("labelstore", ["freeze", world.store]) == 0


def shared(world: World) -> None:
    """Something for `pull`."""
    frozen(world)
    assert run("labelstore", CASES["labelstore", "push"](world)) == 0


PREPARE = {
    ("labelstore", "repair"): damage,
    ("labelstore", "gc"): litter,
    ("labelstore", "leases"): leased,
    ("labelstore", "push"): frozen,
    ("labelstore", "pull"): shared,
}

CASES = {
    ("labelstore", "create"): lambda w, name="new": [
        "create", w.folder / name, "--images", w.images, "--teacher", w.teacher, "--num-crops", "4",
        "--k", "2", "--crops-per-shard", "2", "--images-per-shard", "3", *TEACHING,
    ],
    ("labelstore", "info"): lambda w: ["info", w.store],
    ("labelstore", "stats"): lambda w: ["stats", w.store],
    ("labelstore", "calibrate"): lambda w: ["calibrate", w.store, "--low", "0.1", "--name", "more"],
    ("labelstore", "variants"): lambda w: ["variants", w.store, "--compression", "smoothing", "--name", "s"],
    ("labelstore", "add-teacher"): lambda w: [
        "add-teacher", w.store, "--images", w.images, "--teacher", w.other_teacher, "--name", "other",
        "--k", "2", *TEACHING,
    ],
    ("labelstore", "grow"): lambda w: [
        "grow", w.store, "--images", w.images, "--teacher", w.teacher, "--num-crops", "6", *TEACHING,
    ],
    ("labelstore", "merge"): lambda w: ["merge", w.folder / "merged", w.store, w.given / "store"],
    ("labelstore", "drop"): lambda w: ["drop", "mask", "kept", w.store, "--yes"],
    ("labelstore", "verify"): lambda w: ["verify", w.store],
    ("labelstore", "repair"): lambda w: ["repair", w.store],
    ("labelstore", "gc"): lambda w: ["gc", w.store],
    ("labelstore", "leases"): lambda w: ["leases", w.store, "--break", "process 1 on elsewhere"],
    ("labelstore", "freeze"): lambda w: ["freeze", w.store, w.folder / "frozen"],
    ("labelstore", "push"): lambda w: ["push", w.store, w.folder / "remote"],
    ("labelstore", "pull"): lambda w: ["pull", w.folder / "remote", w.folder / "pulled"],
    ("labelstore", "demo-images"): lambda w: [
        "demo-images", w.folder / "demo", "--teacher", "10", "--train", "10", "--val", "10",
    ],
    ("trainer", "run"): lambda w: [
        "run", "--data", w.given / "data", "--labels", "fkd", "--store", w.store, "--model", "resnet18",
        "--model-kwargs", str(OPTIONS).replace("'", ""), "--input-size", "32", "--batch-size", "4",
        "--crops-per-image", "2", "--epochs", "2", "--device", "cpu", "--workers", "1",
        "--output", w.folder / "run",
    ],
    ("labelstore", "crops"): lambda w: ["crops", w.store],
    ("labelstore", "show"): lambda w: ["show", w.store, "0"],
    ("labelstore", "plot"): lambda w: ["plot", w.store, "histogram", "--out", w.folder / "plot.png"],
    ("labelstore", "report"): lambda w: ["report", w.store, "--out", w.folder / "report.html"],
    ("labelstore", "export"): lambda w: ["export", "fkd", w.store, w.folder / "exported"],
    ("labelstore", "migrate"): lambda w: ["migrate", w.store],
    ("labelstore", "sql"): lambda w: ["sql", w.store, "select count(*) as n from images"],
    ("labelstore", "quality"): lambda w: ["quality", w.store],
    ("labelstore", "noise"): lambda w: ["noise", w.store],
    ("labelstore", "advise"): lambda w: ["advise", w.store],
    ("labelstore", "mask"): lambda w: ["mask", w.store, "--name", "small", "--discard", "area < 0.1"],
    ("labelstore", "audit"): lambda w: ["audit", w.store],
    ("labelstore", "import"): lambda w: [
        "import", "npz", w.given / "labels.npz", w.folder / "imported", "--images", w.images,
        "--whole-images", "--teacher", "timm:resnet18", "--compression", "ms", "--k", "2", "--temperature", "1",
    ],
    ("trainer", "recipes"): lambda w: ["recipes"],
    ("trainer", "probe"): lambda w: [
        "probe", w.teacher, "--data", w.given / "data", "--device", "cpu", "--epochs", "2",
    ],
    ("trainer", "export"): lambda w: ["export", w.teacher, "--out", w.folder / "weights.safetensors"],
    ("trainer", "attention"): lambda w: [
        "attention", w.teacher, "--image", "bird/0.jpg", "--images", w.given / "data" / "val", "--input-size", "64",
        "--device", "cpu", "--out", w.folder / "attention.png",
    ],
    ("trainer", "report"): lambda w: ["report", w.teacher, "--out", w.folder / "runs.html"],
    ("trainer", "evaluate"): lambda w: ["evaluate", w.teacher, "--data", w.given / "data", "--device", "cpu"],
}  # fmt: skip
"""(program, command) -> its arguments in a world."""

# what a required argument is given where a command is only to find out that there is no store
STAND_INS = {
    "num_crops": "8",
    "kind": "label-set",
    "name": "x",
    "compression": "hard",
    "query": "select 1",
    "format_": "fkd",
    "image": "0",
}
MEANT = {"mask": ("--discard", "area < 0.1")}
"""What a command needs beside its required arguments before it looks for the store."""


def loaded(program: str, name: str):
    """The command's parameters, as typer has them."""
    group = typer.main.get_command(PROGRAMS[program].commands)
    with group.make_context(program, [name]) as context:
        return group.resolve_command(context, [name])[1]


def flags(program: str, name: str) -> set[str]:
    return {flag for param in loaded(program, name).params for flag in param.opts}


def with_missing_store(program: str, name: str, world: World, missing: Path) -> list[str] | None:
    """The command on a store that is not there; None for one that takes no store."""
    params = loaded(program, name).params
    stores = [p for p in params if p.name == "store"]
    if not stores or (program, name) == ("trainer", "run"):
        return None
    arguments = [name]
    for param in params:
        if param.name == "store":
            value = str(missing)
        elif not param.required:
            continue
        else:
            known = {"images": world.images, "teacher": world.teacher, **STAND_INS}
            value = str(known.get(param.name, world.folder / "stand-in"))
        flag = max(param.opts, key=len)
        arguments += [value] if param.param_type_name == "argument" else [flag, value]
    return [*arguments, *MEANT.get(name, ())]


def copy_world(given: Path, folder: Path) -> World:
    """A world with a store of its own."""
    shutil.copytree(given / "store", folder / "store")
    return World(folder, given)
