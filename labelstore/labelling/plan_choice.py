"""The crop plan of another store for a new one (FKD's `--reference_path`).

Boxes follow from seed, image key, height, width and crop number alone, so a plan that is taken over gives equal
boxes for equal keys and sizes, whatever else the two stores hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from labelstore.catalogue.records import PlanRow
from labelstore.cropping.crop_augmentation import planned_augmentation
from labelstore.cropping.crop_mixing import planned_mixing
from labelstore.cropping.crop_plan import CropPlan
from labelstore.errors import FormatVersionError, RejectedInput, UsageError
from labelstore.images import ImageSource, image_size
from labelstore.store import PlanOptions, open_store

SIZES_CHECKED = 1000


def plan_from(
    path: Path,
    options: PlanOptions,
    folder: ImageSource,
    note: Callable[[str], None] = lambda message: None,
) -> PlanOptions:
    """Another store's plan: the only one, or the one of that name; layout too where nothing else was asked for.

    UsageError where an option says something else. RejectedInput where boxes cannot be the same: a plan that was
    not computed, no image in common, or an image of another size (up to 1,000 are compared).
    """
    with open_store(path, readonly=True) as store:
        plans = store.catalogue.plans.all()
        row = plans[0] if len(plans) == 1 else store.plan(options.name)
        try:
            plan = CropPlan.from_record(row.parameters)
            planned = planned_augmentation(row.parameters)
        except (FormatVersionError, UsageError) as error:
            raise RejectedInput(
                f"`plan_of={path}`: its crops cannot be computed ({error}): choose another store"
            ) from None
        if planned_mixing(row.parameters) is not None or options.mixing is not None:
            raise UsageError(
                f"`plan_of={path}` with mixed crops: their partners are images of one store, so that no other "
                "store can have the same; leave `plan_of` or `mixing` out"
            )
        augmentation = None if planned is None else planned.settings
        _refuse_other_options(path, options, plan, row)
        if options.augmentation is not None and (options.augmentation or None) != augmentation:
            raise UsageError(
                f"`plan_of={path}`, whose crops are {'augmented otherwise' if augmentation else 'not augmented'}: "
                "leave `augmentation` out"
            )
        _check_images(path, store.image_columns, folder, note)
    return replace(
        options,
        num_crops=row.num_crops,
        **vars(plan),
        augmentation=augmentation,
        stored_crops=row.stored if options.stored_crops is None else options.stored_crops,
        images_per_shard=options.images_per_shard or row.images_per_shard,
        crops_per_shard=options.crops_per_shard or row.crops_per_shard,
    )


def _refuse_other_options(path: Path, options: PlanOptions, plan: CropPlan, row: PlanRow) -> None:
    taken = {**vars(plan), "num_crops": row.num_crops}
    for name in ("num_crops", "seed", "scale", "ratio", "flip_prob"):
        said = getattr(options, name)
        said = tuple(said) if isinstance(said, (tuple, list)) else said
        if said is not None and said != taken[name]:
            raise UsageError(
                f"`{name}={said}` with `plan_of={path}`, whose plan has {taken[name]}: "
                "leave one of the two out"
            )


def _check_images(
    path: Path, columns: Mapping[str, Any], folder: ImageSource, note: Callable[[str], None]
) -> None:
    row_of = {key: row for row, key in enumerate(columns["key"]) if key}
    common = [key for key in folder.keys if key in row_of]
    if not common:
        raise RejectedInput(
            f"`plan_of={path}`: none of the {len(folder):,} images of {folder.root} is in it by its key (path below "
            f"the folder, such as {columns['key'][0] if len(row_of) else 'none'}): its crops would mean nothing here"
        )
    if len(common) < len(folder):
        note(
            f"{len(folder) - len(common):,} of {len(folder):,} images are not in {path}: "
            "their crops are drawn by the same plan"
        )
    known = [key for key in common if columns["height"][row_of[key]] > 0]
    if len(known) > SIZES_CHECKED:
        picked = np.random.default_rng(0).choice(len(known), SIZES_CHECKED, replace=False)
        known = [known[i] for i in np.sort(picked)]
    for key in known:
        row = row_of[key]
        was = (int(columns["height"][row]), int(columns["width"][row]))
        if image_size(folder.file(key)) != was:
            height, width = image_size(folder.file(key))
            raise RejectedInput(
                f"`plan_of={path}`: {folder.file(key)} has {width} x {height} pixels, there it has {was[1]} x "
                f"{was[0]}, so that boxes would differ: give the same images"
            )
