"""R14: a disk that is full, read-only or not ours: exit 6, the store verifies, the same command then goes on."""

import errno
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from labelstore.care.verification import verify
from tests.stress.commands import CASES, COMMANDS, PREPARE, copy_world, flags, make_given, run

# a new store has nothing to migrate: that command has its kills in tests/catalogue
WRITERS = [
    each
    for each in COMMANDS
    if each in CASES and "--dry-run" in flags(*each) and each != ("labelstore", "migrate")
]
# they only take away, and need no room for that where the catalogue stays as it is
FREES_SPACE = {("labelstore", "gc")}
NOBODY = 65534

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")


@pytest.fixture(scope="module")
def given():
    folder = Path(tempfile.mkdtemp(prefix="given"))
    make_given(folder)
    # nobody in particular may read all of it
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def disk():
    """A small disk of its own."""
    folder = Path(tempfile.mkdtemp(prefix="disk"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip("this machine does not let root mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
    folder.rmdir()


@contextmanager
def full(world):
    """No byte is left."""
    filler = world.folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            while True:
                try:
                    file.write(b"\1" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break
    yield run
    filler.unlink()


@contextmanager
def readonly(world):
    subprocess.run(["mount", "-o", "remount,ro", world.folder], check=True)
    yield run
    subprocess.run(["mount", "-o", "remount,rw", world.folder], check=True)


@contextmanager
def not_ours(world):
    """The command is run by somebody who may read the folder only."""

    def run_as_nobody(program, arguments):
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        code = 99
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code = run(program, arguments)
        finally:
            os._exit(code)

    yield run_as_nobody


WAYS = {"full": full, "read-only": readonly, "no permission": not_ours}


@pytest.mark.sample(3)
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize(("program", "name"), WRITERS, ids=[name for _, name in WRITERS])
def test_a_disk_that_takes_nothing(program, name, way, given, disk, scale, capfd, matrix):
    if scale < 2 and (WRITERS.index((program, name)) + list(WAYS).index(way)) % 3:
        pytest.skip("in the sample each command is tried in one way")
    world = copy_world(given, disk)
    if (program, name) in PREPARE:
        PREPARE[program, name](world)
    arguments = CASES[program, name](world)
    capfd.readouterr()
    with WAYS[way](world) as attempt:
        code = attempt(program, arguments)
        _, err = capfd.readouterr()
    if code == 0 and way == "full" and (program, name) in FREES_SPACE:
        matrix.record("R14", commands=1, refused=0, broken=0)
        return
    assert code == 6, (code, err)
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"{program}: ")
    assert str(disk) in last, last
    if name != "repair":
        assert verify(world.store, "deep", workers=1).is_sound
    # space is back
    if name == "run":
        arguments = [*arguments, "--resume"]
    assert run(program, arguments) == 0, capfd.readouterr()
    assert verify(world.store, "deep", workers=1).is_sound
    matrix.record("R14", commands=1, refused=1, broken=0)
