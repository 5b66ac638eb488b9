"""What the files of a format cannot tell and a user says, and what their labels are to become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from labelstore.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What imported labels become."""

    dtype: str | None = None
    """dtype of the probabilities: float32, float16 or uint8."""
    name: str | None = None
    """Name of the label set."""
    plan_name: str | None = None
    """Crop plan: a new one, or one with the very same crops."""
    images_per_shard: int | None = None
    """Images in one commit."""
    crops_per_shard: int | None = None
    """Crops in one file; divides M."""
    backend: Literal["zarr", "hdf5"] = "zarr"
    """Files of a new store."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a format cannot tell and a user says; None: not said. What was said is recorded with the labels."""

    compression: str | None = None
    """Form in which labels are kept; of FKD's files also what they are."""
    k: int | None = None
    """Classes to keep."""
    num_classes: int | None = None
    """Classes of the teacher."""
    temperature: float | None = None
    """Temperature of the softmax that made the probabilities (where files do not say it), or that is to make them."""
    teacher: str | None = None
    """Such as timm:resnet50; recorded only."""
    input_size: int | None = None
    """Side of the teacher's input, pixels."""
    interpolation: str | None = None
    """How the teacher's crops were resized."""
    num_crops: int | None = None
    """Take the first M crops of each image."""
    axis_order: str | None = None
    """Order of a box's numbers: sides or swapped; of a label map's axes: rows-first or columns-first."""
    round_boxes: bool = False
    """Take the nearest pixels where boxes are of an image of another size."""
    whole_images: bool = False
    """Crops are whole images, where the format keeps no boxes."""
    drop_augmentations: bool = False
    """Import labels of crops that were augmented further, without that."""
    order: str | None = None
    """Order of the images in the data set of the run that wrote the files: folder, natural, listed, named, or a file
    that lists them; of sre2l files two-permutations or one-permutation."""
    batch_size: int | None = None
    """Batch size of the run that wrote sre2l or lpld files."""
    sampler_seed: int | None = None
    """Sampler's seed of the run that wrote sre2l files."""
    scale: tuple[float, float] | None = None
    """Area of tinyvit crops, or of those drawn from label maps."""
    ratio: tuple[float, float] | None = None
    """Width over height of crops drawn from label maps."""
    flip_prob: float | None = None
    """Share of flipped crops, likewise."""
    skip_bad: bool = False
    """Leave out images whose labels cannot be used, and record them."""

    def need(self, name: str, why: str) -> Any:  # noqa: ANN401 - the field's type
        """A field that must have been said; UsageError with its name and the reason where it was not."""
        value = getattr(self, name)
        if value is None or value is False:
            raise UsageError(f"`{name}` is needed: {why}")
        return value

    def crops(self, held: int) -> int:
        """M: as many crops as files hold, or as was said; UsageError where they hold fewer."""
        if self.num_crops is not None and self.num_crops > held:
            raise UsageError(f"`num_crops={self.num_crops}`: these files hold up to {held}")
        return self.num_crops or held

    def classes(self, format_name: str) -> int:
        """C, where a format does not say it."""
        num_classes: int = self.need(
            "num_classes", f"{format_name} files do not say how many classes the teacher has"
        )
        return num_classes

    def said(self) -> dict[str, Any]:
        """Return what was said, as JSON values."""
        blank = Stated()
        record = {}
        for name, value in vars(self).items():
            if value != getattr(blank, name) and name not in ("skip_bad", "num_crops"):
                record[name] = list(value) if isinstance(value, tuple) else value
        return record
