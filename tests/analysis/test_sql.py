"""SQL over a store: the same rows as pandas has, from no more than it needs, and nothing but reading."""

from __future__ import annotations

from pathlib import Path

import pytest

import labelstore
from labelstore.analysis import arrow_batches as batches
from labelstore.analysis.sql import sql_batches, sql_columns
from labelstore.blocks.columns import COLUMNS
from labelstore.calibration import RegionThresholds
from labelstore.codecs import MarginalSmoothing
from labelstore.errors import DamagedShard, UsageError
from labelstore.testing.filled_store import add_label_set, fill_blocks
from tests.analysis.conftest import soft_labels

pytest.importorskip("duckdb")


@pytest.fixture
def decoded(monkeypatch):
    """Columns of each pass over crops, in the order of passes."""
    passes = []
    inner = batches.ArrowBatches._batches

    def watched(self):
        passes.append(set(self.query.columns))
        yield from inner(self)

    monkeypatch.setattr(batches.ArrowBatches, "_batches", watched)
    return passes


def test_every_column_is_that_of_the_frame(store):
    found = labelstore.sql(store, "select * from crops order by image, crop")
    names = [name for name in COLUMNS if name != "region"]
    expected = labelstore.crops(store.label_set(), names)
    assert list(found.columns) == list(COLUMNS)
    assert found.region.isna().all()
    for name in names:
        assert found[name].tolist() == expected[name].tolist(), name


QUERIES = {
    "select count(*) from crops": 1,
    "select class, count(*), avg(area) from crops where max_probability < 0.5 group by class": 3,
    "with q as (select image, avg(entropy) e from crops group by image) "
    "select i.key, q.e from q join images i using (image)": 2,
    "select max(flip::int) from (select area, flip, entropy from crops)": 1,
}


@pytest.mark.parametrize("query", QUERIES)
def test_only_referenced_columns_are_decoded(store, decoded, query):
    labelstore.sql(store, query)
    assert [len(columns) for columns in decoded if columns] == [QUERIES[query]]


def test_aggregates_are_pandas(store, table):
    found = labelstore.sql(
        store,
        "select class, count(*) n, sum(crop) s, avg(max_probability) p from crops "
        "where area < 0.4 and not flip group by class order by class",
    )
    chosen = table[(table.area < 0.4) & ~table.flip].groupby("class")
    assert found["class"].tolist() == list(chosen.groups)
    assert found.n.tolist() == chosen.size().tolist()
    assert found.s.tolist() == chosen.crop.sum().tolist()
    assert found.p.tolist() == pytest.approx(chosen.max_probability.mean().tolist(), abs=1e-6)


def test_a_table_may_be_scanned_twice(store, table):
    query = "select count(*) n from crops a join crops b on a.image = b.image and a.max_probability > b.max_probability"
    expected = sum(len(g) * (len(g) - 1) // 2 for _, g in table.groupby("image"))
    assert labelstore.sql(store, query).n.tolist() == [expected]
    nested = "select count(*) n from crops where max_probability > (select avg(max_probability) from crops)"
    above = (table.max_probability > table.max_probability.mean()).sum()
    assert labelstore.sql(store, nested).n.tolist() == [above]


@pytest.mark.slow
def test_catalogue_tables_hold_the_catalogue(store):
    images = labelstore.sql(store, "select * from images order by image")
    assert images.key.tolist() == store.images()["key"].tolist()
    assert images.bad.notna().tolist() == store.bad.tolist()
    assert labelstore.sql(store, "select name from label_sets").name.tolist() == ["teacher"]
    shards = labelstore.sql(store, "select sum(bytes) b, count(*) n from shards")
    assert shards.b[0] == store.shards()["bytes"].sum()
    for name in sql_columns(store):
        labelstore.sql(store, f"select * from {name} limit 1")


@pytest.mark.slow
def test_every_label_set_has_a_view_and_masks_a_column(make_store):
    store = make_store(soft_labels())
    add_label_set(store, MarginalSmoothing(k=5, dtype="float32"), 7, name="b-2.x")
    fill_blocks(store, soft_labels(1), name="b-2.x")
    labels = store.label_set("teacher")
    labelstore.calibrate(labels, RegionThresholds(low=0.3, middle=0.5, top=0.9), name="m")
    view = '"crops_b-2.x"'
    found = labelstore.sql(
        store,
        f"select avg(a.max_probability - b.max_probability) d from crops_teacher a join {view} b using (image, crop)",
    )
    ours, theirs = (
        labelstore.crops(store.label_set(name), ["max_probability"]).max_probability.mean()
        for name in ("teacher", "b-2.x")
    )
    assert found.d[0] == pytest.approx(ours - theirs, abs=1e-6)
    counts = labelstore.sql(
        store, "select region, count(*) n from crops_teacher group by all order by all"
    )
    expected = labelstore.crops(labels, mask="m").groupby("region", observed=True).size()
    assert dict(zip(counts.region, counts.n, strict=True)) == expected.to_dict()
    # the mask is of another teacher
    assert labelstore.sql(store, f"select count(region) n from {view}", mask="m").n[0] == 0


HOSTILE = [
    "select 1; select 2",
    "",
    ";",
    "selec 1",
    "select nothing from crops",
    "select * from nothing",
    "drop view crops",
    "create table x as select 1",
    "insert into images values (1)",
    "delete from images",
    "update images set key = 'x'",
    "copy crops to 'stolen.csv'",
    "copy (select 1) to 'stolen.csv'",
    "export database 'stolen'",
    "attach 'stolen.db'",
    "install httpfs",
    "load httpfs",
    "pragma database_list",
    "call pragma_version()",
    "set memory_limit = '1TB'",
    "reset memory_limit",
    "select * from read_csv('secret.csv')",
    "select * from read_text('secret.csv')",
    "select * from read_blob('*')",
    "select * from read_parquet('http://localhost/x')",
    "select * from glob('*')",
    "select * from 'secret.csv'",
    "select * from sniff_csv('secret.csv')",
    "select * from duckdb_secrets()",
    "select * from secret_frame",
    "select getenv('HOME')",
    "prepare p as select 1",
    "begin",
    "explain analyze select 1",
    "select * from query('copy crops to ''stolen.csv''')",
    "select error('two\nlines')",
    "select " + "(" * 5000 + "1" + ")" * 5000,
    "select '" + "x" * 200_000 + "'",
]


@pytest.mark.sample(12)
@pytest.mark.parametrize("query", HOSTILE, ids=lambda query: query[:40])
def test_nothing_but_one_select_is_possible(store, query, tmp_path, monkeypatch):
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    Path("secret.csv").write_text("a\n1\n")
    secret_frame = pd.DataFrame({"a": [1]})
    with pytest.raises(UsageError) as refused:
        labelstore.sql(store, query)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    assert len(secret_frame) == 1


def test_settings_cannot_be_undone(store):
    settings = labelstore.sql(store, "select name, value from duckdb_settings()").set_index("name")
    assert settings.value["enable_external_access"] == "false"
    assert settings.value["lock_configuration"] == "true"
    for limit in ("lots", "-1", "-1GB", "0MB", "nan", ""):
        with pytest.raises(UsageError, match=f"memory limit {limit!r}: give a size above 0"):
            labelstore.sql(store, "select 1", memory_limit=limit)


def test_a_query_beyond_its_memory_says_so(store):
    with pytest.raises(UsageError, match=r"(?i)memory"):
        labelstore.sql(
            store,
            "select list(a.i || 'x' || b.i) from range(3000) a(i), range(3000) b(i)",
            memory_limit="20MB",
        )


def test_damage_is_named_as_damage(make_store):
    store = make_store(soft_labels())
    path = next(store.arrays.root.glob("labels/teacher/probability/c.1.*"))
    damaged = bytearray(path.read_bytes())
    damaged[40] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamagedShard, match="probability"):
        labelstore.sql(store, "select avg(max_probability) from crops")


def test_results_come_in_batches_and_decimals_as_numbers(store):
    with sql_batches(
        store, "select range r, 0.1 d, sum(range) over () s from range(250000)"
    ) as reader:
        sizes = [batch.num_rows for batch in reader]
        types = [str(field.type) for field in reader.schema]
    assert sum(sizes) == 250_000
    assert len(sizes) > 1
    assert types == ["int64", "double", "int64"]


def test_a_store_without_labels_has_tables_all_the_same(make_store):
    store = make_store(soft_labels(images=4), blocks=[])
    assert labelstore.sql(store, "select count(*) n from images").n[0] == 4
    assert labelstore.sql(store, "select count(*) n from crops").n[0] == 0
    with pytest.raises(UsageError, match="no mask named"):
        labelstore.sql(store, "select 1", mask="nope")
