"""The arrays that a plan, a label set and a mask have, as their rows in the catalogue say."""

from __future__ import annotations

from dataclasses import replace

from labelstore.arrays.base import ArraySpec
from labelstore.catalogue.array_rows import ArrayRows
from labelstore.catalogue.records import LabelSetRow, MaskRow, PlanRow
from labelstore.codecs import codec_from_record, in_short
from labelstore.store.layout import REGION, Layout, label_layout, plan_fields, specs

GroupSpecs = tuple[tuple[ArraySpec, ...], Layout]


def plan_specs(plan: PlanRow, num_rows: int) -> GroupSpecs:
    """The arrays of stored crops, and how they are cut."""
    layout = Layout.of(plan, num_rows)
    fields = plan_fields(plan.parameters)
    return specs(f"crops/{plan.name}", fields, layout, {"plan": dict(plan.parameters)}), layout


def label_specs(row: LabelSetRow, plan: PlanRow, num_rows: int) -> GroupSpecs:
    """The arrays of a label set whose codec is settled, and how they are cut."""
    layout = label_layout(row, plan, num_rows)
    fields = codec_from_record(row.codec).fields(row.num_classes)
    about = {"teacher": row.teacher, "plan": row.plan, "codec": in_short(row.codec)}
    return specs(f"labels/{row.name}", fields, layout, about), layout


def mask_specs(mask: MaskRow, plan: PlanRow, num_rows: int) -> GroupSpecs:
    """The array of a mask, and how it is cut."""
    # the crops that it was made for: a plan may have grown since
    layout = Layout.of(replace(plan, num_crops=mask.num_crops), num_rows)
    about = {"plan": mask.plan, "rule": dict(mask.rule)}
    return specs(f"masks/{mask.name}", (REGION,), layout, about), layout


def all_specs(rows: ArrayRows) -> tuple[ArraySpec, ...]:
    """Every array of a store, as one state of the catalogue has it."""
    groups = [plan_specs(plan, rows.num_rows) for plan in rows.plans.values() if plan.stored]
    groups += [
        label_specs(row, rows.plans[row.plan], rows.num_rows)
        for row in rows.label_sets.values()
        # its arrays are not decided before the first shard
        if row.is_settled
    ]
    groups += [
        mask_specs(mask, rows.plans[mask.plan], rows.num_rows) for mask in rows.masks.values()
    ]
    return tuple(spec for group, _ in groups for spec in group)
