"""Commands whose answer is one table: `labelstore crops`, `sql`, `quality`, `noise`, `classes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from cli.field_options import option, with_options
from cli.file_output import RowOptions
from cli.output import print_all, print_json, say
from cli.shared_options import DryRun, LabelSet, Seed, Store, open_to_write


@dataclass(frozen=True, kw_only=True)
class CropSelection:
    """Columns and crops of a table."""

    label_set: LabelSet = None
    columns: Annotated[str | None, option(metavar="NAME,NAME")] = None
    """Columns, separated by commas; --columns help lists them."""
    where: Annotated[str | None, option(metavar="CONDITION")] = None
    """Only crops that satisfy it: "area < 0.1 and max_probability < 0.2"."""
    images: Annotated[str | None, option(metavar="KEY,KEY")] = None
    """Only crops of these images: keys or row numbers."""
    sample: Annotated[float | None, option(metavar="NUMBER|SHARE")] = None
    """So many of them, or below 1 a share of all crops."""
    seed: Seed = 0
    mask: Annotated[str | None, option(metavar="NAME")] = None
    """Mask for the column region."""


@with_options
def crops(store: Store, wanted: CropSelection, rows: RowOptions) -> None:
    """Print a table with one row per crop: box, flip, probabilities, entropy, the teacher's class.

    Only the arrays that the columns need are read, one image block at a time.
    """
    import labelstore
    from labelstore.analysis.arrow_batches import crop_batches
    from labelstore.blocks.columns import COLUMNS

    columns = None
    if wanted.columns is not None:
        columns = [name.strip() for name in wanted.columns.split(",")]
    if columns == ["help"]:
        print_all(*(f"{name:<26}{column.about}" for name, column in COLUMNS.items()))
        return
    with labelstore.open(store, readonly=True) as opened:
        labels = opened.label_set(wanted.label_set)
        reader = crop_batches(
            labels,
            columns,
            where=wanted.where,
            images=None if wanted.images is None else _images(wanted.images),
            sample=wanted.sample,
            seed=wanted.seed,
            mask=wanted.mask,
        )
        rows.write(reader, title=f"{labels.name}: crops")


def _images(text: str) -> list[str] | list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        from labelstore.errors import UsageError

        raise UsageError(f"--images {text}: give keys or row numbers with one comma between them")
    if all(part.isascii() and part.isdigit() for part in parts):
        return [int(part) for part in parts]
    return parts


@with_options
def sql(
    store: Store,
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="QUERY", help="One SELECT; without it, the tables and their columns."
        ),
    ] = None,
    label_set: LabelSet = None,
    mask: Annotated[
        str | None,
        option(metavar="NAME", help="Mask for the column region; not needed if there is only one."),
    ] = None,
    memory_limit: Annotated[
        str,
        option(metavar="SIZE", help="Memory of the query; the rest goes to a temporary folder."),
    ] = "2GB",
    *,
    rows: RowOptions,
) -> None:
    """Answer one SELECT over the catalogue's tables and the crops, which are read as the query needs them.

    Tables: images, classes, teachers, plans, label_sets, masks, shards, runs, results; crops of the label set
    (--label-set where there are several), and crops_NAME of each. Nothing can be written, and no other file read.
    """
    import labelstore
    from cli.output import answer
    from labelstore.analysis.sql import sql_batches, sql_columns

    with labelstore.open(store, readonly=True) as opened:
        if query is None:
            tables = sql_columns(opened, label_set=label_set)
            joined = {name: ", ".join(names) for name, names in tables.items()}
            answer(tables, joined, json=rows.json)
            return
        with sql_batches(
            opened, query, label_set=label_set, mask=mask, memory_limit=memory_limit
        ) as reader:
            rows.write(reader)


@with_options
def quality(
    store: Store,
    label_set: Annotated[
        str | None,
        option("--label-set", metavar="NAME,NAME", help="Label sets to compare; all if not given."),
    ] = None,
    per_class: Annotated[
        bool, option("--per-class", help="One row per pair and class, as FKD Fig. 3 draws them.")
    ] = False,
    sample: Annotated[
        float,
        option(
            metavar="SHARE",
            help="Share of the image blocks to look at: to the nearest block, always the same ones, spread evenly.",
        ),
    ] = 1.0,
    *,
    rows: RowOptions,
) -> None:
    """Show the cross-entropy between label sets, and to the ground truth, over equal crops (FKD Fig. 3)."""
    import pandas as pd

    import labelstore
    from labelstore.analysis.comparison import compare

    with labelstore.open(store, readonly=True) as opened:
        names = opened.label_sets if label_set is None else label_set.split(",")
        label_sets = [opened.label_set(name.strip()) for name in names]
        compared = compare(label_sets, ground_truth=True, js=False, share=sample)
    if rows.json:
        classes = {"classes": compared.by_class().to_dict("records")} if per_class else {}
        print_json({"store": store} | compared.to_record() | classes)
        return
    frame = compared.by_class() if per_class else pd.DataFrame(compared.to_record()["pairs"])
    rows.write(frame, title=f"-sum P_b log P_a over {int(compared.crops.sum()):,} crops, nats")


@with_options
def noise(
    store: Store,
    label_set: LabelSet = None,
    confidence: Annotated[
        float, option(help="Probability above which the teacher is taken at its word.")
    ] = 0.7,
    min_share: Annotated[
        float, option(help="Share of an image's crops that must say the same wrong class.")
    ] = 0.5,
    limit: Annotated[int, option(help="Images to list.")] = 50,
    duplicates: Annotated[
        bool, option("--duplicates", help="List images with equal bytes or equal names instead.")
    ] = False,
    *,
    rows: RowOptions,
) -> None:
    """List images whose ground truth the teacher contradicts with confidence, the worst first."""
    import labelstore
    from labelstore.analysis.noise import duplicates as find_duplicates
    from labelstore.analysis.noise import label_noise
    from labelstore.store.label_outputs import short

    with labelstore.open(store, readonly=True) as opened:
        if duplicates:
            twice = find_duplicates(opened)
            if rows.json:
                print_json({"store": store, "duplicates": twice.to_dict("records")})
                return
            rows.write(twice, title="images that are there more than once")
            say(f"{len(twice)} images in {twice['group'].nunique()} groups")
            return
        suspects = label_noise(
            opened.label_set(label_set), confidence=confidence, min_share=min_share, limit=limit
        )
    if rows.json:
        print_json({"store": store} | suspects.to_record())
        return
    frame = suspects.images
    if rows.form == "table":
        # for people: what the classes are, not what their folders are called
        names = {
            name: [short(n) for n in frame.pop(f"{name}_name")] for name in ("class", "suggested")
        }
        frame = frame.assign(**names)
    rows.write(frame, f"{suspects.label_set}: images that the teacher takes for another class")
    say(f"{suspects.num_suspects:,} of {suspects.num_images:,} images")


@with_options
def classes(
    store: Store,
    label_set: LabelSet = None,
    class_map: Annotated[
        str | None,
        option(
            metavar="FILE",
            help="Record which output is which class: CSV lines `class name,output`, or wnid for ImageNet folders.",
        ),
    ] = None,
    class_names: Annotated[
        str | None,
        option(
            metavar="FILE",
            help="Record names of the teacher's outputs: one per line, or imagenet-1k, -12k, -21k, -22k.",
        ),
    ] = None,
    embedding: Annotated[
        bool,
        option("--embedding", help="Record that the outputs are no classes but an embedding."),
    ] = False,
    dry_run: DryRun = False,
    *,
    rows: RowOptions,
) -> None:
    """Show the classes of the images, their names and outputs in a label set; record them where nothing says it."""
    import labelstore
    from labelstore.labelling.stating import class_table, state_classes

    states = class_map is not None or class_names is not None or embedding
    with (
        open_to_write(store, dry_run=dry_run) if states else labelstore.open(store, readonly=True)
    ) as opened:
        labels = opened.label_set(label_set)
        if states:
            labels = state_classes(
                labels,
                class_map=class_map,
                class_names=class_names,
                embedding=embedding,
                dry_run=dry_run,
            )
        table = class_table(labels)
        what = labels.outputs.describe(labels.num_classes)
        record = {"store": store, "label_set": labels.name, "outputs_are": labels.outputs.kind}
    if rows.json:
        print_json({**record, "outputs": what, "classes": table.to_dict("records")})
        return
    rows.write(table, title=f"{labels.name}: {what}")
    if states and dry_run:
        say("nothing was recorded: a dry run")
