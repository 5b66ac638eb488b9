"""Labelling every crop of a store: lease a block, label its crops, commit it, take the next.

Any number of processes may run this on the same store. What is committed is never decoded again.
"""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from labelstore.catalogue.records import LabelSetRow, PlanRow, TeacherRow
from labelstore.codecs import choose_class_ids, codec_from_record
from labelstore.codecs.base import LabelCodec, TopK
from labelstore.errors import (
    ConflictError,
    DamagedShard,
    IncompleteError,
    LeaseLost,
    RejectedInput,
)
from labelstore.generation.class_map import class_map as map_classes
from labelstore.generation.crop_batches import CropBatches, ImageJob, OpenedImage
from labelstore.generation.image_block import ImageBlock, Stopwatch
from labelstore.generation.image_check import check_images
from labelstore.generation.labeller import Autocast, Labeller, check_temperature
from labelstore.generation.spool import Spool, read_spools, remove_spools
from labelstore.generation.teachers import Teacher, load_teacher
from labelstore.images import ImageFolder, scan_folder
from labelstore.schema import Layout
from labelstore.store import ImageFacts, Store, write_block
from labelstore.store.leases import LeaseKeeper, Progress

POLL_SECONDS = 2.0
"""How often a worker with nothing to lease looks whether another one died."""


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """What a call of `generate` found and did."""

    label_set: str
    num_images: int
    num_crops: int
    """Crops that this call labelled; 0 when everything was there."""
    already_committed: int
    """Image blocks that were committed before."""
    bad: dict[str, str]
    """Images left out: key -> reason."""
    seconds: float
    crops_per_second: float


def generate(
    store: Store,
    *,
    teacher: str | Teacher,
    codec: LabelCodec,
    images: str | Path | ImageFolder,
    name: str | None = None,
    plan: str | None = None,
    dtype: str | None = None,
    temperature: float = 1.0,
    class_map: str | Path | None = None,
    batch_size: int = 64,
    device: str | None = None,
    autocast: Autocast = "none",
    compile_teacher: bool = False,
    workers: int | None = None,
    skip_bad: bool = False,
    max_seconds: float | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> GenerationReport:
    """Label every crop of the store's plan with one teacher, or finish what was begun.

    `images` is the folder that the store was made from. A label set of the same name is resumed when
    teacher weights, codec, dtype, temperature and classes are the same, and refused with ConflictError
    when not. Workers that run this on the same store share the blocks. RejectedInput names an image
    that cannot be decoded (`skip_bad` leaves it out and records it), has changed, or got NaN from the
    teacher. IncompleteError after `max_seconds`; what was labelled until then is kept.
    """
    check_temperature(temperature)
    teacher = load_teacher(teacher) if isinstance(teacher, str) else teacher
    folder = images if isinstance(images, ImageFolder) else scan_folder(Path(images))
    check_images(store, folder, note)
    if dtype is not None:
        codec = dataclasses.replace(codec, dtype=dtype)  # type: ignore[type-var]
    chosen = map_classes(teacher, store.class_names, class_map)
    num_classes = teacher.row.num_classes if chosen is None else len(chosen)
    kept = codec.kept(num_classes)
    row = register(store, teacher, codec, name, plan, num_classes, temperature)
    job = _Job(
        store=store,
        folder=folder,
        plan=store.plan(row.plan),
        label_set=row.name,
        labeller=Labeller(
            teacher,
            kept,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            autocast=autocast,
            temperature=temperature,
            class_map=chosen,
            compile_teacher=compile_teacher,
        ),
        teacher=teacher,
        num_classes=num_classes,
        batch_size=batch_size,
        workers=workers or min(16, os.cpu_count() or 1),
        skip_bad=skip_bad,
        deadline=None if max_seconds is None else time.monotonic() + max_seconds,
        progress=progress or (lambda done, total: None),
    )
    return job.run()


def register(
    store: Store,
    teacher: Teacher,
    codec: LabelCodec,
    name: str | None,
    plan: str | None,
    num_classes: int,
    temperature: float,
) -> LabelSetRow:
    """The label set's row: a new one, or the existing one when nothing about it differs (ConflictError)."""
    codec.fields(num_classes)  # K > C and the like are refused before anything is written
    name = name or teacher.row.name
    plan_row = store.plan(plan)
    wanted = codec.to_record()
    if "class_ids" in wanted:
        wanted["class_ids"] = None  # decided on the first shard
    for row in store.catalogue.label_sets():
        if row.name != name:
            continue
        held = store.teacher(row.teacher)
        settled = dict(row.codec)
        if "class_ids" in settled:
            settled["class_ids"] = None
        differences = {
            "teacher weights": (held.digest[:12], teacher.row.digest[:12]),
            "teacher input size": (held.input_size, teacher.row.input_size),
            "compression": (_codec_words(settled), _codec_words(wanted)),
            "crop plan": (row.plan, plan_row.name),
            "classes": (row.num_classes, num_classes),
            "temperature": (row.temperature, temperature),
        }
        for what, (old, new) in differences.items():
            if old != new:
                raise ConflictError(
                    f"label set {name} in {store.path} has {what} {old}, asked for {new}: "
                    "use the same, or make another label set with --name NAME"
                )
        return row
    store.catalogue.add_label_set(
        LabelSetRow(
            name=name,
            plan=plan_row.name,
            teacher=_register_teacher(store, teacher.row, name),
            num_classes=num_classes,
            codec=wanted,
            uuid=uuid.uuid4().hex,
            temperature=temperature,
        )
    )
    if "class_ids" not in wanted:
        store.write_metadata()
    return store.label_set_row(name)


def _register_teacher(store: Store, row: TeacherRow, label_set: str) -> str:
    """The name under which the store knows this teacher: its weights decide, not what it is called."""
    held = store.catalogue.teachers()
    for known in held:
        if (known.digest, known.input_size) == (row.digest, row.input_size):
            return known.name
    taken = {known.name for known in held}
    free = (row.name, label_set, f"{row.name}-{row.digest[:8]}")
    name = next(candidate for candidate in free if candidate not in taken)
    return store.catalogue.add_teacher(dataclasses.replace(row, name=name)).name


@dataclass(kw_only=True)
class _Job:
    """One worker's share of a label set."""

    store: Store
    folder: ImageFolder
    plan: PlanRow
    label_set: str
    labeller: Labeller
    teacher: Teacher
    num_classes: int
    batch_size: int
    workers: int
    skip_bad: bool
    deadline: float | None
    progress: Progress

    def run(self) -> GenerationReport:
        started = time.monotonic()
        layout = Layout.of(self.plan, self.store.num_rows)
        self._group = f"labels/{self.label_set}"
        self._spools = self.store.path / "spool" / self.label_set
        self._blocks: dict[int, ImageBlock] = {}
        self._bad: dict[int, str] = {}
        self._labelled = 0
        self._total = self.store.num_rows * self.plan.num_crops
        committed = self._committed_blocks(layout)
        before = len(committed)
        self._done = sum(
            len(layout.rows(block)) * len(shards) * self.plan.crops_per_shard
            for block, shards in self._committed(layout).items()
        )
        self.progress(self._done, self._total)
        if before == layout.num_blocks:
            self._check_files()
            return self._report(started, before)
        keeper = LeaseKeeper(
            self.store.catalogue, self._group, layout.num_blocks, layout.num_crop_shards
        )
        self._keeper = keeper
        writer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        commits: list[Future[None]] = []
        try:
            while True:
                self._label_what_is_free(layout, writer, commits)
                for commit in commits:
                    commit.result()
                commits.clear()
                if len(self._committed_blocks(layout)) == layout.num_blocks:
                    break
                self._check_deadline()
                time.sleep(POLL_SECONDS)  # others are at work; one of them may die
        finally:
            writer.shutdown(wait=True)
            for block in self._blocks.values():
                block.spool.close()
            keeper.close()
        self.store.refresh()
        return self._report(started, before)

    def _label_what_is_free(
        self, layout: Layout, writer: ThreadPoolExecutor, commits: list[Future[None]]
    ) -> None:
        batches = CropBatches(
            self._jobs(layout, writer, commits),
            self.store.crop_plan(self.plan.name),
            num_crops=self.plan.num_crops,
            batch_size=self.batch_size,
            input_size=self.teacher.row.input_size,
            interpolation=self.teacher.row.interpolation,
            workers=self.workers,
            check=self._check_unchanged,
            pin_memory=torch.cuda.is_available(),
        )
        watch = Stopwatch()
        for batch in batches:
            labels = self.labeller(batch.pixels[: batch.size])
            seconds = watch.lap() / batch.size
            for segment in batch.segments:
                opened = segment.opened.result()
                block = self._blocks.get(opened.job.image // layout.images_per_shard)
                if block is None or opened.job.image not in block.pending:
                    continue  # the lease of its block was lost, or the image was left out
                count = segment.last - segment.first
                block.seconds += seconds * count
                part = slice(segment.at, segment.at + count)
                values = {name: array[part] for name, array in labels.items()}
                if opened.bad is not None:
                    self._leave_out(block, opened)
                    self._done += block.num_new
                else:
                    self._refuse_nan(opened, segment.first, values["probs"])
                    block.add(opened, segment.first, segment.last, values)
                    self._labelled += count
                    self._done += count
                if block.is_complete:
                    self._hand_over(block, writer, commits)
            self.progress(self._done, self._total)
            for commit in [c for c in commits if c.done()]:
                commit.result()
            self._check_deadline()

    def _jobs(
        self, layout: Layout, writer: ThreadPoolExecutor, commits: list[Future[None]]
    ) -> Iterator[ImageJob]:
        keys, bad = self.store.image_columns["key"], self.store.bad
        while (lease := self._keeper.acquire()) is not None:
            rows = layout.rows(lease.block)
            known_bad = {i: "left out earlier" for i in rows if bad[i]}
            there = self._committed(layout).get(lease.block, ())
            block = ImageBlock(
                lease=lease,
                rows=rows,
                num_crops=self.plan.num_crops,
                missing=[i for i in range(layout.num_crop_shards) if i not in there],
                crops_per_shard=self.plan.crops_per_shard,
                spool=Spool(self._spools, lease),
                pending=set(rows) - set(known_bad),
            )
            taken = block.take(read_spools(self._spools, lease.block))
            self._done += (taken + len(known_bad)) * block.num_new
            self._blocks[lease.block] = block
            if block.is_complete:
                self._hand_over(block, writer, commits)
            for image in sorted(block.pending):
                yield ImageJob(
                    image=image,
                    key=keys[image],
                    path=self.folder.path(keys[image]),
                    first_crop=block.first_crop,
                )

    def _hand_over(
        self, block: ImageBlock, writer: ThreadPoolExecutor, commits: list[Future[None]]
    ) -> None:
        del self._blocks[block.lease.block]
        commits.append(writer.submit(self._commit, block))

    def _commit(self, block: ImageBlock) -> None:
        block.spool.close()
        try:
            lease = self._keeper.current(block.lease)
            codec = self._settled_codec(block)
            shards = block.label_arrays(self.label_set, codec, self.num_classes)
            if self.plan.stored:
                there = self.store.catalogue.committed(f"crops/{self.plan.name}")
                have = there.get(block.lease.block, ())
                shards += [s for s in block.crop_arrays(self.plan) if s.crop_shard not in have]
            facts = block.facts()
            known = self.store.bad
            write_block(
                self.store,
                lease,
                shards,
                facts=ImageFacts(
                    decoded=facts.decoded,
                    bad={image: why for image, why in facts.bad.items() if not known[image]},
                ),
                num_images=len(block.done),
                seconds=block.seconds,
                device=self.labeller.device_name,
            )
        except LeaseLost:
            # another worker has the block and will commit it; the spool stays for it
            self._keeper.forget(block.lease.block)
            return
        self._keeper.forget(block.lease.block)
        remove_spools(self._spools, block.lease.block)

    def _settled_codec(self, block: ImageBlock) -> LabelCodec:
        """The label set's codec; its form of class ids is chosen on the first shard that anyone commits."""
        row = self.store.label_set_row(self.label_set)
        if row.codec.get("class_ids", "plain") is not None:
            return codec_from_record(row.codec)
        codec = codec_from_record({**row.codec, "class_ids": "plain"})
        first = block.labels(block.crop_shards()[0][1])
        assert isinstance(first, TopK)
        if block.done:
            codec = choose_class_ids(codec, first, self.num_classes)
        return codec_from_record(self.store.settle_codec(self.label_set, codec.to_record()))

    def _check_unchanged(self, opened: OpenedImage) -> None:
        columns = self.store.image_columns
        image = opened.job.image
        if columns["has_digest"][image] and columns["digest"][image].tobytes() != opened.digest:
            raise RejectedInput(
                f"{opened.job.path} changed since the store was made: restore the file, or make a new store"
            )

    def _leave_out(self, block: ImageBlock, opened: OpenedImage) -> None:
        assert opened.bad is not None
        if not self.skip_bad:
            raise RejectedInput(f"{opened.bad}; --skip-bad leaves such images out and records them")
        block.leave_out(opened.job.image, opened.bad)
        self._bad[opened.job.image] = opened.bad

    def _refuse_nan(self, opened: OpenedImage, first: int, probs: np.ndarray) -> None:
        finite = np.isfinite(probs).all(axis=-1)
        if not finite.all():
            crop = first + int(np.flatnonzero(~finite)[0])
            raise RejectedInput(
                f"the teacher returned NaN for crop {crop} of {opened.job.key}: nothing of its block was committed; "
                "check the weights, or try --amp none"
            )

    def _check_files(self) -> None:
        """DamagedShard where a file that the ledger names is missing or of another size."""
        for row in self.store.catalogue.shards(self._group):
            for file in row.files:
                path = self.store.arrays.root / file.key
                size = path.stat().st_size if path.is_file() else None
                if size != file.size:
                    found = "is missing" if size is None else f"has {size} of {file.size} bytes"
                    raise DamagedShard(
                        f"{path} {found}: every label was made, but run `labelstore verify "
                        f"{self.store.path}`, then `labelstore repair {self.store.path} --images DIR`"
                    )

    def _check_deadline(self) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise IncompleteError(
                f"stopped after --max-time with {self._done} of {self._total} crops of {self.label_set} labelled: "
                "run the same command again to go on"
            )

    def _committed(self, layout: Layout) -> dict[int, list[int]]:
        """Per block the committed crop shards that the plan had when this began; others may have grown it since."""
        committed = self.store.catalogue.committed(self._group)
        return {
            block: [shard for shard in shards if shard < layout.num_crop_shards]
            for block, shards in committed.items()
            if block < layout.num_blocks
        }

    def _committed_blocks(self, layout: Layout) -> list[int]:
        self.store.refresh()
        committed = self._committed(layout)
        return [b for b, shards in committed.items() if len(shards) == layout.num_crop_shards]

    def _report(self, started: float, before: int) -> GenerationReport:
        seconds = time.monotonic() - started
        keys = self.store.image_columns["key"]
        return GenerationReport(
            label_set=self.label_set,
            num_images=self.store.num_images,
            num_crops=self._labelled,
            already_committed=before,
            bad={str(keys[image]): why for image, why in sorted(self._bad.items())},
            seconds=seconds,
            crops_per_second=self._labelled / seconds if seconds else 0.0,
        )


def _codec_words(record: dict[str, object]) -> str:
    words = [str(record["name"])]
    words += [f"{key}={value}" for key, value in record.items() if key not in ("name", "class_ids")]
    return " ".join(words)
