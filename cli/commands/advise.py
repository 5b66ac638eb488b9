"""`labelstore advise`: what calibration would do for a grid of thresholds and quantiles; what a byte budget buys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from cli.frame_output import Format, Out, chosen_format, frame_reader, write_rows
from cli.options import Json, LabelSet, Store, numbers
from cli.output import parsed_size, print_json, say, size


def advise(
    store: Store,
    label_set: LabelSet = None,
    low: Annotated[
        str | None,
        typer.Option(metavar="P,P", help="Values of low to try.", show_default="0,0.1,0.15,0.2"),
    ] = None,
    middle: Annotated[
        str | None,
        typer.Option(metavar="P,P", help="Values of middle to try.", show_default="0.2,0.3,0.4"),
    ] = None,
    top: Annotated[
        str | None,
        typer.Option(metavar="P,P", help="Values of top to try.", show_default="0.9,0.95,1"),
    ] = None,
    quantiles: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOW,MIDDLE,TOP", help="Shares of the crops to try; may be given several times."
        ),
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(
            metavar="max_probability|ground_truth_probability",
            help="Which probability is compared.",
        ),
    ] = "max_probability",
    per_class: Annotated[
        bool,
        typer.Option("--per-class", help="One row per rule and class instead of one per rule."),
    ] = False,
    hardest: Annotated[int, typer.Option(help="Classes hit hardest to name per rule.")] = 3,
    examples: Annotated[
        int, typer.Option(help="Example crops per region of the first rule, in a second table.")
    ] = 0,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Show how much the labels of an image's crops scatter, how that falls with M, and how many crops per "
            "image so many bytes buy (285MB, 1.5GB).",
        ),
    ] = None,
    for_images: Annotated[
        int | None,
        typer.Option(
            help="With --budget: images that the bytes are for.", show_default="the store's"
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="With --budget: T of the labels compared.", show_default="as made"),
    ] = None,
    format: Format = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Show what many choices of thresholds and quantiles would discard, calibrate and keep, overall and by class.

    Nothing is written; the counts are those that `labelstore calibrate` with the same choice comes to. With --budget it
    is about how many crops to store instead.
    """
    if budget is not None:
        rules = (low, middle, top, quantiles, per_class, examples, criterion != "max_probability")
        _refuse_rules(any(rules))
        _advise_budget(
            store,
            label_set,
            budget,
            for_images=for_images,
            temperature=temperature,
            worst=hardest,
            format=format,
            out=out,
            json=json,
        )
        return
    _refuse_without_budget(for_images, temperature)
    import labelstore
    from cli.advice_frames import choice_rows, class_rows, shown_rows
    from labelstore.analysis import advice
    from labelstore.analysis.advice import example_crops
    from labelstore.calibration import Criterion, RegionThresholds
    from labelstore.errors import UsageError

    form = chosen_format(format, out, json=json)
    if criterion not in get_args(Criterion):
        raise UsageError(f"--criterion {criterion}: choose {' or '.join(get_args(Criterion))}")
    if hardest < 0 or examples < 0:
        raise UsageError(f"--hardest {hardest} --examples {examples}: give numbers from 0 on")
    if examples and not json and out is None and form in ("csv", "json"):
        raise UsageError(
            f"--examples {examples} with --format {form}: they are a second table with columns of its own; use --json, "
            "a table, or --out FILE for the first"
        )
    with labelstore.open(store, readonly=True) as opened:
        labels = opened.label_set(label_set)
        found = advice.advise(
            labels,
            low=_values(low, "--low", advice.LOW),
            middle=_values(middle, "--middle", advice.MIDDLE),
            top=_values(top, "--top", advice.TOP),
            quantiles=_shares(quantiles, advice.QUANTILES),
            criterion=cast("Criterion", criterion),
        )
        first = found.choices[0].rule
        assert isinstance(first, RegionThresholds)
        shown = example_crops(labels, first, per_region=examples) if examples else None
    if json:
        record = found.to_record(hardest=hardest, per_class=per_class)
        more = {} if shown is None else {"examples": shown.to_dict("records")}
        print_json({"store": store} | record | more)
        return
    if per_class:
        frame = class_rows(found)
    else:
        to_read = form in ("table", "md")
        frame = (shown_rows if to_read else choice_rows)(found, hardest=hardest)
    write_rows(
        frame_reader(frame),
        form,
        out,
        title=f"{found.preview.label_set}: what each choice would do",
    )
    if shown is not None:
        title = f"crops under {found.choices[0].title}"
        write_rows(frame_reader(shown), "table" if out else form, None, title=title)
    if not found.preview.is_complete:
        say("unfinished label set: only committed crops are counted")


def _values(text: str | None, flag: str, usual: tuple[float, ...]) -> tuple[float, ...]:
    from labelstore.errors import UsageError

    if text is None:
        return usual
    if not text.strip():
        raise UsageError(f"{flag} is empty: give one or more numbers with commas between them")
    return numbers(text, flag, *(["P"] * (text.count(",") + 1)))


def _shares(
    given: list[str] | None, usual: tuple[tuple[float, float, float], ...]
) -> list[tuple[float, float, float]]:
    if not given:
        return list(usual)
    found = []
    for text in given:
        low, middle, top = numbers(text, "--quantiles", "LOW", "MIDDLE", "TOP")
        found.append((low, middle, top))
    return found


def _refuse_rules(given: bool) -> None:
    from labelstore.errors import UsageError

    if given:
        raise UsageError(
            "--budget with options of thresholds and quantiles: these are two questions; ask one at a time"
        )


def _refuse_without_budget(for_images: int | None, temperature: float | None) -> None:
    from labelstore.errors import UsageError

    if for_images is not None or temperature is not None:
        raise UsageError("--for-images and --temperature without --budget: give a budget, too")


def _advise_budget(
    store: Path,
    label_set: str | None,
    budget: str,
    *,
    for_images: int | None,
    temperature: float | None,
    worst: int,
    format: str | None,
    out: Path | None,
    json: bool,
) -> None:
    import labelstore
    from cli.advice_frames import bought_rows, drift_rows
    from labelstore.analysis.scatter import scatter
    from labelstore.errors import UsageError

    form = chosen_format(format, out, json=json)
    if worst < 0:
        raise UsageError(f"--hardest {worst}: give a number from 0 on")
    with labelstore.open(store, readonly=True) as opened:
        found = scatter(
            opened.label_set(label_set),
            temperature=temperature,
            budget=parsed_size(budget, "--budget"),
            for_images=for_images,
            worst=worst,
        )
    if json:
        print_json({"store": store} | found.to_record())
        return
    to_read = form in ("table", "md")
    if to_read:
        title = f"{found.label_set}: drift of the mean of M labels from that of ever new crops"
        write_rows(frame_reader(drift_rows(found)), form, None, title=title)
    title = f"what {size(found.budget)} buy for {found.for_images:,} images"
    write_rows(frame_reader(bought_rows(found, to_read=to_read)), form, out, title=title)
    say(
        f"labels at T={found.temperature:g}: trace of an image's covariance {found.trace:.3g} on average, half of the "
        f"images above {found.median:.3g}, a tenth above {found.top_decile:.3g}"
    )
    if found.worst:
        keys = ", ".join(f"{key} ({trace:.3g})" for key, trace in found.worst)
        say(f"scattering most: {keys}")
