"""What students need before they can train: pictures, teachers, stores, masks, and students to fine-tune.

Everything is made once, when first asked for, in the benchmark's folder; what is finished there is used again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import labelstore
import trainer
from benchmarks.papers import ssl_teacher
from benchmarks.papers.pictures import make_images
from benchmarks.papers.setting import Setting
from labelstore import (
    Full,
    GenerationOptions,
    Hard,
    LabelMap,
    Logits,
    MarginalRenorm,
    MarginalSmoothing,
    PlanOptions,
    RegionThresholds,
    Smoothing,
)
from labelstore.teachers.teacher import load_teacher
from trainer.config import TrainConfig

VARIANTS = {
    "hard": Hard(),
    "smoothing": Smoothing(dtype="float16"),
    "mr5": MarginalRenorm(k=5, dtype="float16"),
    "ms5": MarginalSmoothing(k=5, dtype="float16"),
    "ms10": MarginalSmoothing(k=10, dtype="float16"),
    "ms5-uint8": MarginalSmoothing(k=5, dtype="uint8"),
}
"""Label sets derived from teacher a's full float32 labels (FKD Table 6), all on the same crops."""

MAP_PIXELS = 96
"""Side of the whole picture that the dense head sees: 3 x 3 cells."""

TEACHERS: dict[str, dict[str, Any]] = {
    "a": {"width": 32, "label_smoothing": 0.1, "seed": 100},
    "b": {"width": 24, "label_smoothing": 0.1, "seed": 101},
    "c": {"width": 32, "label_smoothing": 0.0, "seed": 102},
}
"""a is the teacher of every table; b is smaller and c sharp: the ensemble's others."""


class Stage:
    """The benchmark's folder and what lies in it."""

    def __init__(self, setting: Setting, folder: Path, results: Path) -> None:
        self.setting, self.folder, self.results = setting, folder, results
        self.images = folder / "images"

    def prepare(self) -> None:
        """Make the pictures that are missing."""
        make_images(self.setting, self.images)

    def config(
        self, options: Mapping[str, Any], needs: Mapping[str, str], *, seed: int
    ) -> TrainConfig:
        """A student's config: the setting's, the arm's options over it, and what it needs made and filled in."""
        chosen = dict(options)
        made = {name: self.make(what) for name, what in needs.items()}
        return self._student(**(chosen | made), seed=seed)

    def measure(
        self, run: trainer.Run, options: Mapping[str, Any]
    ) -> tuple[float, Mapping[str, float]]:
        """Percent of the val pictures (top-1, for an SSL student that of a linear classifier on its features), and more."""
        if options.get("labels") == "ssl":
            from trainer.probe import linear_probe

            found, _ = linear_probe(
                run.model, self.images / "train", self.images / "val", run.config
            )
            return found.top1, {}
        assert run.top1 is not None
        return run.top1, {}

    def make(self, what: str) -> Any:
        """The value of a config field: "store:NAME", "mask:STORE/RULE", "teacher:NAME" or "student:NAME"."""
        kind, _, name = what.partition(":")
        match kind:
            case "store":
                return self.store(name)
            case "mask":
                return self.mask(name)
            case "teacher":
                return str(self.teacher(name))
            case "student":
                return self.student_weights(name)
        raise ValueError(f"{what}: no such thing on the stage")

    def teacher(self, name: str) -> Path:
        """Run folder of a teacher, trained on teacher/."""
        given = dict(TEACHERS[name])
        return self._trained(
            f"teacher-{name}",
            train=self.images / "teacher",
            val=self.images / "tune",
            model_kwargs=self.setting.network(given.pop("width")),
            epochs=self.setting.teacher_epochs,
            **given,
        )

    def student_weights(self, name: str) -> Path:
        """Weights of a student trained on the ground truth, to be fine-tuned: the same for every seed."""
        assert name == "base"
        run = self._trained("base", labels="ground-truth", val=self.images / "tune", seed=200)
        return run / "model_best.pth.tar"

    def store(self, name: str) -> Path:
        """A store of train/: "main" with every label set, "crops-M" with M crops of teacher a, "ssl" of SimCLR's head."""
        path = self.folder / f"{name}.labels"
        done = path / "made"
        if done.exists():
            return path
        num_crops = self.setting.num_crops
        if name.startswith("crops-"):
            num_crops = int(name.removeprefix("crops-"))
        train = self.images / "train"
        if (path / "catalogue.db").exists():
            store = labelstore.open(path)
        else:
            store = labelstore.create(
                path, images=train, plan=PlanOptions(num_crops=num_crops, flip_prob=0.0)
            )
        with store:
            if name == "ssl":
                self._label_with_head(store)
            elif name != "main":
                self._label(store, "a", MarginalSmoothing(k=5, dtype="float16"), "ms5")
            else:
                full = self._label(store, "a", Full(dtype="float32"), "full")
                for variant, codec in VARIANTS.items():
                    labelstore.derive(full, codec, name=variant)
                self._label(store, "a", LabelMap(k=5, image_size=MAP_PIXELS), "map")
                for other in ("b", "c"):
                    self._label(
                        store, other, MarginalSmoothing(k=5, dtype="float16"), f"{other}-ms5"
                    )
        done.touch()
        return path

    def mask(self, name: str) -> str:
        """A mask of the main store: "LABEL_SET/LOW-MIDDLE-TOP" by thresholds, with q before them by quantiles."""
        return self._mask(self.store("main"), name)

    def _mask(self, path: Path, name: str) -> str:
        label_set, _, rule = name.partition("/")
        by_share = rule.startswith("q")
        low, middle, top = (float(value) for value in rule.removeprefix("q").split("-"))
        mask = f"{label_set}-{rule}"
        with labelstore.open(path) as store:
            if mask not in store.masks:
                labels = store.label_set(label_set)
                kind = labelstore.RegionQuantiles if by_share else RegionThresholds
                labelstore.calibrate(labels, kind(low=low, middle=middle, top=top), name=mask)
        return mask

    def _label(self, store: Any, teacher: str, codec: Any, name: str) -> Any:
        labelstore.generate(
            store,
            teacher=str(self.teacher(teacher)),
            codec=codec,
            images=self.images / "train",
            generation=GenerationOptions(name=name, workers=1),
        )
        return store.label_set(name)

    def _label_with_head(self, store: Any) -> None:
        weights = ssl_teacher.pretrain(
            self.setting, self.images / "teacher", self.folder / "teacher-ssl" / "model.safetensors"
        )
        teacher = load_teacher(
            str(weights),
            name="simclr",
            architecture=ssl_teacher.ARCHITECTURE,
            model_options=ssl_teacher.options(self.setting),
            input_size=self.setting.input_size,
        )
        labelstore.generate(
            store,
            teacher=teacher,
            codec=Logits(),
            images=self.images / "train",
            generation=GenerationOptions(name="head", workers=1),
        )

    def _phase(self, share: str | dict[str, Any]) -> str | dict[str, Any]:
        """A phase whose length is a share in percent ("fkd:25" or `epochs` of settings), as epochs of the run."""
        if isinstance(share, dict):
            return share | {"epochs": self._epochs(share["epochs"])}
        labels, percent, *mixing = share.split(":")
        return ":".join([labels, str(self._epochs(int(percent))), *mixing])

    def _epochs(self, percent: int) -> int:
        return self.setting.epochs * percent // 100

    def _trained(self, name: str, **given: Any) -> Path:
        folder = self.folder / name
        done = folder / "finished"
        if not done.exists():
            config = self._student(output=folder, resume=folder.exists(), **given)
            trainer.run(config)
            done.touch()
        return folder

    def _student(self, **given: Any) -> TrainConfig:
        setting = self.setting
        values: dict[str, Any] = {
            "train": self.images / "train",
            "val": self.images / "val",
            "labels": "ground-truth",
            "model": "resnet18",
            "model_kwargs": setting.network(),
            "input_size": setting.input_size,
            "crop_pct": 1.0,
            "crops_per_image": 4,
            "epochs": setting.epochs,
            "warmup_epochs": setting.epochs / 20,
            "eval_every": 10_000,
            "optimizer": "adamw",
            "lr": setting.lr,
            "weight_decay": setting.weight_decay,
            "serrated": False,
            "batch_size": setting.batch_size,
            "flip_prob": 0.0,
            "workers": 1,
        }
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        assert set(given) <= known, sorted(set(given) - known)
        if shares := given.get("phases"):
            given["phases"] = [self._phase(share) for share in shares]
        return TrainConfig(**(values | given))
