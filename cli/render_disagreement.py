"""The table of `labelstore stats --disagreement`: data in, a rich renderable out."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from labelstore.analysis.comparison import Comparisons


def render_disagreements(found: Comparisons) -> RenderableType:
    """One row per pair of label sets, and a line for each pair that cannot be compared."""
    table = Table(
        title="how far label sets disagree, over the crops that both label",
        caption="divergences are means in nats: KL(first || second), the reverse, Jensen-Shannon (at most 0.693)",
    )
    table.add_column("first")
    table.add_column("second")
    for title in ("crops", "same top-1", "KL", "KL reversed", "JS", "worst JS"):
        table.add_column(title, justify="right")
    for pair in found.pairs:
        agreement = pair.top1_agreement
        cells = [
            *(_named(name, who) for name, who in zip(pair.label_sets, pair.teachers, strict=True)),
            f"{pair.num_crops:,}",
            "-" if agreement is None else f"{100 * agreement:.2f} %",
            *map(_nats, (pair.kl, pair.kl_reversed, pair.js, pair.js_worst)),
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return Group(table, *(Text(f"not compared: {why}") for why in found.refused))


def _named(label_set: str, teacher: str) -> str:
    return label_set if label_set == teacher else f"{label_set} ({teacher})"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
