"""The crops of a new store, as they are asked for: how many, how they are drawn, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from labelstore.catalogue.named_rows import check_name
from labelstore.catalogue.records import PlanRow
from labelstore.cropping.crop_augmentation import CropAugmentation
from labelstore.cropping.crop_mixing import CropMixing, plan_record, planned_mixing
from labelstore.cropping.crop_plan import CropPlan
from labelstore.errors import UsageError
from labelstore.store.layout import check_num_crops, choose_layout


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The crop plan of a new store; None: the usual value, or that of the store whose plan is taken."""

    num_crops: int | None = None
    """M, crops of each image; needed where no other store's plan is taken."""
    seed: int | None = None
    """Seed of the boxes and flips; 0."""
    scale: tuple[float, float] | None = None
    """Smallest and largest share of the image's area; (0.08, 1)."""
    ratio: tuple[float, float] | None = None
    """Smallest and largest width over height; (3/4, 4/3)."""
    flip_prob: float | None = None
    """Share of flipped crops; 0.5."""
    augmentation: CropAugmentation | None = None
    """What is done to the pixels of every crop, for teachers and students."""
    mixing: CropMixing | None = None
    """Which image every crop is mixed with, likewise; stored with the boxes."""
    name: str = "plan"
    stored_crops: bool | None = None
    """Whether boxes and flips are stored (the usual), or computed from the seed."""
    images_per_shard: int | None = None
    """Images in one commit; by size."""
    crops_per_shard: int | None = None
    """Crops in one file, a divisor of M; at most 100."""

    crop_plan: CropPlan = field(init=False, compare=False)
    """The function that gives boxes and flips."""

    def __post_init__(self) -> None:
        """UsageError for what no plan can have."""
        check_name(self.name)
        if self.num_crops is not None:
            check_num_crops(self.num_crops)
        asked = {name: getattr(self, name) for name in ("seed", "scale", "ratio", "flip_prob")}
        plan = CropPlan(**{name: value for name, value in asked.items() if value is not None})
        object.__setattr__(self, "crop_plan", plan)
        if self.mixing is not None and not self.stores_crops:
            raise UsageError(
                "`mixing` with `stored_crops=False`: what crops are mixed with is stored with their boxes, leave one "
                "out"
            )

    @property
    def stores_crops(self) -> bool:
        """Whether boxes and flips are stored."""
        return self.stored_crops is None or self.stored_crops

    @property
    def crops_per_image(self) -> int:
        """M; UsageError where it was not given."""
        if self.num_crops is None:
            raise UsageError(
                "`num_crops=M` is needed: crops of each image (or `plan_of=STORE` for another store's)"
            )
        return self.num_crops

    def parameters(self, existing: Mapping[str, Any]) -> dict[str, Any]:
        """As the catalogue keeps them; of a mixing the images and the side as an `existing` plan has them."""
        mixing, known = self.mixing, planned_mixing(existing)
        rows = 0
        if mixing is not None and known is not None:
            mixing, rows = replace(mixing, side=known.settings.side), known.rows
        return plan_record(self.crop_plan, self.augmentation, mixing, rows=rows)

    def row(self, num_images: int, bytes_per_crop: float) -> PlanRow:
        """The plan as a catalogue row of a new store with so many images; shards by the raw bytes of a crop."""
        layout = choose_layout(
            num_images,
            self.crops_per_image,
            bytes_per_crop,
            images_per_shard=self.images_per_shard,
            crops_per_shard=self.crops_per_shard,
        )
        parameters = plan_record(self.crop_plan, self.augmentation, self.mixing, rows=num_images)
        return layout.plan_row(self.name, stored=self.stores_crops, parameters=parameters)
