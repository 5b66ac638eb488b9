"""`labelstore advise`: what calibration would do for a grid of thresholds and quantiles; what a byte budget buys."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cli.field_options import numbers, option, with_options
from cli.file_output import RowOptions
from cli.output import percent, print_json, say, size
from cli.shared_options import Criterion, LabelSet, Store, parsed_size

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.analysis.advice import Advice
    from labelstore.analysis.scatter import Scatter
    from labelstore.calibration.choices import Choice


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rules to try."""

    low: Annotated[str | None, option(metavar="P,P", unset="0,0.1,0.15,0.2")] = None
    """Values of low to try."""
    middle: Annotated[str | None, option(metavar="P,P", unset="0.2,0.3,0.4")] = None
    """Values of middle to try."""
    top: Annotated[str | None, option(metavar="P,P", unset="0.9,0.95,1")] = None
    """Values of top to try."""
    quantiles: Annotated[list[str] | None, option(metavar="LOW,MIDDLE,TOP")] = None
    """Shares of the crops to try; may be given several times."""
    criterion: Criterion = "max_probability"
    """Which probability is compared."""
    per_class: bool = False
    """One row per rule and class instead of one per rule."""
    hardest: int = 3
    """Classes hit hardest to name per rule."""
    examples: int = 0
    """Example crops per region of the first rule, in a second table."""

    def values(self, name: str, usual: tuple[float, ...]) -> tuple[float, ...]:
        """Values of one threshold; UsageError for what is none."""
        from labelstore.errors import UsageError

        text = getattr(self, name)
        if text is None:
            return usual
        if not text.strip():
            raise UsageError(
                f"--{name} is empty: give one or more numbers with commas between them"
            )
        return numbers(text, f"--{name}", *(["P"] * (text.count(",") + 1)))

    def shares(self, usual: tuple[tuple[float, float, float], ...]) -> list[Any]:
        """(low, middle, top) of each of the quantiles."""
        names = ("LOW", "MIDDLE", "TOP")
        return [numbers(text, "--quantiles", *names) for text in self.quantiles or ()] or list(
            usual
        )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many crops to store."""

    budget: Annotated[str | None, option(metavar="SIZE")] = None
    """Show how much the labels of an image's crops scatter, how that falls with M, and how many crops per image so many
    bytes buy (285MB, 1.5GB)."""
    for_images: Annotated[int | None, option(unset="the store's")] = None
    """With --budget: images that the bytes are for."""
    temperature: Annotated[float | None, option(unset="as made")] = None
    """With --budget: T of the labels compared."""


@with_options
def advise(
    store: Store, label_set: LabelSet = None, *, grid: Grid, budget: Budget, rows: RowOptions
) -> None:
    """Show what many choices of thresholds and quantiles would discard, calibrate and keep, overall and by class.

    Nothing is written; the counts are those that `labelstore calibrate` with the same choice comes to. With --budget it
    is about how many crops to store instead.
    """
    from labelstore.errors import UsageError

    if grid.hardest < 0 or grid.examples < 0:
        raise UsageError(
            f"--hardest {grid.hardest} --examples {grid.examples}: give numbers from 0 on"
        )
    if budget.budget is None:
        if budget != Budget():
            raise UsageError("--for-images and --temperature without --budget: give a budget, too")
        _advise_rules(store, label_set, grid, rows)
        return
    if grid != Grid(hardest=grid.hardest):
        raise UsageError(
            "--budget with options of thresholds and quantiles: these are two questions; ask one at a time"
        )
    _advise_budget(store, label_set, budget, rows, worst=grid.hardest)


def _advise_rules(store: Path, label_set: str | None, grid: Grid, rows: RowOptions) -> None:
    import pandas as pd

    import labelstore
    from labelstore.analysis import advice
    from labelstore.calibration import RegionThresholds
    from labelstore.errors import UsageError

    if grid.examples and not rows.json and rows.out is None and rows.form in ("csv", "json"):
        raise UsageError(
            f"--examples {grid.examples} with --format {rows.form}: they are a second table with columns of its own; "
            "use --json, a table, or --out FILE for the first"
        )
    with labelstore.open(store, readonly=True) as opened:
        labels = opened.label_set(label_set)
        advised = advice.advise(
            labels,
            low=grid.values("low", advice.LOW),
            middle=grid.values("middle", advice.MIDDLE),
            top=grid.values("top", advice.TOP),
            quantiles=grid.shares(advice.QUANTILES),
            criterion=grid.criterion,
        )
        examples = None
        if grid.examples:
            first = advised.choices[0].rule
            assert isinstance(first, RegionThresholds)
            examples = advice.example_crops(labels, first, per_region=grid.examples)
    if rows.json:
        record = advised.to_record(hardest=grid.hardest, per_class=grid.per_class)
        more = {} if examples is None else {"examples": examples.to_dict("records")}
        print_json({"store": store} | record | more)
        return
    if grid.per_class:
        frame = pd.DataFrame(
            {"choice": choice.title, **effect.to_record()}
            for choice in advised.choices
            for effect in advised.by_class(choice)
        )
    else:
        frame = (_words if rows.to_read else _figures)(advised, grid.hardest)
    rows.write(frame, title=f"{advised.preview.label_set}: what each choice would do")
    if examples is not None:
        rows.print_also(examples, f"crops under {advised.choices[0].title}")
    if not advised.preview.is_complete:
        say("unfinished label set: only committed crops are counted")


def _figures(advised: Advice, hardest: int) -> pd.DataFrame:
    """One row per choice: thresholds, crops and shares of the labelled crops as numbers."""
    import pandas as pd

    regions = ("too_hard", "hard", "important", "too_easy", "usable")
    return pd.DataFrame(
        {
            "choice": choice.title,
            **{name: getattr(choice.rule, name) for name in ("low", "middle", "top")},
            "crops": (counts := choice.counts).num_crops,
            **{name: getattr(counts, name) for name in regions},
            "discarded_share": counts.share(counts.too_hard + counts.too_easy),
            "calibrated_share": counts.share(counts.hard),
            "kept_share": counts.share(counts.important),
            "usable_share": counts.share(counts.usable),
            "images": counts.images,
            "images_without_crop": counts.images_without_crop,
            "hit_hardest": ", ".join(e.name for e in advised.hit_hardest(choice, hardest)),
        }
        for choice in advised.choices
    )


def _words(advised: Advice, hardest: int) -> pd.DataFrame:
    """The same to be read, in 80 columns: shares in percent, and how much of the classes hit hardest is lost."""
    import pandas as pd

    from labelstore.store.label_outputs import short

    def title(choice: Choice) -> str:
        rule = choice.rule.describe()
        return rule if choice.title.endswith(rule) else f"{choice.title}\n{rule}"

    return pd.DataFrame(
        {
            "choice": title(choice),
            "discarded": percent(counts.share(counts.too_hard + counts.too_easy)),
            "calibrated": percent(counts.share(counts.hard)),
            "no crop": f"{counts.images_without_crop:,}",
            "hit hardest": "\n".join(
                f"{short(effect.title, 9)} {effect.discarded_share + effect.calibrated_share:.0%}"
                for effect in advised.hit_hardest(choice, hardest)
            ),
        }
        for choice in advised.choices
        for counts in (choice.counts,)
    )


def _advise_budget(
    store: Path, label_set: str | None, budget: Budget, rows: RowOptions, *, worst: int
) -> None:
    import pandas as pd

    import labelstore
    from labelstore.analysis.scatter import scatter

    assert budget.budget is not None
    with labelstore.open(store, readonly=True) as opened:
        scattered = scatter(
            opened.label_set(label_set),
            temperature=budget.temperature,
            budget=parsed_size(budget.budget, "--budget"),
            for_images=budget.for_images,
            worst=worst,
        )
    if rows.json:
        print_json({"store": store} | scattered.to_record())
        return
    bought = pd.DataFrame(asdict(each) for each in scattered.bought)
    if rows.to_read:
        drifts = pd.DataFrame(
            {
                "crops per image": each.num_crops,
                "drift": f"{each.drift:.3g}",
                "bytes": size(each.bytes),
            }
            for each in scattered.drifts
        )
        title = f"{scattered.label_set}: drift of the mean of M labels from that of ever new crops"
        RowOptions(format=rows.form).write(drifts, title=title)
        bought = pd.DataFrame(
            {
                "form": each.form,
                "bytes are": each.basis,
                "B per crop": f"{each.bytes_per_crop:.1f}",
                "crops per image": each.num_crops,
                "drift": "-" if each.drift is None else f"{each.drift:.3g}",
            }
            for each in scattered.bought
        )
    rows.write(bought, f"what {size(scattered.budget)} buy for {scattered.for_images:,} images")
    _say_scatter(scattered)


def _say_scatter(scattered: Scatter) -> None:
    say(
        f"labels at T={scattered.temperature:g}: trace of an image's covariance {scattered.trace:.3g} on average, half "
        f"of the images above {scattered.median:.3g}, a tenth above {scattered.top_decile:.3g}"
    )
    if scattered.worst:
        keys = ", ".join(f"{key} ({trace:.3g})" for key, trace in scattered.worst)
        say(f"scattering most: {keys}")
