"""Options that record more of a crop than box and flip: colour jitter, RandAugment, mixing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import numbers

if TYPE_CHECKING:
    from labelstore.cropping.crop_augmentation import CropAugmentation
    from labelstore.cropping.crop_mixing import CropMixing

PANEL = "Crops"

ColorJitter = Annotated[
    str | None,
    typer.Option(
        metavar="B,C,S,H",
        help="Record colour jitter with every crop: brightness, contrast, saturation, hue.",
        show_default="none",
        rich_help_panel=PANEL,
    ),
]
RandAugment = Annotated[
    float | None,
    typer.Option(
        metavar="MAGNITUDE",
        help="Record RandAugment with every crop, 0 to 10.",
        show_default="none",
        rich_help_panel=PANEL,
    ),
]
RandAugmentStd = Annotated[
    float | None,
    typer.Option(help="Deviation of its magnitude.", show_default="0.5", rich_help_panel=PANEL),
]
RandAugmentOps = Annotated[
    int | None,
    typer.Option(help="Its operations per crop.", show_default="2", rich_help_panel=PANEL),
]
Mix = Annotated[
    str | None,
    typer.Option(
        metavar="cutmix|mixup",
        help="Mix every crop with one of another image, and record which and how.",
        show_default="none",
        rich_help_panel=PANEL,
    ),
]
MixAlpha = Annotated[
    float | None,
    typer.Option(
        help="Of the Beta distribution of the shares.", show_default="1", rich_help_panel=PANEL
    ),
]
MixProb = Annotated[
    float | None,
    typer.Option(
        help="Share of the crops that are mixed.", show_default="1", rich_help_panel=PANEL
    ),
]


def augmentation(
    color_jitter: str | None, magnitude: float | None, std: float | None, ops: int | None
) -> CropAugmentation | None:
    """What is recorded with every crop; None where nothing was said, UsageError for what cannot be."""
    from labelstore.cropping.crop_augmentation import CropAugmentation
    from labelstore.errors import UsageError

    given: dict[str, Any] = {
        "rand_augment": magnitude,
        "rand_augment_std": std,
        "rand_augment_ops": ops,
    }
    if color_jitter is not None:
        names = ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE")
        given["color_jitter"] = numbers(color_jitter, "--color-jitter", *names)
    said = {name: value for name, value in given.items() if value is not None}
    if magnitude is None and (std is not None or ops is not None):
        raise UsageError("--rand-augment-std and --rand-augment-ops need --rand-augment MAGNITUDE")
    return CropAugmentation(**said) if said else None


def mixing(
    method: str | None, alpha: float | None, prob: float | None, crops: str | None
) -> CropMixing | None:
    """How crops are mixed; None for not at all, UsageError for what cannot be."""
    from labelstore.cropping.crop_mixing import CropMixing
    from labelstore.errors import UsageError

    given: dict[str, Any] = {"alpha": alpha, "prob": prob}
    said = {name: value for name, value in given.items() if value is not None}
    if method is None:
        if said:
            raise UsageError("--mix-alpha and --mix-prob need --mix cutmix|mixup")
        return None
    if crops == "seeded":
        raise UsageError(
            "--mix with --crops seeded: what crops are mixed with is stored with their boxes, leave one out"
        )
    return CropMixing(**{"method": method, **said})
