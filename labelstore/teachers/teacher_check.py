"""Is this the teacher that it is believed to be? Its top-1 on validation images, before any label is paid for.

Centre crops at the teacher's own size, interpolation, crop percentage and crop mode, as timm and torchvision evaluate.
A wrong class order, wrong mean and std or a half-loaded checkpoint cost tens of points, and so does a wrong class map.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelstore.catalogue.records import TeacherRow
from labelstore.cropping.replay import centre_crops
from labelstore.errors import RejectedInput, UsageError
from labelstore.images import open_images
from labelstore.teachers.labeller import Labeller
from labelstore.teachers.teacher import Teacher

STANDARD_ERRORS = 3.0
BATCH = 50


@dataclass(frozen=True, kw_only=True)
class TeacherEvaluation:
    """Top-1 of a teacher on a sample of validation images."""

    correct: int
    num_images: int
    val: str
    """The folder as it was given."""
    crop_pct: float
    asked: int
    """Images that were asked for: fewer are there where `num_images` is less."""
    crop_mode: str = "center"
    """timm's; older stores measured every teacher with center."""

    @property
    def top1(self) -> float:
        """Share of the images whose class has the largest output."""
        return self.correct / self.num_images

    def to_record(self) -> dict[str, Any]:
        """Return what the teacher's row keeps beside `top1`."""
        return vars(self) | {"standard_error": math.sqrt(_variance(self.top1, self.num_images))}

    def __str__(self) -> str:
        error = 100 * math.sqrt(_variance(self.top1, self.num_images))
        return f"top-1 {100 * self.top1:.2f} % ± {error:.2f} on {self.num_images:,} images of {self.val}"


@dataclass(frozen=True, kw_only=True)
class TeacherCheck:
    """Which images to measure a teacher on, and what to expect."""

    val: Path
    """One subfolder per class, named as the store's classes."""
    expect_top1: float | None = None
    """A share; a teacher further than three standard errors from it is refused. None: measured and recorded only."""
    num_images: int = 2000
    """Drawn at random, always the same ones."""
    progress: Callable[[int, int], None] = field(default=lambda done, total: None, compare=False)
    """Told images seen and of how many."""

    def __post_init__(self) -> None:
        if self.expect_top1 is not None and not 0 < self.expect_top1 < 1:
            raise UsageError(
                f"`expect_top1={self.expect_top1}`: give a share between 0 and 1, such as 0.88"
            )
        if self.num_images < 1:
            raise UsageError(f"`num_images={self.num_images}`: at least 1")

    def run(
        self,
        teacher: Teacher,
        labeller: Labeller,
        classes: Sequence[str],
        *,
        workers: int | None = None,
        note: Callable[[str], None] = lambda message: None,
    ) -> TeacherEvaluation:
        """Measure; RejectedInput beyond three standard errors, and for images of no class of `classes`."""
        evaluation = evaluate_teacher(
            teacher,
            labeller,
            self.val,
            classes,
            num_images=self.num_images,
            workers=workers,
            progress=self.progress,
        )
        self.judge(teacher, evaluation)
        note(f"teacher {teacher.row.source}: {evaluation}")
        return evaluation

    def judge(self, teacher: Teacher, evaluation: TeacherEvaluation) -> None:
        """RejectedInput where the measured top-1 is not the expected one."""
        if self.expect_top1 is not None:
            error = math.sqrt(_variance(self.expect_top1, evaluation.num_images))
            if abs(evaluation.top1 - self.expect_top1) > STANDARD_ERRORS * error:
                raise RejectedInput(
                    f"teacher {teacher.row.source} has {evaluation}, expected {100 * self.expect_top1:.2f} %: more "
                    f"than three standard errors ({300 * error:.2f} points) apart; check weights, `architecture` "
                    "and `class_map`, or give another `expect_top1`"
                )

    def recorded(self, row: TeacherRow, teacher: TeacherRow) -> TeacherEvaluation | None:
        """Return the store's result of this measurement of a teacher, so that a resumed command need not repeat it."""
        evaluation = dict(row.facts.get("evaluation") or {})
        if (evaluation.get("val"), evaluation.get("asked")) != (str(self.val), self.num_images):
            return None
        if evaluation.get("crop_mode", "center") != teacher.crop_mode:
            return None
        names = {known.name for known in fields(TeacherEvaluation)}
        return TeacherEvaluation(**{name: evaluation[name] for name in evaluation if name in names})


def evaluate_teacher(
    teacher: Teacher,
    labeller: Labeller,
    val: Path,
    classes: Sequence[str],
    *,
    num_images: int = 2000,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TeacherEvaluation:
    """Top-1 among `classes` on up to `num_images` images of `val`, whose classes are some of these."""
    folder = open_images(val, keys_only=True)
    known = {name: at for at, name in enumerate(classes)}
    strange = [name for name in folder.classes if name not in known]
    if strange:
        raise RejectedInput(
            f"{val} has a class {strange[0]!r} that is no class of these images ({len(strange)} such): give "
            "validation images of the same classes"
        )
    class_of = np.array([known[name] for name in folder.classes], np.int64)
    chosen = np.arange(len(folder))
    if len(folder) > num_images:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, num_images, replace=False))
    truth = torch.from_numpy(class_of[folder.class_ids[chosen]])
    paths = [folder.file(folder.keys[i]) for i in chosen]
    correct, done = 0, 0
    row = teacher.row
    crops = centre_crops(
        paths,
        row.input_size,
        row.crop_pct,
        row.interpolation,
        batch_size=BATCH,
        workers=workers or min(16, os.cpu_count() or 1),
        crop_mode=row.crop_mode,
        mean=row.mean,
    )
    progress(0, len(paths))
    for pixels in crops:
        best = labeller.logits(pixels).argmax(dim=1).cpu()
        correct += int((best == truth[done : done + len(best)]).sum())
        done += len(best)
        progress(done, len(paths))
    return TeacherEvaluation(
        correct=correct,
        num_images=done,
        val=str(val),
        crop_pct=row.crop_pct,
        asked=num_images,
        crop_mode=row.crop_mode,
    )


def _variance(share: float, count: int) -> float:
    """Variance of the mean of `count` draws that are right with probability `share`."""
    return share * (1 - share) / count
