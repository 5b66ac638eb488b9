"""`labelstore leases`: which worker holds which image block, and how to take it away."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import DryRun, Json, Store
from cli.output import print_json, visible
from cli.progress import duration


def leases(
    store: Store,
    break_: Annotated[
        list[str] | None,
        typer.Option(
            "--break",
            metavar="PROCESS",
            help="Take the leases of this worker away, as listed: 'process 4321 on node7'; may be given several times.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """List the image blocks that workers hold, until when; --break frees those of a worker that will not come back.

    A lease that is not renewed runs out by itself after two minutes, and a dead worker's of this machine is not waited
    for at all. A worker that is alive after all leases again: nothing that is committed is lost.
    """
    import labelstore
    from labelstore.care.held_leases import break_leases, held_leases

    breaking = bool(break_) and not dry_run
    with labelstore.open(store, readonly=not breaking) as opened:
        found = break_leases(opened, break_ or ()) if breaking else held_leases(opened)
    if break_ and dry_run:
        found = tuple(each for each in found if {each.owner, each.process} & set(break_))
    if json:
        print_json({"store": store, "leases": found, "broken": breaking})
        return
    verb = {(True, False): "broken: ", (True, True): "would break: "}.get(
        (bool(break_), dry_run), ""
    )
    for each in found:
        left = duration(abs(each.seconds_left)) if abs(each.seconds_left) < 1e9 else "years"
        when = f"expired {left} ago" if each.seconds_left <= 0 else f"{left} left"
        print(
            visible(f"{verb}{each.group} block {each.block}  {each.process}  {each.state}, {when}")
        )
    if not found:
        print("no leases")
