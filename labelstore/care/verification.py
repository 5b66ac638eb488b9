"""Verifies every committed shard, the metadata files and the catalogue against their digests."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from labelstore.blocks.block_map import MAX_WORKERS, BlockMap, MapBlocks
from labelstore.care.leftovers import leftovers
from labelstore.care.values import value_problems
from labelstore.care.verify_report import Level, Problem, VerifyReport
from labelstore.catalogue.records import ShardRow
from labelstore.commit.lease_keeper import Progress
from labelstore.errors import DamagedShard, LabelStoreError, UsageError
from labelstore.store import Store, open_store
from labelstore.store.frozen_store import RESTORE, ManifestFile, file_digest, read_manifest
from labelstore.store.group import Group
from labelstore.store.metadata import metadata_problems, undescribed_groups
from labelstore.store.opening import MANIFEST_FILE, refuse_remote

RESTORE_CATALOGUE = "restore the catalogue from a copy"

_BACKEND_LEVELS: dict[Level, Literal["fast", "digest"]] = {
    "fast": "fast",
    "digests": "digest",
    # decoding is done here, where it is known what the values mean
    "deep": "digest",
}


def verify(
    store: Store | str | Path,
    level: Level = "digests",
    *,
    workers: int | None = None,
    map_blocks: MapBlocks | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Look at everything that is committed; writes nothing, and reports instead of raising.

    `fast` looks at presence and size of every file, `digests` also at the SHA-256 of all files and the
    digests of the catalogue's tables, `deep` also decodes every value and checks ranges, sums and
    order. `map_blocks` spreads the shards over other processes (`blocks.block_map`), otherwise `workers`
    threads look at them. `progress` is told shards done and shards in all.
    """
    if level not in _BACKEND_LEVELS:
        raise UsageError(f"level {level!r}: choose one of {', '.join(_BACKEND_LEVELS)}")
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise UsageError(f"workers={workers}: 1 to {MAX_WORKERS}")
    refuse_remote(store.location if isinstance(store, Store) else store, "it is not verified there")
    opened = (
        nullcontext(store)
        if isinstance(store, Store)
        else open_store(store, readonly=True, checked=False)
    )
    with opened as held:
        held.refresh()
        return _Verification(
            store=held,
            level=level,
            workers=workers or min(4, os.cpu_count() or 1),
            map_blocks=map_blocks,
            progress=progress or (lambda done, total: None),
        ).run()


def shard_problems(store: Store, group: Group, row: ShardRow, level: Level) -> list[Problem]:
    """Check one committed shard; return what is wrong with it."""
    layout = group.layout
    at = partial(_problem, store, group=group.name, block=row.block, crop_shard=row.crop_shard)
    if not (0 <= row.block < layout.num_blocks and 0 <= row.crop_shard < layout.num_crop_shards):
        what = f"the ledger has a shard {row.crop_shard} of block {row.block} of {group.name}, beyond the store"
        return [Problem(what=what, command=RESTORE_CATALOGUE)]
    rows = layout.rows(row.block)
    images = (rows.start, rows.stop - 1)
    if not row.files:
        return [at(what="the ledger names the shard and none of its files", key="", images=images)]
    found = store.arrays.verify(
        tuple(group.specs.values()), (row.block, row.crop_shard), row.files, _BACKEND_LEVELS[level]
    )
    # what the ledger does not name is no damage: `leftovers` lists it
    problems = [at(what=file.what, key=file.key, images=images) for file in found if file.in_ledger]
    if level == "deep" and not problems:
        key = row.files[0].key if row.files else ""
        problems = [
            at(what=what, key=key, images=images) for what in value_problems(store, group, row)
        ]
        for file in row.files:
            here = [spec for spec in group.specs.values() if spec.path in file.chunks]
            if (foreign := store.arrays.contents_problem(file, here)) is not None:
                problems.append(at(what=foreign, key=file.key, images=images))
    return problems


@dataclass(kw_only=True)
class _Verification:
    store: Store
    level: Level
    workers: int
    map_blocks: MapBlocks | None
    progress: Progress

    def run(self) -> VerifyReport:
        started = time.monotonic()
        problems = list(self._catalogue())
        # a table that cannot be read is named once; crafted rows have digests that match, and pass the first check
        named = bool(problems)
        problems += self._metadata(named=named)
        rows, unreadable = self._rows(named=named)
        problems += unreadable
        problems += self._shards(rows)
        frozen = (self.store.path / MANIFEST_FILE).exists()
        if frozen:
            problems += manifest_problems(self.store, hashes=self.level != "fast")
        try:
            unused = leftovers(self.store)
        except DamagedShard:
            unused = ()  # the damage is among the problems; without the ledger nothing is a leftover
        files = [file for _, row in rows for file in row.files]
        return VerifyReport(
            store=str(self.store.path),
            level=self.level,
            shards=len(rows),
            files=len(files),
            bytes=sum(file.size for file in files),
            problems=tuple(problems),
            leftovers=unused,
            frozen=frozen,
            seconds=time.monotonic() - started,
        )

    def _catalogue(self) -> Iterator[Problem]:
        if self.level == "fast":
            return
        for line in self.store.catalogue.problems():
            yield _unread(line)

    def _metadata(self, *, named: bool) -> Iterator[Problem]:
        try:
            problems = metadata_problems(self.store.catalogue, self.store.arrays.root)
        except DamagedShard as error:
            if not named:
                yield _unread(error)
            return
        for key, what in problems.items():
            yield _problem(self.store, what=what, key=key)
        for key in self.store.catalogue.metadata.digests().keys() - problems.keys():
            refused = self.store.arrays.metadata_problem(key)
            if refused is not None:
                yield _problem(self.store, what=refused, key=key)
        lacking = undescribed_groups(self.store.catalogue, self.store.arrays, problems)
        for key, what in lacking.items():
            yield _problem(self.store, what=what, key=key)

    def _rows(self, *, named: bool) -> tuple[list[tuple[Group, ShardRow]], list[Problem]]:
        """Every committed shard with its group, and what kept us from reading the ledger."""
        rows: list[tuple[Group, ShardRow]] = []
        problems: list[Problem] = []

        def unreadable(error: LabelStoreError) -> None:
            if not named:
                problems.append(_unread(error))

        try:
            names = list(self.store.group_names())
            committed = list(self.store.catalogue.ledger.counts())
        except DamagedShard as error:
            unreadable(error)
            return rows, problems
        for name in committed:
            if name not in names:
                what = f"the ledger has shards of {name}, which the catalogue does not know"
                problems.append(Problem(what=what, command=RESTORE_CATALOGUE))
                continue
            try:
                group = self.store.group(name)
                rows += [(group, row) for row in self.store.catalogue.ledger.shards(name)]
            except DamagedShard as error:
                unreadable(error)
        return rows, problems

    def _shards(self, rows: list[tuple[Group, ShardRow]]) -> list[Problem]:
        problems: list[Problem] = []
        self.progress(0, len(rows))
        for done, part in enumerate(self._looked_at(rows), 1):
            problems += part
            self.progress(done, len(rows))
        return problems

    def _looked_at(self, rows: list[tuple[Group, ShardRow]]) -> Iterator[list[Problem]]:
        if isinstance(self.map_blocks, BlockMap):
            job = _ShardJob(self.store.path.absolute(), self.level)
            yield from self.map_blocks(job, [(group.name, row) for group, row in rows])
            return

        def look(shard: tuple[Group, ShardRow]) -> list[Problem]:
            return shard_problems(self.store, *shard, self.level)

        if self.map_blocks is map:
            yield from map(look, rows)
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="verify") as pool:
            yield from pool.map(look, rows)


class _ShardJob:
    """`shard_problems` in another process, which opens the store as `verify` does."""

    def __init__(self, path: Path, level: Level) -> None:
        self.path, self.level = path, level

    @cached_property
    def store(self) -> Store:
        return open_store(self.path, readonly=True, checked=False)

    def __call__(self, shard: tuple[str, ShardRow]) -> list[Problem]:
        name, row = shard
        return shard_problems(self.store, self.store.group(name), row, self.level)


def _unread(said: object) -> Problem:
    """A table of the catalogue that cannot be trusted, in the words of its reader."""
    what = str(said).removesuffix(f": {RESTORE_CATALOGUE}")
    return Problem(what=what, command=RESTORE_CATALOGUE)


def _problem(
    store: Store,
    *,
    what: str,
    key: str,
    group: str = "",
    block: int | None = None,
    crop_shard: int | None = None,
    images: tuple[int, int] | None = None,
) -> Problem:
    frozen = (store.path / MANIFEST_FILE).exists()
    need = ", images=DIR" if group.startswith("labels/") else ""
    return Problem(
        what=what,
        command=(
            "restore it from the store that was frozen"
            if frozen
            else f"run `labelstore.repair(labelstore.open({str(store.path)!r}){need})`"
        ),
        path=str(store.arrays.root / key) if key else "",
        key=key,
        group=group,
        block=block,
        crop_shard=crop_shard,
        images=images,
    )


def manifest_problems(store: Store, *, hashes: bool) -> list[Problem]:
    """Where a frozen store differs from its manifest.

    Shard files are compared with the ledger elsewhere; here ledger and manifest must agree.
    """
    path = store.path / MANIFEST_FILE
    try:
        manifest = read_manifest(path)
    except DamagedShard as error:
        what = str(error).removeprefix(f"{path}: ").removesuffix(f"; {RESTORE}")
        return [Problem(path=str(path), what=what, command=RESTORE)]
    problems = []
    if manifest.uuid != store.uuid:
        what = (
            f"is the manifest of another store ({manifest.uuid}, the catalogue is of {store.uuid})"
        )
        problems.append(Problem(path=str(path), what=what, command=RESTORE))
    ledger = _ledger_files(store)
    for key, due in manifest.files.items():
        file = store.path / key
        recorded = ledger.pop(key, None)
        if recorded is not None:
            problem = (
                None if recorded == due else "the manifest and the ledger do not agree about it"
            )
        elif file.is_symlink() or not file.is_file():
            problem = "is missing"
        elif file.stat().st_size != due.bytes:
            problem = f"has {file.stat().st_size} bytes where the manifest says {due.bytes}"
        elif hashes and file_digest(file) != due:
            problem = "its SHA-256 is not the manifest's"
        else:
            problem = None
        if problem is not None:
            problems.append(Problem(path=str(file), what=problem, command=RESTORE))
    problems += [
        Problem(path=str(store.path / key), what="the manifest does not name it", command=RESTORE)
        for key in ledger
    ]
    return problems


def _ledger_files(store: Store) -> dict[str, ManifestFile]:
    root = store.arrays.root.relative_to(store.path).as_posix()
    try:
        return {
            f"{root}/{file.key}": ManifestFile(bytes=file.size, sha256=file.sha256)
            for group in store.catalogue.ledger.counts()
            for row in store.catalogue.ledger.shards(group)
            for file in row.files
        }
    except DamagedShard:
        return {}  # reported as the catalogue's damage
