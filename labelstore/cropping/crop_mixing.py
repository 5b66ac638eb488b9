"""Recorded mixing: which crop of which other image is mixed into a crop, how much of it, and where.

The partner of crop c is crop c of another image, with its own box, flip and augmentation, so that a mixture does not
depend on who is in a batch. All crops c of one group of `crops_per_partner` share the partner's image: an image is
decoded for a group and not for a crop. What is drawn follows from (plan's seed, image key, crop) alone:

    partner's row  = one of the `rows` images that the store was made with, drawn by [seed, stream, c //
    crops_per_partner]
    share, box     = drawn by [seed, stream, c]: share from Beta(alpha, alpha); for CutMix (Yun et al. 2019) a square of
                     that area about a uniform centre in pixels of `side`, cut at the edges, share corrected to
                     what is left

Images that join later have partners among the same rows and are partner of none; rows are never renumbered. A partner
that cannot be decoded leaves the crop as it is (share 1). What was drawn is stored with the boxes (`schema.MIX_FIELDS`)
and rules from then on, also in a merged store, which numbers its rows again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.cropping.crop_augmentation import RECORD as AUGMENTATION
from labelstore.cropping.crop_augmentation import CropAugmentation
from labelstore.cropping.crop_plan import CropPlan, image_streams
from labelstore.errors import FormatVersionError, UsageError

Method = Literal["cutmix", "mixup"]
LAW = "partner-mix/1"
"""Name of what is said above, as recorded."""
RECORD = "mixing"
"""Entry of a plan's parameters, beside `mixed`."""
PARTNER, SHARE = 0x70617274, 0x73686172
"""First words of the seeds, which keep these draws apart from others."""

Partner: TypeAlias = tuple[str, int, int]
"""Key, height and width of an image."""


@dataclass(frozen=True, kw_only=True)
class CropMixing:
    """How a plan's crops are mixed, with the words of `trainer run`."""

    method: Method
    alpha: float = 1.0
    """Parameter of the Beta distribution of the share."""
    prob: float = 1.0
    """Share of the crops that are mixed."""
    crops_per_partner: int = 10
    """Consecutive crops that have their partner from the same image."""
    side: int = 224
    """Pixels of a crop that boxes are measured in: the input of the first teacher. Others' are scaled."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.method not in get_args(Method):
            raise UsageError(f"`method={self.method}`: choose one of {', '.join(get_args(Method))}")
        if not 0 < self.alpha <= 100 or not 0 < self.prob <= 1:
            raise UsageError(
                f"`mixing` with alpha {self.alpha} and probability {self.prob}: give 0 to 100 and 0 to 1, above 0"
            )
        if not 1 <= self.crops_per_partner <= 65_536 or not 1 <= self.side <= 65_534:
            raise UsageError(
                f"mixing with {self.crops_per_partner} crops per partner on {self.side} pixels: at least 1 each"
            )

    def __str__(self) -> str:
        return f"{self.method}, alpha {self.alpha:g}, {100 * self.prob:g} % of crops"

    def to_record(self, rows: int) -> dict[str, Any]:
        """As JSON values, with the images that partners are drawn from."""
        return {"law": LAW, **asdict(self), "rows": rows}


@dataclass(frozen=True, kw_only=True)
class PlannedMixing:
    """What decides how every crop of a plan is mixed."""

    plan: CropPlan
    settings: CropMixing
    rows: int
    """Images that partners are drawn from: rows 0 to `rows` - 1."""

    def partners(
        self, row: int, key: str, crops: Sequence[int] | NDArray[Any]
    ) -> NDArray[np.int64]:
        """(m,) rows of the images that crops of an image are mixed with; its own where there is no other."""
        stream = int(image_streams([key])[0])
        groups = np.asarray(crops, np.int64) // self.settings.crops_per_partner
        of_group = {
            group: int(self._rng(PARTNER, stream, group).integers(self.rows))
            for group in np.unique(groups).tolist()
        }
        partners = np.array([of_group[group] for group in groups.tolist()], np.int64)
        partners[partners == row] = (row + 1) % self.rows
        return partners

    def fields(
        self,
        row: int,
        key: str,
        crops: NDArray[Any],
        boxes: NDArray[np.uint16],
        flips: NDArray[np.bool_],
        partner_of: Callable[[int], Partner | None],
    ) -> dict[str, NDArray[Any]]:
        """The arrays of `schema.MIX_FIELDS` (m, ...) for crops of one image with boxes (m, 4) and flips (m,).

        `partner_of` says what image has a row; None for one that cannot be used.
        """
        count = len(crops)
        fields: dict[str, NDArray[Any]] = {
            "mix_image": np.full(count, row, np.uint32),
            "mix_from": boxes.astype(np.uint16),
            "mix_flip": flips.astype(np.uint8),
            "mix_share": np.ones(count, np.float32),
            "mix_box": np.zeros((count, 4), np.uint16),
        }
        stream = int(image_streams([key])[0])
        rows = self.partners(row, key, crops)
        for partner in np.unique(rows[rows != row]).tolist():
            drawn = [
                (at, *self._drawn(stream, int(crops[at]))) for at in np.flatnonzero(rows == partner)
            ]
            mixed = [(at, share, box) for at, share, box in drawn if share < 1]
            image = partner_of(partner) if mixed else None
            if image is None:
                continue
            at = np.array([one[0] for one in mixed])
            theirs = self.plan.crops(*image, np.asarray(crops)[at])
            fields["mix_image"][at] = partner
            fields["mix_from"][at], fields["mix_flip"][at] = theirs
            fields["mix_share"][at] = [one[1] for one in mixed]
            fields["mix_box"][at] = [one[2] for one in mixed]
        return fields

    def _drawn(self, stream: int, crop: int) -> tuple[float, tuple[int, int, int, int]]:
        """Share and pasted box (top, left, height, width) of one crop; a share of 1 is not mixed."""
        rng, settings = self._rng(SHARE, stream, crop), self.settings
        if rng.random() >= settings.prob:
            return 1.0, (0, 0, 0, 0)
        share = float(np.float32(rng.beta(settings.alpha, settings.alpha)))
        if settings.method == "mixup":
            return share, (0, 0, 0, 0)
        half = int(settings.side * np.sqrt(1 - share)) // 2
        centre = rng.integers(0, settings.side, 2)
        start, stop = (np.clip(centre + by, 0, settings.side) for by in (-half, half))
        height, width = (stop - start).tolist()
        if not height * width:
            return 1.0, (0, 0, 0, 0)
        return 1 - height * width / settings.side**2, (int(start[0]), int(start[1]), height, width)

    def _rng(self, what: int, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([what, self.plan.seed, stream, number])


def plan_record(
    plan: CropPlan,
    augmentation: CropAugmentation | None = None,
    mixing: CropMixing | None = None,
    *,
    rows: int = 0,
) -> dict[str, Any]:
    """Parameters of a plan as the catalogue keeps them; partners are of the images 0 to `rows` - 1."""
    record = plan.to_record()
    if augmentation:
        record[AUGMENTATION] = augmentation.to_record()
    if mixing is not None:
        record |= {"mixed": True, RECORD: mixing.to_record(rows)}
    return record


def planned_mixing(parameters: Mapping[str, Any]) -> PlannedMixing | None:
    """How a plan's parameters say that crops are mixed; None for not at all, and for imported mixtures.

    FormatVersionError for a law of a newer version, UsageError for a record that cannot be.
    """
    record = parameters.get(RECORD)
    if record is None:
        return None
    if not isinstance(record, Mapping):
        raise UsageError(f"a plan's mixing is {str(record)[:40]!r}: it must be a mapping")
    entries = dict(record)
    law, rows = entries.pop("law", None), entries.pop("rows", None)
    if law != LAW:
        raise FormatVersionError(
            f"mixing with law {law!r}: this version knows {LAW!r}, use a newer labelstore"
        )
    try:
        settings = CropMixing(**entries)
    except (TypeError, ValueError) as error:
        raise UsageError(f"mixing record with unknown or wrong entries: {error}") from None
    if type(rows) is not int or not 1 <= rows < 1 << 32 or not parameters.get("mixed"):
        raise UsageError(f"mixing record with partners among {rows} images: it is damaged")
    return PlannedMixing(plan=CropPlan.from_record(parameters), settings=settings, rows=rows)
