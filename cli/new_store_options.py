"""Options of the commands that make a store: how images are cut into crops, and which files it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from cli.field_options import numbers, option
from cli.shared_options import WORK
from labelstore.errors import UsageError

if TYPE_CHECKING:
    from labelstore.cropping.crop_augmentation import CropAugmentation
    from labelstore.cropping.crop_mixing import CropMixing
    from labelstore.store import PlanOptions

CROPS = "Crops"


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """The files of a new store."""

    PANEL: ClassVar = WORK

    images_per_shard: Annotated[int | None, option(unset="by size")] = None
    """Images in one commit."""
    crops_per_shard: Annotated[int | None, option(unset="at most 100")] = None
    """Crops in one file; divides M."""
    backend: Literal["zarr", "hdf5"] = "zarr"
    """Files of a new store."""


@dataclass(frozen=True, kw_only=True)
class CropOptions:
    """The crops of a new store: number, boxes, and what else is recorded with each."""

    PANEL: ClassVar = CROPS

    num_crops: Annotated[int | None, option(metavar="M")] = None
    """Crops of each image; not needed with --plan-from."""
    seed: Annotated[int | None, option(unset="0")] = None
    """Seed of the crop plan."""
    scale: Annotated[tuple[float, float] | None, option(metavar="LOW,HIGH", unset="0.08,1")] = None
    """Area of a crop over the image's."""
    ratio: Annotated[tuple[float, float] | None, option(metavar="LOW,HIGH", unset="3/4,4/3")] = None
    """Width of a crop over its height."""
    flip_prob: Annotated[float | None, option(unset="0.5")] = None
    """Share of flipped crops."""
    color_jitter: Annotated[str | None, option(metavar="B,C,S,H", unset="none")] = None
    """Record colour jitter with every crop: brightness, contrast, saturation, hue."""
    rand_augment: Annotated[float | None, option(metavar="MAGNITUDE", unset="none")] = None
    """Record RandAugment with every crop, 0 to 10."""
    rand_augment_std: Annotated[float | None, option(unset="0.5")] = None
    """Deviation of its magnitude."""
    rand_augment_ops: Annotated[int | None, option(unset="2")] = None
    """Its operations per crop."""
    mix: Annotated[str | None, option(metavar="cutmix|mixup", unset="none")] = None
    """Mix every crop with one of another image, and record which and how."""
    mix_alpha: Annotated[float | None, option(unset="1")] = None
    """Parameter of the Beta distribution of the shares."""
    mix_prob: Annotated[float | None, option(unset="1")] = None
    """Share of the crops that are mixed."""
    crops: Annotated[Literal["stored", "seeded"] | None, option(unset="stored")] = None
    """Keep boxes and flips in the store, or compute them from the seed."""
    plan_from: Annotated[Path | None, option(metavar="STORE")] = None
    """Take another store's plan: the same boxes and flips, as many, in the same layout."""
    reference_path: Annotated[Path | None, option(hidden=True)] = None
    """FKD's name for --plan-from."""
    plan_name: Annotated[str, option(metavar="NAME")] = "plan"
    """Name of the crop plan."""

    def __post_init__(self) -> None:
        """UsageError for crops that cannot be."""
        from labelstore.cropping.crop_plan import CropPlan
        from labelstore.store.layout import check_num_crops

        if self.num_crops is not None:
            check_num_crops(self.num_crops)
        elif self.plan_of is None:
            raise UsageError("--num-crops M is needed: crops of each image (or --plan-from STORE)")
        CropPlan(**_said({name: getattr(self, name) for name in _PLAN}))
        self.augmentation()
        self.mixing()

    @property
    def plan_of(self) -> Path | None:
        """The store whose plan is taken."""
        return self.plan_from or self.reference_path

    def plan_options(self, layout: LayoutOptions) -> PlanOptions:
        """As the library takes them."""
        from labelstore.store import PlanOptions

        return PlanOptions(
            num_crops=self.num_crops,
            **{name: getattr(self, name) for name in _PLAN},
            augmentation=self.augmentation(),
            mixing=self.mixing(),
            name=self.plan_name,
            stored_crops=None if self.crops is None else self.crops == "stored",
            images_per_shard=layout.images_per_shard,
            crops_per_shard=layout.crops_per_shard,
        )

    def augmentation(self) -> CropAugmentation | None:
        """The augmentation to record with every crop; None for none, UsageError for settings that cannot be."""
        from labelstore.cropping.crop_augmentation import CropAugmentation

        names = ("rand_augment", "rand_augment_std", "rand_augment_ops")
        said: dict[str, Any] = _said({name: getattr(self, name) for name in names})
        if self.color_jitter is not None:
            parts = ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE")
            said["color_jitter"] = numbers(self.color_jitter, "--color-jitter", *parts)
        if self.rand_augment is None and said.keys() & set(names):
            raise UsageError(
                "--rand-augment-std and --rand-augment-ops need --rand-augment MAGNITUDE"
            )
        return CropAugmentation(**said) if said else None

    def mixing(self) -> CropMixing | None:
        """How crops are mixed; None for not at all, UsageError for what cannot be."""
        from labelstore.cropping.crop_mixing import CropMixing

        said = _said({"alpha": self.mix_alpha, "prob": self.mix_prob})
        if self.mix is None:
            if said:
                raise UsageError("--mix-alpha and --mix-prob need --mix cutmix|mixup")
            return None
        if self.crops == "seeded":
            raise UsageError(
                "--mix with --crops seeded: what crops are mixed with is stored with their boxes, leave one out"
            )
        return CropMixing(**{"method": self.mix, **said})


_PLAN = ("seed", "scale", "ratio", "flip_prob")


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
