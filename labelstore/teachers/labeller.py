"""One forward pass: uint8 crops in, the probabilities that a label codec keeps out."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from labelstore.codecs import id_dtype
from labelstore.codecs.base import Takes
from labelstore.devices import choose_device, device_name, moved
from labelstore.errors import MAX_TEMPERATURE, MIN_TEMPERATURE, UsageError
from labelstore.teachers.teacher import Teacher

Autocast = Literal["none", "bf16", "fp16"]
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_temperature(temperature: float) -> None:
    """UsageError unless it is within 0.001 and 1000."""
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise UsageError(
            f"`temperature={temperature}`: give a number within {MIN_TEMPERATURE} and {MAX_TEMPERATURE}"
        )


class Labeller:
    """Calls the teacher and reduces its logits on the device, so that only K classes per crop travel back.

    UsageError for a `device` that cannot be used.
    """

    def __init__(
        self,
        teacher: Teacher,
        kept: int | None,
        *,
        device: str | None,
        autocast: Autocast = "none",
        temperature: float = 1.0,
        class_map: NDArray[np.int64] | None = None,
        compile_teacher: bool = False,
        takes: Takes = "probabilities",
    ) -> None:
        self._device = choose_device(device)
        module = teacher.module.to(self._device)
        if autocast not in ("none", *AUTOCAST_DTYPES):
            raise UsageError(
                f"`autocast={autocast}`: choose one of none, {', '.join(AUTOCAST_DTYPES)}"
            )
        check_temperature(temperature)
        self._module = module
        self._call = torch.compile(module) if compile_teacher else module
        self._kept = kept
        self._takes = takes
        self.temperature = temperature
        self._autocast = autocast
        # normalisation of uint8 values as one multiplication and one addition
        std = torch.tensor(teacher.row.std).view(1, 3, 1, 1) * 255
        mean = torch.tensor(teacher.row.mean).view(1, 3, 1, 1) * 255
        self._scale, self._shift = (1 / std).to(self._device), (-mean / std).to(self._device)
        self._ready: torch.Tensor | None = None
        self._layout = torch.contiguous_format
        """Of crops on the CPU."""
        self._chooses_layout = self._device.type == "cpu"
        """Until the first batch."""
        self._columns = None if class_map is None else torch.from_numpy(class_map).to(self._device)

    @property
    def device_name(self) -> str:
        """Name the device for the cost ledger."""
        return device_name(self._device)

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return self._device

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, S, S) -> float32 of the teacher's mean and std on its device; valid until the next call."""
        if self._device.type != "cpu":
            return moved(pixels, self._device).float() * self._scale + self._shift
        # new memory for every batch costs six times as much as the arithmetic; crop by crop, it stays in the cache
        ready = self._ready
        if ready is None or ready.shape[1:] != pixels.shape[1:] or len(ready) < len(pixels):
            ready = self._ready = torch.empty(pixels.shape, memory_format=self._layout)
        crops = ready[: len(pixels)]
        for start in range(len(pixels)):
            one = slice(start, start + 1)
            crops[one].copy_(pixels[one]).mul_(self._scale).add_(self._shift)
        return crops

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The network's outputs; on the CPU in channels_last, in which convolutions take less time, if it runs so."""
        if self._chooses_layout:
            self._chooses_layout = False
            self._set_layout(torch.channels_last)
            try:
                return cast("torch.Tensor", self._call(self._normalised(pixels)))
            except RuntimeError:
                # a `view` that counts on the usual order; any other error comes again in that order
                self._set_layout(torch.contiguous_format)
        return cast("torch.Tensor", self._call(self._normalised(pixels)))

    @torch.inference_mode(False)
    def _set_layout(self, layout: torch.memory_format) -> None:
        self._layout, self._ready = layout, None
        self._module.to(memory_format=layout)

    @torch.inference_mode()
    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, S, S) -> the teacher's outputs for the data set's classes, float32 (B, C) on its device.

        A dense head gives maps, (B, H, W, C).
        """
        context = (
            nullcontext()
            if self._autocast == "none"
            else torch.autocast(self._device.type, AUTOCAST_DTYPES[self._autocast])
        )
        with context:
            logits = self._forward(pixels)
        logits = logits.float()
        outputs: torch.Tensor = logits
        return outputs if self._columns is None else outputs[..., self._columns]

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> dict[str, NDArray[Any]]:
        """uint8 (B, 3, S, S) -> class_ids (B, K), probs (B, K), tail (B,); or probs (B, C) where all are kept.

        What codecs of outputs take is logits (B, D), what those of maps take class_ids and logits (B, H, W, K).
        """
        outputs = self.logits(pixels)
        labels = {name: values.cpu().numpy() for name, values in self._reduced(outputs).items()}
        if "class_ids" in labels:
            labels["class_ids"] = labels["class_ids"].astype(id_dtype(outputs.shape[-1]))
        return labels

    def _reduced(self, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Reduce the outputs, still on the device, to what travels back."""
        if self._takes == "outputs":
            return {"logits": outputs}
        if self._takes == "map":
            assert self._kept is not None
            most, ids = torch.topk(outputs, self._kept, dim=-1)
            return {"class_ids": ids, "logits": most}
        probs = torch.softmax(outputs / self.temperature, dim=1)
        if self._kept is None:
            return {"probs": probs}
        top, ids = torch.topk(probs, self._kept, dim=1)
        # summing what is left keeps a tail of 1e-7 that "one minus the kept" would round away
        tail = probs.scatter(1, ids, 0.0).sum(dim=1)
        return {"class_ids": ids, "probs": top, "tail": tail}
