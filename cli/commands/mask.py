"""`labelstore mask`: a mask by conditions instead of calibration's thresholds."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.mask_output import say_mask
from cli.options import DryRun, Json, LabelSet, Store
from cli.output import print_json, print_table
from cli.progress import Progress


def mask(
    store: Store,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the mask.")],
    label_set: LabelSet = None,
    discard: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help='Crops that are never drawn: "area < 0.1 and max_probability < 0.2".',
        ),
    ] = None,
    harden: Annotated[
        str | None,
        typer.Option(metavar="CONDITION", help="Crops whose label becomes the ground truth."),
    ] = None,
    epsilon: Annotated[
        float, typer.Option(help="A hardened label's ground truth gets 1 - epsilon.")
    ] = 0.1,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make a mask by conditions over the columns of a crop (`labelstore crops STORE --columns help` lists them).

    Train with it as with a mask of `labelstore calibrate`, which also extends it after `grow`: --update --name NAME.
    """
    import labelstore
    from labelstore.calibration import RegionQuery, preview, preview_of

    rule = RegionQuery(discard=discard, harden=harden, epsilon=epsilon)
    with labelstore.open(store, readonly=dry_run) as opened:
        labels = opened.label_set(label_set)
        if dry_run:
            counted = preview(labels, {name: rule})
        else:
            with Progress("mask", "crops") as progress:
                made = labelstore.calibrate(labels, rule, name=name, progress=progress)
            counted = preview_of(labels, made)
    if json:
        print_json({"store": store, "mask": name, "dry_run": dry_run} | counted.to_record())
    else:
        from cli.render_stats import render_preview

        would = "would do" if dry_run else "does"
        print_table(render_preview(counted, f"what mask {name} {would}"))
    if not dry_run:
        say_mask(counted, name, store)
