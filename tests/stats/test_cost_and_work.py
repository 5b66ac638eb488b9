"""What labels cost and who is at work on them, while they are made and after."""

from __future__ import annotations

import json

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from cli.commands.info import print_cost
from labelstore import MarginalSmoothing, derive
from labelstore.analysis.teacher_time import cost
from labelstore.analysis.work import work
from labelstore.catalogue.records import ResultRow, RunRow
from labelstore.teachers.labeller import Labeller
from labelstore.testing.filled_store import filled_store
from tests.flat_options import label_images
from tests.generation.conftest import write_photographs, write_teacher
from tests.stopped_teacher import teacher_stops

N, M = 12, 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cost")
    write_photographs(folder / "photographs", per_class=4)
    write_teacher(folder / "teacher")
    return folder


def create(folder, path, **options):
    return label_images(
        path,
        images=folder / "photographs",
        teacher=str(folder / "teacher"),
        codec=MarginalSmoothing(k=2),
        num_crops=M,
        crops_per_shard=4,
        images_per_shard=4,
        batch_size=M,
        device="cpu",
        workers=1,
        **options,
    )


def info(path, capsys, *options):
    words = ["info", str(path), *options]
    assert errors.run(labelstore_app.commands, "labelstore", words) == 0
    return capsys.readouterr().out


def test_progress_of_a_store_that_is_being_made(made, tmp_path, capsys):
    """`info` is called by the teacher itself, when it is asked for the seventh image of twelve."""
    path, seen, real = tmp_path / "s", [], Labeller.__call__

    def looks(self, pixels):
        seen.append(None)
        if len(seen) == 8:
            seen[-1] = (
                json.loads(info(path, capsys, "--json"))["label_sets"][0]["work"],
                info(path, capsys),
            )
        return real(self, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Labeller, "__call__", looks)
        create(made, path)
    found, text = seen[7]
    # the labels of the last image or two are on their way from the teacher
    assert 5 * M <= found["crops"] <= 7 * M
    assert found["committed_crops"] in (0, 4 * M)
    assert found["total_crops"] == N * M
    assert len(found["workers"]) == 1
    assert f"of {N * M} crops, 1 worker" in text
    if found["committed_crops"]:
        assert found["crops_per_second"] > 0
        left = (N * M - found["crops"]) / found["crops_per_second"]
        assert found["seconds_left"] == pytest.approx(left)
    done = json.loads(info(path, capsys, "--json"))["label_sets"][0]["work"]
    assert (done["crops"], done["workers"], done["seconds_left"]) == (N * M, [], None)
    assert "complete" in info(path, capsys)
    assert "worker" not in info(path, capsys, "--watch", "0.5")


def test_rows_that_no_image_has_are_no_crops(tmp_path, capsys):
    """Images that are added begin a new block; the rows before it are never labelled and never wait for labels."""
    probs = np.full((4, 2, 3), 1 / 3, np.float32)
    store = filled_store(tmp_path / "s", probs, MarginalSmoothing(k=2), images_per_shard=3)
    added = store.catalogue.images.append(["class0001/late.jpg"], [1], [9], [9], multiple=3)
    store.refresh()
    assert (added, store.num_rows, store.num_images) == (range(6, 7), 7, 5)
    found = work(store, "teacher")
    assert (found.crops, found.committed_crops, found.total_crops) == (8, 8, 10)
    store.write_metadata()
    store.close()
    assert "80 % done: 8 of 10 crops" in info(tmp_path / "s", capsys)


def test_a_stopped_store_says_that_nobody_is_at_work(made, tmp_path, capsys):
    with teacher_stops(after_crops=3 * M):
        create(made, tmp_path / "s")
    with labelstore.open(tmp_path / "s") as store:
        found = work(store, "teacher")
    assert (found.crops, found.committed_crops, found.workers) == (3 * M, 0, ())
    assert f"{3 * M} of {N * M} crops, no worker" in info(tmp_path / "s", capsys)


def test_seconds_of_a_stopped_worker_are_not_forgotten(made, tmp_path):
    """The spool keeps them with the images."""
    clock = iter(range(10**6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "labelstore.labelling.labelling.time",
            type("Clock", (), {"perf_counter": staticmethod(lambda: float(next(clock)))}),
        )
        with teacher_stops(after_crops=3 * M):
            create(made, tmp_path / "s")
        create(made, tmp_path / "s")
    with labelstore.open(tmp_path / "s") as store:
        # one second a batch, which is one image
        assert cost(store).seconds == pytest.approx(N)


def test_cost_by_shard_device_and_student(made, tmp_path, capsys):
    path = tmp_path / "s"
    create(made, path)
    with labelstore.open(path) as store:
        derive(store.label_set(), labelstore.Hard(), name="hard")
        ledger = cost(store)
        by_name = {part.label_set: part for part in ledger.label_sets}
        (teacher,) = ledger.teachers
        made_by_teacher = by_name["teacher"]
        assert made_by_teacher.crops == sum(s.crops for s in made_by_teacher.shards) == N * M
        assert len(made_by_teacher.shards) == 6
        rows = store.catalogue.ledger.shards("labels/teacher")
        assert made_by_teacher.seconds == pytest.approx(sum(row.seconds for row in rows))
        for shard, row in zip(made_by_teacher.shards, rows, strict=True):
            assert shard.crops_per_second == pytest.approx(row.num_images * 4 / row.seconds)
            assert shard.images_per_second == pytest.approx(shard.crops_per_second / M)
        assert (by_name["hard"].derived, made_by_teacher.derived) == (True, False)
        # only crops that the teacher looked at pay off against an online teacher
        assert (teacher.crops, teacher.epochs_to_break_even) == (N * M, M)
        assert (teacher.students, teacher.seconds_per_student) == ((), None)
        assert teacher.seconds_saved == pytest.approx(-teacher.seconds)
        for name, sets, epochs in (("a", ("teacher",), 6), ("b", ("hard", "other"), 10)):
            store.catalogue.runs.add(
                RunRow(name=name, folder=name, label_sets=sets, masks=(), config={}, started=0.0)
            )
            for epoch in (1, epochs):
                store.catalogue.results.add(
                    ResultRow(run=name, name="top1", epoch=epoch, value=1.0)
                )
        (teacher,) = cost(store).teachers
        assert teacher.students == ("a", "b")
        assert teacher.seconds_per_student == pytest.approx(teacher.seconds / 2)
        assert teacher.epochs_so_far == 16
        per_crop = made_by_teacher.seconds / (N * M)
        assert teacher.seconds_saved == pytest.approx(16 * N * per_crop - teacher.seconds)
        print_cost(cost(store))
    text = capsys.readouterr().out
    assert "2 students" in text
    assert "after 8 student epochs, 16 so far" in text
    record = json.loads(info(path, capsys, "--cost", "--json"))
    assert record["cost"]["teachers"][0]["students"] == ["a", "b"]
    for seconds in ("0", "nan", "inf", "-1"):
        words = ["info", str(path), "--watch", seconds]
        assert errors.run(labelstore_app.commands, "labelstore", words) == 2
