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
from labelstore.analysis.advice import advise
from labelstore.analysis.scatter import scatter
from labelstore.codecs import Hard, MarginalSmoothing
from tests.analysis.conftest import soft_labels
from tests.kept_stores import kept_store


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """24 images x 12 crops, image 3 left out; a mask is added by one of the tests."""
    path = tmp_path_factory.mktemp("commands") / "a.labels"
    codec = MarginalSmoothing(k=5, dtype="float32")
    kept_store(path, soft_labels(), codec, images_per_shard=10, bad={3}).close()
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_mask_by_conditions_is_made_shown_and_used(run, tmp_path):
    path = tmp_path / "b.labels"
    kept_store(path, soft_labels(), MarginalSmoothing(k=5), images_per_shard=10).close()
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
    kept_store(path, soft_labels(), MarginalSmoothing(k=5), images_per_shard=10).close()
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
    rows = rows_of(run("advise", path, "--format", "csv", "--low", "0,0.3")[1])
    for row in rows:
        shares = [float(row[f"{name}_share"]) for name in ("discarded", "calibrated", "kept")]
        assert sum(shares) == pytest.approx(1)
        assert float(row["low"]) <= float(row["middle"]) <= float(row["top"])
    for wrong in (
        ["--low", "x"],
        ["--quantiles", "0.1,0.2"],
        ["--criterion", "area"],
        ["--hardest", "-1"],
    ):
        assert run("advise", path, *wrong)[0] == 2


def test_a_budget_is_answered_as_measured(run, path):
    code, out, _ = run("advise", path, "--budget", "20kB", "--json", "--hardest", "2")
    assert code == 0
    record = json.loads(out)
    with labelstore.open(path, readonly=True) as store:
        expected = scatter(store.label_set(), budget=20_000, worst=2).to_record()
    assert {name: record[name] for name in expected} == json.loads(json.dumps(expected))
    code, out, err = run("advise", path, "--budget", "20kB", "--for-images", "50")
    assert code == 0
    assert "what 20.0 kB buy for 50 images" in out
    assert "trace of an image's covariance" in err
    rows = rows_of(run("advise", path, "--budget", "20kB", "--format", "csv")[1])
    assert float(rows[0]["drift"]) == pytest.approx(expected["bought"][0]["drift"])
    for wrong in (
        ["--budget", "much"],
        ["--budget", "0"],
        ["--budget", "1MB", "--low", "0.1"],
        ["--for-images", "50"],
        ["--budget", "1MB", "--for-images", "0"],
        ["--budget", "1MB", "--hardest", "-1"],
    ):
        code, _, err = run("advise", path, *wrong)
        assert (code, len(err.splitlines())) == (2, 1), wrong


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


@pytest.mark.slow
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
    kept_store(
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
    code, _, err = run(*ask, tmp_path / "nowhere" / "rows.csv")
    assert code == 6
    assert f"there is no folder {tmp_path / 'nowhere'}: make it" in err
    code, _, err = run(*ask, "/proc/rows.csv")
    assert code == 6
    assert "tmp" not in err
    assert run(*ask, "/dev/full")[0] == 6
    assert Path("/dev/full").is_char_device()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_stats_compares_every_two_label_sets(run, path, tmp_path):
    from labelstore.analysis.comparison import compare, compare_all

    code, _, err = run("stats", path, "--disagreement")
    assert code == 2
    assert "needs two label sets" in err
    both = tmp_path / "b.labels"
    shutil.copytree(path, both)
    with labelstore.open(both) as store:
        labelstore.derive(store.label_set(), Hard(), name="hard")
        (expected,) = compare([*map(store.label_set, store.label_sets)]).pairs
        assert compare_all(store).pairs == (expected,)
        assert compare_all(store, label_set="hard", share=0.3).pairs[0].num_crops < 23 * 12
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


@pytest.mark.slow
def test_crops_of_several_label_sets_are_chosen(run, path, tmp_path):
    both = tmp_path / "b.labels"
    shutil.copytree(path, both)
    with labelstore.open(both) as store:
        labelstore.derive(store.label_set(), Hard(), name="hard")
    ask = ["sql", both, "select avg(max_probability) p from Crops", "--format", "csv"]
    code, out, err = run(*ask)
    assert (code, out) == (2, "")
    assert "choose one with --label-set" in err
    assert rows_of(run(*ask, "--label-set", "hard")[1]) == [{"p": "1"}]
    assert run(*ask, "--label-set", "nope")[0] == 2
    own = "with crops as (select * from crops_hard) select count(*) n from crops"
    assert rows_of(run("sql", both, own, "--format", "csv")[1]) == [{"n": str(23 * 12)}]
    assert "choose one with --from" in run("variants", both)[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["crops", "--sample", "3", "--seed", "-1"], "--seed"),
        (["plot", "histogram", "--seed", "-1"], "--seed"),
        (["report", "--seed", "-1"], "--seed"),
        (["crops", "--sample", "-5"], "sample -5:"),
        (["crops", "--out", "{tmp}/c.xyz"], "ends in .csv, .parquet, .json, .md"),
        (["crops", "--out", ""], "--out is empty"),
        (["sql", "select [1] a", "--format", "csv"], "column 'a': CSV holds no lists"),
        (["advise", "--low", ""], "--low is empty"),
        (["advise", "--examples", "1", "--format", "csv"], "--out FILE for the first"),
        (["plot", "histogram", "--out", "{tmp}"], "is a folder"),
    ],
)
def test_what_cannot_be_meant_is_one_line(run, path, tmp_path, arguments, says):
    command, *rest = (each.format(tmp=tmp_path) for each in arguments)
    code, out, err = run(command, path, *rest)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [-1, -(2**70)])
def test_a_seed_below_zero_draws_nothing(path, tmp_path, seed):
    from labelstore import report
    from labelstore.analysis.advice import example_crops
    from labelstore.calibration import RegionThresholds
    from labelstore.errors import UsageError

    with labelstore.open(path, readonly=True) as store:
        labels = store.label_set()
        for draw in (
            lambda: labelstore.crops(labels, sample=3, seed=seed),
            lambda: example_crops(labels, RegionThresholds(), seed=seed),
            lambda: report.plot(labels, "histogram", seed=seed),
            lambda: report.write_page(store, tmp_path / "r.html", seed=seed),
        ):
            with pytest.raises(UsageError, match=f"`seed={seed}`"):
                draw()


def test_bytes_are_hex_and_no_number_is_null(run, path):
    ask = ["sql", path, "select 'x'::blob a, ['y'::blob] b, ['nan'::float] c"]
    assert json.loads(run(*ask, "--json")[1])["rows"] == [["78", ["79"], [None]]]
    query = "select 'x'::blob a, null::blob b"
    assert rows_of(run("sql", path, query, "--format", "csv")[1]) == [{"a": "78", "b": ""}]


def test_an_image_that_is_not_there_is_said_before_anything_is_printed(run, path, tmp_path):
    code, out, err = run("show", path, "1", "--images", tmp_path, "--out", tmp_path / "x.png")
    assert (code, out) == (7, "")
    assert "give what the store was made from" in err
    code, out, found = run("export", "webdataset", path, tmp_path / "x", "--images", tmp_path)
    assert code == 7
    assert f"in {tmp_path}: give what the store was made from" in found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is not there"),
        (b"\xff\xfe", "is no text"),
        (b"a\0b", "is no text"),
        (b" \n", "holds no key"),
    ],
)
def test_a_list_of_images_is_text(run, path, tmp_path, content, says):
    given = tmp_path / "keys.txt"
    if content is not None:
        given.write_bytes(content)
    ask = ["export", "npz", path, tmp_path / "x", "--image-list"]
    code, _, err = run(*ask, given)
    assert (code, err.count("\n")) == (7, 1)
    assert f"{given} {says}: give a text file" in err
    assert f"{tmp_path} is a folder" in run(*ask, tmp_path)[2]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.08625, "8.63%"),
        (0.00125, "0.13%"),
        (0.08624, "8.62%"),
        (1, "100.00%"),
        (float("nan"), "-"),
    ],
)
def test_half_of_the_last_digit_goes_up(share, text):
    from cli.output import percent

    assert percent(share) == text
