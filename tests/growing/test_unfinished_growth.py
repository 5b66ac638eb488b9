"""While the growth of a plan is unfinished, what was labelled before it is drawn from as it was."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from cli.wording import in_flags
from labelstore import Full, MarginalSmoothing, RegionQuantiles, RegionThresholds
from labelstore.calibration import preview
from labelstore.errors import IncompleteError, NotGenerated
from labelstore.exchange import export_labels
from labelstore.store.unfinished import covered_labels, what_is_missing
from labelstore.testing.filled_store import add_label_set, fill_blocks
from tests.flat_options import StoredPasses
from tests.kept_stores import kept_store
from trainer.sampler import PassSchedule

N, M, GROWN, C = 11, 6, 12, 7
CODEC = MarginalSmoothing(k=3, dtype="float32", class_ids="plain")
RULE = RegionThresholds(low=0.3, middle=0.4, top=0.9)
SCHEDULE = PassSchedule.of(passes=5, crops_per_image=2)
SEEDS = {"a": 0, "b": 1}


def soft_labels(seed: int = 0) -> np.ndarray:
    powers = np.exp(2 * np.random.default_rng(seed).normal(size=(N, GROWN, C)))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


def grow(store, *, a=(), b=()):
    """Grow the plan, and label the new crops of some image blocks of each label set."""
    with store.catalogue.transaction() as connection:
        store.catalogue.plans.change(connection, "plan", num_crops=GROWN)
    store.refresh()
    store.write_metadata()
    for name, blocks in {"a": a, "b": b}.items():
        fill_blocks(store, soft_labels(SEEDS[name]), name=name, blocks=blocks, bad={5})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By whether crops are stored: label sets a and b of two teachers, three blocks of two crop shards, a mask of a."""
    paths = {is_stored: tmp_path_factory.mktemp("made") / "s" for is_stored in (True, False)}
    for is_stored, path in paths.items():
        options = {"images_per_shard": 4, "crops_per_shard": 3, "stored_crops": is_stored}
        labels = soft_labels(SEEDS["a"])[:, :M]
        with kept_store(path, labels, CODEC, name="a", bad={5}, **options) as opened:
            add_label_set(opened, Full(dtype="float32"), C, name="b")
            fill_blocks(opened, soft_labels(SEEDS["b"])[:, :M], name="b", bad={5})
            labelstore.calibrate(opened.label_set("a"), RULE, name="mask")
    return paths


@pytest.fixture
def store(made, tmp_path, request):
    shutil.copytree(made[getattr(request, "param", True)], tmp_path / "s")
    with labelstore.open(tmp_path / "s") as opened:
        yield opened


def drawn(labels, folder, **options):
    about = {"schedule": SCHEDULE, "scratch": folder, "allow_empty_images": True, "seed": 3}
    with StoredPasses(labels, **about, **options) as passes:
        planes = [passes.pass_labels(p).take() for p in range(SCHEDULE.num_passes)]
        return planes, passes.drawn_from(), passes.table.keys


def same_records(before, after):
    for one, other in zip(before, after, strict=True):
        for field in one.dtype.names:  # not as bytes: there is padding between them
            np.testing.assert_array_equal(one[field], other[field])


def of_kind(store, kind):
    a, b, mask = store.label_set("a"), store.label_set("b"), store.mask("mask")
    return {
        "one": lambda: {"labels": a},
        "masked": lambda: {"labels": a, "mask": mask},
        "easy": lambda: {"labels": a, "order": "easy-to-hard"},
        "mean": lambda: {"labels": labelstore.ensemble([a, b], [mask, None])},
    }[kind]()


@pytest.mark.parametrize(
    ("store", "kind"),
    [(True, "one"), (False, "one"), (True, "masked"), (True, "easy"), (True, "mean")],
    indirect=["store"],
)
def test_passes_are_those_of_before(store, tmp_path, kind):
    before, facts, keys = drawn(folder=tmp_path, **of_kind(store, kind))
    grow(store, a=[1], b=[0, 1, 2])
    with pytest.raises(IncompleteError, match=r"covers 6 of 12 crops: .*`allow_incomplete`"):
        drawn(folder=tmp_path, **of_kind(store, kind))
    after, facts_after, keys_after = drawn(
        folder=tmp_path, allow_incomplete=True, **of_kind(store, kind)
    )
    same_records(before, after)
    assert (facts, keys) == (facts_after, keys_after)  # so that a run can be resumed
    # a label set that has grown gives all its crops
    _, facts, _ = drawn(store.label_set("b"), tmp_path)
    assert facts["num_crops"] == GROWN


def test_a_mask_may_cover_more_than_the_labels(store, tmp_path):
    """Made from one label set of a teacher, used for another that has not grown."""
    add_label_set(store, CODEC, C, name="c", teacher="a")
    fill_blocks(store, soft_labels(SEEDS["a"])[:, :M], name="c")
    before, _, _ = drawn(store.label_set("c"), tmp_path, mask=store.mask("mask"))
    grow(store, a=[0, 1, 2])
    mask = labelstore.calibration.update(store, "mask")
    assert mask.num_crops == GROWN
    after, _, _ = drawn(store.label_set("c"), tmp_path, mask=mask, allow_incomplete=True)
    same_records(before, after)


def test_the_refusal_says_what_is_there_and_what_finishes_it(store, tmp_path, capsys):
    grow(store, a=[1])
    wanted = (
        "label set a is not finished, it covers 6 of 12 crops: finish it with "
        f"`labelstore.grow(labelstore.open('{store.path}'), num_crops=12, teacher='timm:a', label_set='a')`"
    )
    assert what_is_missing(store.label_set("a")) == wanted
    with pytest.raises(IncompleteError) as refused:
        drawn(store.label_set("a"), tmp_path)
    assert str(refused.value) == f"{wanted}, or train on what is there with `allow_incomplete`"
    words = ["export", "npz", str(store.path), str(tmp_path / "l.npz"), "--label-set", "a"]
    store.close()
    assert errors.run(labelstore_app.commands, "labelstore", words) == 8
    assert in_flags(wanted, {}) in capsys.readouterr().err
    assert errors.run(labelstore_app.commands, "labelstore", [*words, "--allow-incomplete"]) == 0
    said = capsys.readouterr()
    assert "label set a covers 6 of 12 crops of each image: these are exported" in said.err
    assert "wrote 60 crops of 10 images" in said.out


def test_the_command_names_a_checkpoints_network(store, tmp_path, monkeypatch):
    weights = tmp_path / "the weights.pth"
    weights.touch()
    grow(store, a=[1])
    held = store.teacher("a")
    made = replace(held, source=str(weights), architecture="timm:resnet18")
    monkeypatch.setattr(type(store), "teacher", lambda self, name: made)
    wanted = f"--teacher '{weights}' --teacher-model timm:resnet18 --label-set a`"
    assert in_flags(what_is_missing(store.label_set("a")), {}).endswith(wanted)


def test_nothing_labelled_is_said_so(tmp_path):
    labels = soft_labels()
    options = {"images_per_shard": 4, "crops_per_shard": 3, "blocks": ()}
    with kept_store(tmp_path / "s", labels, CODEC, name="a", **options) as store:
        found = store.label_set()
        assert found.covered_crops == 0
        with pytest.raises(NotGenerated, match=r"covers 0 of 3 image blocks: run the same"):
            drawn(found, tmp_path, allow_incomplete=True)
        with pytest.raises(NotGenerated, match="covers 0 of 3 image blocks"):
            export_labels(found, format="npz", target=tmp_path / "l.npz", allow_incomplete=True)
        fill_blocks(store, labels, name="a", blocks=[2])
        labelstore.calibrate(store.label_set(), RULE, name="mask")
        fill_blocks(store, labels, name="a", blocks=[0])
        planes, _, keys = drawn(store.label_set(), tmp_path, allow_incomplete=True)
        assert len(keys) == planes[0].shape[0] == 7
        add_label_set(store, CODEC, C, name="b")
        fill_blocks(store, labels, name="b", blocks=[1])
        apart = labelstore.ensemble([store.label_set("a"), store.label_set("b")])
        with pytest.raises(NotGenerated, match="no image block is covered by all of label set a"):
            drawn(apart, tmp_path, allow_incomplete=True)


def test_calibration_is_of_the_crops_that_all_images_have(store):
    before = labelstore.calibrate(
        store.label_set("a"), RegionQuantiles(low=0.1, middle=0.2, top=0.9), name="q"
    )
    shown = preview(store.label_set("a"), {"rule": RULE})
    grow(store, a=[1])
    labels = store.label_set("a")
    again = labelstore.calibrate(labels, RegionQuantiles(low=0.1, middle=0.2, top=0.9), name="q2")
    assert (again.num_crops, again.is_complete) == (M, True)
    assert again.rule == before.rule
    for block in range(3):
        np.testing.assert_array_equal(again.regions(block)[:, :M], before.regions(block))
    now = preview(labels, {"rule": RULE})
    assert (now.num_crops, now.is_complete) == (M, False)
    assert now.choices == shown.choices
    grow(store, a=[0, 2])
    assert labelstore.calibration.update(store, "q2").num_crops == GROWN


@pytest.mark.parametrize("store", [True, False], ids=["stored", "seeded"], indirect=True)
def test_a_narrowed_label_set_reads_and_travels(store):
    before = store.label_set("a").recover(range(N))
    boxes = store.label_set("a").boxes(range(N))
    grow(store, a=[1])
    labels = covered_labels(store.label_set("a"))
    for found in (labels, pickle.loads(pickle.dumps(labels))):
        assert (found.num_crops, found.is_complete, found.blocks) == (M, True, (0, 1, 2))
        np.testing.assert_array_equal(found.recover(range(N)), before)
        np.testing.assert_array_equal(found.boxes(range(N)), boxes)
        assert found.dense(0).shape == (4, M, C)
    assert not store.label_set("a").is_complete
