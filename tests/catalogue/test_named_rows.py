from __future__ import annotations

from dataclasses import replace

import pytest

from labelstore.catalogue import LabelSetRow, MaskRow, PlanRow, ResultRow, RunRow, TeacherRow
from labelstore.errors import ConflictError, UsageError

TEACHER = TeacherRow(
    name="resnet50", source="timm:resnet50", architecture="resnet50", digest="ab" * 32, num_classes=1000,
    input_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic", crop_pct=0.875,
    top1=0.8, versions={"torch": "2.6"},
)  # fmt: skip
PLAN = PlanRow(
    name="plan", num_crops=200, images_per_shard=1024, crops_per_shard=100, crops_per_chunk=20, stored=True,
    parameters={"seed": 0, "scale": [0.08, 1.0]},
)  # fmt: skip
LABEL_SET = LabelSetRow(
    name="resnet50",
    plan="plan",
    teacher="resnet50",
    num_classes=1000,
    codec={"name": "ms", "k": 5},
    uuid="u1",
)
MASK = MaskRow(
    name="ferkd",
    plan="plan",
    teacher="resnet50",
    label_set="resnet50",
    num_crops=200,
    rule={"low": 0.15},
)
RUN = RunRow(
    name="r", folder="runs/r", label_sets=("resnet50",), masks=(), config={"m": 4}, started=1.0
)
RESULT = ResultRow(run="r", name="top1", epoch=299, value=0.801)

CASES = [
    ("teachers", TEACHER, {"digest": "cd" * 32}),
    ("plans", PLAN, {"num_crops": 500}),
    ("label_sets", LABEL_SET, {"codec": {"name": "ms", "k": 10}}),
    ("masks", MASK, {"rule": {"low": 0.2}}),
    ("runs", RUN, {"config": {"m": 8}}),
]


@pytest.mark.sample(5)
@pytest.mark.parametrize(("kind", "row", "change"), CASES)
def test_a_record_is_added_once_and_never_silently_replaced(catalogue, kind, row, change):
    rows = getattr(catalogue, kind)
    assert rows.add(row) == row
    assert rows.add(row) == row
    with pytest.raises(ConflictError, match=next(iter(change))) as caught:
        rows.add(replace(row, **change))
    assert "\n" not in str(caught.value)
    assert rows.all() == (row,)
    catalogue.verify_digests()


def test_a_figure_that_is_measured_again_replaces_the_earlier_one(catalogue):
    other = replace(RESULT, epoch=300)
    for row in (RESULT, other, replace(RESULT, value=0.5)):
        assert catalogue.results.add(row) == row
    assert catalogue.results.all() == (replace(RESULT, value=0.5), other)
    catalogue.verify_digests()


def test_a_label_set_keeps_the_uuid_that_it_began_with(catalogue):
    catalogue.label_sets.add(LABEL_SET)
    assert catalogue.label_sets.add(replace(LABEL_SET, uuid="u2")).uuid == "u1"


def test_the_codec_and_the_number_of_crops_can_change(catalogue):
    catalogue.label_sets.add(LABEL_SET)
    catalogue.plans.add(PLAN)
    with catalogue.transaction() as conn:
        catalogue.label_sets.change(
            conn, "resnet50", codec={"name": "ms", "k": 5, "class_ids": "table"}
        )
        catalogue.plans.change(conn, "plan", num_crops=500)
    assert catalogue.label_sets.all()[0].codec["class_ids"] == "table"
    assert catalogue.plans.all()[0].num_crops == 500
    catalogue.verify_digests()


def test_a_row_that_the_arrays_follow_from_asks_once_for_their_metadata(catalogue):
    catalogue.metadata.finish(token=catalogue.metadata.begin({"zarr.json": (None, "a")}))
    unsettled = replace(LABEL_SET, name="early", codec={"name": "ms", "k": 5, "class_ids": None})
    for kind, row, asks in (
        ("teachers", TEACHER, False),
        ("plans", PLAN, True),
        ("label_sets", LABEL_SET, True),
        ("label_sets", unsettled, False),
        ("masks", MASK, True),
        ("runs", RUN, False),
    ):
        rows = getattr(catalogue, kind)
        rows.add(row)
        assert catalogue.metadata.pending() == ({"zarr.json": "a"} if asks else {}), row.name
        catalogue.metadata.finish()
        rows.add(row)
        assert catalogue.metadata.pending() == {}, row.name


def test_what_json_cannot_hold_is_refused(catalogue):
    for value in (float("nan"), object()):
        with pytest.raises(UsageError, match="JSON"):
            catalogue.masks.add(replace(MASK, rule={"low": value}))


@pytest.mark.parametrize(
    ("kind", "row"), [("plans", PLAN), ("label_sets", LABEL_SET), ("masks", MASK)]
)
def test_names_of_folders_differ_in_more_than_case(catalogue, kind, row):
    rows = getattr(catalogue, kind)
    rows.add(row)
    other = replace(row, name=row.name.upper())
    with pytest.raises(ConflictError, match=f"differs from '{row.name}'.* in upper and lower case"):
        rows.add(other)
    assert rows.all() == (row,)
    catalogue.verify_digests()


def test_names_that_are_no_folders_may_differ_in_case(catalogue):
    catalogue.teachers.add(TEACHER)
    catalogue.teachers.add(replace(TEACHER, name="ResNet50", digest="cd" * 32))
    assert len(catalogue.teachers.all()) == 2
