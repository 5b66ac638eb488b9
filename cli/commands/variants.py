"""`labelstore variants`: a cheaper label set from a richer one, without the teacher."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.options import Dask, DryRun, Json, Processes, Store
from cli.output import print_fields, print_json, say, size
from cli.progress import Progress


def variants(
    store: Store,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="LABEL_SET",
            help="Label set to derive from; not needed if there is only one.",
        ),
    ] = None,
    compression: Annotated[
        str | None,
        typer.Option(
            metavar="CODEC",
            help="Form of a label: full, hard, smoothing, ms or mr (FKD 3.5); of outputs also logits and pq.",
            show_default="the source's",
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Classes that ms and mr keep; at most the source's.",
            show_default="the source's, or 5",
        ),
    ] = None,
    tail_classes: Annotated[
        int | None,
        typer.Option(
            metavar="L",
            help="With ms: store once per image how its crops' tails spread over L classes; 0 for evenly.",
            show_default="the source's",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="Of the probabilities: float32, float16 or uint8.",
            show_default="the source's",
        ),
    ] = None,
    values_per_code: Annotated[
        int | None,
        typer.Option(
            metavar="V",
            help="With pq: outputs that one byte stands for.",
            show_default="the source's, or 20",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the new label set.", show_default="source and codec"
        ),
    ] = None,
    workers: Processes = None,
    dask: Dask = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Derive a cheaper label set from a richer one without the teacher, and print the KL it costs.

    From full labels everything else, from ms a smaller K, mr, smoothing and hard, at the temperature of the source;
    from logits 8 bits and pq. The KL is KL(source || new labels) in nats, read back from what was written. Run again,
    it adds what is missing.
    """
    import labelstore
    from labelstore.analysis.comparison import compare
    from labelstore.analysis.output_cosine import mean_cosine
    from labelstore.blocks.block_map import block_map
    from labelstore.codecs import in_short
    from labelstore.labelling.deriving import (
        check_derivable,
        check_name,
        codec_for,
        codec_words,
        variant_name,
    )

    with labelstore.open(store, readonly=dry_run) as opened:
        labels = opened.label_set(opened.label_set_row(source, parameter="source").name)
        codec = codec_for(labels, compression, k, dtype, tail_classes, values_per_code)
        check_derivable(labels, codec)
        chosen = name or variant_name(labels, codec)
        there = check_name(labels, codec, chosen) is not None
        record: dict[str, Any] = {
            "store": store,
            "label_set": chosen,
            "from": labels.name,
            "codec": in_short(codec.to_record()),
        }
        if dry_run:
            if json:
                print_json({**record, "exists": there})
            else:
                print(
                    f"would {'finish' if there else 'derive'} label set {chosen} "
                    f"({codec_words(codec)}) from {labels.name} ({codec_words(labels.codec)})"
                )
            return
        with block_map(workers=workers, dask=dask) as map_blocks:
            with Progress("variant", "crops") as progress:
                variant = labelstore.derive(
                    labels, codec, name=chosen, map_blocks=map_blocks, progress=progress
                )
            (cost,) = compare([labels, variant], js=False, map_blocks=map_blocks).pairs
            near = None
            if variant.codec.takes == "outputs":
                near = mean_cosine(labels, variant, map_blocks=map_blocks)
        written = opened.catalogue.ledger.counts()
        sizes = {
            which: written.get(f"labels/{which}", (0, 0))[1] for which in (chosen, labels.name)
        }
        is_complete = variant.is_complete
        record["codec"] = in_short(variant.codec.to_record())
    kl = {
        "mean": cost.kl,
        "p99": cost.kl_p99,
        "worst": cost.kl_worst,
        "num_crops": cost.num_crops,
    }
    if json:
        print_json(
            record
            | {"kl": kl, "is_complete": is_complete}
            | ({} if near is None else {"cosine": {"mean": near[0], "least": near[1]}})
            | {"bytes": sizes[chosen], "source_bytes": sizes[record["from"]]}
        )
    else:
        print_fields(
            {
                "label set": f"{chosen} ({codec_words(codec)}) from {record['from']}",
                "KL(source || new) mean": f"{_nats(cost.kl)} over {cost.num_crops:,} crops",
                "KL(source || new) 99th percentile": _nats(cost.kl_p99),
                "KL(source || new) worst": _nats(cost.kl_worst),
                **({} if near is None else {"cosine": f"{near[0]:.4f} mean, {near[1]:.4f} least"}),
                "size": f"{size(sizes[chosen])}, {size(sizes[record['from']])} before",
            }
        )
    if not is_complete:
        say(f"{record['from']} is not complete: finish it, then run this again for the rest")


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} nats"
