"""Passes of a run with phases: each pass is one of a source that a phase learns from.

Positions go on within a kind of crops: phases on stored crops draw one after the other in the store's drawing order, as
if the others were not there, and phases on fresh crops never show a crop twice. So a phase's source counts the passes
of its kind only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput, UsageError
from trainer.loader.pass_labels import PassLabels
from trainer.loader.source import DrawCounts, ImageTable, PassSource
from trainer.sampler import PassSchedule


@dataclass(frozen=True, kw_only=True)
class PhaseSource:
    """What one phase learns from."""

    source: PassSource
    first_pass: int
    """Number of the phase's first pass, as the source counts."""
    crops_per_pass: tuple[int, ...]


class PhasedPasses(PassSource):
    """Passes of several sources as those of one run, on the images that all of them have."""

    def __init__(self, phases: Sequence[PhaseSource], table: ImageTable) -> None:
        """`table` has the images of the run (`common_table`), of which every source has crops."""
        self.table = table
        self.schedule = PassSchedule(crops_per_pass=sum((p.crops_per_pass for p in phases), ()))
        self.sources = tuple({id(phase.source): phase.source for phase in phases}.values())
        self.num_classes = self.sources[0].num_classes
        self.counts = DrawCounts(
            images=len(table),
            left_out=max(
                source.counts.left_out + len(source.table) - len(table) for source in self.sources
            ),
            repeating=max(source.counts.repeating for source in self.sources),
        )
        self._passes = [
            (phase.source, phase.first_pass + nth)
            for phase in phases
            for nth in range(len(phase.crops_per_pass))
        ]
        self._rows = {id(source): _places(table, source.table) for source in self.sources}

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those of every source, in the order in which they are first needed."""
        return tuple(folder for source in self.sources for folder in source.folders)

    def of_pass(self, pass_index: int) -> PassSource:
        """The phase's source."""
        return self._passes[pass_index][0]

    def pass_labels(self, pass_index: int) -> PassLabels:
        """The source's, of the images of the run."""
        source, own = self._passes[pass_index]
        labels, rows = source.pass_labels(own), self._rows[id(source)]
        return replace(labels, images=self.table.images, rows=rows)

    def prepare_later(self, pass_index: int) -> None:
        """In the source of that pass."""
        if pass_index < len(self._passes):
            source, own = self._passes[pass_index]
            source.prepare_later(own)

    def drawn_from(self) -> dict[str, Any]:
        """That of the sources; in lists what they do not have in common."""
        return in_common([source.drawn_from() for source in self.sources])

    def close(self) -> None:
        """Close every source."""
        for source in self.sources:
            source.close()


def common_table(sources: Sequence[PassSource]) -> ImageTable:
    """The images of which all of these sources of one store have crops.

    UsageError where an image's class is not the same output in all of them, RejectedInput without a common image.
    """
    first, *others = (source.table for source in sources)
    chosen = np.ones(len(first), bool)
    for other in others:
        chosen &= np.isin(first.images, other.images)
    if not chosen.any():
        raise RejectedInput("no image has usable crops in every phase: nothing to train on")
    rows = np.flatnonzero(chosen)
    table = ImageTable(
        images=first.images[rows],
        keys=[first.keys[row] for row in rows.tolist()],
        streams=first.streams[rows],
        sizes=first.sizes[rows],
        ground_truth=first.ground_truth[rows],
    )
    for source in sources:
        own = source.table.ground_truth[_where(table, source.table)]
        if source.num_classes != sources[0].num_classes or (own != table.ground_truth).any():
            raise UsageError(
                "the labels of the phases do not number the classes alike: give phases with the same outputs"
            )
    return table


def in_common(described: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One description of several: a value that they share, else the different ones in a list.

    >>> in_common([{"a": 1, "b": 2}, {"a": 1, "b": 3}])
    {'a': 1, 'b': [2, 3]}
    """
    common: dict[str, Any] = {}
    for name in dict.fromkeys(name for each in described for name in each):
        values: list[Any] = []
        for each in described:
            if name in each and each[name] not in values:
                values.append(each[name])
        common[name] = values[0] if len(values) == 1 else values
    return common


def _places(table: ImageTable, own: ImageTable) -> NDArray[np.intp] | None:
    """Places in a source's planes of the images of the run; None where it has these images."""
    return None if len(own) == len(table) else _where(table, own)


def _where(table: ImageTable, own: ImageTable) -> NDArray[np.intp]:
    if len(own) == len(table):
        return np.arange(len(table))
    return np.searchsorted(own.images, table.images)
