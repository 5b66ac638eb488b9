"""FFCV and NVIDIA DALI on the CPU, beside our loader, where they can be imported; otherwise the reason why not.

Both read the same photographs with as many threads: FFCV from a file of its own with JPEG inside, one random resized
crop and flip per image; DALI from the folder, one decode and m random resized crops and flips.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder as TorchvisionFolder

from benchmarks.generation import spent
from benchmarks.loader_data import QUALITY, LoaderData
from benchmarks.loader_pixels import IMAGES_PER_BATCH, SIZE, Side


def others(
    data: LoaderData, m: int, workers: int, scratch: Path
) -> tuple[dict[str, Side], dict[str, str]]:
    """The sides that can be measured at m crops per image, and for each other one why it cannot."""
    found: dict[str, Side] = {}
    missing: dict[str, str] = {}
    for name, module, make in (("ffcv", "ffcv.loader", ffcv), ("dali", "nvidia.dali", dali)):
        try:
            import_module(module)
        except ImportError as error:
            missing[name] = f"cannot be imported here ({error})"
            continue
        if name == "ffcv" and m > 1:
            continue  # it makes one crop per decoded image
        found[name] = make(data, m, workers, scratch)
    return found, missing


def ffcv(data: LoaderData, m: int, workers: int, scratch: Path) -> Side:
    """FFCV with JPEG in its file, everything on the CPU, uint8 to the end."""
    fields, writer, loader = (import_module(f"ffcv.{n}") for n in ("fields", "writer", "loader"))
    decoders, transforms = (import_module(f"ffcv.{n}") for n in ("fields.decoders", "transforms"))
    assert m == 1
    path = scratch / "images.beton"
    image = fields.RGBImageField(write_mode="jpg", jpeg_quality=QUALITY)
    made = writer.DatasetWriter(
        str(path), {"image": image, "label": fields.IntField()}, num_workers=workers
    )
    made.from_indexed_dataset(TorchvisionFolder(str(data.images.root)))
    batches = loader.Loader(
        str(path),
        batch_size=IMAGES_PER_BATCH,
        num_workers=workers,
        order=loader.OrderOption.RANDOM,
        os_cache=True,
        pipelines={
            "image": [
                decoders.RandomResizedCropRGBImageDecoder((SIZE, SIZE)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.ToTorchImage(),
            ],
            "label": [decoders.IntDecoder(), transforms.ToTensor()],
        },
    )
    return _side(batches, len(data.keys))


def dali(data: LoaderData, m: int, workers: int, scratch: Path) -> Side:
    """DALI on the CPU: decode once, m antialiased random resized crops and flips."""
    module, fn = import_module("nvidia.dali"), import_module("nvidia.dali.fn")
    pytorch = import_module("nvidia.dali.plugin.pytorch")

    def crops() -> tuple[Any, ...]:
        encoded, labels = fn.readers.file(
            file_root=str(data.images.root), random_shuffle=True, name="images"
        )
        image = fn.decoders.image(encoded, device="cpu")
        made = [
            fn.flip(
                fn.random_resized_crop(image, size=[SIZE, SIZE], antialias=True),
                horizontal=fn.random.coin_flip(),
            )
            for _ in range(m)
        ]
        return (*made, labels)

    pipeline = module.pipeline_def(
        crops, batch_size=IMAGES_PER_BATCH, num_threads=workers, device_id=None
    )()
    names = [f"crop{nth}" for nth in range(m)] + ["label"]
    batches = pytorch.DALIGenericIterator(pipeline, names, reader_name="images", auto_reset=True)
    return _side(batches, len(data.keys) * m)


def _side(batches: Any, crops: int) -> Side:
    def work() -> None:
        for _ in batches:
            pass

    # compilation and start-up are no part of it
    work()
    return lambda number: spent(work, crops)
