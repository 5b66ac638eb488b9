"""Everything that only a GPU can tell, in one command that ends within its minutes.

    python -m benchmarks.gpu --output benchmarks/reports --minutes 8

    tests     all tests that are marked gpu
    labels    `create` with a ResNet-50 and a ViT-B: share of the time beyond the teacher alone, crops made on the CPU
              and on the device, decoded there too, autocast, compile; how far pixels and labels are from the CPU's;
              the device's JPEG decoders, their pixels and their speed
    training  a ResNet-50 in bf16: crops/s from cached batches, with our threads, decoded by them and by the device, our
              processes, timm's loader; what labels and loss cost
    memory    peak of a training step, plain and with gradient checkpointing, and of labelling
    ranks     one process that exchanges gradients with itself, over what the device has for it (NCCL)
    resume    how far the weights of a run that was stopped and resumed are from one that was not

Results are written after every figure, so that a machine that is taken away leaves what was measured. A part that fails
says why, and the next one begins; the exit code is then 1. `--toy` makes everything small, for a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# as the command line sets it, before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import contextlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import timm
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import labelstore
import trainer
from benchmarks.generation import K, Spent, spent, wrapped
from benchmarks.loader_data import LoaderData, picture_data
from benchmarks.machine import processor
from labelstore import CropPlan, GenerationOptions, MarginalSmoothing, PlanOptions
from labelstore.cropping.device_decoding import (
    MOST_TOGETHER,
    DeviceDecoding,
    crops_on_device,
    decoders_for,
    device_decoding,
    measured,
    sample_of,
)
from labelstore.cropping.replay import decode, read_image, replay_many
from labelstore.devices import backend_of, choose_device, device_name
from labelstore.errors import UsageError
from labelstore.images import scan_folder
from labelstore.teachers.teacher import Teacher
from trainer.loader import CropDataset, CropLoader, LoaderOptions, StoredPasses, collate_crops
from trainer.losses import SparseSoftCrossEntropy
from trainer.models import Normalise, autocast
from trainer.ranks import exchange
from trainer.sampler import PassSchedule

CLASSES, M = 1000, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_width": 8}
Figures = Iterator[tuple[str, Mapping[str, Any]]]
"""What a part yields as it goes: the name of a measurement and its figures."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything."""

    teachers: Mapping[str, Mapping[str, Any]]
    """timm name -> options."""
    student: str
    student_options: Mapping[str, Any]
    size: int
    images: int
    num_crops: int
    batch: int
    steps: int
    """Training steps that are timed, after as many that are not."""
    compiled: bool
    test_files: int


LARGE = Scale(
    teachers={"resnet50": {}, "vit_base_patch16_224": {}}, student="resnet50", student_options={}, size=224,
    images=512, num_crops=16, batch=256, steps=20, compiled=True, test_files=1000,
)  # fmt: skip
TOY = Scale(
    teachers={"resnet18": TINY}, student="resnet18", student_options=TINY, size=32, images=8, num_crops=4, batch=8,
    steps=2, compiled=False, test_files=1,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every part is given."""

    device: torch.device
    scale: Scale
    folder: Path
    """Empty, the part's own."""
    workers: int
    left: Callable[[], float]
    """Seconds until the minutes are over."""

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def timed(self, work: Callable[[], object], crops: int) -> dict[str, float]:
        """Rate and cores of some work on so many crops, to the device's end."""

        def whole() -> None:
            work()
            self.wait()

        self.wait()
        found: Spent = spent(whole, crops)
        return {"crops_per_s": crops / found.wall, "cores_in_use": found.cpu / found.wall}

    def data(self) -> LoaderData:
        """Photographs with stored labels."""
        return picture_data(self.folder, self.scale.images, self.scale.num_crops)

    def student(self) -> nn.Module:
        torch.manual_seed(0)
        network = timm.create_model(
            self.scale.student, num_classes=CLASSES, **self.scale.student_options
        )
        return network.to(self.device, memory_format=torch.channels_last)


def tests(job: Job) -> Figures:
    """Those marked gpu, in a process of their own."""
    root = Path(__file__).resolve().parents[1]
    files = [p for p in sorted((root / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, *map(str, files[-job.scale.test_files :])],
        cwd=root, capture_output=True, text=True, timeout=max(1.0, job.left()), check=False,
    )  # fmt: skip
    lines = ended.stdout.strip().splitlines()
    yield "tests marked gpu", {"exit_code": ended.returncode, "result": lines[-1] if lines else ""}
    if ended.returncode:
        raise RuntimeError("\n".join(lines[-30:]))


def labels(job: Job) -> Figures:
    """`generate` in every way, beside the teacher alone."""
    scale = job.scale
    data = job.data()
    yield "pixels", pixel_differences(job, data)
    yield from decoders(job, data)
    crops = scale.images * scale.num_crops
    ways: dict[str, dict[str, Any]] = {
        "float32": {},
        "float32, crops on the device": {"crop_device": "device"},
        "bf16": {"autocast": "bf16"},
        "bf16, crops on the device": {"autocast": "bf16", "crop_device": "device"},
        "bf16, decoded on the device": {"autocast": "bf16", "decode_device": "device"},
    }
    if scale.compiled:
        ways["bf16, compiled"] = {"autocast": "bf16", "compile_teacher": True}
    for name, options in scale.teachers.items():
        torch.manual_seed(0)
        teacher = wrapped(timm.create_model(name, num_classes=CLASSES, **options), f"timm:{name}")
        teacher = replace(teacher, row=replace(teacher.row, input_size=scale.size))
        on_cpu = labelled(job, data, teacher, "cpu", images=min(8, scale.images))[1]
        for way, more in ways.items():
            if more.get("decode_device") and (why := no_decoding(job, data)):
                yield f"{name}, {way}", {"refused": why}
                continue
            alone = teacher_alone(job, teacher, crops, **more)
            if job.device.type != "cpu":
                # a first run finds the kernels (and compiles), and is not timed
                labelled(job, data, teacher, job.device.type, images=min(8, scale.images), **more)
            seconds, made = labelled(job, data, teacher, job.device.type, **more)
            ours = {key: made[key] for key in on_cpu}
            gap = max(float(np.abs(on_cpu[key] - ours[key]).max()) for key in ours)
            yield (
                f"{name}, {way}",
                {
                    "crops_per_s": crops / seconds,
                    "teacher_alone_crops_per_s": crops / alone,
                    "share_beyond_the_teacher": 1 - alone / seconds,
                    "largest_difference_from_cpu_labels": gap,
                },
            )


def pixel_differences(job: Job, data: LoaderData) -> dict[str, float]:
    """Crops of the device beside those of `replay`, of 255."""
    differences = []
    for key in data.keys[:4]:
        image = read_image(data.images.root / key)
        boxes, flips = CropPlan().crops(key, *image.shape[-2:], np.arange(16))
        shape = (16, 3, job.scale.size, job.scale.size)
        here = torch.empty(shape, dtype=torch.uint8)
        there = torch.empty(shape, dtype=torch.uint8, device=job.device)
        replay_many(image, boxes, flips, job.scale.size, "bilinear", here)
        crops_on_device(image.to(job.device), boxes, flips, "bilinear", there)
        differences.append((here.int() - there.cpu().int()).abs().flatten())
    found = torch.cat(differences)
    return {"largest": float(found.max()), "share_that_differ": float((found > 0).float().mean())}


def decoders(job: Job, data: LoaderData) -> Figures:
    """Every decoder that there is for the device, on the photographs as they are and with whole chroma: how far crops
    are from `replay`'s, and images per second in the batches that threads make; and the CPU's threads."""
    files = sample_of(data.images, data.keys)
    whole = {}
    for key, held in files.items():
        made = io.BytesIO()
        Image.open(io.BytesIO(held)).convert("RGB").save(made, "JPEG", quality=90, subsampling=0)
        whole[key] = made.getvalue()
    many = [*files.values()] * (MOST_TOGETHER // len(files) + 1)
    with ThreadPoolExecutor(job.workers) as pool:

        def on_cpu() -> None:
            for _ in pool.map(lambda held: decode(held, "image"), many):
                pass

        rate = job.timed(on_cpu, len(many))
    yield "decoding, CPU threads", {"images_per_s": rate["crops_per_s"], "workers": job.workers}
    about = {"size": job.scale.size, "interpolation": "bilinear"}
    for name, decoder in decoders_for(job.device).items():
        for kinds in (files, whole):
            for kind, gap in measured(decoder, kinds, job.device, **about).items():
                yield (
                    f"decoding, {name}, {kind}",
                    {
                        "largest": gap.largest,
                        "share_beyond_1": gap.beyond_one,
                        "taken": gap.is_small,
                    },
                )
        rate = job.timed(lambda decoder=decoder: decoder(many, job.device), len(many))  # type: ignore[misc]
        yield f"decoding, {name}", {"images_per_s": rate["crops_per_s"], "together": len(many)}


def decoding_of(job: Job, data: LoaderData) -> DeviceDecoding:
    """As a run chooses it; UsageError where it would refuse."""
    return device_decoding(
        job.device, sample_of(data.images, data.keys), size=job.scale.size, interpolation="bilinear",
        note=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip


def no_decoding(job: Job, data: LoaderData) -> str | None:
    """Why images are not decoded on this device."""
    try:
        decoding_of(job, data)
    except UsageError as error:
        return str(error)
    return None


def labelled(
    job: Job,
    data: LoaderData,
    teacher: Teacher,
    device: str,
    images: int | None = None,
    **options: Any,
) -> tuple[float, dict[str, Any]]:
    """Seconds of `generate` on a new store to the last commit, and the labels by key."""
    folder = scan_folder(data.images.root)
    # a thousand classes, as ImageNet has, whatever the few images are of
    names = tuple(f"class{number:04d}" for number in range(CLASSES))
    chosen = slice(0, images)
    folder = replace(
        folder, classes=names, keys=folder.keys[chosen], class_ids=folder.class_ids[chosen]
    )
    with tempfile.TemporaryDirectory(dir=job.folder) as place:
        path = Path(place) / "store"
        with labelstore.create(
            path, images=folder, plan=PlanOptions(num_crops=job.scale.num_crops)
        ) as store:
            codec = MarginalSmoothing(k=K, dtype="float32")
            found = spent(
                lambda: labelstore.generate(
                    store,
                    teacher=teacher,
                    codec=codec,
                    images=folder,
                    generation=GenerationOptions(
                        batch_size=job.scale.batch, device=device, workers=job.workers, **options
                    ),
                ),
                1,
            )
            probs = store.label_set().recover(range(min(8, len(folder))))
            keys = [str(key) for key in store.image_columns["key"][: len(probs)]]
    return found.wall, dict(zip(keys, probs, strict=True))


def teacher_alone(
    job: Job,
    teacher: Teacher,
    crops: int,
    *,
    autocast: str = "none",
    compile_teacher: bool = False,
    **_: Any,
) -> float:
    """Seconds of the teacher on ready floats on the device."""
    size = job.scale.size
    ready = torch.randn(min(job.scale.batch, crops), 3, size, size, device=job.device)
    module = teacher.module.to(job.device)
    module = torch.compile(module) if compile_teacher else module

    @torch.inference_mode()
    def look(batches: int) -> None:
        for _ in range(batches):
            with trainer.models.autocast(job.device, autocast):  # type: ignore[arg-type]
                module(ready)

    look(3)
    batches = max(1, crops // len(ready))
    rate = job.timed(lambda: look(batches), batches * len(ready))["crops_per_s"]
    return crops / rate


def training(job: Job) -> Figures:
    """The same steps, fed in four ways; and with class numbers in the place of labels."""
    scale, data = job.scale, job.data()
    loader_of, epochs = passes(job, data)
    step = Step(job)
    batch = next(iter(loader_of.batches(0)))
    step.on(batch for _ in range(scale.steps))
    crops = scale.steps * len(batch)
    cached = job.timed(lambda: step.on(batch for _ in range(scale.steps)), crops)
    yield "cached batches", cached
    hard = job.timed(lambda: step.on((batch for _ in range(scale.steps)), soft=False), crops)
    share = 1 - cached["crops_per_s"] / hard["crops_per_s"]
    yield "cached batches, class numbers", {**hard, "share_of_labels_and_loss": share}
    numbers = iter(range(1, epochs))

    def ours() -> None:
        step.on(loader_of.batches(next(numbers)))

    per_pass = scale.images * M
    ours()
    yield "our threads", {**job.timed(ours, per_pass), "workers": job.workers}
    if why := no_decoding(job, data):
        yield "our threads, decoded on the device", {"refused": why}
    else:
        there, _ = passes(job, data, decoding_of(job, data))
        step.on(there.batches(0))
        found = job.timed(lambda: step.on(there.batches(1)), per_pass)
        yield "our threads, decoded on the device", {**found, "workers": job.workers}
    with_processes = CropDataset(
        data.labels, data.images, M, scratch=job.folder, passes=2, input_size=scale.size
    )
    batches = DataLoader(
        with_processes, batch_size=scale.batch // M, num_workers=job.workers, collate_fn=collate_crops,
        pin_memory=backend_of(job.device).copies_ahead,
    )  # fmt: skip
    yield (
        "our dataset, a DataLoader's processes",
        {**job.timed(lambda: step.on(batches), per_pass), "workers": job.workers},
    )
    with_processes.close()
    yield "timm's ImageFolder and loader", timms(job, data, step)


def passes(
    job: Job, data: LoaderData, decoding: DeviceDecoding | None = None
) -> tuple[CropLoader, int]:
    """Our loader on stored labels, and how many passes it has."""
    count = 4
    source = StoredPasses(
        data.labels, schedule=PassSchedule.of(passes=count, crops_per_image=M), scratch=job.folder
    )
    loader = CropLoader(
        source,
        data.images,
        batch_size=job.scale.batch,
        input_size=job.scale.size,
        options=LoaderOptions(
            workers=job.workers,
            pin_memory=backend_of(job.device).copies_ahead,
            decoding=decoding,
        ),
    )
    return loader, count


def timms(job: Job, data: LoaderData, step: Step) -> dict[str, float]:
    """One random resized crop and flip per decoded image, class numbers as labels."""
    dataset = timm.data.create_dataset("", root=str(data.images.root))
    batches = timm.data.create_loader(
        dataset, (3, job.scale.size, job.scale.size), min(job.scale.batch, job.scale.images), is_training=True,
        use_prefetcher=False, num_workers=job.workers, persistent_workers=False, interpolation="bilinear",
        pin_memory=backend_of(job.device).copies_ahead,
    )  # fmt: skip
    seen = len(batches) * batches.batch_size
    return {**job.timed(lambda: step.on(batches, soft=False), seen), "workers": job.workers}


class Step:
    """A student that learns from whatever batches it is given, in bf16."""

    def __init__(self, job: Job) -> None:
        self.job, self.model = job, job.student()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        self.normalise = Normalise(MEAN, STD).to(job.device)
        self.loss = SparseSoftCrossEntropy()

    def on(self, batches: Iterable[Any], *, soft: bool = True) -> None:
        """One step per batch of ours (an object or a dict), or of timm's (floats and class numbers)."""
        for batch in batches:
            pixels, label, truth = self._of(batch)
            with autocast(self.job.device, "bf16"):
                logits = self.model(pixels)
            loss = (
                self.loss(logits, *label)
                if soft
                else nn.functional.cross_entropy(logits.float(), truth)
            )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()

    def _of(self, batch: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
        device = self.job.device
        if isinstance(batch, (list, tuple)):
            pixels, truth = (part.to(device, non_blocking=True) for part in batch)
            return pixels.contiguous(memory_format=torch.channels_last), (), truth
        names = ("pixels", "class_ids", "probs", "rest")
        if isinstance(batch, dict):
            pixels, *label = (batch[name].to(device, non_blocking=True) for name in names)
        else:
            there = batch.to(device)
            pixels, *label = (getattr(there, name) for name in names)
        form = torch.channels_last
        return (
            self.normalise(pixels).contiguous(memory_format=form),
            tuple(label),
            label[0][:, 0].long(),
        )


def memory(job: Job) -> Figures:
    """Peaks in MiB of what torch holds on the device."""
    if not backend_of(job.device).numbered:
        yield "not measured", {"reason": f"torch counts no memory on {job.device.type}"}
        return
    module = torch.get_device_module(job.device)
    size = job.scale.size
    pixels = torch.rand(job.scale.batch, 3, size, size, device=job.device)
    truth = torch.zeros(job.scale.batch, dtype=torch.int64, device=job.device)
    for name, saving in (("training step", False), ("training step, gradient checkpointing", True)):
        module.empty_cache()
        module.reset_peak_memory_stats(job.device)
        step = Step(job)
        step.model.set_grad_checkpointing(saving)
        step.on([(pixels, truth)] * 2, soft=False)
        yield (
            name,
            {"MiB": module.max_memory_allocated(job.device) / 2**20, "crops": job.scale.batch},
        )
        del step
    data = job.data()
    for name, options in job.scale.teachers.items():
        teacher = wrapped(timm.create_model(name, num_classes=CLASSES, **options), f"timm:{name}")
        module.empty_cache()
        module.reset_peak_memory_stats(job.device)
        labelled(job, data, teacher, job.device.type, images=8, crop_device="device")
        yield f"labels, {name}", {"MiB": module.max_memory_allocated(job.device) / 2**20}


def ranks(job: Job) -> Figures:
    """Gradients with and without the exchange, on the same crops."""
    size = job.scale.size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(8, 3, size, size, generator=generator).to(job.device)
    found = []
    how = exchange()
    dist.init_process_group(how, store=dist.HashStore(), rank=0, world_size=1)
    try:
        for parallel in (False, True):
            model: nn.Module = job.student()
            bare = model
            if parallel:
                devices = [job.device] if backend_of(job.device).numbered else None
                model = DistributedDataParallel(model, device_ids=devices)
            model(pixels).float().log_softmax(1)[:, 0].mean().neg().backward()
            found.append(
                [p.grad.detach().float().cpu() for p in bare.parameters() if p.grad is not None]
            )
    finally:
        dist.destroy_process_group()
    gaps = [float((one - two).abs().max()) for one, two in zip(*found, strict=True)]
    largest = max(float(one.abs().max()) for one in found[0])
    yield f"one process over {how}", {"largest_difference": max(gaps), "largest_gradient": largest}


def resume(job: Job) -> Figures:
    """A run that is stopped in its second pass and resumed, beside one that is not."""

    class Stopped(BaseException):
        """Where a machine was taken away."""

    images = job.data().images.root
    at = job.scale.images * M // job.scale.batch + 1

    def config(name: str, **changes: Any) -> trainer.TrainConfig:
        settings = {
            "data": images, "labels": "ground-truth", "model": job.scale.student,
            "model_kwargs": dict(job.scale.student_options), "input_size": job.scale.size,
            "batch_size": job.scale.batch, "crops_per_image": M, "epochs": 3 * M, "lr": 0.01,
            "device": str(job.device), "workers": job.workers, "amp": "bf16", "output": job.folder / name,
        }  # fmt: skip
        return trainer.TrainConfig(**{**settings, **changes})

    def stop(step: int, steps: int) -> None:
        if step == at:
            raise Stopped

    whole = trainer.run(config("whole"))
    with contextlib.suppress(Stopped):
        trainer.run(config("stopped"), progress=stop)
    again = trainer.run(config("stopped", resume=True))
    gaps = [
        float((value.float() - again.model.state_dict()[name].float()).abs().max())
        for name, value in whole.model.state_dict().items()
    ]
    largest = max(float(v.float().abs().max()) for v in whole.model.state_dict().values())
    yield (
        f"stopped at step {at} of {whole.steps}",
        {
            "largest_difference_of_weights": max(gaps),
            "largest_weight": largest,
            "train_loss": whole.train_loss,
            "train_loss_resumed": again.train_loss,
        },
    )


PARTS = {part.__name__: part for part in (tests, labels, training, memory, ranks, resume)}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 1 where one of them failed."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--output", type=Path, help="folder for gpu.json and gpu.md")
    options.add_argument(
        "--minutes", type=float, default=8.0, help="no measurement begins after them"
    )
    options.add_argument("--device", default="auto")
    options.add_argument("--skip", nargs="*", default=[], choices=list(PARTS), metavar="PART")
    options.add_argument(
        "--toy", action="store_true", help="everything small, to see that all of it runs"
    )
    options.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    args = options.parse_args(arguments)
    until = time.monotonic() + 60 * args.minutes
    device = choose_device(args.device)
    record: dict[str, Any] = {
        "device": device_name(device), "toy": args.toy, "minutes": args.minutes, "workers": args.workers,
        "cpu": processor(), "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(), "parts": {},
    }  # fmt: skip
    for name, part in PARTS.items():
        if name in args.skip:
            record["parts"][name] = {"not_run": "skipped"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            job = Job(
                device=device, scale=TOY if args.toy else LARGE, folder=Path(folder), workers=args.workers,
                left=lambda: until - time.monotonic(),
            )  # fmt: skip
            run_part(
                part, job, record["parts"].setdefault(name, {}), lambda: save(record, args.output)
            )
    save(record, args.output)
    print(as_markdown(record))
    return int(any("failed" in part for part in record["parts"].values()))


def run_part(
    part: Callable[[Job], Figures], job: Job, found: dict[str, Any], kept: Callable[[], None]
) -> None:
    """Fill `found` with what a part yields, calling `kept` after each; what goes wrong becomes its `failed`."""
    began = time.monotonic()
    if job.left() <= 0:
        found["not_run"] = "the minutes were over"
        return
    try:
        for name, figures in part(job):
            found[name] = dict(figures)
            kept()
            print(f"{part.__name__}: {name}: {_line(figures)}", file=sys.stderr, flush=True)
            if job.left() <= 0:
                found["not_run"] = "the rest: the minutes were over"
                break
    except Exception as error:  # noqa: BLE001 - the next part is worth running whatever happened to this one
        found["failed"] = f"{type(error).__name__}: {error}"
        print(f"{part.__name__} failed: {found['failed']}", file=sys.stderr, flush=True)
    found["seconds"] = time.monotonic() - began
    kept()


def save(record: Mapping[str, Any], folder: Path | None) -> None:
    """Both files, as they are so far."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "gpu.md").write_text(as_markdown(record))


def as_markdown(record: Mapping[str, Any]) -> str:
    """A list per part, a line per measurement."""
    size = "toy sizes: the figures mean nothing" if record["toy"] else "full sizes"
    lines = [
        f"# On {record['device']}", "",
        (f"`python -m benchmarks.gpu`, {record['date']}, {size}. {record['cpu']}, {record['cores']} cores, "
        f"{record['workers']} workers; torch {record['torch']}, Python {record['python']}."),
    ]  # fmt: skip
    for name, found in record["parts"].items():
        lines += ["", f"## {name}", ""]
        for what, figures in found.items():
            lines.append(
                f"- {what}: {_line(figures) if isinstance(figures, Mapping) else _figure(figures)}"
            )
    return "\n".join(lines) + "\n"


def _line(figures: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {_figure(value)}" for name, value in figures.items()
    )


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
