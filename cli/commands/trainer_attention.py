"""`trainer attention`: what several networks look at in the same images, as one picture (FKD Fig. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.field_options import option, with_options
from cli.file_output import check_picture, write_picture
from cli.output import answer, say
from cli.shared_options import IMAGES, DryRun, Json, importable_here
from cli.trainer_options import OfRun, load_network

if TYPE_CHECKING:
    from trainer.attention import Looked
    from trainer.config import TrainConfig

MOST = 400
"""Cells of the picture: networks times images."""


def _importable_here(sources: list[str]) -> list[str]:
    for source in sources:
        importable_here(source)
    return sources


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """The images, the class, and the picture."""

    image: Annotated[list[str], option(metavar="PATH|KEY")]
    """Image file, or the key of one in val/ or train/ of the runs; may be repeated."""
    out: Annotated[Path, option(metavar="FILE")] = Path("attention.png")
    """Picture to write."""
    class_: Annotated[
        str | None, option("--class", metavar="NAME|N", unset="the predicted one")
    ] = None
    """What speaks for this class."""
    layer: Annotated[str | None, option(metavar="NAME", unset="the last with a map")] = None
    """Module whose map Grad-CAM takes."""
    images: Annotated[Path | None, option(metavar=IMAGES)] = None
    """What keys are looked up in."""
    input_size: Annotated[int | None, option(min=1, max=4096, unset="the run's")] = None
    """Pixels."""
    checkpoint: Annotated[list[Path] | None, option(metavar="FILE")] = None
    """Weights of a network that is given by name; one for each such network, in their order."""
    of_run: OfRun = None
    device: str = "auto"
    """torch device."""


@with_options
def trainer_attention(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, weight files in them, timm:NAME, torchvision:NAME, or package.module:function.",
            callback=_importable_here,
        ),
    ],
    wanted: AttentionOptions,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Draw what networks look at: Grad-CAM and guided backpropagation of several runs side by side (FKD Fig. 6)."""
    from labelstore.errors import UsageError

    image, out = wanted.image, wanted.out
    check_picture(out)
    if len(runs) * len(image) > MOST:
        raise UsageError(
            f"{len(runs)} runs x {len(image)} images: a picture holds {MOST}; give fewer, or draw several"
        )

    from labelstore.cropping.replay import centre_crop, read_image
    from labelstore.devices import choose_device
    from trainer.attention import Looked, attend, draw_attention, find_image, image_folders
    from trainer.models import names_foreign_code, read_run_config
    from trainer.report import short_names

    on = choose_device(wanted.device)
    # before a network is built: a wrong image is to be told at once
    configs = {run: read_run_config(Path(run)) for run in runs if Path(run).exists()}
    folders = [wanted.images] if wanted.images else image_folders(list(configs.values()))
    files = [find_image(each, folders) for each in image]
    pixels = [read_image(path) for path in files]
    looked: list[list[Looked]] = [[] for _ in files]
    weights = _weights_of(runs, wanted.checkpoint or [])
    # a name that comes twice is told apart by its weights
    shown_as = [Path(file or run) for run, file in zip(runs, weights, strict=True)]
    once = list(dict.fromkeys(shown_as))
    names = dict(zip(once, short_names(once), strict=True))
    # one network in memory at a time
    for run, file, place in zip(runs, weights, shown_as, strict=True):
        foreign = run in configs and names_foreign_code(configs[run])
        name = names[place]
        network, config = load_network(
            run, of_run=wanted.of_run if foreign else None, checkpoint=file
        )
        target = None if wanted.class_ is None else _class_id(wanted.class_, config, name)
        for row, picture in zip(looked, pixels, strict=True):
            size = wanted.input_size or config.input_size
            crop = centre_crop(
                picture, size, config.crop_pct, config.interpolation,
                crop_mode=config.crop_mode, mean=config.mean,
            )  # fmt: skip
            found = attend(
                network, crop, config, layer=wanted.layer, class_id=target, device=on, name=name
            )
            row.append(
                Looked(
                    network=name,
                    crop=crop.permute(1, 2, 0).numpy(),
                    attention=found,
                    class_names=config.class_names,
                )
            )
    shown = [
        (given, each.permute(1, 2, 0).numpy()) for given, each in zip(image, pixels, strict=True)
    ]
    if not dry_run:
        write_picture(draw_attention(shown, looked), out)
    records = _records(image, looked)
    for record in [] if json else records:
        for seen in record["networks"]:
            said = f"{seen['class']} {seen['probability']:.3f}"
            if seen["class"] != seen["predicted"]:
                said += f" (predicted: {seen['predicted']})"
            say(f"{record['image']}: {seen['network']}: {said}, map of {seen['layer']}")
    record = {"out": out, "written": not dry_run, "images": records}
    answer(record, f"would write {out}" if dry_run else f"wrote {out}", json=json)


def _weights_of(runs: list[str], checkpoints: list[Path]) -> list[Path | None]:
    """For each network its weights file, None for its own; UsageError for another number than there are names."""
    from labelstore.errors import UsageError

    named = [run for run in runs if not Path(run).exists()]
    if checkpoints and len(checkpoints) != len(named):
        raise UsageError(
            f"{len(checkpoints)} x --checkpoint for {len(named)} networks given by name: give one for each, in their "
            "order; run folders bring their own weights"
        )
    files = iter(checkpoints)
    return [None if Path(run).exists() else next(files, None) for run in runs]


def _class_id(text: str, config: TrainConfig, name: str) -> int:
    from labelstore.errors import UsageError

    if text in config.class_names:
        return config.class_names.index(text)
    if text.isdecimal() and len(text) < 10:
        return int(text)
    names = config.class_names
    if not names:
        raise UsageError(
            f"--class {text}: {name} does not say what its classes are called; give a number, from 0"
        )
    raise UsageError(
        f"--class {text}: {name} has no such class; give a name such as {', '.join(map(repr, names[:3]))}, or a "
        f"number, 0 to {len(names) - 1}"
    )


def _records(images: list[str], looked: list[list[Looked]]) -> list[dict[str, Any]]:
    return [
        {"image": name, "networks": [_record(one) for one in row]}
        for name, row in zip(images, looked, strict=True)
    ]


def _record(one: Looked) -> dict[str, Any]:
    seen = one.attention
    return {
        "network": one.network,
        "class": one.name_of(seen.class_id),
        "probability": seen.probability,
        "predicted": one.name_of(seen.predicted),
        "predicted_probability": seen.predicted_probability,
        "layer": seen.feature_map.layer,
        "map": [seen.feature_map.height, seen.feature_map.width],
        "rectifiers": seen.rectifiers,
        "other_activations": list(seen.others),
    }
