"""A run's row and results in the catalogue of the store that it learns from, where that can be written.

A training never fails for it: what goes wrong is noted once, and nothing more is written.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import labelstore
from labelstore.catalogue.records import ResultRow, RunRow
from labelstore.errors import LabelStoreError, check_utf8
from trainer.config import TrainConfig
from trainer.config_checks import learns_from_store, split_names

Note = Callable[[str], None]


class RunRegister:
    """Writes one run's figures; silent where the store is read-only or there is none."""

    def __init__(self, config: TrainConfig, note: Note = lambda message: None) -> None:
        """Add the run, or find it again; the same folder with the same settings is the same run."""
        self._note, self._name, self._store = note, "", None
        if config.store is None or config.output is None:
            return
        try:
            store = labelstore.open(config.store)
            if store.catalogue.readonly:
                return
            folder = str(config.output.resolve())
            check_utf8(folder)
            self._name = run_name(config)
            store.catalogue.runs.add(
                RunRow(
                    name=self._name,
                    folder=folder,
                    label_sets=_learnt_from(config, store.label_sets),
                    masks=_each_once(split_names(each.mask) for each in config.of_phases()),
                    config=_at_the_beginning(config),
                    started=time.time(),
                )
            )
            self._store = store
        except (LabelStoreError, OSError) as error:
            self._note(f"this run is not listed in the store: {error}")

    def add(self, epoch: int, figures: Mapping[str, float | None]) -> None:
        """Figures by name, after that many epochs; None is left out."""
        if self._store is None:
            return
        try:
            for name, value in figures.items():
                if value is not None:
                    self._store.catalogue.results.add(
                        ResultRow(run=self._name, name=name, epoch=epoch, value=float(value))
                    )
        except (LabelStoreError, OSError) as error:
            self._note(f"results are not listed in the store any more: {error}")
            self._store = None


def _learnt_from(config: TrainConfig, label_sets: tuple[str, ...]) -> tuple[str, ...]:
    """Label sets that this run's epochs count for: none where only their crops are used."""
    return _each_once(
        split_names(each.label_set) or label_sets[:1]
        for each in config.of_phases()
        if learns_from_store(each)
    )


def _each_once(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for some in names for name in some))


def _at_the_beginning(config: TrainConfig) -> dict[str, Any]:
    """What decides the run, with its first value where a setting was allowed to differ later (`may_differ`)."""
    decisive = config.decisive()
    for change in reversed(config.provenance.get("changed", ())):
        decisive |= {name: pair[0] for name, pair in change.items() if name in decisive}
    return decisive


def run_name(config: TrainConfig) -> str:
    """The run folder's name with a digest of where it is and of what decides the run."""
    assert config.output is not None
    folder = Path(config.output).resolve()
    text = json.dumps([str(folder), _at_the_beginning(config)], sort_keys=True)
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", folder.name).lstrip("._-") or "run"
    return f"{plain[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
