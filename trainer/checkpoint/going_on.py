"""A run that goes on from a checkpoint: what has to be as it was, and what stays of what the run chose at its
beginning."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

from labelstore.errors import ConflictError
from trainer.checkpoint.files import Checkpoint
from trainer.config import NOT_WRITTEN, Autocast, MayDiffer, TrainConfig

_OLDER = {
    "labels_made_at": "which took labels made at any temperature for labels at T=1",
    "drawing_order": "which drew crops in another order, where an image could show one crop twice in a batch",
}
"""What was otherwise in runs that did not write an entry of the provenance down."""


def going_on(
    config: TrainConfig, checkpoint: Checkpoint, path: Path
) -> tuple[TrainConfig, tuple[str, ...]]:
    """The config that a run goes on with, and a line on each thing that is not as at its beginning.

    What `amp="auto"` chose stays, whatever the device is now. What `may_differ` allows to be different is added to the
    provenance, as `changed`, with the step.

    ConflictError names a setting that is different and not allowed to be, or other data.
    """
    before = TrainConfig.from_mapping(checkpoint.config)
    allowed = [name for name in config.differences(before) if name in config.may_differ]
    _check_same(config, before, path)
    changes: dict[str, Any] = {
        name: [getattr(before, name), getattr(config, name)] for name in allowed
    }
    notes = [
        f"from step {checkpoint.step} on with {name}={now!r}, before {was!r}"
        for name, (was, now) in changes.items()
    ]
    provenance = dict(config.provenance)
    was, now = before.provenance.get("amp"), provenance.get("amp")
    if config.amp == before.amp == "auto" and was in get_args(Autocast) and was != now:
        if "amp" in config.may_differ:
            changes["autocast"] = [was, now]
            notes.append(f"from step {checkpoint.step} on with amp {now}, before {was}")
        else:
            provenance["amp"] = was
            notes.append(
                f"amp stays {was}, which it was when the run began; {now} is this device's own: `may_differ=amp` "
                "takes it"
            )
    kept = before.provenance.get("changed")
    history = list(kept) if isinstance(kept, (list, tuple)) else []
    if changes:
        history.append({"step": checkpoint.step, **changes})
    if history:
        provenance["changed"] = history
    return dataclasses.replace(config, provenance=provenance, may_differ=()), tuple(notes)


def _check_same(config: TrainConfig, before: TrainConfig, path: Path) -> None:
    changed = [name for name in config.differences(before) if name not in config.may_differ]
    if not changed:
        return
    name = changed[0]
    _, of_data, entry = name.partition("provenance.")
    if of_data and entry in NOT_WRITTEN and entry not in before.provenance:
        raise ConflictError(
            f"{path} was begun by an older trainer, {_OLDER[entry]}: finish it with that version, or give another "
            "output folder"
        )
    if of_data:
        was, now = (_short({**NOT_WRITTEN, **each.provenance}[entry]) for each in (before, config))
        raise ConflictError(
            f"{path} began with other data ({entry} {was}, now {now}): resume with what it was trained on,"
            " or give another output folder"
        )
    allow = f", or allow it with `may_differ={name}`" if name in get_args(MayDiffer) else ""
    raise ConflictError(
        f"{path} was trained with {name}={getattr(before, name)!r}, now {getattr(config, name)!r}:"
        f" resume with the same settings{allow}, or give another output folder"
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"
