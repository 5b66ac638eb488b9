"""`labelstore variants`: a cheaper label set from a richer one, without the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cli.field_options import option, with_options
from cli.output import answer, number, say, size
from cli.progress import Progress
from cli.shared_options import BlockOptions, DryRun, Json, Store, open_to_write


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """The label set to derive from, and what becomes of it."""

    source: Annotated[str | None, option("--from", metavar="LABEL_SET")] = None
    """Label set to derive from; not needed if there is only one."""
    compression: Annotated[str | None, option(metavar="CODEC", unset="the source's")] = None
    """Form of a label: full, hard, smoothing, ms or mr (FKD 3.5); of outputs also logits and pq."""
    k: Annotated[int | None, option(metavar="K", unset="the source's, or 5")] = None
    """Classes that ms and mr keep; at most the source's."""
    tail_classes: Annotated[int | None, option(metavar="L", unset="the source's")] = None
    """With ms: store once per image how its crops' tails spread over L classes; 0 for evenly."""
    dtype: Annotated[str | None, option(metavar="DTYPE", unset="the source's")] = None
    """Of the probabilities: float32, float16 or uint8."""
    values_per_code: Annotated[int | None, option(metavar="V", unset="the source's, or 20")] = None
    """With pq: outputs that one byte stands for."""
    name: Annotated[str | None, option(metavar="NAME", unset="source and codec")] = None
    """Name of the new label set."""


@with_options
def variants(
    store: Store,
    wanted: VariantOptions,
    blocks: BlockOptions,
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
    from labelstore.codecs import in_short
    from labelstore.labelling.deriving import (
        check_derivable,
        check_name,
        codec_for,
        codec_words,
        variant_name,
    )

    with open_to_write(store, dry_run=dry_run) as opened:
        labels = opened.label_set(opened.label_set_row(wanted.source, parameter="source").name)
        codec = codec_for(
            labels,
            wanted.compression,
            wanted.k,
            wanted.dtype,
            wanted.tail_classes,
            wanted.values_per_code,
        )
        check_derivable(labels, codec)
        name = wanted.name or variant_name(labels, codec)
        exists = check_name(labels, codec, name) is not None
        record: dict[str, Any] = {
            "store": store,
            "label_set": name,
            "from": labels.name,
            "codec": in_short(codec.to_record()),
        }
        if dry_run:
            would = f"would {'finish' if exists else 'derive'} label set {name} ({codec_words(codec)}) from "
            of = f"{labels.name} ({codec_words(labels.codec)})"
            answer({**record, "exists": exists}, would + of, json=json)
            return
        with blocks.mapped() as map_blocks:
            with Progress("variant", "crops") as progress:
                variant = labelstore.derive(
                    labels, codec, name=name, map_blocks=map_blocks, progress=progress
                )
            (cost,) = compare([labels, variant], js=False, map_blocks=map_blocks).pairs
            near = None
            if variant.codec.takes == "outputs":
                near = mean_cosine(labels, variant, map_blocks=map_blocks)
        written = opened.catalogue.ledger.counts()
        new, old = (written.get(f"labels/{each}", (0, 0))[1] for each in (name, labels.name))
        is_complete = variant.is_complete
        record["codec"] = in_short(variant.codec.to_record())
    kl = {
        "mean": cost.kl,
        "p99": cost.kl_p99,
        "worst": cost.kl_worst,
        "num_crops": cost.num_crops,
    }
    nats = {each: number(kl[each], ".3g", " nats") for each in ("mean", "p99", "worst")}
    answer(
        record
        | {"kl": kl, "is_complete": is_complete}
        | ({} if near is None else {"cosine": {"mean": near[0], "least": near[1]}})
        | {"bytes": new, "source_bytes": old},
        {
            "label set": f"{name} ({codec_words(codec)}) from {record['from']}",
            "KL(source || new) mean": f"{nats['mean']} over {cost.num_crops:,} crops",
            "KL(source || new) 99th percentile": nats["p99"],
            "KL(source || new) worst": nats["worst"],
            **({} if near is None else {"cosine": f"{near[0]:.4f} mean, {near[1]:.4f} least"}),
            "size": f"{size(new)}, {size(old)} before",
        },
        json=json,
    )
    if not is_complete:
        say(f"{record['from']} is not complete: finish it, then run this again for the rest")
