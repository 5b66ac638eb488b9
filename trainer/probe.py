"""Linear evaluation: a linear classifier on frozen features says what a student has learnt, also without classes.

Features of centre crops are computed once, and the head is trained on them: with L-BFGS to convergence, or with
SGD over epochs. (The papers' protocol trains it for 100 epochs on random crops, and so sees the network 100 times;
figures differ by about a percent.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelstore.errors import RejectedInput, UsageError
from labelstore.images import ImageSource, open_images
from trainer.config import TrainConfig
from trainer.evaluation import Counts, Evaluation, Report, forward_all

Solver = Literal["lbfgs", "sgd"]
ROWS_TOGETHER = 65_536
"""Features that one matrix product takes."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How the linear head is trained."""

    solver: Solver = "lbfgs"
    weight_decay: float = 1e-4
    """Times half the squared weights, beside the mean loss over images; not of the bias."""
    lr: float = 0.1
    """Learning rate of sgd, which falls along a cosine."""
    epochs: int = 100
    """Epochs of sgd; most iterations of lbfgs."""
    batch_size: int = 256
    """Batch size of sgd."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.weight_decay >= 0 and self.lr > 0 and self.epochs > 0 and self.batch_size > 0):
            raise UsageError(
                f"weight_decay={self.weight_decay}, lr={self.lr}, epochs={self.epochs}, batch_size={self.batch_size}: "
                "give at least 0 of the first, more than 0 of the others"
            )


def linear_probe(
    model: nn.Module,
    train: Path,
    val: Path,
    config: TrainConfig,
    *,
    settings: ProbeSettings | None = None,
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> tuple[Evaluation, nn.Linear]:
    """Accuracy of the best linear head on `val`, and the head; both folders have one subfolder per class.

    The head takes standardised features: its own weights absorb mean and deviation. RejectedInput where `val`
    has a class that `train` lacks.
    """
    settings = settings or ProbeSettings()
    images, others = (open_images(folder, keys_only=True) for folder in (train, val))
    unknown = sorted(set(others.classes) - set(images.classes))
    if unknown:
        raise RejectedInput(
            f"{val} has a class {unknown[0]!r} that {train} lacks: give folders of one data set"
        )
    bare, width = without_classifier(model, config.input_size)
    bare = bare.to(device)
    features = _features(bare, images, width, config, device, report)
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    classes = torch.from_numpy(images.class_ids).long()
    # in place: of a large data set they take tens of gigabytes
    features.sub_(mean).div_(deviation)
    head = _fit(features, classes, len(images.classes), settings, device)
    with torch.no_grad():
        head.weight.div_(deviation.to(device))
        head.bias.sub_(head.weight @ mean.to(device))
    truth = torch.tensor([images.classes.index(others.classes[c]) for c in others.class_ids])
    counts = Counts(len(images.classes))
    paths = [others.file(key) for key in others.keys]
    for chosen, outputs in forward_all(bare, paths, config, device=device):
        with torch.no_grad():
            counts.add(head(outputs), truth[chosen])
    return counts.result(), head


def _features(
    bare: nn.Module,
    images: ImageSource,
    width: int,
    config: TrainConfig,
    device: torch.device | str,
    report: Report | None,
) -> Tensor:
    """(N, D) float32 on the CPU."""
    features = torch.empty(len(images.keys), width)
    paths = [images.file(key) for key in images.keys]
    for chosen, outputs in forward_all(bare, paths, config, device=device, report=report):
        features[chosen] = outputs.cpu()
    return features


def _fit(
    features: Tensor,
    classes: Tensor,
    num_classes: int,
    settings: ProbeSettings,
    device: torch.device | str,
) -> nn.Linear:
    head = nn.Linear(features.shape[1], num_classes).to(device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    fit = _fit_lbfgs if settings.solver == "lbfgs" else _fit_sgd
    fit(head, features, classes, settings, device)
    return head


def _fit_lbfgs(
    head: nn.Linear,
    features: Tensor,
    classes: Tensor,
    settings: ProbeSettings,
    device: torch.device | str,
) -> None:
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=settings.epochs,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for start in range(0, len(features), ROWS_TOGETHER):
            rows = slice(start, start + ROWS_TOGETHER)
            logits = head(features[rows].to(device))
            loss = functional.cross_entropy(logits, classes[rows].to(device), reduction="sum")
            loss = loss / len(features)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        penalty = settings.weight_decay / 2 * head.weight.square().sum()
        penalty.backward()  # type: ignore[no-untyped-call]
        return total + penalty.detach()

    step: Callable[[Callable[[], Tensor]], object] = optimizer.step
    step(closure)


def _fit_sgd(
    head: nn.Linear,
    features: Tensor,
    classes: Tensor,
    settings: ProbeSettings,
    device: torch.device | str,
) -> None:
    groups: list[dict[str, Any]] = [
        {"params": [head.weight], "weight_decay": settings.weight_decay},
        {"params": [head.bias]},
    ]
    optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        order = torch.randperm(len(features), generator=generator)
        for rows in torch.split(order, settings.batch_size):
            optimizer.zero_grad()
            logits = head(features[rows].to(device))
            functional.cross_entropy(logits, classes[rows].to(device)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        falling.step()


def without_classifier(model: nn.Module, input_size: int) -> tuple[nn.Module, int]:
    """A copy that returns (B, D) features, and D: timm's `reset_classifier`, or the last layer of as many outputs.

    That is the linear layer or convolution which the forward pass calls last with as many outputs as the network has,
    or the last linear layer that it calls at all. UsageError for a network without any.
    """
    bare = copy.deepcopy(model).eval()
    image = torch.zeros(1, 3, input_size, input_size)
    reset = getattr(bare, "reset_classifier", None)
    if callable(reset):
        reset(0)
    else:
        name = _last_layer(bare, image)
        if name is None:
            raise UsageError(
                "this network has no linear classifier to take out: give it a method reset_classifier(num_classes)"
            )
        bare.set_submodule(name, nn.Identity())
    with torch.no_grad():
        features = bare.eval()(image)
    if features.ndim != 2:
        raise UsageError(
            f"without its classifier the network returns {tuple(features.shape)} for one image, features are (1, D)"
        )
    return bare, features.shape[1]


def _last_layer(model: nn.Module, image: Tensor) -> str | None:
    """Name of the classifier by the order in which layers are called, which need not be the one they are made in."""
    called: list[tuple[str, nn.Module, int]] = []

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            axis = -1 if isinstance(module, nn.Linear) else 1
            called.append((name, module, output.shape[axis]))

        return hook

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name and isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    try:
        with torch.no_grad():
            outputs = model(image).shape[-1]
    finally:
        for handle in hooks:
            handle.remove()
    sized = [name for name, _, size in called if size == outputs]
    linear = [name for name, module, _ in called if isinstance(module, nn.Linear)]
    chosen = sized or linear
    return chosen[-1] if chosen else None
