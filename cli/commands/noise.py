"""`labelstore noise`: images that may be labelled wrongly, and images that are there twice."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.frame_output import Format, Out, chosen_format, frame_reader, write_rows
from cli.options import Json, LabelSet, Store
from cli.output import print_json, say


def noise(
    store: Store,
    label_set: LabelSet = None,
    confidence: Annotated[
        float, typer.Option(help="Probability above which the teacher is taken at its word.")
    ] = 0.7,
    min_share: Annotated[
        float, typer.Option(help="Share of an image's crops that must say the same wrong class.")
    ] = 0.5,
    limit: Annotated[int, typer.Option(help="Images to list.")] = 50,
    duplicates: Annotated[
        bool,
        typer.Option("--duplicates", help="List images with equal bytes or equal names instead."),
    ] = False,
    format: Format = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """List images whose ground truth the teacher contradicts with confidence, the worst first."""
    import labelstore
    from labelstore.analysis.duplicates import duplicates as find_duplicates
    from labelstore.analysis.noise import label_noise
    from labelstore.store.label_outputs import short

    form = chosen_format(format, out, json=json)
    with labelstore.open(store, readonly=True) as opened:
        if duplicates:
            twice = find_duplicates(opened)
            if json:
                print_json({"store": store, "duplicates": twice.to_dict("records")})
                return
            write_rows(frame_reader(twice), form, out, title="images that are there more than once")
            say(f"{len(twice)} images in {twice['group'].nunique()} groups")
            return
        found = label_noise(
            opened.label_set(label_set), confidence=confidence, min_share=min_share, limit=limit
        )
    if json:
        print_json({"store": store} | found.to_record())
        return
    title = f"{found.label_set}: images that the teacher takes for another class"
    rows = found.images
    if form == "table":
        # for people: what the classes are, not what their folders are called
        named = {
            name: [short(n) for n in rows.pop(f"{name}_name")] for name in ("class", "suggested")
        }
        rows = rows.assign(**named)
    write_rows(frame_reader(rows), form, out, title=title)
    say(f"{found.num_suspects:,} of {found.num_images:,} images")
