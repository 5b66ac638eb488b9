"""Phases of a run: parts that learn from different labels, one after the other (HALD: soft, the ground truth, soft).

With few stored crops per image soft labels drift from the image's class; epochs on the ground truth between two soft
phases bring the student back (Cui et al. 2025, arXiv 2512.15647). A run's own settings hold in every phase whose labels
take them, and a phase's own come before them. The learning rate, the optimiser and the moving average run on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from labelstore.errors import UsageError

if TYPE_CHECKING:
    from trainer.config import TrainConfig

Config = TypeVar("Config", bound="TrainConfig")

Supervision = Literal[
    "ground-truth", "fkd", "ferkd", "ensemble", "labelmap", "teacher", "ssl", "embedding"
]
WITHOUT_CLASSES = ("ssl", "embedding")
"""Kinds of labels whose students have outputs that are no classes: they are evaluated by probes."""
Mixing = Literal["none", "selfmix", "mixup", "cutmix", "mixup-cutmix"]

_KINDS: tuple[str, ...] = get_args(Supervision)
_SOFTMAX = ("fkd", "ferkd", "ensemble", "labelmap", "ssl")
_STORED = (*_SOFTMAX, "embedding")
TAKEN_BY: Mapping[str, Collection[str]] = {
    "store": (*_STORED, "teacher"),
    "label_set": _STORED,
    "mask": ("ferkd", "ensemble", "teacher"),
    "ensemble_weights": ("ensemble",),
    "teacher": ("teacher",),
    "teacher_model": ("teacher",),
    "temperature": (*_SOFTMAX, "teacher"),
    "order": (*_SOFTMAX, "teacher"),
    "probability_range": (*_SOFTMAX, "teacher"),
    "ground_truth_weight": ("fkd", "ferkd", "ensemble", "labelmap", "teacher"),
    "discriminator": ("fkd", "ferkd", "ensemble", "labelmap", "teacher"),
    "label_smoothing": ("ground-truth",),
    "scale": ("ground-truth",),
    "ratio": ("ground-truth",),
    "flip_prob": ("ground-truth",),
}
"""Settings of a run that only some labels take -> those labels. In a phase of others they are at their defaults."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase; what is None is as in the run's settings."""

    labels: Supervision
    epochs: int
    """N crops each: passes of m crops, and what is left of them in passes of one crop."""
    label_set: str | None = None
    mask: str | None = None
    mixing: Mixing | None = None
    mixing_prob: float | None = None
    label_smoothing: float | None = None
    ground_truth_weight: float | None = None
    temperature: float | None = None

    def __str__(self) -> str:
        """The short form; settings that it cannot say are left out."""
        return f"{self.labels}:{self.epochs}" + (f":{self.mixing}" if self.mixing else "")

    @property
    def own(self) -> dict[str, Any]:
        """The settings that the phase has for itself, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None} | {
            "labels": self.labels
        }


def read_phases(given: object) -> object:
    """Phases in short form, `LABELS:EPOCHS` or `LABELS:EPOCHS:MIXING`, as mappings; anything else as it is.

    >>> read_phases("fkd:75,ground-truth:150:cutmix")[1]
    {'labels': 'ground-truth', 'epochs': '150', 'mixing': 'cutmix'}
    """
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",") if part.strip()]
    if not isinstance(given, (list, tuple)):
        return given
    return tuple(_read(each) if isinstance(each, (str, Mapping)) else each for each in given)


def _read(given: str | Mapping[str, object]) -> Mapping[str, object]:
    names = [field.name for field in dataclasses.fields(Phase)]
    if isinstance(given, str):
        parts = [part.strip() for part in given.split(":")]
        if len(parts) not in (2, 3) or not parts[1].isdecimal() or int(parts[1]) < 1:
            raise UsageError(
                f"phase {given[:80]!r}: give LABELS:EPOCHS or LABELS:EPOCHS:MIXING, for example ground-truth:150:cutmix"
            )
        given = dict(zip(("labels", "epochs", "mixing"), parts, strict=False))
    for name in given:
        if name not in names:
            raise UsageError(f"{str(name)[:80]}: no setting of a phase; it has {', '.join(names)}")
    if given.get("labels") not in _KINDS:
        raise UsageError(
            f"a phase of labels {str(given.get('labels'))[:80]!r}: choose one of {', '.join(_KINDS)}"
        )
    if "epochs" not in given:
        raise UsageError(f"a phase of labels {given['labels']!r} without epochs: say how many")
    return given


def phase_config(config: Config, number: int) -> Config:
    """The settings of one phase (from 0), as those of a run without phases of as many epochs as the whole one.

    UsageError names the phase where its settings contradict each other.
    """
    phase = config.phases[number]
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    values: dict[str, Any] = {
        name: usual[name] for name in TAKEN_BY if not _takes(phase, name, config) and name in usual
    }
    if phase.labels != "teacher" and config.initial_checkpoint is None:
        values["checkpoint_weights"] = None
    values |= phase.own | {"phases": (), "epochs": config.epochs}
    try:
        return dataclasses.replace(config, **values)
    except UsageError as error:
        raise UsageError(f"phase {number + 1} ({phase}): {error}") from None


def passes_of(phase: Phase, crops_per_image: int) -> tuple[int, ...]:
    """Crops per image of each pass of a phase.

    >>> passes_of(Phase(labels="fkd", epochs=11), 4)
    (4, 4, 1, 1, 1)
    """
    whole, left = divmod(phase.epochs, crops_per_image)
    return (crops_per_image,) * whole + (1,) * left


def check_phases(config: TrainConfig) -> None:
    """UsageError in one line for phases that no run can have, and settings that none of them takes."""
    phases, shown = config.phases, ", ".join(map(str, config.phases))
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    for phase in phases:
        if phase.epochs < 1:
            raise UsageError(f"phase {phase}: give 1 epoch or more")
    total = sum(phase.epochs for phase in phases)
    if config.epochs != total:
        raise UsageError(
            f"epochs={config.epochs} with phases of {total} epochs ({shown}): leave epochs out, or let them add up"
        )
    kinds = [phase.labels for phase in phases]
    if config.labels not in (usual["labels"], *kinds):
        raise UsageError(
            f"labels={config.labels!r} with phases {shown}: the phases say what is learnt; leave labels out"
        )
    for kind in WITHOUT_CLASSES:
        if kind in kinds and set(kinds) != {kind}:
            raise UsageError(
                f"phases {shown}: outputs of labels={kind!r} are no classes, those of the others are; give one or the "
                "other"
            )
    for name, instead in (
        ("single_crop_first", "what m leaves of a phase's epochs is drawn crop by crop"),
        ("single_crop_last", "what m leaves of a phase's epochs is drawn crop by crop"),
        ("mixing_off_epochs", "give a last phase with mixing='none'"),
    ):
        if value := getattr(config, name):
            raise UsageError(f"{name}={value} with phases {shown}: {instead}; leave it at 0")
    for name in TAKEN_BY:
        value = getattr(config, name)
        if value != usual[name] and not any(_takes(phase, name, config) for phase in phases):
            raise UsageError(
                f"{name}={str(value)!r} with phases {shown}: none of them takes it; leave it out"
            )
    config.of_phases()


def _takes(phase: Phase, name: str, config: TrainConfig) -> bool:
    """Whether a run's setting holds in a phase."""
    if name in ("scale", "ratio", "flip_prob") and phase.labels == "teacher":
        return config.store is None
    if name == "label_smoothing" and phase.labels not in WITHOUT_CLASSES:
        weight = phase.ground_truth_weight
        weight = config.ground_truth_weight if weight is None else weight
        return phase.labels == "ground-truth" or weight > 0
    return phase.labels in TAKEN_BY[name]


def stretches(phases: Sequence[tuple[int, ...]]) -> list[range]:
    """Passes of each phase, given those phases' passes.

    >>> stretches([(4, 4), (1,), (4,)])
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    found, start = [], 0
    for passes in phases:
        found.append(range(start, start + len(passes)))
        start += len(passes)
    return found
