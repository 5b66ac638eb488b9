"""The experiment with a real teacher: its pictures, its figures, and claims that were named before it ran."""

import hashlib

import numpy as np
import pytest

pytest.importorskip("scipy")
torch = pytest.importorskip("torch")

from benchmarks.papers.real import stamps
from benchmarks.papers.real.primary_claims import PRIMARY
from benchmarks.papers.real.real_stage import figures_of
from benchmarks.papers.real.tables_real import TABLES
from benchmarks.papers.runs import Arm
from labelstore.errors import StorageError
from labelstore.images.class_names import readable

needs_pictures = pytest.mark.skipif(
    not (stamps.STAMPS.is_dir() and stamps.MATE.is_dir() and stamps.PLASMA.is_dir()),
    reason=stamps.INSTALL,
)


def test_every_class_is_one_of_imagenets():
    for one in stamps.stamp_classes():
        assert readable(one.synset).split(",")[0].lower() == one.name
        assert one.surroundings in stamps.PLACES
    assert len({one.synset for one in stamps.stamp_classes()}) == 61


def test_train_and_val_share_no_place_and_no_stamp_of_a_class_that_has_two():
    for places in stamps.PLACES.values():
        assert places["train"]
        assert places["val"]
        assert not {*places["train"]} & {*places["val"]}
    for one in stamps.stamp_classes():
        shared = {*one.of("train")} & {*one.of("val")}
        assert len(one.stamps) == 1 or not shared
        assert one.of("val")


@pytest.mark.slow
@needs_pictures
def test_a_picture_is_a_function_of_its_arguments(tmp_path):
    pytest.importorskip("skimage")
    counts = {"train": 1, "val": 1}
    stamps.make_pictures(tmp_path, "anywhere", counts, seed=0)
    paths = sorted(tmp_path.rglob("*.jpg"))
    assert len(paths) == 122
    before = {path: path.stat().st_mtime_ns for path in paths}
    stamps.make_pictures(tmp_path, "anywhere", counts, seed=0)
    assert {path: path.stat().st_mtime_ns for path in paths} == before
    for path in paths[::40]:
        split, number = path.parts[-3], int(path.stem)
        again = stamps.jpeg(0, "anywhere", split, number)
        assert path.read_bytes() == again
        assert again != stamps.jpeg(1, "anywhere", split, number)
    digests = {hashlib.sha256(path.read_bytes()).digest() for path in paths}
    assert len(digests) == len(paths)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(stamps, "STAMPS", tmp_path)
    with pytest.raises(StorageError, match=r"apt-get install .*tuxpaint-stamps-default"):
        stamps._stamp.__wrapped__("animals/birds/owl")


def test_figures_against_a_slow_reference():
    rng = np.random.default_rng(0)
    teacher = torch.from_numpy(rng.dirichlet(np.full(7, 0.3), 50))
    logits = torch.from_numpy(rng.normal(size=(50, 7)))
    truth = torch.from_numpy(rng.integers(7, size=50))
    top1, found = figures_of(teacher, logits, truth)
    student = torch.softmax(logits, 1).numpy()
    p = teacher.numpy()
    kl = [
        sum(a * np.log(a / b) for a, b in zip(*rows, strict=True) if a > 0)
        for rows in zip(p, student, strict=True)
    ]
    assert top1 == pytest.approx(100 * np.mean(student.argmax(1) == truth.numpy()))
    assert found["agreement"] == pytest.approx(100 * np.mean(student.argmax(1) == p.argmax(1)))
    assert found["kl"] == pytest.approx(np.mean(kl))
    sure = p.max(1) >= 0.9
    assert sure.any()
    assert found["kl_high"] == pytest.approx(np.mean(np.asarray(kl)[sure]))


def test_primary_claims_are_few_and_each_is_asked_once():
    asked = [claim for table in TABLES for claim in table.claims if claim.primary]
    assert 3 <= len(PRIMARY) <= 5
    assert sorted(claim.text for claim in asked) == sorted(claim.text for claim in PRIMARY)


def test_an_arm_waits_for_a_setting_that_the_trainer_lacks():
    assert "no_such_setting" in Arm(name="a", options={"no_such_setting": 1}).waits_for()
    for table in TABLES:
        for arm in table.arms:
            assert arm.waits_for() is None or "phases" in arm.options


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_claims_speak_of_the_tables_arms(table):
    arms = {arm.name for arm in table.arms}
    for claim in table.claims:
        assert {*claim.above.split(" | "), *claim.below.split(" | ")} <= arms
