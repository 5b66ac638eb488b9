"""The page of a store as JSON values: counts over all crops, figures per class from a seeded sample.

A section that a store cannot fill (no ground truth, no probabilities, nothing committed) is None, and
`unavailable` says why in the words of the function that refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from labelstore.analysis.arrow_batches import crops
from labelstore.analysis.codec_sizes import RELABEL_PAPER, codec_table
from labelstore.analysis.comparison import compare_all
from labelstore.analysis.fkd_files import FKD_TABLE_2
from labelstore.analysis.histogram import histogram
from labelstore.analysis.noise import label_noise
from labelstore.analysis.summary import summary
from labelstore.analysis.teacher_time import cost
from labelstore.blocks.block_map import MapBlocks, at_most, map_in_threads
from labelstore.errors import IncompleteError, NotGenerated, RejectedInput, UsageError
from labelstore.report import threshold_data
from labelstore.store.label_outputs import OUTPUT_NAMES
from labelstore.store.layout import label_layout

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.calibration import ThresholdCounts
    from labelstore.catalogue.records import TeacherRow
    from labelstore.store import LabelSet, Store

DOTS = 6_000
"""Crops of the plots that show single ones."""
NOISE_BLOCKS = 16
"""Image blocks that are searched for wrong labels, spread evenly; all of a small store."""
COMPARED_BLOCKS = 4
PAIRS = 15
"""Pairs of label sets that are compared."""
SUSPECTS = 24
"""Images in the gallery."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The label set and the options of one page."""

    labels: LabelSet
    mask: str | None
    sample: int
    counted: int | None
    """Roughly how many crops to count in a label set that has more; None counts all."""
    seed: int
    map_blocks: MapBlocks = map_in_threads


def sections(wanted: Wanted) -> dict[str, Any]:
    """Every section but the explorer, as JSON values."""
    labels, store = wanted.labels, wanted.labels.store
    unavailable: dict[str, str] = {}

    def section(name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - JSON
        try:
            return make()
        except (UsageError, IncompleteError, NotGenerated, RejectedInput) as error:
            unavailable[name] = str(error)
            return None

    frame = section("sample", lambda: _frame(wanted))
    columns = (
        None
        if frame is None
        else threshold_data.counted_columns(labels, wanted.counted, seed=wanted.seed)
    )
    choices, counted = _counted(wanted, frame, columns, section)
    if choices is None and "choices" not in unavailable:
        unavailable["choices"] = unavailable["thresholds"]
    part = None if columns is None else counted

    return {
        **_contents(store),
        "chosen": labels.name,
        "mask": wanted.mask,
        "class_names": list(labels.class_titles),
        "outputs": labels.outputs.describe(labels.num_classes),
        "num_crops": labels.num_crops,
        "is_complete": labels.is_complete,
        "summary": section("summary", lambda: summary(labels).to_record()),
        "cost": _cost(store),
        "table1": section("table1", lambda: _table1(wanted))
        if counted is None
        else threshold_data.table_1(counted),
        "sizes": section("sizes", lambda: _sizes(store)),
        "thresholds": None if counted is None else threshold_data.thresholds(counted),
        "choices": choices,
        "counted": part
        and {
            "crops": int(part.labelled.sum()),
            "of": int(labels.present.sum()) * labels.num_crops,
        },
        "sample": None if frame is None else _sample(wanted, frame),
        "noise": section("noise", lambda: _noise(wanted)),
        "compared": _compared(store),
        "unavailable": unavailable,
    }


def _counted(
    wanted: Wanted, frame: pd.DataFrame | None, columns: range | None, section: Callable[..., Any]
) -> tuple[list[dict[str, Any]] | None, ThresholdCounts | None]:
    """Count the rules' regions, and crops for the sliders and Table 1, in one walk over some columns or all."""
    labels, map_blocks = wanted.labels, wanted.map_blocks
    if columns is None or frame is None:
        whole = section(
            "choices", lambda: threshold_data.whole(labels, wanted.mask, map_blocks=map_blocks)
        )
        if whole is not None:
            choices = [threshold_data.described(choice) for choice in whole.choices]
            return choices, whole.tables["max_probability"]
        return None, section(
            "thresholds", lambda: threshold_data.counts(labels, {}, map_blocks=map_blocks)
        )
    rules = threshold_data.sampled_rules(labels, wanted.mask, frame["max_probability"].to_numpy())
    counted = section(
        "thresholds",
        lambda: threshold_data.counts(labels, rules, columns=columns, map_blocks=map_blocks),
    )
    return None if counted is None else threshold_data.sampled_choices(counted, rules), counted


def _contents(store: Store) -> dict[str, Any]:
    catalogue = store.catalogue
    written = catalogue.ledger.counts()
    plans = {row.name: row for row in catalogue.plans.all()}

    def progress(row: Any) -> dict[str, int]:  # noqa: ANN401 - a row of the catalogue
        shards, size = written.get(f"labels/{row.name}", (0, 0))
        layout = label_layout(row, plans[row.plan], store.num_rows)
        return {
            "shards": shards,
            "of": layout.num_blocks * layout.num_crop_shards,
            "bytes": size,
        }

    return {
        "name": str(store.location).rstrip("/").rpartition("/")[2],
        "uuid": store.uuid,
        "format_version": catalogue.format_version,
        "images": store.num_images,
        "bad_images": int((store.bad & ~store.free).sum()),
        "plans": [_plain(asdict(row)) for row in plans.values()],
        "teachers": [_plain(_without_names(row)) for row in catalogue.teachers.all()],
        "label_sets": [_plain(asdict(row)) | progress(row) for row in catalogue.label_sets.all()],
        "masks": [_plain(asdict(row)) for row in catalogue.masks.all()],
    }


def _without_names(row: TeacherRow) -> dict[str, Any]:
    """A teacher without the names of its outputs: thousands, and the page has those that it shows."""
    facts = {name: value for name, value in row.facts.items() if name != OUTPUT_NAMES}
    return {**asdict(row), "facts": facts}


def _cost(store: Store) -> dict[str, Any]:
    found = cost(store)
    return {
        "teachers": [asdict(part) for part in found.teachers],
        "label_sets": [
            {
                "label_set": part.label_set,
                "derived": part.derived,
                "seconds": part.seconds,
                "crops": part.crops,
                "devices": [asdict(device) for device in part.devices],
            }
            for part in found.label_sets
        ],
    }


def _table1(wanted: Wanted) -> list[dict[str, Any]]:
    return [asdict(row) for row in histogram(wanted.labels, map_blocks=wanted.map_blocks).bins]


def _sizes(store: Store) -> dict[str, Any]:
    record = codec_table(store).to_record()
    printed = {
        kind if k is None else f"{kind}-{k}": text for (kind, k), text in FKD_TABLE_2.items()
    }
    for row in record["rows"]:
        row["printed"] = (printed | RELABEL_PAPER).get(row["kind"])
    return record


def _frame(wanted: Wanted) -> pd.DataFrame:
    """The sample of crops behind figures per class and plots."""
    labels = wanted.labels
    if not labels.blocks:
        raise NotGenerated(f"label set {labels.name} has no labels yet: run `labelstore.generate`")
    of_classes = labels.outputs_are_classes and len(labels.store.class_names) > 0
    truth = ["ground_truth_probability", "agrees"] if of_classes else []
    columns = ["class_id", "max_probability", "entropy", "area", "centre_x", "centre_y", *truth]
    frame = crops(labels, columns, sample=wanted.sample, seed=wanted.seed)
    if of_classes:
        unknown = frame["class_id"] < 0
        frame["agrees"] = frame["agrees"].astype(float).mask(unknown)
    return frame


def _sample(wanted: Wanted, frame: pd.DataFrame) -> dict[str, Any]:
    """Means per class, and single crops for the plots."""
    labels = wanted.labels
    truth = [name for name in ("ground_truth_probability", "agrees") if name in frame]
    grouped = frame.groupby("class_id")
    sizes = grouped.size()
    means = {
        name: grouped[name].mean().to_numpy(np.float64)
        for name in ("max_probability", "entropy", "area", *truth)
    }
    rows = [
        {"class": class_id, "crops": count, **{k: _number(v[i]) for k, v in means.items()}}
        for i, (class_id, count) in enumerate(
            zip(sizes.index.to_numpy().tolist(), sizes.tolist(), strict=True)
        )
    ]
    rng = np.random.default_rng([wanted.seed, 2])
    chosen = np.sort(rng.permutation(len(frame))[:DOTS])
    dots = frame.iloc[chosen]
    return {
        "crops": len(frame),
        "of": int(labels.present.sum()) * labels.num_crops,
        "classes": rows,
        "dots": {
            "class": dots["class_id"].tolist(),
            **{
                # a ten-thousandth is finer than a pixel
                short: (10_000 * dots[name]).round().astype(int).tolist()
                for short, name in (
                    ("p", "max_probability"),
                    ("area", "area"),
                    ("x", "centre_x"),
                    ("y", "centre_y"),
                )
            },
        },
    }


def _noise(wanted: Wanted) -> dict[str, Any]:
    labels = wanted.labels
    blocks = at_most(labels.blocks, NOISE_BLOCKS)

    def some(function: Callable[[int], Any], _: Iterable[int]) -> Iterable[Any]:
        return wanted.map_blocks(function, blocks)

    found = label_noise(labels, limit=SUSPECTS, map_blocks=some)
    looked_at = sum(int(labels.present[list(labels.block_rows(b))].sum()) for b in blocks)
    record = found.to_record()
    return {
        "confidence": found.confidence,
        "num_suspects": found.num_suspects,
        "looked_at": looked_at,
        "num_images": found.num_images,
        "images": [
            {name: _plain(value) for name, value in row.items()} for row in record["images"]
        ],
        "pairs": [
            {name: _plain(value) for name, value in row.items()} for row in record["pairs"][:10]
        ],
    }


def _compared(store: Store) -> dict[str, Any]:
    try:
        found = compare_all(store, limit=PAIRS, max_blocks=COMPARED_BLOCKS)
    except UsageError:
        return {"pairs": [], "refused": [], "blocks": COMPARED_BLOCKS}  # one label set, or none
    return {**found.to_record(), "blocks": COMPARED_BLOCKS}


def _number(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    """JSON values of what a row of the catalogue holds; NaN becomes None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (int, str, bool)) else str(value)
