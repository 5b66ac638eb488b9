from __future__ import annotations

from sqlalchemy import create_engine, text

from labelstore.catalogue import Catalogue
from labelstore.catalogue.migrations import revisions, upgrade
from labelstore.catalogue.schema import BASELINE


def schema(path):
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as conn:
        found = conn.execute(
            text("SELECT type, name, sql FROM sqlite_master ORDER BY type, name")
        ).all()
        version = conn.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    engine.dispose()
    # alembic spells its own version table with VARCHAR(32); whatever else is there must be the same text
    return [
        (kind, name, " ".join(sql.split()) if sql else sql)
        for kind, name, sql in found
        if "alembic_version" not in name
    ], version


def test_the_revisions_make_the_tables_that_create_makes(tmp_path, sqlite_url):
    Catalogue.create(sqlite_url, uuid="u").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'migrated.db'}")
    with engine.begin() as conn:
        assert upgrade(conn) == revisions()
    with engine.begin() as conn:
        assert upgrade(conn) == ()
    engine.dispose()
    assert schema(tmp_path / "migrated.db") == schema(tmp_path / "catalogue.db")


def test_create_is_stamped_with_the_newest_revision():
    assert revisions()[-1] == BASELINE


def test_a_created_catalogue_has_nothing_to_migrate(sqlite_url):
    with Catalogue.create(sqlite_url, uuid="u") as catalogue:
        with catalogue.transaction() as conn:
            assert upgrade(conn) == ()
        catalogue.verify_digests()
