"""`labelstore calibrate`: a mask of region codes for every crop of a label set (FerKD Eq. 4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cli.mask_output import say_mask
from cli.options import Dask, DryRun, Json, LabelSet, Processes, Store, numbers
from cli.output import print_json, print_table, say
from cli.progress import Progress

if TYPE_CHECKING:
    from labelstore.calibration import Criterion, Preview, RegionQuantiles, RegionThresholds

RULE = "Rule"


def calibrate(
    store: Store,
    label_set: LabelSet = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the mask.")] = "ferkd",
    low: Annotated[
        float | None,
        typer.Option(
            help="Crops below it are discarded.", show_default="0.15", rich_help_panel=RULE
        ),
    ] = None,
    middle: Annotated[
        float | None,
        typer.Option(
            help="From low to below it the label becomes the ground truth.",
            show_default="0.30",
            rich_help_panel=RULE,
        ),
    ] = None,
    top: Annotated[
        float | None,
        typer.Option(
            help="Crops above it are discarded.", show_default="0.95", rich_help_panel=RULE
        ),
    ] = None,
    quantiles: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,MIDDLE,TOP",
            help="Shares of the crops instead of thresholds, for example 0.05,0.15,0.90.",
            rich_help_panel=RULE,
        ),
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(
            metavar="max_probability|ground_truth_probability",
            help="Which probability the thresholds are for.",
            rich_help_panel=RULE,
        ),
    ] = "max_probability",
    epsilon: Annotated[
        float,
        typer.Option(
            help="In hard regions the ground truth gets 1 - epsilon.", rich_help_panel=RULE
        ),
    ] = 0.1,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Extend the mask to crops that the store has grown by, with the thresholds it has.",
        ),
    ] = False,
    workers: Processes = None,
    dask: Dask = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make a mask: which crops a student skips and which get the ground truth (FerKD Eq. 4).

    Thresholds do not carry over between teachers: look at --dry-run first, which counts what this choice
    and the usual ones would discard and calibrate, or give --quantiles.
    """
    import labelstore
    from labelstore.blocks.block_map import block_map
    from labelstore.calibration import preview, preview_of, usual_choices

    rule = _rule(low, middle, top, quantiles, criterion, epsilon)
    if update:
        given = (low, middle, top, quantiles, criterion, epsilon)
        _update(
            store, name, label_set, given, workers=workers, dask=dask, dry_run=dry_run, json=json
        )
        return
    with (
        labelstore.open(store, readonly=dry_run) as opened,
        block_map(workers=workers, dask=dask) as map_blocks,
    ):
        labels = opened.label_set(label_set)
        if dry_run:
            # all of them give some crops the ground truth
            usual = usual_choices(rule.criterion, epsilon) if labels.outputs_are_classes else {}
            # the defaults are FerKD's own: listed once, under their name
            asked = {} if rule in usual.values() else {"this choice": rule}
            found = preview(labels, asked | usual, map_blocks=map_blocks)
            _show(found, json=json)
            return
        with Progress("mask", "crops") as progress:
            mask = labelstore.calibrate(
                labels, rule, name=name, map_blocks=map_blocks, progress=progress
            )
        counted = preview_of(labels, mask, map_blocks=map_blocks)
    _show(counted, json=json, title=f"what mask {name} does", store=store, mask=name)
    say_mask(counted, name, store)


def _update(
    store: Path,
    name: str,
    label_set: str | None,
    rule: tuple[object, ...],
    *,
    workers: int | None,
    dask: str | None,
    dry_run: bool,
    json: bool,
) -> None:
    import labelstore
    from labelstore import calibration
    from labelstore.blocks.block_map import block_map
    from labelstore.errors import UsageError

    if rule != (None, None, None, None, "max_probability", 0.1):
        raise UsageError(
            "--update keeps the mask's rule: leave thresholds, quantiles, criterion and epsilon out, "
            "or make another mask with --name"
        )
    with (
        labelstore.open(store, readonly=dry_run) as opened,
        block_map(workers=workers, dask=dask) as map_blocks,
    ):
        mask = opened.mask(name)
        given = None if label_set is None else opened.label_set(label_set)
        labels = calibration.check_update(opened, name, given)
        if dry_run:
            settled = calibration.rule_from_record(mask.row.rule)
            counted = calibration.preview(labels, {name: settled}, map_blocks=map_blocks)
        else:
            with Progress("mask", "crops") as progress:
                extended = calibration.update(
                    opened, name, given, map_blocks=map_blocks, progress=progress
                )
            counted = calibration.preview_of(labels, extended, map_blocks=map_blocks)
    would = "would do" if dry_run else "does"
    _show(counted, json=json, title=f"what mask {name} {would}", store=store, mask=name)
    did = "would cover" if dry_run else "covers"
    say(
        f"mask {name} of {store} {did} {labels.num_crops} crops of each image, before {mask.num_crops}"
    )


def _show(
    found: Preview, *, json: bool, title: str = "what each choice would do", **more: object
) -> None:
    if json:
        print_json(more | found.to_record())
        return
    from cli.render_stats import render_preview

    print_table(render_preview(found, title))


def _rule(
    low: float | None,
    middle: float | None,
    top: float | None,
    quantiles: str | None,
    criterion: str,
    epsilon: float,
) -> RegionThresholds | RegionQuantiles:
    from labelstore.calibration import RegionQuantiles, RegionThresholds
    from labelstore.errors import UsageError

    chosen = cast("Criterion", criterion)
    given = {"low": low, "middle": middle, "top": top}
    thresholds = {name: value for name, value in given.items() if value is not None}
    if quantiles is None:
        return RegionThresholds(**thresholds, criterion=chosen, epsilon=epsilon)
    if thresholds:
        raise UsageError(
            f"--quantiles and --{next(iter(thresholds))} together: give shares of the crops or thresholds"
        )
    shares = zip(given, numbers(quantiles, "--quantiles", "LOW", "MIDDLE", "TOP"), strict=True)
    return RegionQuantiles(**dict(shares), criterion=chosen, epsilon=epsilon)
