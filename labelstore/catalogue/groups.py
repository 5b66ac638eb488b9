"""Groups: label sets, masks and plans as the ledger knows them, "labels/NAME", "masks/NAME" and "crops/PLAN"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, select

from labelstore.catalogue import metadata_intents
from labelstore.catalogue.connection import Database
from labelstore.catalogue.digests import delete_rows
from labelstore.catalogue.identities import identity, named
from labelstore.catalogue.leases import live_leases
from labelstore.catalogue.ledger import committed_shards
from labelstore.catalogue.named_rows import all_records
from labelstore.catalogue.records import LabelSetRow, Lease, MaskRow
from labelstore.catalogue.tables import label_sets, masks, plans, shards
from labelstore.errors import ConflictError


class Groups:
    """What a group's name stands for, and how it is forgotten."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def identity(self, group: str) -> str:
        """What tells a label set, mask or plan from another that had its name, or gets it; "" where none is
        registered."""
        with self._database.reading() as conn:
            return identity(conn, group)

    def is_registered(self, conn: Connection, group: str) -> bool:
        """Whether a label set, mask or plan of that name is there, or any of its shards."""
        table, name = named(group)
        there = conn.execute(select(table.c.name).where(table.c.name == name)).first()
        return there is not None or bool(committed_shards(conn, group))

    def drop(self, group: str, check: Callable[[Sequence[Lease]], None] | None = None) -> None:
        """Forget a label set, a mask or a plan ("labels/NAME", ...) with its ledger rows, in one transaction.

        `check` is called in it with the group's leases that have not expired: where it raises, all stays. Leases'
        rows stay, since fencing numbers never go back; no row names the group's files then. ConflictError
        for a plan that something is on.
        """
        table, name = named(group)

        def work(conn: Connection) -> None:
            if table is plans:
                _refuse_used(conn, name)
            if check is not None:
                check(live_leases(conn, group, now=self._database.now(conn)))
            delete_rows(conn, shards, shards.c.group_name == group)
            delete_rows(conn, table, table.c.name == name)
            metadata_intents.mark(conn)

        self._database.write(work)


def _refuse_used(conn: Connection, plan: str) -> None:
    used = [row.name for row in all_records(conn, label_sets, LabelSetRow) if row.plan == plan]
    used += [row.name for row in all_records(conn, masks, MaskRow) if row.plan == plan]
    if used:
        raise ConflictError(f"crop plan {plan} is used by {', '.join(used)}: drop these first")
