"""The data of a config: its passes, its images, its validation folder, and the config with blanks filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelstore.errors import UsageError
from labelstore.images import ImageSource, open_images
from labelstore.teachers.named_networks import settings_by_name
from trainer.config import TrainConfig, evaluation_split
from trainer.label_sources import label_source
from trainer.loader import PassSource
from trainer.loader.phased import in_common
from trainer.phase_sources import phase_sources
from trainer.phases import WITHOUT_CLASSES
from trainer.ranks import Ranks
from trainer.sampler import PassSchedule


@dataclass(frozen=True, kw_only=True)
class RunPhase:
    """A stretch of passes that learn from the same labels; a run without phases is one."""

    config: TrainConfig
    """As of a run of this phase alone, filled in."""
    passes: range


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Opened for one run."""

    config: TrainConfig
    """With `num_classes`, `class_names` and `provenance` filled in."""
    source: PassSource
    images: ImageSource
    val: Path | None
    phases: tuple[RunPhase, ...]

    def phase(self, pass_index: int) -> int:
        """Number of the phase that a pass is in, from 0."""
        return next(n for n, phase in enumerate(self.phases) if pass_index in phase.passes)


@contextmanager
def open_training_data(
    config: TrainConfig,
    note: Callable[[str], None] = lambda message: None,
    *,
    attach: Sequence[Path] | None = None,
) -> Iterator[TrainingData]:
    """Find images, labels and validation folder; scratch files go when the block ends.

    `attach` are the folders in which another process of this node, with the same config, lays out the labels.

    UsageError or RejectedInput name what does not fit: no such folder, images that are not the store's,
    a number of classes that is not the labels'.
    """
    images = open_images(_training_folder(config))
    with ExitStack() as opened:
        source, phases = _sources(config, images, note, attach, opened)
        settings = [phase.config for phase in phases]
        config = dataclasses.replace(
            config,
            num_classes=settings[0].num_classes,
            class_names=settings[0].class_names,
            provenance=in_common([each.provenance for each in settings]),
        )
        if config.pretrained:
            _note_other_pixels(config, note)
        if config.whole_epochs != config.epochs:
            note(
                f"{config.epochs} epochs of one crop per image are not whole passes of {config.crops_per_image} crops: "
                f"training for {config.whole_epochs}"
            )
        for own in settings:
            if own.ground_truth_weight or own.labels == "ground-truth":
                _check_ground_truth(own, source)
        if source.counts.left_out:
            note(f"{source.counts.left_out} images have no usable crop and are left out")
        if source.counts.repeating:
            note(
                f"{source.counts.repeating} images have fewer usable crops than m={config.crops_per_image} "
                "and repeat them within a pass"
            )
        yield TrainingData(
            config=config,
            source=source,
            images=images,
            val=None if settings[0].labels in WITHOUT_CLASSES else _validation(config, note),
            phases=phases,
        )


@contextmanager
def training_data_of_rank(
    config: TrainConfig, ranks: Ranks, note: Callable[[str], None] = lambda message: None
) -> Iterator[TrainingData]:
    """`open_training_data` on every rank: the first of each node lays out labels, the others attach to them."""
    with ExitStack() as stack:
        opened: list[TrainingData] = []

        def lead() -> tuple[Path, ...]:
            opened.append(stack.enter_context(open_training_data(config, note)))
            return opened[0].source.folders

        folders = ranks.on_node_leader(lead)
        if not opened:
            opened.append(stack.enter_context(open_training_data(config, attach=folders)))
        yield opened[0]


def _sources(
    config: TrainConfig,
    images: ImageSource,
    note: Callable[[str], None],
    attach: Sequence[Path] | None,
    opened: ExitStack,
) -> tuple[PassSource, tuple[RunPhase, ...]]:
    """Open the source of the run's labels, closed with `opened`, and its phases."""
    if config.phases:
        phased, settings, passes = phase_sources(config, images, note, attach, opened)
        phases = zip(settings, passes, strict=True)
        return phased, tuple(RunPhase(config=own, passes=stretch) for own, stretch in phases)
    schedule = PassSchedule.of(
        passes=config.multi_crop_passes,
        crops_per_image=config.crops_per_image,
        single_crop_first=config.single_crop_first,
        single_crop_last=config.single_crop_last,
    )
    source, config = label_source(
        config, images, schedule, note, None if attach is None else attach[0]
    )
    opened.enter_context(source)
    return source, (RunPhase(config=config, passes=range(schedule.num_passes)),)


def _note_other_pixels(config: TrainConfig, note: Callable[[str], None]) -> None:
    """Note that the pretrained weights were made for other pixels than this run shows them."""
    own = settings_by_name(config.model) or {}
    changed = [
        name
        for name in ("mean", "std", "interpolation", "crop_mode")
        if own.get(name) not in (None, getattr(config, name))
    ]
    if changed:
        here = ", ".join(f"{name} {_written(getattr(config, name))}" for name in changed)
        settings = " ".join(f"`{name}={_written(own[name])}`" for name in changed)
        note(
            f"the weights of {config.model} were made for other pixels than {here}: {settings} is theirs"
        )


def _written(value: object) -> str:
    return ",".join(f"{each:g}" for each in value) if isinstance(value, tuple) else str(value)


def _check_ground_truth(config: TrainConfig, source: PassSource) -> None:
    truth = source.table.ground_truth
    wrong = np.flatnonzero((truth < 0) | (truth >= (config.num_classes or 0)))
    if len(wrong):
        raise UsageError(
            f"the ground truth of {source.table.keys[int(wrong[0])]} is class {truth[wrong[0]]}, the labels have "
            f"outputs 0-{(config.num_classes or 0) - 1} ({len(wrong)} such images): leave ground_truth_weight at "
            "0, and learn from stored labels"
        )


def _training_folder(config: TrainConfig) -> Path:
    if config.train is not None:
        return config.train
    if config.data is None:
        raise UsageError("no images to train on: give `data=DIR` with train/ in it, or `train=DIR`")
    inside = config.data / "train"
    return inside if inside.is_dir() else config.data


def _validation(config: TrainConfig, note: Callable[[str], None]) -> Path | None:
    if config.val is not None:
        return config.val
    inside = None if config.data is None else evaluation_split(config.data)
    if inside is not None and inside.is_dir():
        return inside
    note(
        "nothing is evaluated: give `val`"
        + ("" if config.data is None else f"; {config.data} has neither val nor validation in it")
    )
    return None
