"""The catalogue: which images, crops, labels and masks a store holds, and who is writing which."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from numpy.typing import NDArray
from sqlalchemy import Connection, Table, insert, inspect, select

from labelstore.catalogue import image_table, leases, ledger, metadata_files, server
from labelstore.catalogue.array_rows import ArrayRows, array_rows_state, read_array_rows
from labelstore.catalogue.connection import OLDER, Database
from labelstore.catalogue.digests import (
    delete_rows,
    digest_text,
    insert_rows,
    num_rows,
    update_rows,
    verified_rows,
    verify_tables,
)
from labelstore.catalogue.migrating import lacking_revisions, migrate
from labelstore.catalogue.named_rows import (
    add_record,
    all_records,
    change_record,
    check_name,
    to_columns,
)
from labelstore.catalogue.records import (
    ImageRow,
    LabelSetRow,
    Lease,
    MaskRow,
    PlanRow,
    ResultRow,
    RunRow,
    ShardRow,
    TeacherRow,
)
from labelstore.catalogue.tables import (
    BASELINE,
    DIGESTED,
    FORMAT_VERSION,
    alembic_version,
    classes,
    images,
    label_sets,
    masks,
    metadata,
    plans,
    results,
    runs,
    store,
    teachers,
)
from labelstore.errors import (
    ConflictError,
    DamagedShard,
    FormatVersionError,
    LeaseLost,
    RejectedInput,
    StoreNotFound,
    UsageError,
)

Clock = Callable[[], float]
R = TypeVar("R")


class Catalogue:
    """One store's catalogue, on SQLite or PostgreSQL.

    Every method is one transaction of its own, except those that take a connection: they belong
    into `with catalogue.transaction() as conn`, inside which a method that writes by itself would
    wait for its own caller, and one that reads sees the state before. Nothing is cached and no
    connection stays open, so an instance may be used from threads and after a fork. Reads are
    checked against the tables' digests: DamagedShard where the database holds something else than
    was written.
    """

    def __init__(self, database: Database, *, uuid: str, format_version: int) -> None:
        self._database = database
        self.uuid = uuid
        self.format_version = format_version

    @classmethod
    def create(
        cls,
        url: str,
        *,
        uuid: str,
        format_version: int = FORMAT_VERSION,
        clock: Clock | None = None,
    ) -> Self:
        """Make an empty catalogue; ConflictError if there is one already."""
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
        finally:
            database.close()
        return cls.open(url, clock=clock)

    @classmethod
    def open(
        cls,
        url: str,
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
            database.why_readonly = "is a frozen store's, which never changes: work on the store that it was frozen from"
        foreign = database.foreign_schema()
        if foreign is not None:
            raise RejectedInput(
                f"{database.name}: holds {foreign[:100]!r}, which labelstore does not make there: "
                "get the store from somebody you trust"
            )
        with database.reading() as conn:
            tables = set(inspect(conn).get_table_names())
            if store.name not in tables:
                if tables & metadata.tables.keys():
                    raise DamagedShard(
                        f"{database.name}: table store is missing: restore the catalogue from a copy"
                    )
                raise StoreNotFound(
                    f"{database.name}: no catalogue there; check the path or run `labelstore create`"
                )
            lacking = lacking_revisions(conn, database.name)
            version = conn.execute(select(store.c.format_version)).scalar()
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise FormatVersionError(
                    f"{database.name}: format {version}, this version reads up to {FORMAT_VERSION}: update labelstore"
                )
        if lacking:
            database = database.older_copy()
            with database.creating() as conn:
                migrate(conn, database.name, now=math.inf)
            database.readonly = True
        with database.reading() as conn:
            rows = verified_rows(conn, store)
        if len(rows) != 1:
            raise DamagedShard(
                f"{database.name}: table store has {len(rows)} rows: restore the catalogue from a copy"
            )
        uuid, version, _ = rows[0]
        if not isinstance(version, int) or not isinstance(uuid, str):
            raise DamagedShard(
                f"{database.name}: table store holds no format version: restore the catalogue from a copy"
            )
        if version < FORMAT_VERSION:
            database.readonly, database.why_readonly = True, OLDER
        return cls(database, uuid=uuid, format_version=version)

    @classmethod
    def migrate(
        cls, url: str, *, frozen_mark: Path | None = None, dry_run: bool = False
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
            if dry_run or not lacking:
                return lacking
            return database.write(lambda conn: migrate(conn, database.name, now=database.now(conn)))
        finally:
            database.close()

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def readonly(self) -> bool:
        """True where every write is refused."""
        return self._database.readonly

    def transaction(self) -> AbstractContextManager[Connection]:
        """A writing transaction: commits at the end of the block, rolls back on any error."""
        return self._database.transaction()

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state of all tables."""
        return self._database.reading()

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
        """What it takes on disk, or on the server, with its indexes."""
        if self._database.is_sqlite:
            return self._database.num_bytes()
        with self.reading() as conn:
            return server.catalogue_bytes(conn)

    # Classes and images

    def add_classes(self, names: Sequence[str]) -> None:
        """Name the classes, in the order of their ids; ConflictError if others are named already."""

        def work(conn: Connection) -> None:
            there = [row[1] for row in verified_rows(conn, classes)]
            if not there:
                insert_rows(
                    conn, classes, ({"class_id": at, "name": name} for at, name in enumerate(names))
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

    def add_images(
        self,
        keys: Sequence[str],
        class_ids: Sequence[int] | NDArray[Any],
        sizes: Sequence[int] | NDArray[Any],
        mtimes_ns: Sequence[int] | NDArray[Any],
        *,
        first_row: int | None = None,
    ) -> range:
        """Register images after the last row, or from `first_row` on where they are already; returns their rows."""
        return self._database.write(
            lambda conn: image_table.add_images(
                conn, keys, class_ids, sizes, mtimes_ns, first_row=first_row
            )
        )

    def append_images(
        self,
        keys: Sequence[str],
        class_ids: Sequence[int] | NDArray[Any],
        sizes: Sequence[int] | NDArray[Any],
        mtimes_ns: Sequence[int] | NDArray[Any],
        *,
        multiple: int,
    ) -> range:
        """Register further images from a row on that is a multiple of `multiple`: see `image_table.append_images`."""

        def work(conn: Connection) -> range:
            rows = image_table.append_images(
                conn, keys, class_ids, sizes, mtimes_ns, multiple=multiple
            )
            metadata_files.mark(conn)
            return rows

        return self._database.write(work)

    def num_images(self) -> int:
        """N, bad images included."""
        with self.reading() as conn:
            return num_rows(conn, images)

    def count_images(self) -> tuple[int, int]:
        """`num_images` and `num_rows` at one moment."""
        with self.reading() as conn:
            return num_rows(conn, images), image_table.end_row(conn)

    def num_rows(self) -> int:
        """Image rows: N, and those that no image has."""
        with self.reading() as conn:
            return image_table.end_row(conn)

    def images(self, rows: Sequence[int] | None = None) -> list[ImageRow]:
        """All images in row order, or the ones asked for; `image_columns` is the fast form."""
        with self.reading() as conn:
            return image_table.image_rows(conn, rows)

    def image_columns(self) -> dict[str, NDArray[Any]]:
        """The images as NumPy columns over rows: see `image_table.image_columns`."""
        with self.reading() as conn:
            return image_table.image_columns(conn)

    def images_digest(self) -> str:
        """Hexadecimal digest of the images table as it is written down: another one after any change."""
        with self.reading() as conn:
            return digest_text(conn, images)

    def find_image(self, key: str) -> int | None:
        """Row of an image by key, or None."""
        return self.find_images([key]).get(key)

    def find_images(self, keys: Iterable[str]) -> dict[str, int]:
        """Rows of images by key, in one transaction; a key that is not there is left out."""
        with self.reading() as conn:
            return image_table.find_images(conn, keys)

    def record_image_facts(
        self, conn: Connection, facts: Iterable[tuple[int, int, int, bytes]]
    ) -> None:
        """Write (image, width, height, digest) of decoded images; ConflictError where an image has changed."""
        image_table.record_image_facts(conn, facts)

    def mark_bad(self, conn: Connection, image: int, reason: str, group: str | None = None) -> None:
        """Leave an image out of every label set for good, and say why.

        With the group whose worker says so: ConflictError where another label set has labels of the image already.
        """
        if group is not None and image_table.was_decoded(conn, image):
            held = ledger.labelled_elsewhere(conn, group, image)
            if held is not None:
                raise ConflictError(
                    f"image {image} cannot be left out ({reason}): {held} has labels for it, and would lose them; "
                    "restore the file and run the command again"
                )
        image_table.mark_bad(conn, image, reason)

    # What is kept by name

    def add_teacher(self, row: TeacherRow) -> TeacherRow:
        """Add a teacher or find it; measured top-1 and versions may differ, and stay as they were."""
        return self._add(teachers, row, free=frozenset({"top1", "versions", "facts"}))

    def register_teacher(self, row: TeacherRow, label_set: str) -> str:
        """The name under which the store knows this teacher: its `identity` decides, not what it is called.

        A new one keeps its name, or gets the label set's where that name is another's.
        """
        held = self.teachers()
        for known in held:
            if known.identity == row.identity:
                return known.name
        taken = {known.name for known in held}
        own = f"{row.name}-{row.digest[:8]}"
        free = chain((row.name, label_set, own), (f"{own}-{number}" for number in count(2)))
        name = next(candidate for candidate in free if candidate not in taken)
        return self.add_teacher(replace(row, name=name)).name

    def teachers(self) -> tuple[TeacherRow, ...]:
        """All teachers by name."""
        return self._all(teachers, TeacherRow)

    def teacher(self, name: str) -> TeacherRow:
        """One teacher; UsageError lists the names there are."""
        known = self.teachers()
        for row in known:
            if row.name == name:
                return row
        names = ", ".join(row.name for row in known) or "none yet"
        raise UsageError(f"no teacher {name!r} in the store: there are {names}")

    def update_teacher(
        self, conn: Connection, name: str, *, top1: float | None, facts: Mapping[str, Any]
    ) -> None:
        """Record what was measured about a teacher."""
        change_record(conn, teachers, name, {"top1": top1, "facts": facts})

    def add_plan(self, row: PlanRow) -> PlanRow:
        """Add a crop plan or find it."""
        check_name(row.name)
        return self._add(plans, row, described=True)

    def plans(self) -> tuple[PlanRow, ...]:
        """All crop plans by name."""
        return self._all(plans, PlanRow)

    def update_plan_crops(self, conn: Connection, name: str, num_crops: int) -> None:
        """Grow a plan to M = `num_crops`."""
        change_record(conn, plans, name, {"num_crops": num_crops})
        metadata_files.mark(conn)

    def add_label_set(self, row: LabelSetRow) -> LabelSetRow:
        """Add a label set or find it; returns what is there: a label set keeps the uuid that it began with."""
        check_name(row.name)
        # its arrays are not decided before the first shard where class ids are not
        return self._add(
            label_sets, row, free=frozenset({"uuid", "facts"}), described=row.is_settled
        )

    def label_sets(self) -> tuple[LabelSetRow, ...]:
        """All label sets by name."""
        return self._all(label_sets, LabelSetRow)

    def update_label_set_codec(self, conn: Connection, name: str, codec: Mapping[str, Any]) -> None:
        """Record the codec that the first shard decided on."""
        change_record(conn, label_sets, name, {"codec": codec})
        metadata_files.mark(conn)

    def add_mask(self, row: MaskRow) -> MaskRow:
        """Add a mask or find it."""
        check_name(row.name)
        return self._add(masks, row, described=True)

    def masks(self) -> tuple[MaskRow, ...]:
        """All masks by name."""
        return self._all(masks, MaskRow)

    def update_mask_crops(self, conn: Connection, name: str, num_crops: int) -> None:
        """Extend a mask to the first `num_crops` crops of every image."""
        change_record(conn, masks, name, {"num_crops": num_crops})
        metadata_files.mark(conn)

    def add_run(self, row: RunRow) -> RunRow:
        """Add a training or find it; when it started may differ, as a resumed run starts again."""
        return self._add(runs, row, free=frozenset({"started"}))

    def runs(self) -> tuple[RunRow, ...]:
        """All trainings by name."""
        return self._all(runs, RunRow)

    def add_result(self, row: ResultRow) -> ResultRow:
        """Add a figure of a run; measured again, the later value takes the place of the earlier one."""

        def write(conn: Connection) -> ResultRow:
            if add_record(conn, results, row, free=frozenset({"value"})) != row:
                update_rows(conn, results, [to_columns(results, row)])
            return row

        return self._database.write(write)

    def results(self, run: str | None = None) -> tuple[ResultRow, ...]:
        """All figures, or one run's."""
        return tuple(row for row in self._all(results, ResultRow) if run is None or row.run == run)

    # Leases and the ledger

    def identity(self, group: str) -> str:
        """What tells a label set, mask or plan from another that had its name, or gets it: see `leases.identity`."""
        with self.reading() as conn:
            return leases.identity(conn, group)

    def acquire(
        self, group: str, blocks: int | Sequence[int], owner: str, ttl_s: float, done: int = 1
    ) -> Lease | None:
        """Lease the first block with fewer than `done` committed shards and no live lease; None if there is none.

        `blocks` are block numbers in the order to be tried, or how many there are. `done` is how
        many crop shards make a block complete. `owner` must be unique to the worker: its own live
        leases are not granted twice.
        """
        granted = self.acquire_blocks(group, blocks, owner, ttl_s, done, count=1)
        return granted[0] if granted else None

    def acquire_blocks(
        self,
        group: str,
        blocks: int | Sequence[int],
        owner: str,
        ttl_s: float,
        done: int = 1,
        *,
        count: int,
        of: str | None = None,
    ) -> list[Lease]:
        """Lease up to `count` blocks in one transaction, as `acquire` does one.

        ConflictError where `of` is given and is not the group's `identity`: it was dropped meanwhile, or made anew.
        """
        order = range(blocks) if isinstance(blocks, int) else blocks
        return self._database.write(
            lambda conn: leases.acquire(
                conn,
                group,
                order,
                owner=owner,
                ttl_s=ttl_s,
                done=done,
                now=self._database.now(conn),
                count=count,
                of=of,
            )
        )

    def renew(self, lease: Lease, ttl_s: float) -> Lease:
        """The same lease until `ttl_s` seconds from now; LeaseLost if it expired or was taken over."""
        (renewed,) = self.renew_blocks([lease], ttl_s)
        if isinstance(renewed, LeaseLost):
            raise renewed
        return renewed

    def renew_blocks(self, held: Sequence[Lease], ttl_s: float) -> list[Lease | LeaseLost]:
        """The same leases until `ttl_s` seconds from now; a LeaseLost in the place of each that was lost."""
        return self._database.write(
            lambda conn: leases.renew(conn, held, ttl_s=ttl_s, now=self._database.now(conn))
        )

    def release(self, *held: Lease) -> None:
        """Give blocks up; does nothing about one that was lost meanwhile."""
        self._database.write(lambda conn: leases.release(conn, held, now=self._database.now(conn)))

    def live_leases(self, group: str) -> list[Lease]:
        """Leases that have not expired, by block."""
        with self.reading() as conn:
            return leases.live(conn, group, now=self._database.now(conn))

    def commit(
        self,
        lease: Lease,
        rows: Sequence[ShardRow],
        publish: Callable[[], None],
        extra: Callable[[Connection], None] | None = None,
    ) -> None:
        """Make shards exist, in one transaction: check lease and rows, `publish()`, write rows, `extra(conn)`.

        `publish` gives the files their final names and syncs the folders; it is called at most
        once. LeaseLost or ConflictError before it is called mean that no file was renamed. After
        any error nothing is committed, and files that were renamed may be replaced by the next
        holder of the lease.
        """
        (refused,) = self.commit_blocks(
            [(lease, rows)],
            lambda admitted: publish() if admitted else None,
            None if extra is None else lambda conn, number: extra(conn),
        )
        if refused is not None:
            raise refused

    def commit_blocks(
        self,
        blocks: Sequence[tuple[Lease, Sequence[ShardRow]]],
        publish: Callable[[Sequence[int]], None],
        extra: Callable[[Connection, int], None] | None = None,
    ) -> list[LeaseLost | ConflictError | None]:
        """`commit` of several blocks in one transaction; per block None, or why it was not committed.

        `publish` gets the numbers of the blocks whose lease is ours, once each; so does `extra`, after
        their rows are written. A block that is refused holds up no other. After any error that is raised
        nothing is committed.
        """
        published: set[int] = set()

        def publish_once(admitted: Sequence[int]) -> None:
            new = [number for number in admitted if number not in published]
            publish(new)
            published.update(new)

        def work(conn: Connection) -> list[LeaseLost | ConflictError | None]:
            outcomes = ledger.commit(conn, blocks, publish_once, now=self._database.now(conn))
            for number, refused in enumerate(outcomes):
                if extra is not None and refused is None:
                    extra(conn, number)
            return outcomes

        return self._database.write(work)

    def all_live_leases(self) -> list[Lease]:
        """Leases of every group that have not expired."""
        with self.reading() as conn:
            return leases.live(conn, None, now=self._database.now(conn))

    def replace_shard(self, lease: Lease, row: ShardRow, publish: Callable[[], None]) -> None:
        """`repair` only: new bytes for a committed shard whose files no longer match its row."""
        self._database.write(
            lambda conn: ledger.replace_shard(
                conn, lease, row, publish, now=self._database.now(conn)
            )
        )

    def shards(self, group: str) -> list[ShardRow]:
        """A group's committed shards by (block, crop shard)."""
        with self.reading() as conn:
            return ledger.group_shards(conn, group)

    def labelling(self, group: str) -> list[tuple[float, str]]:
        """Per committed shard of a group the seconds it took, and the device."""
        with self.reading() as conn:
            return ledger.labelling(conn, group)

    def shard(self, group: str, block: int, crop_shard: int) -> ShardRow | None:
        """One committed shard, or None. Costs a read of the group's rows: keep `shards(group)` for many."""
        with self.reading() as conn:
            return ledger.find_shard(conn, group, block, crop_shard)

    def committed(self, group: str) -> dict[int, tuple[int, ...]]:
        """Per block the committed crop shards, without their files."""
        with self.reading() as conn:
            return ledger.committed_shards(conn, group)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Per group (committed shards, bytes on disk)."""
        with self.reading() as conn:
            return ledger.group_totals(conn)

    def drop(self, group: str, check: Callable[[Sequence[Lease]], None] | None = None) -> None:
        """Forget a label set, a mask or a plan ("labels/NAME", ...) with its ledger rows, in one transaction.

        `check` is called in it with the group's leases that have not expired: where it raises, all stays. Leases'
        rows stay, since fencing numbers never go back. ConflictError for a plan that something is on.
        """
        table, name = _named(group)

        def work(conn: Connection) -> None:
            if table is plans:
                used = [
                    r.name for r in all_records(conn, label_sets, LabelSetRow) if r.plan == name
                ]
                used += [r.name for r in all_records(conn, masks, MaskRow) if r.plan == name]
                if used:
                    raise ConflictError(
                        f"crop plan {name} is used by {', '.join(used)}: drop these first"
                    )
            if check is not None:
                check(leases.live(conn, group, now=self._database.now(conn)))
            ledger.forget_group(conn, group)
            delete_rows(conn, table, table.c.name == name)
            metadata_files.mark(conn)

        self._database.write(work)

    def is_registered(self, conn: Connection, group: str) -> bool:
        """Whether a label set, mask or plan of that name is there, or any of its shards."""
        table, name = _named(group)
        named = conn.execute(select(table.c.name).where(table.c.name == name)).first()
        return named is not None or bool(ledger.committed_shards(conn, group))

    # Metadata files of the arrays

    def begin_metadata(self, files: Mapping[str, tuple[str | None, str | None]]) -> int:
        """Announce a change of metadata files, key -> (old digest, new digest), None for no file; returns its token."""
        return self._database.write(lambda conn: metadata_files.begin(conn, files))

    def array_rows(self) -> ArrayRows:
        """What the arrays' metadata follows from, as one transaction sees it."""
        with self.reading() as conn:
            return read_array_rows(conn)

    def begin_metadata_of(
        self,
        rows: ArrayRows,
        changes: Callable[
            [Mapping[str, frozenset[str]]], Mapping[str, tuple[str | None, str | None]]
        ],
    ) -> int | None:
        """`begin_metadata` of the changes that the acceptable digests ask for, if the catalogue still holds `rows`.

        ConflictError where it holds others: compute the metadata again and start over. None where nothing has
        to change; whatever was announced is dropped then.
        """

        def work(conn: Connection) -> int | None:
            if array_rows_state(conn) != rows.state:
                raise ConflictError(
                    "what the metadata files follow from was changed by another worker: start over"
                )
            wanted = changes(metadata_files.digests(conn))
            if wanted:
                return metadata_files.begin(conn, wanted)
            metadata_files.forget(conn)
            return None

        return self._database.write(work)

    def finish_metadata(
        self, publish: Callable[[], None] | None = None, token: int | None = None
    ) -> None:
        """Write the files (`publish`) and record their digests, under the catalogue's write lock.

        ConflictError where another change was announced after `token`: compute the metadata again
        and start over.
        """
        self._database.write(lambda conn: metadata_files.finish(conn, publish, token))

    def metadata_digests(self) -> dict[str, frozenset[str]]:
        """Per metadata file the digests that are acceptable; more than one while a change is under way."""
        with self.reading() as conn:
            return metadata_files.digests(conn)

    def pending_metadata(self) -> dict[str, str]:
        """Files of an unfinished change and their new digests; empty where there is none."""
        with self.reading() as conn:
            return metadata_files.pending(conn)

    def _add(
        self,
        table: Table,
        row: R,
        free: frozenset[str] = frozenset(),
        *,
        described: bool = False,
    ) -> R:
        """Add a record; one that is `described` in the metadata files marks them."""

        def work(conn: Connection) -> R:
            before = num_rows(conn, table)
            held = add_record(conn, table, row, free=free)
            if described and num_rows(conn, table) != before:
                metadata_files.mark(conn)
            return held

        return self._database.write(work)

    def _all(self, table: Table, kind: type[R]) -> tuple[R, ...]:
        with self.reading() as conn:
            return all_records(conn, table, kind)


def _named(group: str) -> tuple[Table, str]:
    """The table that keeps a group's name, and the name."""
    kind, _, name = group.partition("/")
    return {"labels": label_sets, "masks": masks, "crops": plans}[kind], name
