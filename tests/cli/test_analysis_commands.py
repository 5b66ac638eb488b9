"""crops, sql, mask, advise, quality, noise and stats on a store: what they print, write and refuse."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore.analysis import advise
from labelstore.codecs import Hard, MarginalSmoothing
from labelstore.testing.filled_store import filled_store
from tests.analysis.conftest import soft_labels


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """24 images x 12 crops, image 3 left out; a mask is added by one of the tests."""
    path = tmp_path_factory.mktemp("commands") / "a.labels"
    codec = MarginalSmoothing(k=5, dtype="float32")
    filled_store(path, soft_labels(), codec, images_per_shard=10, bad={3}).close()
    return path


@pytest.fixture
def run(capsys):
    """Run `labelstore ...`: exit code, stdout, stderr."""

    def run(*arguments):
        code = errors.run(labelstore_app.commands, "labelstore", [str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


def rows_of(out):
    return list(csv.DictReader(io.StringIO(out)))


def test_crops_come_in_every_format(run, path, tmp_path):
    import pandas as pd

    ask = ["crops", path, "--columns", "image,crop,class,area", "--where", "area < 0.3"]
    with labelstore.open(path, readonly=True) as store:
        expected = labelstore.crops(
            store.label_set(), ["image", "crop", "class", "area"], where="area < 0.3"
        )
    code, out, err = run(*ask, "--format", "csv")
    assert (code, err) == (0, "")
    found = pd.read_csv(io.StringIO(out))
    assert found["class"].tolist() == expected["class"].tolist()
    np.testing.assert_allclose(found.area, expected.area, rtol=1e-6)
    code, out, _ = run(*ask, "--json")
    record = json.loads(out)
    assert record["columns"] == ["image", "crop", "class", "area"]
    assert [row[:3] for row in record["rows"]] == expected[
        ["image", "crop", "class"]
    ].values.tolist()
    for name in ("rows.parquet", "rows.csv", "rows.json", "rows.md"):
        assert run(*ask, "--out", tmp_path / name)[0] == 0
    assert (
        pd.read_parquet(tmp_path / "rows.parquet")
        .astype({"class": str})
        .equals(expected.astype({"class": str}))
    )
    assert (tmp_path / "rows.md").read_text().count("\n") == len(expected) + 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "rows.csv", "rows.json", "rows.md", "rows.parquet",
    ]  # fmt: skip
    code, out, err = run("crops", path)
    assert code == 0
    assert "class0002" in out
    assert "the first 60 rows" in err
    assert "largest probability of the label" in run("crops", path, "--columns", "help")[1]
    assert len(rows_of(run(*ask, "--sample", "3", "--format", "csv")[1])) == 3
    assert len(rows_of(run("crops", path, "--images", "5,6", "--format", "csv")[1])) == 24


def test_sql_answers_and_refuses(run, path):
    code, out, _ = run(
        "sql",
        path,
        "select class, count(*) n from crops group by class order by class",
        "--format",
        "csv",
    )
    assert code == 0
    assert rows_of(out)[0] == {"class": "class0000", "n": "48"}
    assert json.loads(run("sql", path, "select 1 a, null b", "--json")[1]) == {
        "columns": ["a", "b"],
        "rows": [[1, None]],
    }
    assert "crops_teacher" in run("sql", path)[1]
    for query in ("drop table images", "select 1; select 2", "select nope from crops"):
        code, out, err = run("sql", path, query)
        assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_mask_by_conditions_is_made_shown_and_used(run, tmp_path):
    path = tmp_path / "b.labels"
    filled_store(path, soft_labels(), MarginalSmoothing(k=5), images_per_shard=10).close()
    ask = ["mask", path, "--name", "small", "--discard", "area < 0.3 and max_probability < 0.6"]
    code, out, _ = run(*ask, "--dry-run", "--json")
    dry = json.loads(out)
    with labelstore.open(path, readonly=True) as store:
        assert store.masks == ()
    code, out, err = run(*ask, "--json")
    assert code == 0
    made = json.loads(out)
    assert made["choices"][0]["counts"] == dry["choices"][0]["counts"]
    assert "train with --labels ferkd --mask small" in err
    regions = run("crops", path, "--mask", "small", "--where", "region = 'TOO_HARD'", "--json")[1]
    assert len(json.loads(regions)["rows"]) == made["choices"][0]["counts"]["too_hard"] > 0
    code, out, _ = run(*ask)
    assert code == 0
    assert "what mask small does" in out
    code, out, _ = run("calibrate", path, "--update", "--name", "small")
    assert code == 0
    assert "what mask small does" in out
    assert run("mask", path, "--name", "small", "--discard", "flip")[0] == 5
    assert run("mask", path, "--name", "x")[0] == 2
    assert run("mask", path, "--name", "../x", "--discard", "flip")[0] == 2


def test_a_written_mask_is_titled_as_one(run, tmp_path):
    path = tmp_path / "c.labels"
    filled_store(path, soft_labels(), MarginalSmoothing(k=5), images_per_shard=10).close()
    assert "what each choice would do" in run("calibrate", path, "--dry-run")[1]
    code, out, _ = run("calibrate", path, "--low", "0.2", "--middle", "0.4", "--top", "0.9")
    assert code == 0
    assert "what mask ferkd does" in out
    assert "would do" not in out
    code, _, err = run(
        "calibrate", path, "--name", "no", "--low", "0", "--middle", "0", "--top", "0"
    )
    assert code == 2
    assert "every crop would be discarded" in err


def test_advice_is_printed_as_counted(run, path):
    code, out, _ = run(
        "advise",
        path,
        "--low",
        "0,0.3",
        "--middle",
        "0.4",
        "--top",
        "0.9",
        "--json",
        "--examples",
        "2",
    )
    assert code == 0
    record = json.loads(out)
    with labelstore.open(path, readonly=True) as store:
        expected = advise(store.label_set(), low=[0, 0.3], middle=[0.4], top=[0.9]).to_record(
            hardest=3
        )
    assert record["choices"] == expected["choices"]
    assert len(record["examples"]) > 0
    rows = rows_of(
        run("advise", path, "--per-class", "--format", "csv", "--quantiles", "0.1,0.2,0.9")[1]
    )
    assert {row["name"] for row in rows} == {f"class{i:04d}" for i in range(7)}
    assert "hit hardest" in run("advise", path)[1]
    for wrong in (
        ["--low", "x"],
        ["--quantiles", "0.1,0.2"],
        ["--criterion", "area"],
        ["--hardest", "-1"],
    ):
        assert run("advise", path, *wrong)[0] == 2


def test_quality_and_noise_list_rows(run, path):
    record = json.loads(run("quality", path, "--json", "--per-class")[1])
    assert record["kinds"] == ["teacher", "ground truth"]
    assert len(record["classes"]) == 7
    assert "ground truth" in run("quality", path)[1]
    assert run("quality", path, "--label-set", "nope")[0] == 2
    record = json.loads(
        run("noise", path, "--confidence", "0.5", "--min-share", "0.2", "--json")[1]
    )
    assert record["num_images"] == 23
    code, out, err = run(
        "noise", path, "--confidence", "0.5", "--min-share", "0.2", "--format", "md"
    )
    assert code == 0
    assert out.count("\n") == len(record["images"]) + 2
    assert "of 23 images" in err
    assert (
        json.loads(run("noise", path, "--duplicates", "--json")[1])["duplicates"][0]["kind"]
        == "digest"
    )
    assert run("noise", path, "--confidence", "2")[0] == 2


def test_stats_has_profiles_on_request(run, path, tmp_path):
    plain = json.loads(run("stats", path, "--json")[1])
    assert "profile" not in plain["label_sets"][0]
    full = json.loads(run("stats", path, "--all", "--per-class", "--json")[1])["label_sets"][0]
    assert full["profile"]["crops"] == 23 * 12
    assert len(full["profile"]["classes"]) == 7
    code, out, _ = run("stats", path, "--all", "--per-class")
    assert code == 0
    assert "ground truth probability" in out
    assert "class0006" in out
    assert len(rows_of(run("stats", path, "--format", "csv")[1])) == 12
    assert len(rows_of(run("stats", path, "--all", "--format", "csv")[1])) == 11
    assert len(rows_of(run("stats", path, "--per-class", "--format", "csv")[1])) == 7
    assert run("stats", path, "--out", tmp_path / "t.md")[0] == 0
    assert "| label_set |" in (tmp_path / "t.md").read_text()
    for wrong in (["--all", "--sample", "0"], ["--format", "xml"], ["--format", "parquet"]):
        assert run("stats", path, *wrong)[0] == 2


def test_names_with_markup_are_printed_as_they_are(run, tmp_path):
    path = tmp_path / "d.labels"
    filled_store(
        path, soft_labels(images=7), MarginalSmoothing(k=5), name="a.b", images_per_shard=7
    ).close()
    hostile = "select '[red]x[/red]' as \"[bold]\", 'a|b' as p"
    out = run("sql", path, hostile)[1]
    assert "[red]x[/red]" in out
    assert "[bold]" in out
    assert "a\\|b" in run("sql", path, hostile, "--format", "md")[1]
    out = run("info", path)[1]
    assert "0.0 MB" not in out


def test_rows_replace_no_folder_and_no_device(run, path, tmp_path):
    ask = ["sql", path, "select 1 a", "--format", "csv", "--out"]
    assert run(*ask, tmp_path)[0] == 2
    assert run(*ask, tmp_path / "nowhere" / "rows.csv")[0] == 6
    assert run(*ask, "/dev/full")[0] == 6
    assert Path("/dev/full").is_char_device()
    assert list(tmp_path.iterdir()) == []


def test_stats_compares_every_two_label_sets(run, path, tmp_path):
    from labelstore.stats import disagreement, disagreements

    code, _, err = run("stats", path, "--disagreement")
    assert code == 2
    assert "needs two label sets" in err
    both = tmp_path / "b.labels"
    shutil.copytree(path, both)
    with labelstore.open(both) as store:
        labelstore.derive(store.label_set(), Hard(), name="hard")
        expected = disagreement(*map(store.label_set, store.label_sets))
        assert disagreements(store).pairs == (expected,)
        assert disagreements(store, label_set="hard", share=0.3).pairs[0].num_crops < 23 * 12
    code, out, _ = run("stats", both, "--disagreement")
    assert code == 0
    assert f"{100 * expected.top1_agreement:.2f} %" in out
    assert f"{expected.kl:.4f}" in out
    found = json.loads(run("stats", both, "--disagreement", "--json")[1])["disagreement"]
    assert found["refused"] == []
    assert found["pairs"][0]["js"] == expected.js
    (row,) = rows_of(run("stats", both, "--disagreement", "--format", "csv")[1])
    assert float(row["kl_reversed"]) == expected.kl_reversed
    assert run("stats", both, "--disagreement", "--label-set", "none")[0] == 2
    assert run("stats", both, "--disagreement", "--sample", "0")[0] == 2
