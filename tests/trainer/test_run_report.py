"""Runs side by side: folders as they were left, damaged ones too, and paired differences against formulas."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainer
from cli import errors, trainer_app
from labelstore.errors import RejectedInput, UsageError
from tests.generation.conftest import CLASSES, OPTIONS, write_photographs
from trainer import TrainConfig
from trainer.report import (
    find_runs,
    interval,
    paired_difference,
    read_run,
    write_report,
)
from trainer.report.compared_settings import group_runs, student_t
from trainer.report.run_page import MAX_RUNS
from trainer.report.run_page_data import POINTS, page_data

HEAD = "epoch,crops_seen,step,lr,train_loss,eval_loss,eval_top1,eval_top5,seconds"


def config(**changes):
    settings = {"labels": "ground-truth", "model": "resnet18", "num_classes": 3, "class_names": CLASSES}  # fmt: skip
    settings |= {"crops_per_image": 2, "batch_size": 4, "epochs": 4, "model_kwargs": OPTIONS}
    return TrainConfig(**(settings | changes))


def write_run(folder, rows, *, classes=None, **changes):
    """A run folder without weights; `rows` are (epoch, top-1)."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config(**changes).to_yaml())
    lines = [
        HEAD,
        *(f"{e},{e * 10},{e * 3},0.1,{2 / e},{1 / e},{top1},90.0,1.5" for e, top1 in rows),
    ]
    (folder / "summary.csv").write_text("\n".join(lines) + "\n")
    if classes is not None:
        text = [f"{name},{images},{correct},{images}" for name, images, correct in classes]
        (folder / "classes.csv").write_text("class,images,correct,correct5\n" + "\n".join(text) + "\n")  # fmt: skip
    return folder


def data_of(page):
    text = page.read_text()
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


def test_a_real_run_is_told_as_it_was(tmp_path):
    write_photographs(tmp_path / "data" / "train", per_class=2)
    write_photographs(tmp_path / "data" / "val", per_class=3)
    wanted = config(
        data=tmp_path / "data", input_size=32, workers=1, device="cpu", num_classes=None, class_names=()
    )  # fmt: skip
    run = trainer.run(TrainConfig.from_mapping(wanted.to_mapping() | {"output": tmp_path / "run"}))
    record = read_run(tmp_path / "run")
    assert (record.status, record.problem, record.epochs) == ("finished", None, 4)
    assert record.last("eval_top1") == run.top1
    assert record.best("eval_top1")[0] == run.best_top1
    assert record.last("crops_seen") == run.crops_seen
    assert record.last("step") == run.steps
    # what the run recorded by class is what its best weights get
    network, own = trainer.load_run(tmp_path / "run")
    found = trainer.evaluate(network, tmp_path / "data" / "val", own)
    assert record.classes.names == CLASSES
    assert list(record.classes.images) == found.images.tolist() == [3, 3, 3]
    assert list(record.classes.correct) == found.correct.tolist()
    assert sum(record.classes.correct) / 9 * 100 == pytest.approx(run.best_top1)
    seen = []
    page = write_report(
        [tmp_path / "run"], tmp_path / "a.html", images=tmp_path / "data" / "val", workers=1,
        progress=lambda *counts: seen.append(counts),
    )  # fmt: skip
    shown = data_of(tmp_path / "a.html")
    assert seen[-1] == (9, 9)
    assert (page.runs, page.finished, page.damaged) == (1, 1, ())
    assert shown["runs"][0]["measured"] == pytest.approx(found.top1)
    assert shown["classes"]["correct"] == [found.correct.tolist()]
    assert str(tmp_path) not in (tmp_path / "a.html").read_text(), "a page may be passed on"


def test_settings_seeds_and_their_differences(tmp_path):
    scores = {"one": [50, 52, 51], "two": [53, 57, 52]}
    for name, values in scores.items():
        for seed, top1 in enumerate(values):
            write_run(
                tmp_path / "runs" / f"{name}-seed{seed}", [(2, 40), (4, top1)], seed=seed,
                lr=0.1 if name == "one" else 0.2, classes=[("bird", 10, top1 // 10), ("cat", 5, 1), ("dog", 0, 0)],
            )  # fmt: skip
    write_run(tmp_path / "runs" / "two-seed9", [(2, 99)], seed=9, lr=0.2)
    page = write_report([tmp_path / "runs"], tmp_path / "r.html")
    assert (page.runs, page.settings, page.finished, page.unfinished) == (7, 2, 6, 1)
    data = data_of(tmp_path / "r.html")
    assert [setting["name"] for setting in data["settings"]] == ["one", "two"]
    assert data["differing"] == ["lr"]
    (pair,) = data["pairs"]["top1"]
    differences = np.array(scores["two"]) - np.array(scores["one"])
    assert pair["seeds"] == [0, 1, 2], "the unfinished run takes no part"
    assert pair["mean"] == pytest.approx(differences.mean())
    assert pair["ci95"] == pytest.approx(4.302653 * differences.std(ddof=1) / math.sqrt(3))
    assert pair["verdict"] == "undecided"
    assert data["classes"]["names"] == ["bird", "cat"]
    assert data["classes"]["correct"][0] == [15, 3]
    assert any("two-seed9" in note for note in data["notes"])
    assert data["runs"][6]["status"] == "unfinished"


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9), st.floats(-20, 20))
def test_a_shift_of_every_seed_is_the_difference(values, shift):
    one = {seed: [value] for seed, value in enumerate(values)}
    two = {seed: [value + shift] for seed, value in enumerate(values)} | {99: [1.0]}
    pair = paired_difference(0, 1, [one, two])
    assert pair.seeds == tuple(range(len(values)))
    assert pair.mean == pytest.approx(shift, abs=1e-9)
    assert pair.ci95 == pytest.approx(0, abs=1e-9)
    back = paired_difference(1, 0, [one, two])
    assert back.mean == pytest.approx(-pair.mean)
    assert paired_difference(0, 1, [one, {7_000: [1.0]}]) is None


def test_student_t_and_few_seeds():
    known = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 9: 2.26216, 30: 2.04227}
    for freedom, value in known.items():
        assert student_t(freedom) == pytest.approx(value, abs=1e-5)
    assert interval([1.0]) is None
    one = paired_difference(0, 1, [{3: [1.0, 3.0]}, {3: [5.0]}])
    assert (one.mean, one.ci95, one.verdict) == (3.0, None, "undecided")


def damaged(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


DAMAGE = {
    "no-number": ("summary.csv", f"{HEAD}\n2,20,6,0.1,evil,,,,1\n", "no number"),
    "torn-row": ("summary.csv", f"{HEAD}\n2,20,6", "3 of 9 values"),
    "backwards": ("summary.csv", "epoch,train_loss\n4,1\n2,1\n", "count up"),
    "not-an-epoch": ("summary.csv", "epoch,train_loss\nnan,1\n", "count up"),
    "huge-epoch": ("summary.csv", "epoch,train_loss\n1e300,1\n", "count up"),
    "no-columns": ("summary.csv", "a,b\n1,2\n", "names no column"),
    "empty": ("summary.csv", "", "is empty"),
    "bytes": ("summary.csv", b"\xff\xfe\x00", "UTF-8"),
    "a-field-without-end": ("summary.csv", '"' + "x" * 200_000, "damaged"),
    "negative-counts": ("classes.csv", "class,images,correct,correct5\na,3,-1,0\n", "no counts"),
    "too-many-right": ("classes.csv", "class,images,correct,correct5\na,3,4,0\n", "no counts"),
    "config-list": ("config.yaml", "- 1\n", "mapping"),
    "config-field": ("config.yaml", "model: resnet18\nno_such_setting: 1\n", "no such setting"),
    "config-bomb": ("config.yaml", "a: &a [1, 1]\nb: &b [*a, *a]\nmodel: *b\n", "aliases"),
    "config-torn": ("config.yaml", "model: [", "damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_said_to_be_and_the_others_are_shown(name, tmp_path):
    file, text, words = DAMAGE[name]
    good = write_run(tmp_path / "good", [(4, 50)], classes=[("bird", 2, 1)])
    bad = write_run(tmp_path / "bad", [(4, 50)], classes=[("bird", 2, 1)])
    damaged(bad, file, text)
    page = write_report([bad, good], tmp_path / "r.html")
    assert page.finished == 1
    (line,) = page.damaged
    assert words in line
    assert "\n" not in line
    assert data_of(tmp_path / "r.html")["runs"][0]["status"] == "damaged"
    with pytest.raises(RejectedInput, match=words) as raised:
        write_report([bad], tmp_path / "none.html")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "none.html").exists()


def test_figures_that_are_none_and_absurd_ones(tmp_path):
    folder = write_run(tmp_path / "r", [])
    (folder / "summary.csv").write_text(
        f"{HEAD}\n2,1e308,6,0.1,nan,inf,-inf,,1e-300\n4,20,12,0.1,1e999,,,,1e308\n"
    )
    record = read_run(folder)
    assert record.rows[0]["train_loss"] is None
    assert record.rows[1]["crops_seen"] == 20
    assert record.seconds is None
    page = write_report([folder], tmp_path / "r.html")
    assert any("No top-1" in note for note in page.notes)


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path):
    folder = write_run(tmp_path / "r", [(e, e / 100) for e in range(1, 2 * POINTS + 8)], epochs=4)
    data = page_data([read_run(folder)], ["r"], None)
    curve = data["runs"][0]["curves"]
    assert len(curve["epoch"]) <= POINTS
    assert curve["epoch"][-1] == 2 * POINTS + 7
    assert len(curve["eval_top1"]) == len(curve["epoch"])
    assert any("thinned" in note for note in data["notes"])


def test_which_folders_are_runs(tmp_path):
    for name in ("b", "a"):
        write_run(tmp_path / "many" / name, [(4, 1)])
    (tmp_path / "many" / "notes").mkdir()
    assert [path.name for path in find_runs([tmp_path / "many"])] == ["a", "b"]
    assert len(find_runs([tmp_path / "many", tmp_path / "many" / "a"])) == 2
    for path in (tmp_path / "many" / "notes", tmp_path / "none"):
        with pytest.raises(RejectedInput):
            find_runs([path])
    write_run(tmp_path / "other" / "a", [(4, 1)])
    write_report([tmp_path / "many", tmp_path / "other"], tmp_path / "r.html")
    names = [run["name"] for run in data_of(tmp_path / "r.html")["runs"]]
    assert names == ["many/a", "b", "other/a"]


def test_too_many_runs(tmp_path, monkeypatch):
    write_run(tmp_path / "a", [(4, 1)])
    monkeypatch.setattr("trainer.report.run_page.find_runs", lambda paths: [tmp_path / "a"] * (MAX_RUNS + 1))  # fmt: skip
    with pytest.raises(UsageError, match="a page holds"):
        write_report([tmp_path], tmp_path / "r.html")


def test_settings_are_told_apart_by_what_is_learnt():
    configs = {0: config(seed=0), 1: config(seed=1, workers=2), 2: config(seed=0, lr=0.3), 3: config(seed=0)}  # fmt: skip
    found = group_runs(configs, ["a-s0", "a-s1", "b", "a-s0-again"])
    assert [(setting.name, setting.runs) for setting in found] == [("a", (0, 1, 3)), ("b", (2,))]


def test_command(tmp_path, capsys):
    runs = [write_run(tmp_path / f"r{i}", [(4, 50 + i)], seed=i) for i in range(2)]
    damaged(write_run(tmp_path / "bad", [(4, 1)]), "summary.csv", "")

    def command(*words):
        return errors.run(trainer_app.commands, "trainer", ["report", *map(str, words)])

    out = tmp_path / "page.html"
    assert command(*runs, tmp_path / "bad", "--out", out, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["runs"], record["settings"], record["finished"]) == (3, 1, 2)
    assert command(*runs, tmp_path / "bad", "--out", out) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"wrote {out}, ")
    assert told.err.count("\n") == 1
    for words, code in (
        ((tmp_path / "none", "--out", out), 7),
        ((*runs, "--out", "a.pdf"), 2),
        ((tmp_path / "bad", "--out", out), 7),
        ((*runs, "--images", tmp_path / "no-images", "--device", "cpu", "--out", out), 7),
        ((*runs, "--out", tmp_path / "no" / "folder.html"), 6),
    ):
        assert command(*words) == code, words
        told = capsys.readouterr()
        assert (told.out, told.err.count("\n")) == ("", 1)
    assert not list(tmp_path.glob(".*"))


def test_classes_file_quotes_names(tmp_path):
    from trainer.checkpoint import RunFolder

    names = ('a,"b"', "c\nd", "<b>")
    counts = np.array([3, 0, 2]), np.array([1, 0, 2]), np.array([3, 0, 2])
    RunFolder(write_run(tmp_path / "r", [(4, 60)])).save_classes(names, *counts)
    found = read_run(tmp_path / "r").classes
    assert (found.names, found.images, found.correct) == ((names[0], "<b>"), (3, 2), (1, 2))
    with (tmp_path / "r" / "classes.csv").open(newline="") as lines:
        assert [row["class"] for row in csv.DictReader(lines)] == list(names)
