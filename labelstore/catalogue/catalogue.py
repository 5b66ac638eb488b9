"""The catalogue: which images, crops, labels and masks a store holds, and who is writing which."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy import URL, Connection, insert, inspect, select

from labelstore.catalogue import server
from labelstore.catalogue.block_leases import Leases
from labelstore.catalogue.connection import OLDER, Database
from labelstore.catalogue.digests import insert_rows, verified_rows, verify_tables
from labelstore.catalogue.image_blocks import image_columns
from labelstore.catalogue.image_table import ImageTable
from labelstore.catalogue.ledger import Groups, Ledger
from labelstore.catalogue.metadata_files import MetadataFiles
from labelstore.catalogue.migrating import lacking_revisions, migrate, refuse_busy
from labelstore.catalogue.named_rows import NamedRows, Results, Teachers
from labelstore.catalogue.records import LabelSetRow, MaskRow, PlanRow, RunRow
from labelstore.catalogue.schema import (
    BASELINE,
    DIGESTED,
    FORMAT_VERSION,
    alembic_version,
    classes,
    image_blocks,
    label_sets,
    masks,
    metadata,
    plans,
    runs,
    store,
)
from labelstore.errors import (
    ConflictError,
    DamagedShard,
    FormatVersionError,
    RejectedInput,
    StoreNotFound,
    UsageError,
)

Clock = Callable[[], float]
T = TypeVar("T")


class Catalogue:
    """One store's catalogue, on SQLite or PostgreSQL.

    What it holds is in its parts: `images`; `teachers`, `plans`, `label_sets`, `masks`, `runs` and `results`;
    `groups`, their `leases` and the `ledger` of committed shards; digests of the `metadata` files.

    Every method, the parts' too, is one transaction, except those that take a connection. Inside `with
    catalogue.reading()`, `with catalogue.transaction()` or `catalogue.together(work)` all calls of this thread are
    that one transaction: they see one state, and what they write is there at once or not at all. Nothing is
    cached and no connection stays open, so an instance may be used from threads and after a fork. Reads are
    checked against the tables' digests: DamagedShard where the database holds something else than was written.
    """

    def __init__(self, database: Database, *, uuid: str, format_version: int) -> None:
        self._database = database
        self.transaction = database.transaction
        self.reading = database.reading
        self.check_writable = database.check_writable
        self.uuid = uuid
        self.format_version = format_version
        self.images = ImageTable(database)
        self.teachers = Teachers(database)
        self.plans = NamedRows(
            database,
            plans,
            PlanRow,
            changing=frozenset({"num_crops"}),
            described=lambda row: True,
        )
        self.label_sets = NamedRows(
            database,
            label_sets,
            LabelSetRow,
            # a label set keeps the uuid that it began with
            free=frozenset({"uuid", "facts"}),
            changing=frozenset({"codec", "facts"}),
            # its arrays are not decided before the first shard where class ids are not
            described=lambda row: row.is_settled,
        )
        self.masks = NamedRows(
            database,
            masks,
            MaskRow,
            changing=frozenset({"num_crops"}),
            described=lambda row: True,
        )
        # when a training started may differ, as a resumed run starts again
        self.runs = NamedRows(database, runs, RunRow, free=frozenset({"started"}))
        self.results = Results(database)
        self.groups = Groups(database)
        self.leases = Leases(database)
        self.ledger = Ledger(database)
        self.metadata = MetadataFiles(database)

    @classmethod
    def create(
        cls,
        url: str | URL,
        *,
        uuid: str,
        format_version: int = FORMAT_VERSION,
        clock: Clock | None = None,
        fill: Callable[[Self], None] = lambda catalogue: None,
    ) -> Self:
        """Make a catalogue with what `fill` writes into it; ConflictError if there is one already."""
        database = Database(url, creating=True, clock=clock)
        try:
            with database.creating() as conn:
                if inspect(conn).has_table(store.name):
                    raise ConflictError(
                        f"{database.name}: there is a catalogue already; open it, or choose another place"
                    )
                metadata.create_all(conn)
                conn.execute(insert(alembic_version).values(version_num=BASELINE))
                created = database.now(conn)
                insert_rows(
                    conn,
                    store,
                    [{"uuid": uuid, "format_version": format_version, "created": created}],
                )
                fill(cls(database, uuid=uuid, format_version=format_version))
        finally:
            database.close()
        return cls(Database(url, clock=clock), uuid=uuid, format_version=format_version)

    @classmethod
    def open(
        cls,
        url: str | URL,
        *,
        readonly: bool = False,
        frozen_mark: Path | None = None,
        frozen_at: str | None = None,
        clock: Clock | None = None,
    ) -> Self:
        """Open a catalogue; read-only by itself where the file cannot be written.

        One of an older format is read through a copy that is brought up to date, and refuses writes
        until `migrate`; on a server it is refused altogether (FormatVersionError).

        While there is a file at `frozen_mark`, every write is refused. `frozen_at` is the URL that a frozen
        store's catalogue came from, for messages.

        StoreNotFound where there is none, FormatVersionError where it is newer, DamagedShard where
        it cannot be read, RejectedInput for one with views, triggers or virtual tables.
        """
        frozen = frozen_mark is not None and frozen_mark.exists()
        database = Database(url, readonly=readonly or frozen, frozen_mark=frozen_mark, clock=clock)
        if frozen_at is not None:
            database.name = frozen_at
            database.why_readonly = (
                "is a frozen store's, which never changes: "
                "work on the store that it was frozen from"
            )
        rows: Sequence[tuple[object, ...]] = ()
        with database.reading() as conn:
            foreign = database.foreign_schema()
            if foreign is not None:
                raise RejectedInput(
                    f"{database.name}: holds {foreign[:100]!r}, which labelstore does not make there: "
                    "get the store from somebody you trust"
                )
            tables = set(inspect(conn).get_table_names())
            if store.name not in tables:
                if tables & metadata.tables.keys():
                    raise DamagedShard(
                        f"{database.name}: table store is missing: restore the catalogue from a copy"
                    )
                raise StoreNotFound(
                    f"{database.name}: no catalogue there; check the path or run `labelstore.create`"
                )
            lacking = lacking_revisions(conn, database.name)
            version = conn.execute(select(store.c.format_version)).scalar()
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise FormatVersionError(
                    f"{database.name}: format {version}, this version reads up to {FORMAT_VERSION}: update labelstore"
                )
            if not lacking:
                rows = verified_rows(conn, store)
        if lacking:
            database = database.older_copy()
            with database.creating() as conn:
                migrate(conn, database.name, now=math.inf)
                rows = verified_rows(conn, store)
            database.readonly = True
        if len(rows) != 1:
            raise DamagedShard(
                f"{database.name}: table store has {len(rows)} rows: restore the catalogue from a copy"
            )
        uuid, newest, _ = rows[0]
        if not lacking:
            version = newest
        if not isinstance(version, int) or not isinstance(uuid, str):
            raise DamagedShard(
                f"{database.name}: table store holds no format version: restore the catalogue from a copy"
            )
        if version < FORMAT_VERSION:
            database.readonly, database.why_readonly = True, OLDER
        return cls(database, uuid=uuid, format_version=version)

    @classmethod
    def migrate(
        cls, url: str | URL, *, frozen_mark: Path | None = None, dry_run: bool = False
    ) -> tuple[str, ...]:
        """Bring an older catalogue up to date in one transaction; returns the revisions that it lacked.

        Nothing to do is no error. ConflictError while somebody writes to it, StorageError where it is
        frozen or cannot be written; `dry_run` only looks.
        """
        database = Database(url, readonly=dry_run, frozen_mark=frozen_mark)
        try:
            if database.is_sqlite:
                # whatever is wrong with it is said here; an older one is brought up to date in a copy first
                cls.open(url, readonly=True, frozen_mark=frozen_mark).close()
            with database.reading() as conn:
                lacking = lacking_revisions(conn, database.name)
                if lacking and dry_run:
                    database.check_writable()
                    refuse_busy(conn, database.name, now=database.now(conn))
            if dry_run or not lacking:
                return lacking
            applied = database.write(
                lambda conn: migrate(conn, database.name, now=database.now(conn))
            )
            database.compact()
            return applied
        finally:
            database.close()

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def readonly(self) -> bool:
        """True where every write is refused."""
        return self._database.readonly

    def together(self, work: Callable[[], T]) -> T:
        """The calls that `work` makes as one writing transaction.

        `work` is called again where PostgreSQL asks for it, so it changes nothing but the catalogue.
        """
        return self._database.write(lambda conn: work())

    def verify_digests(self) -> None:
        """Read every row; DamagedShard names the first table that does not hold what was written."""
        with self.reading() as conn:
            verify_tables(conn)

    def problems(self) -> list[str]:
        """Every table that does not hold what was written, a line each; reads every row."""
        found = []
        for table in DIGESTED:
            try:
                with self.reading() as conn:
                    if table is image_blocks:
                        # unpacked as well: whoever writes a key that is none can write its digest, too
                        _ = image_columns(conn)["key"]
                    else:
                        verify_tables(conn, [table])
            except DamagedShard as error:
                found.append(str(error))
        try:
            structure = self._database.structure_problem()
        except DamagedShard as error:
            structure = str(error)
        if structure is not None:
            found.append(f"catalogue: {structure}: restore the catalogue from a copy")
        return found

    def copy_to(self, path: Path) -> None:
        """A compact copy of everything in a new SQLite file, wherever the catalogue is."""
        if self._database.is_sqlite:
            self._database.copy_to(path)
            return
        with self.reading() as conn:
            server.copy_to_file(conn, path)

    def num_bytes(self) -> int:
        """Return its bytes on disk, or on the server, with its indexes."""
        if self._database.is_sqlite:
            return self._database.num_bytes()
        with self.reading() as conn:
            return server.catalogue_bytes(conn)

    def add_classes(self, names: Sequence[str]) -> None:
        """Name the classes, in the order of their ids; ConflictError if others are named already."""

        def work(conn: Connection) -> None:
            there = [row[1] for row in verified_rows(conn, classes)]
            if not there:
                insert_rows(
                    conn, classes, [{"class_id": at, "name": name} for at, name in enumerate(names)]
                )
            elif there != list(names):
                differs = next(
                    (
                        at
                        for at, (old, new) in enumerate(zip(there, names, strict=False))
                        if old != new
                    ),
                    min(len(there), len(names)),
                )
                raise ConflictError(
                    f"the store has {len(there)} classes and {len(names)} were given; the first difference is class "
                    f"{differs}: use the folder that the store was made from"
                )

        if len(set(names)) != len(names):
            raise UsageError("a class name was given twice: names are folders and must be unique")
        self._database.write(work)

    def classes(self) -> tuple[str, ...]:
        """Class names by id."""
        with self.reading() as conn:
            return tuple(row[1] for row in verified_rows(conn, classes))
