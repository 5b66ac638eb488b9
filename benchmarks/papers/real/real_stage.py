"""What students of a real teacher need: pictures, the teacher's labels of them, and a common start to fine-tune from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import labelstore
import trainer
from benchmarks import real_teacher
from benchmarks.papers.real.real_setting import RealSetting
from benchmarks.papers.real.stamps import Surroundings, make_pictures
from benchmarks.papers.stage import Stage
from labelstore import Full, GenerationOptions, MarginalSmoothing, PlanOptions
from labelstore.images import open_images
from labelstore.images.class_names import wordnet_ids
from labelstore.teachers.teacher import Teacher, load_teacher
from trainer.config import TrainConfig
from trainer.evaluation import forward_all, output_of_class

LITE0, LITE2 = "tf_efficientnet_lite0", "tf_efficientnet_lite2"
VARIANTS = {
    "ms5": MarginalSmoothing(k=5, dtype="float16"),
    "ms5-uint8": MarginalSmoothing(k=5, dtype="uint8"),
    "ms3-tail": MarginalSmoothing(k=3, dtype="uint8", tail_classes=100),
}
"""Derived from the teacher's full float32 labels, on the same crops."""
BINS = {"low": (0.0, 0.3), "middle": (0.3, 0.9), "high": (0.9, 1.01)}
"""Of the teacher's largest probability on a val picture: FerKD calls what is below 0.3 hard."""


class RealStage(Stage):
    """Stores "anywhere" and "own" by the pictures' surroundings, "fresh" and "four" with other numbers of crops."""

    setting: RealSetting

    def prepare(self) -> None:
        """Make the pictures of objects anywhere."""
        self.pictures("anywhere")

    def pictures(self, surroundings: Surroundings) -> Path:
        """Folder with train/, tune/ and val/."""
        folder = self.images / surroundings
        setting = self.setting
        make_pictures(
            folder, surroundings, setting.images, seed=setting.data_seed, object_side=setting.object_side
        )  # fmt: skip
        return folder

    def make(self, what: str) -> Any:
        """As `Stage.make`, and "train:SURROUNDINGS"."""
        kind, _, name = what.partition(":")
        if kind == "train":
            return self.pictures(name) / "train"  # type: ignore[arg-type]
        return super().make(what)

    def store(self, name: str) -> Path:
        """ "SURROUNDINGS" and "SURROUNDINGS+lite2" (one store), "fresh": every crop drawn once, "four": M = 4."""
        where, _, second = name.partition("+")
        surroundings: Surroundings = "own" if where == "own" else "anywhere"
        num_crops = {"fresh": self.setting.epochs, "four": 4}.get(where, self.setting.num_crops)
        path = self.folder / f"{where}.labels"
        train = self.pictures(surroundings) / "train"
        if not (path / "catalogue.db").exists():
            labelstore.create(path, images=train, plan=PlanOptions(num_crops=num_crops)).close()
        with labelstore.open(path) as store:
            if second:
                self._label_real(store, LITE2, VARIANTS["ms5"], f"{second}-ms5", train)
            elif not (path / "made").exists():
                self._label_real(store, LITE0, Full(dtype="float32"), "full", train)
                for variant, codec in VARIANTS.items():
                    labelstore.derive(store.label_set("full"), codec, name=variant)
                (path / "made").touch()
        return path

    def mask(self, name: str) -> str:
        """As `Stage.mask`, of the store named before the label set: "anywhere/ms5/0.15-0.30-0.95"."""
        where, _, rule = name.partition("/")
        return self._mask(self.store(where), rule)

    def student_weights(self, name: str) -> Path:
        """The common start on pictures of `name` surroundings: the ground truth alone, as one of the teacher's 1,000 outputs."""
        run = self._trained(
            f"base-{name}",
            labels="fkd",
            label_set="ms5",
            ground_truth_weight=1.0,
            store=self.store(name),
            train=self.pictures(name) / "train",  # type: ignore[arg-type]
            epochs=self.setting.base_epochs,
            warmup_epochs=self.setting.base_epochs / 20,
            lr=self.setting.base_lr,
            crops_per_image=2,
            val=None,
            seed=200,
        )
        return run / "last.pth.tar"

    def measure(
        self, run: trainer.Run, options: Mapping[str, Any]
    ) -> tuple[float, Mapping[str, float]]:
        """Top-1, agreement with and KL to the teacher on the val pictures, in all and by the teacher's confidence."""
        assert run.config.train is not None
        val = run.config.train.parent / "val"
        teacher = torch.from_numpy(self.teacher_on(val))
        truth, logits = outputs_on(val, run.model, run.config)
        return figures_of(teacher, logits, truth)

    def teacher_on(self, val: Path) -> np.ndarray:
        """(images, 1000) the teacher's probabilities of the val pictures' centres, float32, kept."""
        kept = self.folder / f"teacher-{val.parent.name}.npy"
        if not kept.exists():
            teacher = self.real_teacher(LITE0)
            row = teacher.row
            config = TrainConfig(
                labels="ground-truth", train=val, input_size=row.input_size, mean=row.mean, std=row.std,
                interpolation=row.interpolation, crop_pct=0.875, workers=1, class_names=wordnet_ids("imagenet-1k"), num_classes=1000,
            )  # fmt: skip
            logits = outputs_on(val, teacher.module, config)[1]
            temporary = kept.with_suffix(".tmp.npy")
            np.save(temporary, logits.softmax(1).numpy())
            temporary.replace(kept)
        return np.load(kept)

    def real_teacher(self, variant: str) -> Teacher:
        path = real_teacher.weights(variant, self.folder / "weights")
        return load_teacher(str(path), architecture=f"timm:{variant}", name=variant)

    def _label_real(self, store: Any, variant: str, codec: Any, name: str, train: Path) -> None:
        labelstore.generate(
            store,
            teacher=self.real_teacher(variant),
            codec=codec,
            images=train,
            generation=GenerationOptions(name=name, workers=1, class_map="wnid", classes="teacher"),
        )

    def _student(self, **given: Any) -> TrainConfig:
        # top-1 comes with the other figures, from one pass over the val pictures
        usual = {"train": self.images / "anywhere" / "train", "val": None, "flip_prob": 0.5}
        return super()._student(**(usual | given))


def outputs_on(folder: Path, network: nn.Module, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """(images,) output of the class of each centre crop of the folder, (images, C) logits."""
    images = open_images(folder, keys_only=True)
    truth = torch.from_numpy(output_of_class(images, config)[images.class_ids])
    paths = [images.file(key) for key in images.keys]
    logits = [part.cpu() for _, part in forward_all(network, paths, config)]
    return truth, torch.cat(logits)


def figures_of(teacher: Tensor, logits: Tensor, truth: Tensor) -> tuple[float, Mapping[str, float]]:
    """Percent of top-1; percent of agreement and KL(teacher || student) in nats, and all three by bins of confidence.

    `teacher` (N, C) probabilities, `logits` (N, C), `truth` (N,). A bin without pictures is left out.

    >>> teacher = torch.tensor([[0.95, 0.05], [0.5, 0.5]])
    >>> top1, found = figures_of(teacher, teacher.log(), torch.tensor([0, 1]))
    >>> top1, found["agreement"], found["kl"] < 1e-6, sorted(name for name in found if name.startswith("top1"))
    (50.0, 100.0, True, ['top1_high', 'top1_middle'])
    """
    log_student = logits.double().log_softmax(1)
    first, chosen = logits.argmax(1), teacher.argmax(1)
    each = {
        "top1": 100.0 * (first == truth),
        "agreement": 100.0 * (first == chosen),
        "kl": (torch.special.xlogy(teacher.double(), teacher.double()) - teacher * log_student).sum(
            1
        ),
    }
    surest = teacher.max(1).values
    found = {name: float(values.mean()) for name, values in each.items()}
    for name, (low, high) in BINS.items():
        here = (surest >= low) & (surest < high)
        if here.any():
            found |= {f"{key}_{name}": float(values[here].mean()) for key, values in each.items()}
    return found.pop("top1"), found
