"""Which stored labels a config learns from: one label set, or several with masks and weights, checked for what it
asks and for how far they reach."""

from __future__ import annotations

from dataclasses import dataclass

from labelstore.calibration.ensembles import Ensemble, ensemble
from labelstore.errors import IncompleteError, NotGenerated, RejectedInput, UsageError
from labelstore.store import LabelSet, Store
from labelstore.store.label_outputs import refusal_of
from labelstore.store.unfinished import what_is_missing
from trainer.config import TrainConfig
from trainer.config_checks import split_names
from trainer.phases import WITHOUT_CLASSES


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """What a student learns of stored crops: their soft labels, or another thing in their place."""

    ground_truth: float | None = None
    """Smoothing of the class of every crop's image, which takes the place of its label; None: the labels."""
    own_classes: bool = False
    """The network's outputs are the classes of the data set, whatever the stored labels' are."""
    as_outputs: bool = False
    """The teacher's outputs themselves and not their softmax, of one label set without a mask."""

    @property
    def has_own_classes(self) -> bool:
        """Whether a class id is one of the data set."""
        return self.own_classes or self.ground_truth is not None


NO_MASK = "-"
"""Stands for a label set without a mask in the list of an ensemble's masks."""


def chosen_labels(store: Store, config: TrainConfig) -> Ensemble:
    """The labels of a config; one label set is an ensemble of one.

    UsageError for names that the store does not hold, label sets of different plans or numbers of classes, masks of
    other teachers, and labels that are not what `config.labels` learns from. RejectedInput where a network is to learn
    classes from outputs that are none.
    """
    names: tuple[str | None, ...] = split_names(config.label_set) or (None,)
    picks = config.order != "random" or config.probability_range != (0, 1)
    is_any = config.labels == "ground-truth" and not picks and not config.label_set
    if is_any and len(store.catalogue.plans.all()) == 1:
        # only its crops are wanted, and those are the plan's
        names = store.label_sets[:1] or names
    labels = [store.label_set(name) for name in names]
    for one in labels:
        _check_kind(one, config)
    masks = [None if name == NO_MASK else store.mask(name) for name in split_names(config.mask)]
    if masks and len(masks) != len(labels):
        raise UsageError(
            f"mask={config.mask!r} for {len(labels)} label sets: give one mask for each, in the same order, "
            f"{NO_MASK} for none"
        )
    return ensemble(labels, masks or None, config.ensemble_weights or None)


def _check_kind(labels: LabelSet, config: TrainConfig) -> None:
    kind, takes = config.labels, labels.codec.takes
    if labels.plan.parameters.get("mixed") and kind == "ground-truth":
        raise UsageError(
            f"labels='ground-truth' on the crops of label set {labels.name}, which were mixed with other images before "
            "the teacher saw them: they have no one class; leave the store out"
        )
    if labels.plan.parameters.get("mixed") and config.ground_truth_weight:
        raise UsageError(
            f"ground_truth_weight={config.ground_truth_weight} with label set {labels.name}, whose crops were "
            "mixed with other images before the teacher saw them: they have no one class; leave it at 0"
        )
    holds = f"label set {labels.name} holds {labels.codec.name} labels"
    if kind == "labelmap" and takes != "map":
        raise UsageError(
            f"{holds}: labels='labelmap' wants label maps, labels='fkd' learns from it"
        )
    if kind in WITHOUT_CLASSES and takes != "outputs":
        raise UsageError(
            f"{holds}: labels={kind!r} wants outputs before softmax, which the codecs logits and pq keep"
        )
    if kind == "embedding" and labels.outputs.kind != "embedding":
        raise RejectedInput(
            f"label set {labels.name} has {labels.outputs.describe(labels.num_classes)}, and nothing says that they "
            "are an embedding, of which no softmax is taken: say so "
            "(`labelstore.labelling.stating.state_classes(embedding=True)`), or learn from them with labels='ssl'"
        )
    if kind in ("fkd", "ferkd") and takes == "map":
        raise UsageError(f"{holds}: labels='labelmap' learns from it")
    if kind in ("fkd", "ferkd", "ensemble", "labelmap") and not labels.outputs_are_classes:
        ssl = "; labels='ssl' learns from outputs as they are" if takes == "outputs" else ""
        raise RejectedInput(f"labels={kind!r}: {refusal_of(labels)}{ssl}")
    if kind == "ssl" and config.ground_truth_weight:
        _ = labels.true_output


def check_mixed(labels: Ensemble) -> None:
    """UsageError for a mask of crops that were mixed with other images, which older versions could make."""
    if labels.plan.parameters.get("mixed") and labels.has_masks:
        raise UsageError(
            f"label set {labels.name} is of crops that were mixed with other images, a mask calibrates by one image's "
            "class: train on these labels without a mask"
        )


def as_far_as_labelled(labels: Ensemble) -> Ensemble:
    """The first crops, which every label set has of each image that it covers; all M where none is unfinished."""
    covered = labels.covered_crops
    for member in labels.members:
        if not member.labels.covered_crops:
            raise NotGenerated(what_is_missing(member.labels))
    return labels if covered == labels.num_crops else labels.first_crops(covered)


def check_complete(labels: Ensemble, *, allow_incomplete: bool) -> None:
    """IncompleteError for an unfinished label set or mask, unless that is allowed."""
    if allow_incomplete:
        return
    for member in labels.members:
        one, mask = member.labels, member.mask
        if not one.is_complete:
            raise IncompleteError(
                f"{what_is_missing(one)}, or train on what is there with `allow_incomplete`"
            )
        if mask is not None and mask.num_crops < one.num_crops:
            raise IncompleteError(
                f"mask {mask.name} covers {mask.num_crops} of {one.num_crops} crops: run "
                f"`labelstore.calibration.update(labelstore.open({str(one.store.path)!r}), name={mask.name!r})`, "
                "or train on these with `allow_incomplete`"
            )
        if mask is not None and not mask.is_complete:
            raise IncompleteError(
                f"mask {mask.name} does not cover all images: run `labelstore.calibration.update`, or train on "
                "what is there with `allow_incomplete`"
            )
