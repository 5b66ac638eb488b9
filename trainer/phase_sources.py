"""Label sources of a run with phases: phases with the same labels share one source, and all have the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from labelstore.errors import UsageError
from labelstore.images import ImageSource
from trainer.config import TrainConfig
from trainer.label_sources import fresh_passes, label_source
from trainer.loader import ImageTable, PassSource, PhasedPasses, StoredPasses
from trainer.loader.phased import PhaseSource, common_table
from trainer.phases import passes_of, stretches
from trainer.sampler import PassSchedule


def phase_sources(
    config: TrainConfig,
    images: ImageSource,
    note: Callable[[str], None],
    attach: Sequence[Path] | None,
    opened: ExitStack,
) -> tuple[PhasedPasses, list[TrainConfig], list[range]]:
    """The passes of the run, the settings of each phase, filled in, and which passes are its.

    Sources are closed with `opened`. Phases on stored crops come first: fresh crops are of the images that these have.
    """
    settings = list(config.of_phases())
    passes = [passes_of(phase, config.crops_per_image) for phase in config.phases]
    fresh = [own.store is None for own in settings]
    schedules = {
        kind: PassSchedule(
            crops_per_pass=sum((p for p, k in zip(passes, fresh, strict=True) if k == kind), ())
        )
        for kind in set(fresh)
    }
    # in the order of their phases, as `PhasedPasses.folders` has them
    keys = [_key(own) for own in settings]
    folders = {} if attach is None else dict(zip(dict.fromkeys(keys), attach, strict=True))
    tell = _once(note)
    made: dict[tuple[object, ...], tuple[PassSource, TrainConfig]] = {}
    table: ImageTable | None = None
    for number in sorted(range(len(settings)), key=fresh.__getitem__):
        own, key = settings[number], keys[number]
        if fresh[number] and table is None and made:
            table = common_table([source for source, _ in made.values()])
        if key not in made:
            schedule, folder = schedules[fresh[number]], folders.get(key)
            if table is None or not fresh[number]:
                made[key] = label_source(own, images, schedule, tell, folder)
            else:
                made[key] = _fresh_again(own, table, list(made.values()), schedule, folder)
            opened.enter_context(made[key][0])
        filled = made[key][1]
        settings[number] = dataclasses.replace(
            own,
            num_classes=filled.num_classes,
            class_names=filled.class_names,
            provenance=filled.provenance,
        )
    if len({own.class_names for own in settings}) > 1:
        raise UsageError(
            "the labels of the phases do not name the same classes: give phases with the same outputs"
        )
    sources = [
        PhaseSource(
            source=made[key][0],
            first_pass=sum(len(passes[n]) for n in range(number) if fresh[n] == fresh[number]),
            crops_per_pass=passes[number],
        )
        for number, key in enumerate(keys)
    ]
    table = table or common_table([source for source, _ in made.values()])
    return PhasedPasses(sources, table), settings, stretches(passes)


def _fresh_again(
    config: TrainConfig,
    table: ImageTable,
    made: Sequence[tuple[PassSource, TrainConfig]],
    schedule: PassSchedule,
    attach: Path | None,
) -> tuple[PassSource, TrainConfig]:
    """Fresh crops of the images of other phases, with their classes; none that a store has drawn with the same seed."""
    stored = [source for source, _ in made if isinstance(source, StoredPasses)]
    first = made[0][1]
    versions = {"versions": first.provenance["versions"]}
    config = dataclasses.replace(
        config,
        num_classes=first.num_classes,
        class_names=first.class_names,
        provenance=versions,
    )
    source = fresh_passes(
        config,
        schedule,
        attach,
        keys=table.keys,
        class_ids=table.ground_truth,
        sizes=table.sizes,
        first_crop=max((each.order.num_crops for each in stored), default=0),
    )
    return source, dataclasses.replace(config, provenance={**source.drawn_from(), **versions})


def _key(config: TrainConfig) -> tuple[object, ...]:
    """Settings that decide the labels and crops of a phase."""
    return (
        config.labels,
        config.store,
        config.label_set,
        config.mask,
        config.temperature,
        config.label_smoothing if config.labels == "ground-truth" else None,
    )


def _once(note: Callable[[str], None]) -> Callable[[str], None]:
    """Says a line once, however many phases it is true of."""
    told: set[str] = set()

    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            note(line)

    return tell
