"""Pictures of one label set: how sure the teacher is, where the crops lie, what a mask does (FerKD Fig. 1 and 2).

Histogram and cumulative share count every crop; pictures that show single crops take a seeded sample and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from labelstore.analysis.arrow_batches import crops
from labelstore.analysis.histogram import histogram
from labelstore.errors import UsageError, check_seed
from labelstore.report.shown_image import figure_text
from labelstore.store.label_outputs import short

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from labelstore.store import LabelSet

SAMPLE = 20_000
"""Crops of a sampled picture."""
CIRCLES = 800
"""Circles that one can still tell apart."""
CLASSES = 30
"""Classes of a per-class picture: the least sure ones."""
SURE, UNSURE = "#1b6ca8", "#c8553d"
REGION_COLOURS = {
    "TOO_HARD": "#7a1f1f",
    "HARD": "#d98c3f",
    "IMPORTANT": "#2f7f5f",
    "TOO_EASY": "#8aa6c1",
}
PROBABILITY = "largest probability of the label"


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The label set and the options of one picture."""

    labels: LabelSet
    sample: int
    seed: int
    mask: str | None

    def frame(self, *columns: str, most: int | None = None) -> pd.DataFrame:
        """A sample of crops with these columns."""
        wanted = min(self.sample, most or self.sample)
        return crops(self.labels, columns, sample=wanted, seed=self.seed, mask=self.mask)


def plot(
    labels: LabelSet,
    name: str,
    *,
    mask: str | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
) -> Figure:
    """The picture of that name (`PLOTS`) as a matplotlib figure; UsageError for a name that is none.

    `regions` needs a `mask`. `sample` is the number of crops that pictures of single crops show, chosen by `seed`.
    """
    if name not in PLOTS:
        raise UsageError(f"plot {name!r}: choose one of {', '.join(PLOTS)}")
    if name == "regions" and mask is None:
        raise UsageError("plot regions: it shows what a mask does, give `mask=NAME`")
    if sample < 1:
        raise UsageError(f"`sample={sample}`: give the number of crops to show, at least 1")
    check_seed(seed)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw, about = PLOTS[name]
    note = draw(axes, _Job(labels=labels, sample=sample, seed=seed, mask=mask))
    axes.set_title(f"{about}\n{labels.name}: {note}", fontsize=10, loc="left")
    return figure


def _histogram(axes: Axes, job: _Job) -> str:
    counted = histogram(job.labels)
    for at, row in enumerate(counted.bins):
        axes.bar(at, 100 * row.ratio, color=SURE, width=0.8, label="here" if at == 0 else None)
    paper = [row.paper_ratio for row in counted.bins]
    if all(value is not None for value in paper):
        axes.plot(
            100 * np.array(paper, float), "D", color=UNSURE, label="FerKD Table 1, EfficientNet-L2"
        )
        _legend_above(axes)
    names = [f"{row.low:g}-{row.high:g}" for row in counted.bins]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_xlabel(PROBABILITY)
    axes.set_ylabel("% of the crops")
    return f"{counted.num_crops:,} crops"


def _cumulative(axes: Axes, job: _Job) -> str:
    edges = tuple(round(i / 100, 2) for i in range(101))
    counted = histogram(job.labels, edges=edges)
    shares = [0.0, *(100 * row.cumulative for row in counted.bins)]
    axes.plot(edges, shares, color=SURE, linewidth=2)
    axes.fill_between(edges, shares, color=SURE, alpha=0.12)
    marks = (0.15, 0.30, 0.95)
    axes.vlines(marks, 0, 105, color=UNSURE, linewidth=1)
    # above the axes, where no curve goes
    above = axes.secondary_xaxis("top")
    above.set_xticks(
        marks, [f"{shares[round(mark * 100)]:.1f} %\nbelow {mark:g}" for mark in marks], fontsize=8
    )
    above.tick_params(length=0)
    above.spines["top"].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 105)
    axes.set_xlabel(PROBABILITY)
    axes.set_ylabel("% of the crops below it")
    return f"{counted.num_crops:,} crops; marks are FerKD's thresholds"


def _centres(axes: Axes, job: _Job) -> str:
    frame = job.frame("centre_x", "centre_y", "area", "max_probability", most=CIRCLES)
    frame = frame.sort_values("area", ascending=False)
    drawn = axes.scatter(
        frame["centre_x"],
        frame["centre_y"],
        s=400 * frame["area"],
        c=frame["max_probability"],
        cmap="viridis",
        vmin=0,
        vmax=1,
        alpha=0.55,
        linewidths=0,
    )
    _as_image(axes)
    _bar(axes, drawn, PROBABILITY)
    return f"{len(frame):,} crops, circles as large as the crop's share of the image"


def _heatmap(axes: Axes, job: _Job) -> str:
    frame = job.frame("centre_x", "centre_y", "max_probability")
    drawn = axes.hexbin(
        frame["centre_x"],
        frame["centre_y"],
        C=frame["max_probability"],
        gridsize=24,
        cmap="viridis",
        mincnt=3,
        extent=(0, 1, 0, 1),
    )
    _as_image(axes)
    _bar(axes, drawn, f"mean {PROBABILITY}")
    return f"{len(frame):,} crops; cells of fewer than three are blank"


def _area(axes: Axes, job: _Job) -> str:
    frame = job.frame("area", "max_probability")
    axes.plot(frame["area"], frame["max_probability"], ".", color=SURE, alpha=0.15, markersize=3)
    edges = np.linspace(0, 1, 21)
    inside = np.digitize(frame["area"], edges) - 1
    middles, medians = [], []
    for at in range(20):
        chosen = frame["max_probability"][inside == at]
        if len(chosen) >= 10:
            middles.append((edges[at] + edges[at + 1]) / 2)
            medians.append(float(chosen.median()))
    axes.plot(middles, medians, "o-", color=UNSURE, markersize=4, label="median")
    if middles:
        _legend_above(axes)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("area of the crop, share of the image")
    axes.set_ylabel(PROBABILITY)
    return f"{len(frame):,} crops"


def _classes(axes: Axes, job: _Job) -> str:
    frame = job.frame("class_name", "max_probability")
    grouped = frame.groupby("class_name", observed=True)["max_probability"]
    order = grouped.median().sort_values().index[:CLASSES]
    boxes = [grouped.get_group(name).to_numpy() for name in order]
    axes.boxplot(
        boxes,
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        medianprops={"color": UNSURE},
        boxprops={"color": SURE},
    )
    names = [figure_text(short(str(name), 40)) for name in order]
    axes.set_yticks(range(1, len(names) + 1), names, fontsize=7)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel(PROBABILITY)
    axes.invert_yaxis()
    left_out = grouped.ngroups - len(order)
    more = f", {left_out:,} surer classes left out" if left_out else ""
    return f"{len(frame):,} crops by ground truth, the least sure class first{more}"


def _regions(axes: Axes, job: _Job) -> str:
    frame = job.frame("class_name", "region")
    shares = (
        frame.groupby("class_name", observed=True)["region"]
        .value_counts(normalize=True)
        .unstack(fill_value=0)
    )
    shares = shares.reindex(columns=list(REGION_COLOURS), fill_value=0)
    order = (1 - shares["IMPORTANT"]).sort_values(ascending=False).index[:CLASSES]
    start = np.zeros(len(order))
    for region, colour in REGION_COLOURS.items():
        width = 100 * shares.loc[order, region].to_numpy(float)
        label = region.lower().replace("_", " ")
        axes.barh(range(len(order)), width, left=start, color=colour, label=label, height=0.8)
        start += width
    names = [figure_text(short(str(name), 40)) for name in order]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the class's crops")
    axes.legend(frameon=False, ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, -0.28))
    return f"mask {job.mask}, {len(frame):,} crops, the class hit hardest first"


def _legend_above(axes: Axes) -> None:
    """A legend above the axes on the right, where nothing is drawn."""
    axes.legend(
        frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0
    )


def _as_image(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)
    axes.set_aspect("equal")
    axes.set_xlabel("centre of the crop, share of the image's width")
    axes.set_ylabel("share of its height")


def _bar(axes: Axes, drawn: Any, words: str) -> None:  # noqa: ANN401 - any mappable
    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.85)
    bar.set_label(words)
    if bar.solids is not None:
        bar.solids.set_alpha(1)


PLOTS: dict[str, tuple[Callable[[Axes, _Job], str], str]] = {
    "histogram": (_histogram, "Crops by how sure the teacher is (FerKD Table 1)"),
    "cumulative": (_cumulative, "Share of crops below a probability (FerKD Fig. 2)"),
    "centres": (_centres, "Where crops lie and how sure the teacher is of them (FerKD Fig. 1)"),
    "heatmap": (_heatmap, "Mean probability by where the crop lies"),
    "area": (_area, "Probability by the area of the crop"),
    "classes": (_classes, "Probability by class"),
    "regions": (_regions, "What a mask does to the classes (FerKD Eq. 4)"),
}
"""Name -> how it is drawn, and its title."""
