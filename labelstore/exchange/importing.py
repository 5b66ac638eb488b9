"""`labelstore import`: labels that another project wrote become a label set, block by block, checked on the way.

`FORMATS` has every format by the name that the command line gives it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from labelstore.arrays.durable import check_new_place
from labelstore.blocks.block_map import MapBlocks
from labelstore.catalogue.records import LabelSetRow
from labelstore.commit.lease_keeper import Progress
from labelstore.commit.worker import work_through
from labelstore.errors import RejectedInput, UsageError, check_utf8
from labelstore.exchange.block_import import BlockResult, ImportedBlocks
from labelstore.exchange.labels import BadFile, Conversion, LabelSource, OpenSource
from labelstore.exchange.registering import Target, existing_plan, prepared, target_of
from labelstore.exchange.stated import ImportOptions, Stated
from labelstore.images import ImageSource, ignored_words, open_images, torchvision_classes
from labelstore.store import Store
from labelstore.store.label_outputs import Outputs
from labelstore.store.layout import label_layout
from labelstore.store.opening import exists

FORMATS = {
    "fkd": ("fkd", "open_fkd"),
    "relabel": ("label_maps", "open_relabel"),
    "tokenlabeling": ("label_maps", "open_tokenlabeling"),
    "sre2l": ("batch_files", "open_sre2l"),
    "lpld": ("batch_files", "open_lpld"),
    "lpqld": ("batch_files", "open_lpqld"),
    "edc": ("batch_files", "open_edc"),
    "gvbsm": ("batch_files", "open_gvbsm"),
    "hald": ("batch_files", "open_hald"),
    "ml-dr": ("ml_dr", "open_ml_dr"),
    "datacompdr": ("datacompdr", "open_datacompdr"),
    "tinyvit": ("tinyvit", "open_tinyvit"),
    "torchdistill": ("torchdistill", "open_torchdistill"),
    "npz": ("tables", "open_npz"),
    "parquet": ("tables", "open_parquet"),
}
"""Name -> module of `exchange.readers` and its function."""
ORDERED = ("sre2l", "ml-dr", "tinyvit", "torchdistill")
"""Formats that name an image by its position in a data set, and do not say which one."""


def open_source(format_name: str, source: Path, images: ImageSource, stated: Stated) -> LabelSource:
    """The labels that `source` holds for the images of a folder; UsageError for an unknown format."""
    if format_name not in FORMATS:
        raise UsageError(f"no format {format_name!r}: choose one of {', '.join(FORMATS)}")
    if stated.order is not None and format_name not in ORDERED:
        raise UsageError(
            f"order {stated.order[:100]}: {format_name} files say which image is which; leave it out"
        )
    module, function = FORMATS[format_name]
    opener: OpenSource = getattr(import_module(f"labelstore.exchange.readers.{module}"), function)
    return opener(source, images, stated)


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What an import found and did."""

    format: str
    label_set: str
    plan: str
    num_images: int
    """Images whose labels this call committed."""
    num_crops: int
    """M."""
    blocks: int
    already_committed: int
    """Image blocks that were committed before."""
    rejected_blocks: int
    """Image blocks that were not committed for a file that cannot be used."""
    num_bad: int
    bad: tuple[BadFile, ...]
    """Files that cannot be used, with the reason."""
    unmatched: tuple[str, ...]
    """Label files that belong to no image."""
    lost: tuple[str, ...]
    """What the files tell and the store does not keep."""
    facts: Mapping[str, Any]
    ground_truth_probability: float | None
    """Mean probability that the labels give the images' classes; None where their classes are others."""
    seconds: float


class RejectedFiles(RejectedInput):
    """Some files cannot be used; what became of the others is in `report`."""

    def __init__(self, message: str, report: ImportReport) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """What an import would do; nothing was written."""

    source: LabelSource
    folder: ImageSource
    target: Target
    retarget: Callable[[], Target]
    """The target again, once the source has been prepared: only then how many crops there are is known."""

    def to_record(self) -> dict[str, Any]:
        """As JSON values."""
        contents, target = self.source.contents, self.target
        return {
            "format": target.format,
            "kind": contents.kind,
            "images": len(self.folder),
            "num_crops": target.num_crops,
            "k": contents.k,
            "num_classes": target.num_classes,
            "dtype": contents.dtype,
            "codec": target.codec.to_record(),
            "label_set": target.name,
            "plan": target.plan,
            "mixed": contents.mixed,
            "unmatched": len(self.source.unmatched),
            "lost": list(self.source.lost),
            "stated": dict(target.stated),
            **dict(self.source.facts),
        }


def plan_import(
    path: str | Path,
    *,
    format: str,
    source: str | Path,
    images: str | Path | ImageSource,
    stated: Stated | None = None,
    options: ImportOptions | None = None,
) -> ImportPlan:
    """Look at a source's first files: what they are, and what they would become. Nothing is written.

    UsageError for what has to be said and was not, or does not fit the files; RejectedInput for files that
    are none of the format's.
    """
    stated = stated or Stated()
    if not exists(path):
        check_new_place(Path(path))
    check_utf8(str(source))
    folder = torchvision_classes(open_images(images))
    opened = open_source(format, Path(source), folder, stated)
    retarget = partial(
        target_of,
        opened,
        folder,
        stated,
        options=options or ImportOptions(),
        format_name=format,
        source=str(source),
    )
    target = retarget()
    existing_plan(Path(path), target, folder)
    return ImportPlan(source=opened, folder=folder, target=target, retarget=retarget)


def import_labels(
    path: str | Path,
    *,
    format: str,
    source: str | Path,
    images: str | Path | ImageSource,
    stated: Stated | None = None,
    options: ImportOptions | None = None,
    scratch: Path | None = None,
    map_blocks: MapBlocks = map,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> ImportReport:
    """Import the labels of `source` for the images of a folder into the store at `path`, new or not.

    `stated` is what the files cannot tell, `options` what their labels become; batch files are sorted in `scratch`.
    Resumes where the label set is there already; several processes share its blocks. Blocks with a file that
    cannot be used are left open and the others committed: RejectedFiles, with the report. With
    `stated.skip_bad` their images are recorded as left out instead. ConflictError where the store holds something else
    under these names; UsageError as `plan_import`.
    """
    started = time.monotonic()
    options = options or ImportOptions()
    planned = plan_import(
        path, format=format, source=source, images=images, stated=stated, options=options
    )
    folder, opened = planned.folder, planned.source
    skip_bad = stated is not None and stated.skip_bad
    progress = progress or (lambda done, total: None)
    if words := ignored_words(folder.ignored):
        note(f"{folder.root}: {words}")
    try:
        opened.prepare(scratch, progress)
        if opened.bad and not skip_bad:
            raise _rejected(_report(opened, planned.target, started))
        target = planned.retarget()
        with prepared(Path(path), folder, target, options) as (store, row):
            if skip_bad:
                _refuse_holes_for_others(store, target.name)
            blocks = _blocks(planned, target, store, row, skip_bad=skip_bad, map_blocks=map_blocks)
            committed = store.catalogue.ledger.committed(blocks.group).values()
            before = sum(len(shards) == blocks.layout.num_crop_shards for shards in committed)
            results: list[BlockResult] = work_through(blocks, progress=progress)
            store.refresh()
    finally:
        opened.close()
    report = _report(opened, target, started, results, blocks.layout.num_blocks, before)
    if report.rejected_blocks:
        raise _rejected(report)
    mean, chance = report.ground_truth_probability, 1 / target.num_classes
    if mean is not None and mean < 1.5 * chance:
        note(
            f"the labels give the images' classes {mean:.2g} on average, chance is {chance:.2g}: "
            "are they the labels of these images, with the classes in the same order?"
        )
    return report


def _blocks(
    planned: ImportPlan,
    target: Target,
    store: Store,
    row: LabelSetRow,
    *,
    skip_bad: bool,
    map_blocks: MapBlocks,
) -> ImportedBlocks:
    plan = store.plan(row.plan)
    layout = label_layout(row, plan, store.num_rows)
    return ImportedBlocks(
        store=store,
        group=f"labels/{row.name}",
        identity=row.uuid,
        layout=layout,
        blocks=range(layout.num_blocks),
        map_blocks=map_blocks,
        source=planned.source,
        folder=planned.folder,
        conversion=Conversion(
            kind=planned.source.contents.kind,
            codec=target.codec,
            num_classes=target.num_classes,
            temperature=target.temperature,
        ),
        row=row,
        plan=plan,
        skip_bad=skip_bad,
        has_truth=Outputs.of(row, len(store.class_names)).kind == "classes",
    )


def _report(
    source: LabelSource,
    target: Target,
    started: float,
    results: Sequence[BlockResult] = (),
    blocks: int = 0,
    before: int = 0,
) -> ImportReport:
    bad = [*source.bad, *(file for result in results for file in result.bad)]
    crops = sum(result.truth[1] for result in results)
    truth = sum(result.truth[0] for result in results)
    return ImportReport(
        format=target.format,
        label_set=target.name,
        plan=target.plan,
        num_images=sum(result.num_images for result in results),
        num_crops=target.num_crops,
        blocks=blocks,
        already_committed=before,
        rejected_blocks=sum(result.is_rejected for result in results),
        num_bad=len(bad),
        bad=tuple(bad),
        unmatched=tuple(source.unmatched),
        lost=tuple(source.lost),
        facts=source.facts,
        ground_truth_probability=truth / crops if crops else None,
        seconds=time.monotonic() - started,
    )


def _rejected(report: ImportReport) -> RejectedFiles:
    count, first = report.num_bad, report.bad[0]
    more = f" ({count - 1} more cannot be used)" if count > 1 else ""
    kept = (
        f"{report.num_images} images of other blocks are committed"
        if report.num_images
        else "nothing was committed"
    )
    return RejectedFiles(
        f"{first.file}: {first.reason}{more}; {kept}: fix the files and run it again, or pass "
        "`skip_bad` to leave such images out and record them",
        report,
    )


def _refuse_holes_for_others(store: Store, label_set: str) -> None:
    """An image that is left out is left out of every label set."""
    others = [name for name in store.label_sets if name != label_set]
    if others:
        raise UsageError(
            f"`skip_bad` would take images away from label set {others[0]} too: import into a store of its own"
        )
