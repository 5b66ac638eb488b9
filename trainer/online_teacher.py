"""Labels from a teacher that looks at every batch: vanilla distillation (Hinton et al. 2015) and FunMatch.

The teacher sees exactly the student's view, mixing included (Beyer et al. 2022, "consistent teaching"): the student's
pixels are brought to the teacher's size and normalisation, and its label is softmax(logits / T).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from labelstore.devices import resize_note, resized
from labelstore.errors import UsageError
from labelstore.teachers.class_map import class_map
from labelstore.teachers.teacher import Teacher, load_teacher
from trainer.config import TrainConfig
from trainer.label_tensors import LabelTensors
from trainer.models import autocast


class OnlineTeacher:
    """The teacher of a config, on the device; `labels` labels a batch."""

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        note: Callable[[str], None] = lambda message: None,
    ) -> None:
        """Loads `config.teacher`; UsageError where its outputs are not the run's classes."""
        if config.teacher is None:
            raise UsageError("labels='teacher' without a teacher: give teacher, e.g. timm:resnet50")
        weights = config.checkpoint_weights
        if config.initial_checkpoint is not None and not Path(config.teacher).exists():
            weights = None  # it was said of the student's checkpoint
        teacher = load_teacher(
            config.teacher, architecture=config.teacher_model, weights=weights, note=note
        )
        own = teacher.row.interpolation
        if own != config.interpolation:
            note(
                f"the teacher {teacher.row.name} was made for {own}, and sees the student's crops, which are resized "
                f"with {config.interpolation}: `interpolation={own}` is the teacher's"
            )
        self._columns = _columns(teacher, config, device)
        self._module = teacher.module.to(device)
        self._size = teacher.row.input_size
        self._temperature = config.temperature_in_force
        self._amp, self._device = config.amp, device
        # torch resizes floats with these two only
        self._resize = own if own in ("bilinear", "bicubic") else "bilinear"
        is_resized = self._size != config.input_size
        if is_resized and (unable := resize_note(device, self._resize)) is not None:
            note(unable)
        self._is_same = (teacher.row.mean, teacher.row.std) == (config.mean, config.std)
        mean, std, own_mean, own_std = (
            torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)
            for values in (config.mean, config.std, teacher.row.mean, teacher.row.std)
        )
        # from the student's normalisation to the teacher's in one multiplication and one addition
        self._scale = (std / own_std).float().to(device)
        self._shift = ((mean - own_mean) / own_std).float().to(device)
        classes = torch.arange(config.num_classes or teacher.row.num_classes, device=device)
        self._classes = classes.unsqueeze(0)

    @torch.no_grad()
    def labels(self, pixels: Tensor) -> LabelTensors:
        """Normalised, mixed pixels (B, 3, S, S) on the device -> dense labels of B crops, (B, C) as ids, probs,
        rest."""
        if not self._is_same:
            pixels = torch.addcmul(self._shift, pixels, self._scale)
        if pixels.shape[-1] != self._size:
            size = (self._size, self._size)
            pixels = resized(pixels, size, self._resize)
        with autocast(self._device, self._amp):
            logits = self._module(pixels)
        logits = logits.float()
        if self._columns is not None:
            logits = logits[:, self._columns]
        probs = torch.softmax(logits / self._temperature, dim=1)
        return self._classes.expand(len(probs), -1), probs, probs.new_zeros(len(probs))


def _columns(teacher: Teacher, config: TrainConfig, device: torch.device) -> Tensor | None:
    """Outputs of the teacher in the order of the run's classes, by name where it names them."""
    outputs, wanted = teacher.row.num_classes, config.num_classes
    if config.class_names and (outputs != wanted or teacher.class_names is not None):
        chosen = class_map(teacher, config.class_names)
        return None if chosen is None else torch.from_numpy(chosen).to(device)
    if outputs != wanted:
        raise UsageError(
            f"teacher={config.teacher!r} has {outputs} classes, the run {wanted}: choose a teacher of these classes"
        )
    return None
