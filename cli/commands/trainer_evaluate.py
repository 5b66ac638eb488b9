"""Commands that measure a run or any network: `trainer evaluate` on images, ReaL and ImageNetV2; `trainer probe` by a
linear classifier on its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.field_options import option, with_options
from cli.output import answer, say
from cli.progress import Progress
from cli.shared_options import IMAGES, Json
from cli.trainer_options import (
    ForwardOptions,
    Network,
    OfRun,
    WhichWeights,
    load_network,
    overrides,
)
from labelstore.errors import RejectedInput, UsageError

if TYPE_CHECKING:
    from torch import nn

    from trainer.config import TrainConfig
    from trainer.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The images, the weights, and the figures of an evaluation."""

    val: Annotated[Path | None, option(metavar=IMAGES, unset="the run's own")] = None
    """Images to evaluate on: a folder with one folder per class, a list or tar shards."""
    data: Annotated[Path | None, option(metavar="DIR")] = None
    """Data set: its val/ is evaluated on."""
    checkpoint: Annotated[Path | None, option(metavar="FILE")] = None
    """Weights for a network that is given by name."""
    weights: WhichWeights = None
    of_run: OfRun = None
    settings: Annotated[list[str] | None, option("--set", metavar="KEY=VALUE")] = None
    """A setting of the run to change: input_size, crop_pct, mean ...; may be repeated."""
    per_class: bool = False
    """Also the top-1 of every class."""
    real: Annotated[Path | None, option(metavar="FILE")] = None
    """ReaL's real.json: also the top-1 under its labels."""
    v2: Annotated[list[Path] | None, option(metavar="DIR")] = None
    """A folder of ImageNetV2, with class numbers as folder names; may be repeated."""

    def load(self, model: str, changes: dict[str, Any]) -> tuple[nn.Module, TrainConfig]:
        """The network, and its settings with these changes; raises as `load_network`."""
        from labelstore.images import open_images
        from trainer.config import TrainConfig

        if self.val is not None or self.data is not None:
            # instead of what the run was evaluated on
            changes = {**changes, "val": self.val, "data": self.data}
        changes |= overrides({}, self.settings or [])

        def classes() -> Sequence[str]:
            given = {name: changes.get(name) for name in ("val", "data")}
            folder = _folder(TrainConfig.from_mapping({"labels": "ground-truth", **given}))
            return open_images(folder, keys_only=True).classes

        return load_network(
            model,
            of_run=self.of_run,
            checkpoint=self.checkpoint,
            weights=self.weights,
            classes=classes,
            settings=changes,
        )


@with_options
def trainer_evaluate(
    model: Network, forward: ForwardOptions, wanted: EvaluationOptions, json: Json = False
) -> None:
    """Measure the top-1 and top-5 of a model on a folder of validation images.

    Results of a run on its own validation images, and on ImageNetV2, go into the catalogue of its store too, where that
    can be written; a later figure of the same weights takes an earlier one's place.
    """
    real = wanted.real
    # one folder under two names is measured once, under the first
    once: dict[Path, Path] = {}
    for path in wanted.v2 or []:
        once.setdefault(path.resolve(), path)
    v2 = list(once.values())
    for path in ([real] if real else []) + v2:
        if not path.exists():
            raise RejectedInput(f"{path} does not exist: give ReaL's file, ImageNetV2's folders")

    from labelstore.devices import choose_device
    from labelstore.images import open_images
    from labelstore.images.class_names import readable
    from trainer.evaluation import evaluate
    from trainer.evaluation_sets import (
        check_numbered,
        check_real,
        evaluate_numbered,
        evaluate_real,
    )

    network, config = wanted.load(model, forward.settings())
    on = choose_device(config.device)
    network = network.to(on)
    folder = _folder(config)
    # before the evaluation, whose result a refusal would throw away
    if real is not None:
        check_real(folder, real, config)
    for each in v2:
        check_numbered(each, config)
    with Progress("evaluation", "images") as progress:
        found = evaluate(network, folder, config, device=on, report=progress)
    record: dict[str, Any] = {"model": model, "val": folder, **_top(found), "loss": found.loss}
    if real is not None:
        with Progress("ReaL", "images") as progress:
            labels = evaluate_real(network, folder, real, config, device=on, report=progress)
        record["real"] = {
            "images": labels.images,
            "without_label": labels.without_label,
            "top1": labels.top1,
        }
    if v2:
        record["v2"] = []
    for each in v2:
        with Progress(each.name, "images") as progress:
            other = evaluate_numbered(network, each, config, device=on, report=progress)
        record["v2"].append({"folder": each, **_top(other)})
    if not wanted.settings and wanted.weights != "ema" and (Path(model) / "config.yaml").is_file():
        # under other settings, and of averaged weights, it is not this run's figure
        _list_results(Path(model), folder, record)
    if wanted.per_class:
        names = config.class_names or open_images(folder, keys_only=True).classes
        of_class = dict(zip(names, found.top1_per_class.tolist(), strict=False))
        # a network may have more outputs than these images have classes
        record["top1_per_class"] = {
            name: top1 for name, top1 in of_class.items() if not isnan(top1)
        }
        record["class_titles"] = {name: readable(name) for name in record["top1_per_class"]}
    answer(record, _figures(record), json=json)


def _top(result: Evaluation) -> dict[str, Any]:
    return {"images": result.num_images, "top1": result.top1, "top5": result.top5}


def _figures(record: dict[str, Any]) -> dict[str, str]:
    """Fixed names first; what people chose, folders and classes, stands behind a word of ours."""
    from labelstore.store.label_outputs import short
    from trainer.report import short_names

    figures = {name: record[name] for name in ("model", "val", "images")}
    figures |= {name: f"{record[name]:.2f} %" for name in ("top1", "top5")}
    figures["loss"] = f"{record['loss']:.4f}"
    if "real" in record:
        figures["real top1"] = f"{record['real']['top1']:.2f} %"
    others = record.get("v2", [])
    for name, other in zip(short_names([each["folder"] for each in others]), others, strict=True):
        figures |= {f"v2 {name} {top}": f"{other[top]:.2f} %" for top in ("top1", "top5")}
    titles = record.get("class_titles", {})
    for name, top1 in record.get("top1_per_class", {}).items():
        shown = name if titles[name] == name else f"{short(titles[name])} ({name})"
        figures[f"class {shown}"] = f"{top1:.2f} %"
    return figures


def _list_results(run: Path, val: Path, record: dict[str, Any]) -> None:
    """Into the catalogue of the store that a run learnt from, under the epoch of the weights that were loaded.

    ImageNetV2's folders are told apart by their paths: "v2/PATH/top1".
    """
    from trainer.checkpoint import epoch_of
    from trainer.config import TrainConfig
    from trainer.models import weight_file
    from trainer.run_outputs import RunRegister

    config = TrainConfig.from_yaml(run / "config.yaml")
    epoch = epoch_of(weight_file(run))
    if epoch is None:
        return
    figures: dict[str, float | None] = {}
    if _is_own(val, config):
        figures["evaluate/top1"] = record["top1"]
        if "real" in record:
            figures["real/top1"] = record["real"]["top1"]
    for other in record.get("v2", []):
        folder = other["folder"].resolve()
        figures |= {f"v2/{folder}/{top}": other[top] for top in ("top1", "top5")}
    RunRegister(replace(config, output=run), say).add(epoch, figures)


def _is_own(val: Path, config: TrainConfig) -> bool:
    """Whether these are the images that the run itself was evaluated on."""
    if config.val is None and config.data is None:
        return False
    return _folder(config).resolve() == val.resolve()


def _folder(config: TrainConfig) -> Path:
    """The images to evaluate on."""
    from trainer.config import evaluation_split

    if config.val is not None:
        return config.val
    if config.data is None:
        raise UsageError("nothing to evaluate on: give --val DIR, or --data DIR with val/ inside")
    return evaluation_split(config.data)


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """How the linear classifier is trained."""

    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    """How the head is trained."""
    weight_decay: float = 1e-4
    """Weight decay of the head's weights."""
    lr: float = 0.1
    """Learning rate of sgd."""
    epochs: int = 100
    """Epochs of sgd; most iterations of lbfgs."""
    seed: int = 0
    """Seed of the order of images in sgd."""


@with_options
def trainer_probe(
    model: Network,
    head: HeadOptions,
    forward: ForwardOptions,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data set with train/ and val/ inside.")
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            metavar=IMAGES,
            help="Images that the classifier learns from: a folder, list or tar shards.",
            show_default="train/ in --data",
        ),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option(
            metavar=IMAGES,
            help="Images that it is measured on, of the same classes.",
            show_default="val/ in --data",
        ),
    ] = None,
    input_size: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    weights: WhichWeights = None,
    of_run: OfRun = None,
    json: Json = False,
) -> None:
    """Train a linear classifier on a network's frozen features, and measure its top-1 and top-5."""
    from labelstore.images import are_there
    from trainer.config import evaluation_split

    if data is not None:
        train, val = train or data / "train", val or evaluation_split(data)
    if train is None or val is None:
        raise UsageError(
            "no images: give --data DIR with train/ and val/ in it, or --train and --val"
        )
    for images in (train, val):
        if not are_there(images):
            raise RejectedInput(
                f"nothing is at {images}: give --data DIR with train/ and val/ in it, or --train and --val"
            )

    from labelstore.devices import choose_device
    from trainer.probe import ProbeSettings, linear_probe

    changes = forward.settings()
    if input_size is not None:
        changes["input_size"] = input_size
    network, config = load_network(model, of_run=of_run, weights=weights, settings=changes)
    on = choose_device(forward.device)
    with Progress("features", "images") as progress:
        found, _ = linear_probe(
            network.to("cpu"),
            train,
            val,
            config,
            settings=ProbeSettings(**vars(head)),
            device=on,
            report=progress,
        )
    record = {"model": model, **_top(found), "solver": head.solver}
    words = record | {"top1": f"{found.top1:.2f} %", "top5": f"{found.top5:.2f} %"}
    answer(record, words, json=json)
