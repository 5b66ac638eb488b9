"""Every kind of labels trains: equal where the papers say that methods are equal, refused in one line where they
are not."""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

import labelstore
import trainer
from cli import errors, labelstore_app
from labelstore import (
    Full,
    Hard,
    LabelMap,
    Logits,
    MarginalSmoothing,
    PlanOptions,
    RegionThresholds,
)
from labelstore.analysis.teacher_time import cost
from labelstore.errors import ConflictError, LabelStoreError, RejectedInput, UsageError
from labelstore.teachers.teacher import load_teacher
from tests.flat_options import generate, label_images
from tests.generation.conftest import CLASSES, OPTIONS, write_photographs, write_teacher
from tests.trainer.small_runs import small_run, write_data
from trainer import TrainConfig
from trainer.checkpoint.files import read_checkpoint, save_checkpoint
from trainer.losses import DistillationLoss

M = 8


class Projection(torch.nn.Module):
    """A frozen network with a projection head of 6 outputs, as an SSL teacher has one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet18", num_classes=0, **OPTIONS)
        self.head = torch.nn.Linear(self.backbone.num_features, 6)
        self.pretrained_cfg = {
            "input_size": (3, 32, 32),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "interpolation": "bilinear",
            "crop_pct": 0.875,
        }

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 5 * self.head(self.backbone(pixels))


def projection() -> Projection:
    torch.manual_seed(7)
    return Projection()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), 4, 1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="module")
def store(data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s"
    first = load_teacher(str(teacher))
    options = {"images": data / "train", "device": "cpu", "workers": 1}
    label_images(
        path, teacher=first, codec=Full(dtype="float32"), num_crops=M, images_per_shard=8,
        name="full", **options,
    )  # fmt: skip
    other = load_teacher(str(write_teacher(path.with_name("other"), seed=5)))
    ssl = load_teacher(f"{__name__}:projection")
    with labelstore.open(path) as opened:
        full = opened.label_set("full")
        labelstore.derive(full, MarginalSmoothing(k=3, dtype="float32"), name="ms")
        labelstore.derive(full, Hard(), name="hard")
        labelstore.calibrate(full, RegionThresholds(low=0.0, middle=0.0, top=1.0), name="nothing")
        labelstore.calibrate(full, RegionThresholds(low=0.35, middle=0.4, top=0.9), name="strict")
        generate(opened, teacher=other, codec=Full(dtype="float32"), name="other", **options)
        for made_at in (4.0, 20.0):
            generate(
                opened, teacher=first, codec=Full(dtype="float32"), name=f"at{made_at:g}",
                temperature=made_at, **options,
            )  # fmt: skip
        generate(opened, teacher=first, codec=LabelMap(k=2), name="map", **options)
        generate(opened, teacher=ssl, codec=Logits(), name="ssl", **options)
    return path


@pytest.fixture
def own(store: Path, tmp_path: Path) -> Path:
    """A copy of the store, for runs that leave a row in it."""
    return Path(shutil.copytree(store, tmp_path / "own"))


def config(data: Path, **changes: object) -> TrainConfig:
    return small_run(
        changes, data=data, epochs=4, mean=(0.5,) * 3, std=(0.25,) * 3, allow_empty_images=True, eval_every=9,
    )  # fmt: skip


def losses(monkeypatch: pytest.MonkeyPatch, wanted: TrainConfig) -> tuple[list[float], trainer.Run]:
    """The loss of every step of a run."""
    from trainer.run_state import RunState

    found = []
    original = RunState.add_loss

    def add_loss(self, loss, *args, **kwargs):
        found.append(float(loss.detach()))
        return original(self, loss, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "add_loss", add_loss)
        run = trainer.run(wanted)
    return found, run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label_set", "asked", "in_force"),
    [
        ("full", None, 1.0),
        ("full", 4.0, 4.0),
        ("at4", None, 4.0),
        ("at4", 1.0, 1.0),
        ("at20", None, 20.0),
        ("at20", 2.0, 2.0),
    ],
)
def test_stored_full_labels_train_as_the_online_teacher_does(
    store, teacher, data, monkeypatch, label_set, asked, in_force
):
    shared = {"store": store, "label_set": label_set}
    stored, run = losses(monkeypatch, config(data, labels="fkd", temperature=asked, **shared))
    online, other = losses(
        monkeypatch,
        config(data, labels="teacher", teacher=str(teacher), temperature=in_force, **shared),
    )
    assert len(stored) == run.steps == other.steps > 0
    assert stored == pytest.approx(online, rel=1e-5, abs=1e-6)
    assert run.config.temperature_in_force == other.config.temperature_in_force == in_force


def test_fkds_own_pair_of_temperatures(store, data, monkeypatch):
    """`--temp 4` in FKD's generator and trainer: -sum p log softmax(z / 4), p as stored, and no factor T^2."""
    seen = []
    original = DistillationLoss.forward

    def forward(self, logits, labels, truth):
        seen.append((logits.detach(), labels))
        return original(self, logits, labels, truth)

    monkeypatch.setattr(DistillationLoss, "forward", forward)
    wanted = config(data, store=store, label_set="at4", temperature_squared=False)
    found, _ = losses(monkeypatch, wanted)
    with labelstore.open(store) as opened:
        stored = torch.from_numpy(
            opened.label_set("at4").recover(range(12)).reshape(-1, len(CLASSES))
        )
    fkd = []
    for logits, (_, probs, _) in seen:
        apart = (probs[:, None] - stored).abs().sum(-1)
        assert apart.min(1).values.max() < 1e-6  # labels as they lie on disk
        crops = -(probs * torch.log_softmax(logits / 4, 1)).sum(1)
        fkd.append(float(crops.mean()) * len(crops))  # what a run adds up
    assert found == pytest.approx(fkd, rel=1e-5)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"label_set": "full"}, None),
        ({"label_set": "at4"}, None),
        ({"label_set": "full", "temperature": 2.0}, "temperature 2: .*full at T=1"),
        ({"label_set": "at4", "temperature": 2.0}, "temperature 2: .*at4 at T=4"),
        (
            {"labels": "ensemble", "label_set": "full,at4", "temperature": 4.0},
            "temperature 4: .*full at T=1",
        ),
    ],
)
def test_a_run_at_another_temperature_says_so_first(own, data, tmp_path, changes, first):
    said: list[str] = []
    wanted = config(data, store=own, output=tmp_path / "run", epochs=2, **changes)
    trainer.run(wanted, note=said.append)
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()[0]
    if first is None:
        assert not [line for line in said if "temperature" in line]
        assert "temperature" not in log
    else:
        assert re.match(first, said[0])
        assert re.search(first, log)


def test_label_sets_of_several_temperatures_ask_for_one(store, data):
    with pytest.raises(UsageError, match=r"full at T=1, at4 at T=4.*give the temperature"):
        trainer.run(config(data, store=store, labels="ensemble", label_set="full,at4"))


def test_a_mask_from_other_labels_is_told_apart(store, data):
    said: list[str] = []
    wanted = config(data, store=store, labels="ferkd", label_set="at4", mask="nothing", epochs=2)
    trainer.run(wanted, note=said.append)
    assert [line for line in said if "mask nothing looked at labels at T=1" in line]


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ({"label_set": "at4"}, "labels_made_at"),
        (
            {"label_set": "full", "crops_per_image": 3, "batch_size": 9, "epochs": 12},
            "drawing_order",
        ),
    ],
)
def test_a_run_begun_under_older_rules_is_not_gone_on_with(own, data, tmp_path, changes, entry):
    """Labels at T0 that were taken for labels at 1, and an order that drew a crop twice in a pass."""
    wanted = config(data, store=own, output=tmp_path / "run", **changes)
    run = trainer.run(wanted)
    assert entry in run.config.provenance
    trainer.run(replace(wanted, resume=True))  # it goes on with its own
    last = tmp_path / "run" / "last.pth.tar"
    left = read_checkpoint(last)
    provenance = {k: v for k, v in left.config["provenance"].items() if k != entry}
    save_checkpoint(last, replace(left, config={**left.config, "provenance": provenance}))
    with pytest.raises(ConflictError, match="was begun by an older trainer"):
        trainer.run(replace(wanted, resume=True))


def test_a_run_of_an_older_trainer_at_one_goes_on(own, data, tmp_path):
    """It wrote temperature 1 down, which is what no temperature means for labels made at 1."""
    wanted = config(data, store=own, label_set="full", output=tmp_path / "run")
    trainer.run(wanted)
    last = tmp_path / "run" / "last.pth.tar"
    left = read_checkpoint(last)
    provenance = {k: v for k, v in left.config["provenance"].items() if k != "temperature"}
    older = {**left.config, "temperature": 1.0, "provenance": provenance}
    save_checkpoint(last, replace(left, config=older))
    trainer.run(replace(wanted, resume=True))
    with pytest.raises(ConflictError, match="temperature"):
        trainer.run(replace(wanted, resume=True, temperature=2.0))


def same_run(monkeypatch, data, one, other, tolerance=1e-6):
    first, _ = losses(monkeypatch, config(data, **one))
    second, _ = losses(monkeypatch, config(data, **other))
    assert first == pytest.approx(second, rel=tolerance, abs=tolerance)


def test_ms_that_keeps_every_class_trains_as_full_does(store, data, monkeypatch):
    same_run(
        monkeypatch,
        data,
        {"store": store, "label_set": "full"},
        {"store": store, "label_set": "ms"},
    )


def test_thresholds_that_keep_everything_train_as_no_calibration(store, data, monkeypatch):
    same_run(
        monkeypatch,
        data,
        {"store": store, "label_set": "ms"},
        {"store": store, "label_set": "ms", "labels": "ferkd", "mask": "nothing"},
        0,
    )


@pytest.mark.parametrize("choice", [{}, {"order": "hard-to-easy", "label_smoothing": 0.1}])
def test_the_ground_truth_on_stored_crops_trains_as_labels_that_weigh_nothing(
    store, data, monkeypatch, choice
):
    shared = {"store": store, "label_set": "ms", **choice}
    same_run(
        monkeypatch,
        data,
        {"labels": "ground-truth", **shared},
        {"labels": "fkd", "ground_truth_weight": 1.0, **shared},
    )


def test_the_ground_truth_needs_no_choice_of_a_label_set(store, data, monkeypatch):
    same_run(
        monkeypatch,
        data,
        {"labels": "ground-truth", "store": store},
        {"labels": "ground-truth", "store": store, "label_set": "other"},
        0,
    )
    for wrong in ({"label_set": "nope"}, {"order": "easy-to-hard"}):
        # whose order, of several?
        with pytest.raises(LabelStoreError, match=r"nope|full"):
            trainer.run(config(data, labels="ground-truth", store=store, **wrong))
    with pytest.raises(UsageError, match="no store"):
        config(data, labels="ground-truth", label_set="ms")


@pytest.mark.slow
def test_only_students_of_the_labels_count_for_what_the_teacher_saved(
    store, teacher, data, tmp_path
):
    path = shutil.copytree(store, tmp_path / "s")
    shared = {"store": path, "label_set": "ms"}
    others = ({"labels": "ground-truth"}, {"labels": "teacher", "teacher": str(teacher)})
    for number, kind in enumerate(({"labels": "fkd"}, *others)):
        trainer.run(config(data, output=tmp_path / f"r{number}", **shared, **kind))
    with labelstore.open(path) as held:
        assert len(held.catalogue.runs.all()) == 3
        found = cost(held).teachers
        counted = [each for each in found if "ms" in each.label_sets]
    assert [len(each.students) for each in counted] == [1]
    assert counted[0].epochs_so_far == 4


def test_an_ensemble_of_a_teacher_with_itself_trains_as_the_teacher_does(store, data, monkeypatch):
    same_run(
        monkeypatch,
        data,
        {"store": store, "label_set": "full"},
        {"store": store, "label_set": "full,full", "labels": "ensemble"},
        0,
    )


def test_an_ensemble_learns_from_the_weighted_mean(store, data, tmp_path):
    wanted = config(
        data, store=store, labels="ensemble", label_set="full,other", mask="strict,-",
        ensemble_weights=(1, 3), scratch=tmp_path,
    )  # fmt: skip
    from trainer.training_data import open_training_data

    with open_training_data(wanted) as opened, labelstore.open(store) as held:
        found = opened.source.pass_labels(0)
        mean = labelstore.ensemble(
            [held.label_set("full"), held.label_set("other")], [held.mask("strict"), None], [1, 3]
        ).recover(found.images, found.crops)
        torch.testing.assert_close(found.labels.probs, mean, rtol=1e-6, atol=1e-6)
        assert len(opened.config.provenance["label_set"]) == 2


def test_a_run_says_how_far_labels_reach_while_their_plan_grows(store, data, tmp_path, capsys):
    from trainer.training_data import open_training_data

    shutil.copytree(store, tmp_path / "s")
    with labelstore.open(tmp_path / "s") as held:
        with held.catalogue.transaction() as connection:
            held.catalogue.plans.change(connection, held.plan().name, num_crops=2 * M)
        held.refresh()
        held.write_metadata()
    wanted = config(
        data, store=tmp_path / "s", labels="fkd", label_set="full", allow_incomplete=True
    )
    notes = []
    with open_training_data(wanted, notes.append) as opened:
        assert opened.source.pass_labels(0).crops.max() < M
    said = "label set full covers 8 of 16 crops of each image: drawing from the first 8"
    assert notes.count(said) == 1
    assert errors.run(labelstore_app.commands, "labelstore", ["info", str(tmp_path / "s")]) == 0
    said = "8 of 16 crops per image: `labelstore calibrate --update` extends it"
    assert capsys.readouterr().out.count(said) == 2  # masks


def test_label_maps_train(store, data, monkeypatch, tmp_path):
    stored, run = losses(
        monkeypatch,
        config(data, labels="labelmap", store=store, label_set="map", output=tmp_path / "r"),
    )
    assert len(stored) == run.steps
    assert run.top1 is not None


def test_a_projection_head_is_learnt_and_not_evaluated(store, data, tmp_path):
    run = trainer.run(
        config(
            data, labels="ssl", store=store, label_set="ssl", temperature=0.5, output=tmp_path / "r"
        )
    )
    assert run.config.num_classes == 6
    assert run.top1 is None
    with (tmp_path / "r" / "summary.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) * 1.5
    assert {row["eval_top1"] for row in rows} == {""}


def test_an_online_teacher_needs_no_store_and_may_have_another_view(data, tmp_path):
    torch.manual_seed(0)
    folder = write_teacher(tmp_path / "t")
    text = (folder / "config.yaml").read_text().replace("input_size: 32", "input_size: 48")
    (folder / "config.yaml").write_text(text)
    from trainer.online_teacher import OnlineTeacher

    wanted = config(
        data, labels="teacher", teacher=str(folder), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25),
        mixing="mixup", temperature=2.0, num_classes=3, class_names=CLASSES,
    )  # fmt: skip
    online = OnlineTeacher(wanted, torch.device("cpu"))
    pixels = torch.rand(5, 3, 32, 32)
    student = (pixels - torch.tensor(wanted.mean).view(3, 1, 1)) / torch.tensor(wanted.std).view(
        3, 1, 1
    )
    ids, probs, rest = online.labels(student)
    seen = torch.nn.functional.interpolate(
        (pixels - 0.5) / 0.25, (48, 48), mode="bilinear", antialias=True
    )
    expected = torch.softmax(load_teacher(str(folder)).module(seen) / 2, 1)
    torch.testing.assert_close(probs, expected, rtol=1e-4, atol=1e-5)
    assert ids.shape == probs.shape == (5, 3)
    assert not rest.any()
    run = trainer.run(config(data, labels="teacher", teacher=str(folder), mixing="mixup"))
    assert run.top1 is not None


def test_an_online_teacher_sees_its_own_interpolation_or_says_so(data, tmp_path):
    from trainer.online_teacher import OnlineTeacher

    folder = write_teacher(tmp_path / "t")
    text = (folder / "config.yaml").read_text().replace("bilinear", "bicubic")
    (folder / "config.yaml").write_text(text.replace("input_size: 32", "input_size: 48"))
    own = {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "num_classes": 3,
        "class_names": CLASSES,
    }
    wanted, told = config(data, labels="teacher", teacher=str(folder), **own), []
    online = OnlineTeacher(wanted, torch.device("cpu"), told.append)
    assert len(told) == 1
    assert "was made for bicubic" in told[0]
    assert "`interpolation=bicubic`" in told[0]
    pixels = torch.randn(5, 3, 32, 32)
    seen = torch.nn.functional.interpolate(pixels, (48, 48), mode="bicubic", antialias=True)
    expected = torch.softmax(load_teacher(str(folder)).module(seen), 1)
    torch.testing.assert_close(online.labels(pixels)[1], expected, rtol=1e-4, atol=1e-5)
    told.clear()
    wanted = dataclasses.replace(wanted, interpolation="bicubic")
    OnlineTeacher(wanted, torch.device("cpu"), told.append)
    assert told == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_set": "hard", "temperature": 4.0}, "one-hot label has no temperature"),
        ({"label_set": "full,hard", "labels": "fkd"}, "several label sets are labels='ensemble'"),
        ({"label_set": "full,ssl", "labels": "ensemble"}, "labels='ssl' learns"),
        ({"label_set": "full,nobody", "labels": "ensemble"}, "no label set named 'nobody'"),
        ({"label_set": "other", "labels": "ferkd", "mask": "strict"}, "mask of the same teacher"),
        ({"label_set": "full,other", "labels": "ensemble", "mask": "-,strict"}, "same teacher"),
        ({"label_set": "full,other", "labels": "ensemble", "mask": "strict"}, "one for each"),
        ({"label_set": "full", "labels": "labelmap"}, "wants label maps"),
        ({"label_set": "map"}, "labels='labelmap' learns from it"),
        ({"label_set": "full", "labels": "ssl"}, "the codecs logits and pq"),
        ({"label_set": "ssl"}, "labels='ssl' learns"),
        ({"labels": "ensemble"}, "give the names of its label sets"),
        ({"label_set": "full,ms", "labels": "ensemble", "ensemble_weights": (1, 0)}, "above 0"),
        ({"label_set": "full,ms", "labels": "ensemble", "ensemble_weights": (1,)}, "one for each"),
        ({"label_set": "ms", "ensemble_weights": (1,)}, "belong to labels='ensemble'"),
        ({"label_set": "ms", "teacher": "timm:resnet18"}, "go together"),
        ({"labels": "teacher", "label_set": "full"}, "go together"),
        ({"label_set": "ms", "probability_range": (0.9, 0.1)}, "give .low, high."),
        ({"label_set": "ms", "probability_range": (float("nan"), 1)}, "finite"),
        ({"label_set": "ssl", "labels": "ssl", "ground_truth_weight": 0.5}, "no classes"),
        ({"label_set": "ms", "scale": (0.5, 1.0)}, "scale=.0.5, 1.0. .* were drawn with"),
        ({"label_set": "ms", "ratio": (1.0, 1.0)}, "ratio=.* were drawn with"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(store, data, changes, message):
    with pytest.raises((UsageError, RejectedInput), match=message) as caught:
        trainer.run(config(data, **{"store": store, **changes}))
    assert "\n" not in str(caught.value)


def test_the_settings_that_the_stored_crops_were_drawn_with_may_be_said(data, teacher, tmp_path):
    """So that one set of options serves ground truth and stored labels alike."""
    with labelstore.create(
        tmp_path / "s",
        images=data / "train",
        plan=PlanOptions(num_crops=2, flip_prob=0.0, scale=(0.5, 1.0)),
    ) as store:
        generate(store, teacher=str(teacher), images=data / "train", codec=Hard(), device="cpu")
    asked = config(
        data, store=tmp_path / "s", crops_per_image=2, batch_size=2, epochs=2, flip_prob=0.0
    )
    assert trainer.run(replace(asked, scale=(0.5, 1.0))).steps
    with pytest.raises(UsageError, match=r"flip_prob=0.25 .* were drawn with 0\.0"):
        trainer.run(replace(asked, flip_prob=0.25))


def test_images_that_are_not_the_stores_are_refused(store, tmp_path):
    write_photographs(tmp_path / "train", per_class=5)
    with pytest.raises(RejectedInput):
        trainer.run(config(tmp_path, store=store, label_set="full"))


def test_more_crops_than_an_image_has_come_twice_and_are_counted(store, data):
    """m = M + 4: every crop once, then again from the first; said once, as a note."""
    notes: list[str] = []
    asked = config(
        data, store=store, label_set="ms", crops_per_image=M + 4, batch_size=M + 4, epochs=M + 4
    )
    run = trainer.run(asked, note=notes.append)
    assert run.crops_seen == len(CLASSES) * 4 * (M + 4)
    assert f"12 images have fewer usable crops than m={M + 4}" in " ".join(notes)


def test_labels_of_another_plan_are_refused(store, data, tmp_path):
    copy = tmp_path / "s"
    shutil.copytree(store, copy)
    with labelstore.open(copy) as opened:
        ms = opened.label_set("ms")
        opened.catalogue.plans.add(replace(opened.plan(), name="p2"))
        opened.catalogue.label_sets.add(replace(ms.row, name="onp2", plan="p2", uuid="0" * 32))
        opened.write_metadata()
    for changes, message in (
        ({"labels": "ensemble", "label_set": "ms,onp2"}, "label sets of one plan"),
        ({"labels": "ferkd", "label_set": "onp2", "mask": "strict"}, "a mask of the same plan"),
    ):
        with pytest.raises(UsageError, match=message):
            trainer.run(config(data, **{"store": copy, **changes}))
