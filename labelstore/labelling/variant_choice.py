"""Which variants a label set can have, what they are called, and whether one of that name is there."""

from __future__ import annotations

from dataclasses import fields

from labelstore.catalogue.records import DERIVED, LabelSetRow
from labelstore.codecs import (
    CODECS,
    MarginalSmoothing,
    codec_from_options,
    identity_of,
    keeps_max_probability,
)
from labelstore.codecs.base import LabelCodec
from labelstore.errors import ConflictError, UsageError, told_apart
from labelstore.store import LabelSet


def check_derivable(source: LabelSet, codec: LabelCodec) -> None:
    """UsageError where `source` does not hold what labels with `codec` need."""
    num_classes = source.num_classes
    from_outputs = source.codec.takes == "outputs"
    if codec.takes == "map" or (codec.takes == "outputs" and not from_outputs):
        raise UsageError(
            f"{codec.name} labels cannot be derived: only the teacher has its outputs before softmax; "
            f"make them with `labelstore.generate(store, compression={codec.name!r})`"
        )
    said = f"label set {source.name} ({codec_words(source.codec)})"
    if codec.takes == "probabilities" and source.outputs.kind == "embedding":
        raise UsageError(
            f"{said} is an embedding, of which no softmax is taken: derive logits or pq from it"
        )
    asked = fewest_classes(codec, num_classes)
    held = source.codec.kept(num_classes)
    available = num_classes if held is None else held
    if (num_classes if asked is None else asked) > available:
        wants = f"all {num_classes} probabilities" if asked is None else f"{asked} classes"
        raise UsageError(
            f"{said} keeps {available} of {num_classes} classes and {codec_words(codec)} needs {wants}: "
            f"derive K={available} or less, or label again with the teacher"
        )
    needs = codec.takes == "probabilities" and keeps_max_probability(codec, num_classes)
    if needs and not keeps_max_probability(source.codec, num_classes):
        raise UsageError(
            f"{said} does not keep the teacher's probabilities, which {codec_words(codec)} needs: "
            "derive from a full, ms or smoothing label set"
        )
    if identity_of(codec.to_record()) == identity_of(source.codec.to_record()):
        raise UsageError(f"{said} is just that already: choose another codec, K or dtype")


def fewest_classes(codec: LabelCodec, num_classes: int) -> int | None:
    """How many classes of each label `codec` needs; None for all of them. An image's tail takes what more there is."""
    if isinstance(codec, MarginalSmoothing):
        return min(codec.k, codec.kept(num_classes))
    return codec.kept(num_classes)


def codec_for(
    source: LabelSet,
    compression: str | None,
    k: int | None,
    dtype: str | None,
    tail_classes: int | None = None,
    values_per_code: int | None = None,
) -> LabelCodec:
    """The codec that these parameters ask for; what is not said is as in the source."""
    held = source.codec.to_record()
    name = compression or source.codec.name
    parameters = {field.name for field in fields(CODECS[name])} if name in CODECS else set()
    if k is None and "k" in parameters:
        k = held.get("k")
    if dtype is None and "dtype" in parameters:
        dtype = held.get("dtype")
    if tail_classes is None and "tail_classes" in parameters:
        tail_classes = held.get("tail_classes")
    if values_per_code is None and "values_per_code" in parameters:
        values_per_code = held.get("values_per_code")
    return codec_from_options(name, k, dtype, tail_classes, values_per_code)


def variant_name(source: LabelSet, codec: LabelCodec) -> str:
    """A name that says what it is: resnet50-mr3-uint8."""
    record = codec.to_record()
    tail = f"tail{record['tail_classes']}" if "tail_classes" in record else ""
    parts = [
        source.name,
        f"{record['name']}{record.get('k', '')}{tail}{record.get('values_per_code', '')}",
    ]
    return "-".join([*parts, *([record["dtype"]] if "dtype" in record else [])])


def codec_words(codec: LabelCodec) -> str:
    """A codec in words: `ms K=5 float16`."""
    record = codec.to_record()
    kept = f" K={record['k']}" if "k" in record else ""
    tail = f" tail_classes={record['tail_classes']}" if "tail_classes" in record else ""
    width = f" values_per_code={record['values_per_code']}" if "values_per_code" in record else ""
    return f"{record['name']}{kept}{tail}{width} {record.get('dtype', '')}".rstrip()


def check_name(source: LabelSet, codec: LabelCodec, name: str) -> LabelSetRow | None:
    """The label set of that name if it is this variant, begun or done; None if there is none.

    ConflictError if it is something else.
    """
    store = source.store
    row = store.find_label_set(name)
    if row is None:
        return None
    wanted = {
        "crop plan": (row.plan, source.plan.name),
        "teacher": (row.teacher, source.row.teacher),
        "temperature": (row.temperature, source.row.temperature),
        "compression": (
            identity_of(row.codec),
            identity_of(codec.to_record()),
        ),
    }
    for what, (old, new) in wanted.items():
        if old != new:
            has, asked = told_apart(old, new)
            raise ConflictError(
                f"label set {name} is in {store.path} with {what} {has}, not {asked}: "
                "choose another `name`"
            )
    made_by = {shard.device for shard in store.catalogue.ledger.shards(f"labels/{name}")}
    if made_by - {derived_from(source.name)}:
        raise ConflictError(
            f"label set {name} is in {store.path} and was not derived from {source.name}: "
            "choose another `name`"
        )
    return row


def derived_from(source: str) -> str:
    """The ledger's device column for derived labels."""
    return f"{DERIVED}{source}"
