"""gc removes what killed workers left, an hour later, and nothing else."""

import json
import os
import time

from cli import errors, labelstore_app
from labelstore.care.leftovers import gc, leftovers
from labelstore.care.verification import verify
from tests.integrity.conftest import shard_paths

HOURS_AGO = 2 * 3600


def put(path, *, old=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"rest")
    if old:
        then = time.time() - HOURS_AGO
        os.utime(path, (then, then))
    return path


def rubbish(store):
    """One of each kind; what gc may remove first."""
    shard = shard_paths(store)[0]
    name = shard.name.replace("0.", "7.", 1)
    return [
        put(shard.with_name(f".{shard.name}.12-ab.tmp")),
        put(shard.with_name(name)),
        put(store.path / "spool" / "teacher" / "0-1.spool"),
        put(store.path / ".catalogue.db.12-ab.tmp"),
        put(store.path / "spool" / "dropped" / "0-1.spool"),
    ], [
        put(shard.with_name(f".{shard.name}.12-cd.tmp"), old=False),
        put(store.path / "notes.txt"),
        put(shard.with_name("notes.txt")),
        put(store.path / "spool" / "other" / "0-1.spool", old=False),
    ]


def test_only_what_is_old_and_ours_goes(store):
    before = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    goes, stays = rubbish(store)
    assert verify(store).is_sound
    assert len(verify(store).leftovers) == 9
    planned = gc(store, dry_run=True)
    assert all(path.exists() for path in goes)
    collected = gc(store)
    assert {store.path / found.path for found in collected.removed} == set(goes)
    assert [f.path for f in planned.removed] == [f.path for f in collected.removed]
    assert not any(path.exists() for path in goes)
    assert all(path.exists() for path in stays)
    assert all(path.read_bytes() == data for path, data in before.items())
    assert gc(store).removed == ()


def test_a_live_lease_keeps_its_blocks_files(store):
    (temporary, orphan, *_), _ = rubbish(store)
    lease = store.catalogue.leases.acquire("labels/teacher", [0], "worker", 60, done=99)
    collected = gc(store)
    assert temporary.exists()
    assert not orphan.exists()  # of block 7
    assert (
        "leased by worker"
        in {f.path: why for f, why in collected.kept}[temporary.relative_to(store.path).as_posix()]
    )
    store.catalogue.leases.release(lease)
    gc(store)
    assert not temporary.exists()


def test_a_committed_file_is_never_a_leftover(store):
    assert leftovers(store) == ()


def test_the_command(store, capsys):
    goes, _ = rubbish(store)
    code = errors.run(labelstore_app.commands, "labelstore", ["gc", str(store.path), "--dry-run"])
    out = capsys.readouterr().out
    assert code == 0
    assert "would remove 5 files" in out
    assert all(path.exists() for path in goes)
    code = errors.run(labelstore_app.commands, "labelstore", ["gc", str(store.path), "--json"])
    assert code == 0
    assert len(json.loads(capsys.readouterr().out)["removed"]) == 5
    assert not any(path.exists() for path in goes)
