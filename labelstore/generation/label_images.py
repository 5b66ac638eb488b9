"""`labelstore create` as one call: make the store if it is not there, then label every crop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from labelstore.codecs.base import LabelCodec
from labelstore.crops import CropPlan
from labelstore.errors import ConflictError
from labelstore.generation.class_map import class_map as map_classes
from labelstore.generation.generate import GenerationReport, generate
from labelstore.generation.labeller import check_temperature
from labelstore.generation.teachers import Teacher, load_teacher
from labelstore.images import scan_folder
from labelstore.schema import PLAN_FIELDS, check_num_crops
from labelstore.store import Store, create, open_store
from labelstore.store.opening import exists


def label_images(
    path: str | Path,
    *,
    images: str | Path,
    teacher: str | Teacher,
    codec: LabelCodec,
    num_crops: int,
    seed: int = 0,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip_prob: float = 0.5,
    plan_name: str = "plan",
    stored_crops: bool = True,
    images_per_shard: int | None = None,
    crops_per_shard: int | None = None,
    backend: str = "zarr",
    class_map: str | Path | None = None,
    **generation: Any,  # noqa: ANN401 - passed on to generate(), which names and checks them
) -> GenerationReport:
    """Plan `num_crops` crops of every image, register the teacher, label every crop.

    On a store that exists with the same plan it resumes or joins; with another plan it raises
    ConflictError naming the difference. Everything else, and `generation`, as in `labelstore.create`
    and `labelstore.generate`.
    """
    path = Path(path)
    # everything that can be refused is refused before the teacher is loaded and the store appears
    check_num_crops(num_crops)
    check_temperature(generation.get("temperature", 1.0))
    plan = CropPlan(seed=seed, scale=scale, ratio=ratio, flip_prob=flip_prob)
    folder = scan_folder(Path(images))
    teacher = load_teacher(teacher) if isinstance(teacher, str) else teacher
    if exists(path):
        store = open_store(path)
        _same_plan(store, plan_name, plan, num_crops, stored_crops)
    else:
        chosen = map_classes(teacher, folder.classes, class_map)
        num_classes = teacher.row.num_classes if chosen is None else len(chosen)
        raw = sum(
            np.dtype(field.dtype).itemsize * math.prod(field.shape)
            for field in (*codec.fields(num_classes), *PLAN_FIELDS)
            if field.per == "crop"
        )
        store = create(
            path,
            images=folder,
            num_crops=num_crops,
            seed=seed,
            scale=scale,
            ratio=ratio,
            flip_prob=flip_prob,
            plan_name=plan_name,
            stored_crops=stored_crops,
            images_per_shard=images_per_shard,
            crops_per_shard=crops_per_shard,
            bytes_per_crop=raw,
            backend=backend,
        )
    with store:
        return generate(
            store,
            teacher=teacher,
            codec=codec,
            images=folder,
            plan=plan_name,
            class_map=class_map,
            **generation,
        )


def _same_plan(store: Store, name: str, plan: CropPlan, num_crops: int, stored_crops: bool) -> None:
    held = {row.name: row for row in store.catalogue.plans()}
    if name not in held:
        raise ConflictError(
            f"{store.path} has crop plan {', '.join(held)}, not {name}: use --plan-name {next(iter(held))}, "
            "or another store"
        )
    row = held[name]
    old = {**row.parameters, "num_crops": row.num_crops, "stored": row.stored}
    new = {**plan.to_record(), "num_crops": num_crops, "stored": stored_crops}
    for what, value in new.items():
        if old.get(what) != value:
            raise ConflictError(
                f"{store.path} exists with {what.replace('_', '-')} {old.get(what)}, asked for {value}: "
                + ("use the same, `labelstore grow`," if what == "num_crops" else "use the same,")
                + " or give another STORE"
            )
