"""Commands that make a mask of region codes: `labelstore calibrate` by thresholds (FerKD Eq. 4), `mask` by queries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from cli.field_options import numbers, option, with_options
from cli.output import answer, say
from cli.progress import Progress
from cli.shared_options import BlockOptions, Criterion, DryRun, Json, LabelSet, Store, open_to_write

if TYPE_CHECKING:
    from labelstore.calibration import Preview, RegionQuantiles, RegionThresholds


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """FerKD's rule: thresholds, or shares of the crops."""

    PANEL: ClassVar = "Rule"

    low: Annotated[float | None, option(unset="0.15")] = None
    """Crops below it are discarded."""
    middle: Annotated[float | None, option(unset="0.30")] = None
    """From low to below it the label becomes the ground truth."""
    top: Annotated[float | None, option(unset="0.95")] = None
    """Crops above it are discarded."""
    quantiles: Annotated[str | None, option(metavar="LOW,MIDDLE,TOP")] = None
    """Shares of the crops instead of thresholds, for example 0.05,0.15,0.90."""
    criterion: Criterion = "max_probability"
    """Which probability the thresholds are for."""
    epsilon: float = 0.1
    """In hard regions the ground truth gets 1 - epsilon."""

    def rule(self) -> RegionThresholds | RegionQuantiles:
        """As the library takes it; UsageError for what is none."""
        from labelstore.calibration import RegionQuantiles, RegionThresholds
        from labelstore.errors import UsageError

        names = ("low", "middle", "top")
        thresholds = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        more: dict[str, Any] = {"criterion": self.criterion, "epsilon": self.epsilon}
        if self.quantiles is None:
            return RegionThresholds(**thresholds, **more)
        if thresholds:
            raise UsageError(
                f"--quantiles and --{next(iter(thresholds))} together: give shares of the crops or thresholds"
            )
        shares = numbers(self.quantiles, "--quantiles", "LOW", "MIDDLE", "TOP")
        return RegionQuantiles(**(dict(zip(names, shares, strict=True)) | more))


@with_options
def calibrate(
    store: Store,
    label_set: LabelSet = None,
    name: Annotated[str, option(metavar="NAME", help="Name of the mask.")] = "ferkd",
    *,
    rule: RuleOptions,
    update: Annotated[
        bool,
        option(
            "--update",
            help="Extend the mask to crops that the store has grown by, with the thresholds it has.",
        ),
    ] = False,
    blocks: BlockOptions,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make a mask: which crops a student skips and which get the ground truth (FerKD Eq. 4).

    Thresholds do not carry over between teachers: look at --dry-run first, which counts what this choice
    and the usual ones would discard and calibrate, or give --quantiles.
    """
    import labelstore
    from labelstore.calibration import check_calibrate, preview, preview_of, usual_choices

    wanted = rule.rule()
    if update:
        _update(store, name, label_set, rule, blocks, dry_run=dry_run, json=json)
        return
    with open_to_write(store, dry_run=dry_run) as opened, blocks.mapped() as map_blocks:
        labels = opened.label_set(label_set)
        if dry_run:
            check_calibrate(labels, wanted, name=name, map_blocks=map_blocks)
            # all of them give some crops the ground truth
            classes = labels.outputs_are_classes
            usual = usual_choices(wanted.criterion, wanted.epsilon) if classes else {}
            # the defaults are FerKD's own: listed once, under their name
            asked = {} if wanted in usual.values() else {"this choice": wanted}
            _show(preview(labels, asked | usual, map_blocks=map_blocks), json=json)
            return
        with Progress("mask", "crops") as progress:
            made = labelstore.calibrate(
                labels, wanted, name=name, map_blocks=map_blocks, progress=progress
            )
        counted = preview_of(labels, made, map_blocks=map_blocks)
    _show(counted, json=json, title=f"what mask {name} does", store=store, mask=name)
    _say_mask(counted, name, store)


def _update(
    store: Path,
    name: str,
    label_set: str | None,
    rule: RuleOptions,
    blocks: BlockOptions,
    *,
    dry_run: bool,
    json: bool,
) -> None:
    from labelstore import calibration
    from labelstore.errors import UsageError

    if rule != RuleOptions():
        raise UsageError(
            "--update keeps the mask's rule: leave thresholds, quantiles, criterion and epsilon out, "
            "or make another mask with --name"
        )
    with open_to_write(store, dry_run=dry_run) as opened, blocks.mapped() as map_blocks:
        before = opened.mask(name)
        given = None if label_set is None else opened.label_set(label_set)
        labels = calibration.check_update(opened, name, given)
        if dry_run:
            settled = calibration.rule_from_record(before.row.rule)
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
        f"mask {name} of {store} {did} {labels.num_crops} crops of each image, before {before.num_crops}"
    )


@with_options
def mask(
    store: Store,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the mask.")],
    label_set: LabelSet = None,
    discard: Annotated[
        str | None,
        option(
            metavar="CONDITION",
            help='Crops that are never drawn: "area < 0.1 and max_probability < 0.2".',
        ),
    ] = None,
    harden: Annotated[
        str | None,
        option(metavar="CONDITION", help="Crops whose label becomes the ground truth."),
    ] = None,
    epsilon: Annotated[
        float, option(help="A hardened label's ground truth gets 1 - epsilon.")
    ] = 0.1,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make a mask by conditions over the columns of a crop (`labelstore crops STORE --columns help` lists them).

    Train with it as with a mask of `labelstore calibrate`, which also extends it after `grow`: --update --name NAME.
    """
    import labelstore
    from labelstore.calibration import RegionQuery, check_calibrate, preview, preview_of

    rule = RegionQuery(discard=discard, harden=harden, epsilon=epsilon)
    with open_to_write(store, dry_run=dry_run) as opened:
        labels = opened.label_set(label_set)
        if dry_run:
            check_calibrate(labels, rule, name=name)
            counted = preview(labels, {name: rule})
        else:
            with Progress("mask", "crops") as progress:
                made = labelstore.calibrate(labels, rule, name=name, progress=progress)
            counted = preview_of(labels, made)
    title = f"what mask {name} {'would do' if dry_run else 'does'}"
    _show(counted, json=json, title=title, store=store, mask=name, dry_run=dry_run)
    if not dry_run:
        _say_mask(counted, name, store)


def _show(
    counted: Preview, *, json: bool, title: str = "what each choice would do", **more: object
) -> None:
    from cli.render_stats import render_preview

    answer(more | counted.to_record(), render_preview(counted, title), json=json)


def _say_mask(counted: Preview, name: str, store: Path) -> None:
    """Say which store has the mask, and how to train with it where it leaves a crop to train on."""
    usable = sum(choice.counts.usable for choice in counted.choices)
    use = f"train with --labels ferkd --mask {name}" if usable else "it discards every crop"
    say(f"mask {name} is in {store}: {use}")
