"""Tables of `labelstore stats --all` and `--per-class`: data in, rich renderables out."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.output import percent
from labelstore.analysis.profile import Profile
from labelstore.store.outputs import short


def render_profile(found: Profile) -> RenderableType:
    """Means and spreads over all crops; shares; sizes of the images."""
    part = (
        ""
        if found.blocks == found.blocks_committed
        else f" ({found.blocks} of {found.blocks_committed} image blocks)"
    )
    table = Table(title=Text(f"{found.label_set}: {found.crops:,} crops{part}"))
    table.add_column("measure")
    for name in ("mean", "std", "least", "most"):
        table.add_column(name, justify="right")
    for measure in found.measures:
        cells = (measure.mean, measure.std, measure.least, measure.most)
        table.add_row(measure.name.replace("_", " "), *map(_number, cells))
    sizes = ", ".join(
        f"{name} {least:,} to {most:,} px, median {median:,}"
        for name, (least, median, most) in found.sizes.items()
    )
    return Group(
        table,
        Text(
            f"teacher {found.teacher} at temperature {found.temperature:g}: top-1 {percent(found.top1)}, "
            f"top-5 {percent(found.top5)} of the crops; flipped {percent(found.flip_rate)}"
        ),
        Text(f"images: {sizes}"),
    )


def render_classes(found: Profile) -> RenderableType:
    """One row per class, the ones that the teacher agrees with least first."""
    table = Table(title=Text(f"{found.label_set}: {len(found.classes):,} classes"))
    table.add_column("class")
    for name in ("images", "crops", "max p", "ground-truth p", "entropy", "area", "top-1", "top-5"):
        table.add_column(name, justify="right")
    for row in sorted(found.classes, key=lambda row: (row.top1 is None, row.top1, row.name)):
        table.add_row(
            Text(short(row.title) or "no ground truth"),
            f"{row.images:,}",
            f"{row.crops:,}",
            _number(row.max_probability),
            _number(row.ground_truth_probability),
            _number(row.entropy),
            _number(row.area),
            percent(row.top1),
            percent(row.top5),
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
