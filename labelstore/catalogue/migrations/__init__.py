"""Revisions of the catalogue's tables, applied by `labelstore migrate` and by nothing else.

There is no `env.py`: alembic's script folder is only a place for the revision files, and `upgrade`
runs them on a connection that the caller has opened, in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

SCRIPTS = Path(__file__).parent
"""Folder of the folder `versions`."""


def revisions() -> tuple[str, ...]:
    """All revisions, oldest first."""
    return tuple(script.revision for script in reversed(list(_scripts().walk_revisions())))


def upgrade(conn: Connection) -> tuple[str, ...]:
    """Apply every revision that the catalogue lacks, oldest first; returns which. Nothing to do is no error."""
    scripts = _scripts()
    applied: list[str] = []

    def steps(heads: tuple[str, ...], _: MigrationContext) -> Sequence[MigrationStep]:
        known = revisions()
        lacking = known[known.index(heads[0]) + 1 :] if heads else known
        applied.extend(lacking)
        return [
            MigrationStep.upgrade_from_script(scripts.revision_map, scripts.get_revision(revision))
            for revision in lacking
        ]

    context = MigrationContext.configure(conn, opts={"fn": steps})
    with Operations.context(context):
        context.run_migrations()
    return tuple(applied)


def _scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)
