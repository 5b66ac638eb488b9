"""How far the labels of a run reach: refused where they are unfinished, or as far as all of them go."""

from __future__ import annotations

from labelstore.calibration.ensembles import Ensemble
from labelstore.errors import IncompleteError, NotGenerated, UsageError
from labelstore.store.label_set import what_is_missing


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
