"""Every part of a step, an evaluation and a label on a fake GPU, where tensors of two devices cannot be mixed.

Values are not computed and backward passes do not run; that values are right is tested on the CPU, with the same code.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.utils import ModelEmaV3
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError
from torch.utils._python_dispatch import TorchDispatchMode

import trainer.evaluation
import trainer.online_teacher
from labelstore import CropPlan
from labelstore.catalogue.records import TeacherRow
from labelstore.codecs import LabelMap
from labelstore.cropping.device_decoding import DeviceDecoding, crops_on_device
from labelstore.teachers.dense_head import with_dense_head
from labelstore.teachers.labeller import Labeller
from labelstore.teachers.teacher import Teacher, load_teacher
from tests.generation.conftest import CLASSES as NAMES
from tests.generation.conftest import OPTIONS, write_teacher
from trainer.config import TrainConfig
from trainer.evaluation import forward_all, judged
from trainer.loader import CropBatch
from trainer.loader.crop_pixels import CropPixels
from trainer.losses import Discriminator, DistillationLoss, SparseSoftCrossEntropy
from trainer.mixing import mixing_rng
from trainer.models import autocast, create_model
from trainer.online_teacher import OnlineTeacher
from trainer.phase_training import StudentView
from trainer.sampler import Deal, PassSchedule
from trainer.schedule import create_optimizer
from trainer.shared_step import blank_crops, micro_batches

CUDA = torch.device("cuda:0")
CLASSES, M, SIDE, K = 12, 4, 32, 3


def config(**changes):
    settings = {
        "labels": "ground-truth", "model": "resnet18", "model_kwargs": OPTIONS, "num_classes": CLASSES,
        "input_size": SIDE, "crops_per_image": M, "workers": 1, "eval_batch_size": 4,
    }  # fmt: skip
    return TrainConfig(**{**settings, **changes})


def loaded(images=3, *, dense=False):
    """A batch as the loader makes it, on the CPU."""
    crops = images * M
    ids = torch.arange(CLASSES).expand(crops, -1) if dense else torch.zeros(crops, K).long()
    return CropBatch(
        pixels=torch.zeros(crops, 3, SIDE, SIDE, dtype=torch.uint8).contiguous(
            memory_format=torch.channels_last
        ),
        class_ids=ids,
        probs=torch.full(ids.shape, 0.3),
        rest=torch.zeros(crops),
        ground_truth=torch.zeros(crops, dtype=torch.int64),
        regions=torch.zeros(crops, dtype=torch.uint8),
        crops=torch.zeros(crops, dtype=torch.int64),
        images=torch.arange(images),
        crops_per_image=M,
        pass_index=0,
        step=0,
        crops_of_step=crops,
    )


def labels_on(device, crops=12):
    return (
        torch.zeros(crops, K, dtype=torch.int64, device=device),
        torch.full((crops, K), 0.3, device=device),
        torch.zeros(crops, device=device),
    )


def are_on_the_gpu(*tensors):
    return all(tensor.device == CUDA for tensor in tensors)


MIXING = ("none", "selfmix", "mixup", "cutmix", "mixup-cutmix")


@pytest.mark.sample(5)
@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize(("dense", "channels_last"), [(False, True), (True, False)])
def test_the_students_view(fake, mixing, dense, channels_last):
    wanted = config(mixing=mixing, channels_last=channels_last, ground_truth_weight=0.5)
    with fake:
        schedule = PassSchedule.of(passes=1, crops_per_image=M)
        deal = Deal(schedule=schedule, num_images=3, batch_size=3 * M)
        parts = [*micro_batches(loaded(dense=dense), 2, deal)]
        parts.append(blank_crops(parts[0]))
        view = StudentView(wanted, CUDA, None)
        for crops in parts:
            pixels, labels, truth = view(crops, mixing_rng(0, 0))
            assert are_on_the_gpu(pixels, *labels, *truth)
            assert pixels.dtype == torch.float32
            form = torch.channels_last if channels_last else torch.contiguous_format
            assert mixing != "none" or pixels.is_contiguous(memory_format=form)
            loss = DistillationLoss(SparseSoftCrossEntropy(), 0.5)
            logits = torch.zeros(len(pixels), CLASSES, device=CUDA)
            assert are_on_the_gpu(loss(logits, labels, truth))


@pytest.mark.sample(8)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("learns_to_discriminate", [False, True])
def test_losses(fake, temperature, kl, weight, learns_to_discriminate):
    judge = Discriminator(CLASSES) if learns_to_discriminate else None
    with fake:
        loss = DistillationLoss(SparseSoftCrossEntropy(temperature, kl=kl), weight, judge).to(CUDA)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            logits = torch.zeros(12, CLASSES, device=CUDA, dtype=dtype, requires_grad=True)
            found = loss(logits, labels_on(CUDA), labels_on(CUDA) if weight else None)
            assert (found.device, found.dtype, found.shape) == (CUDA, torch.float32, ())


def test_a_label_that_stayed_on_the_cpu_raises(fake):
    """What these tests are made to find: each of a label's three parts alone."""
    with fake:
        here, there = labels_on("cpu"), labels_on(CUDA)
        logits = torch.zeros(12, CLASSES, device=CUDA)
        SparseSoftCrossEntropy()(logits, *there)
        for part in range(3):
            labels = [*there]
            labels[part] = here[part]
            with pytest.raises(FakeTensorDeviceMismatchError, match="at least two devices"):
                SparseSoftCrossEntropy()(logits, *labels)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("amp", "channels_last", "optimizer"),
    [("none", False, "sgd"), ("bf16", True, "adamw"), ("fp16", True, "sgd")],
)
def test_a_step_up_to_the_backward_pass_and_after_it(fake, amp, channels_last, optimizer):
    wanted = config(amp=amp, channels_last=channels_last, optimizer=optimizer, mixing="cutmix")
    model = create_model(wanted)
    ema = ModelEmaV3(model, decay=0.9)
    crops = loaded()
    form = torch.channels_last if channels_last else torch.contiguous_format
    with fake:
        model, averaged = (net.to(CUDA, memory_format=form) for net in (model, ema.module))
        ema.module = averaged
        pixels, labels, truth = StudentView(wanted, CUDA, None)(crops, mixing_rng(0, 0))
        with autocast(CUDA, amp):
            logits = model(pixels)
        half = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        assert (logits.device, logits.dtype) == (CUDA, half[amp])
        loss = DistillationLoss(SparseSoftCrossEntropy(), 0.0)(logits, labels, truth)
        assert loss.requires_grad
        # in the place of the backward pass
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        create_optimizer(wanted, model).step()
        ema.update(model)
        assert are_on_the_gpu(*model.state_dict().values(), *ema.module.state_dict().values())


@pytest.mark.sample(1)
@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_an_online_teacher(fake, monkeypatch, tmp_path, amp):
    teacher = write_teacher(tmp_path / "teacher")
    wanted = config(
        labels="teacher", teacher=str(teacher), num_classes=len(NAMES), class_names=NAMES[::-1],
        input_size=48, amp=amp, mixing="mixup",
    )  # fmt: skip
    read = load_teacher(wanted.teacher)  # fakes cannot be read from files
    monkeypatch.setattr(trainer.online_teacher, "load_teacher", lambda *given, **named: read)
    pixels = torch.zeros(12, 3, 48, 48)
    with fake:
        online = OnlineTeacher(wanted, CUDA)
        labels = online.labels(pixels.to(CUDA))
        assert are_on_the_gpu(*labels)
        assert labels[1].dtype == torch.float32
        SparseSoftCrossEntropy()(torch.zeros(12, len(NAMES), device=CUDA), *labels)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("amp", "channels_last"), [("none", False), ("bf16", True)])
def test_evaluation(fake, monkeypatch, amp, channels_last):
    def centre_crops(paths, size, *given, batch_size, **named):
        # in the place of threads that decode: fake tensors are not for several threads
        for start in range(0, len(paths), batch_size):
            yield torch.zeros(
                len(paths[start : start + batch_size]), 3, size, size, dtype=torch.uint8
            )

    monkeypatch.setattr(trainer.evaluation, "centre_crops", centre_crops)
    paths = [Path(f"{number}.jpg") for number in range(6)]
    wanted = config(amp=amp, channels_last=channels_last)
    model = create_model(wanted)
    seen = 0
    with fake:
        model = model.to(CUDA)
        for chosen, logits in forward_all(model, paths, wanted, device=CUDA):
            loss, first, among5 = judged(logits, torch.zeros(len(logits), dtype=torch.int64))
            assert are_on_the_gpu(logits, loss, first, among5)
            assert logits.dtype == torch.float32
            seen += chosen.stop - chosen.start
    assert seen == len(paths)


def teacher_of(network="resnet18", **options):
    torch.manual_seed(0)
    module = timm.create_model(network, num_classes=CLASSES, **options).eval()
    row = TeacherRow(
        name=network, source=f"timm:{network}", architecture=network, digest="0" * 64, num_classes=CLASSES,
        input_size=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear", crop_pct=0.875,
    )  # fmt: skip
    return Teacher(module=module.requires_grad_(False), row=row)


@pytest.mark.sample(4)
@pytest.mark.parametrize(("mapped", "autocast_"), [(False, "none"), (True, "bf16")])
@pytest.mark.parametrize("takes", ["probabilities", "all", "outputs", "map"])
def test_labels_up_to_the_copy_back(fake, takes, mapped, autocast_):
    teacher = teacher_of(**OPTIONS)
    if takes == "map":
        teacher, _ = with_dense_head(teacher, LabelMap(k=2))
    columns = np.arange(5)[::-1].copy() if mapped else None
    with fake:
        pixels = torch.zeros(6, 3, SIDE, SIDE, dtype=torch.uint8)
        labeller = Labeller(
            teacher, None if takes == "all" else 2, device="cuda:0", autocast=autocast_, temperature=2.0,
            class_map=columns, takes="probabilities" if takes == "all" else takes,
        )  # fmt: skip
        outputs = labeller.logits(pixels)
        assert (outputs.device, outputs.dtype) == (CUDA, torch.float32)
        assert outputs.shape[-1] == (5 if mapped else CLASSES)
        labels = labeller._reduced(outputs)
        assert are_on_the_gpu(*labels.values())
        assert {name: len(array) for name, array in labeller(pixels).items()} == dict.fromkeys(
            labels, 6
        )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_on_the_device(fake, interpolation):
    boxes, flips = CropPlan().crops("a", 60, 80, np.arange(5))
    with fake:
        image = torch.zeros(3, 60, 80, dtype=torch.uint8).to(CUDA)
        out = torch.empty(5, 3, SIDE, SIDE, dtype=torch.uint8, device=CUDA)
        crops_on_device(image, boxes, flips, interpolation, out)
        assert are_on_the_gpu(out)


def test_a_batch_that_is_decoded_on_the_device(fake, tmp_path):
    """One image by the device and one by the CPU, copied there; crops of both in a buffer on the device."""
    held = io.BytesIO()
    picture = Image.new("RGB", (80, 60))
    picture.save(held, "JPEG", subsampling=2)
    (tmp_path / "jpeg").write_bytes(held.getvalue())
    picture.save(tmp_path / "png", "PNG")
    asked = []

    def decoder(images, device):
        asked.extend(images)
        return [torch.zeros(3, 60, 80, dtype=torch.uint8, device=device) for _ in images]

    boxes, flips = CropPlan().crops("a", 60, 80, np.arange(M))
    records = np.zeros(M, [("box", np.uint16, 4), ("flip", bool), ("crop", np.int64)])
    records["box"], records["flip"] = boxes, flips
    with fake:
        decoding = DeviceDecoding(decoder, CUDA, ["4:2:0"])
        made = CropPixels(
            path_of=tmp_path.joinpath, input_size=SIDE, interpolation="bilinear", decoding=decoding
        )
        crops = loaded(2)
        crops = replace(crops, pixels=torch.empty_like(crops.pixels, device=CUDA))
        for nth, key in enumerate(("jpeg", "png")):
            out = crops.pixels[nth * M : (nth + 1) * M]
            made.write(key, np.array([60, 80]), records, out)
        pixels, *_ = StudentView(config(), CUDA, None)(crops, mixing_rng(0, 0))
        assert are_on_the_gpu(pixels)
    assert asked == [held.getvalue()]
    assert decoding.counts == {"device": 1, "cpu": 1}


class Values(TorchDispatchMode):
    """Gives the program a value, always 1, where it asks a fake tensor for one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 1
        return func(*args, **(kwargs or {}))


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("resnet18", OPTIONS),
        ("vit_tiny_patch16_224", {"img_size": SIDE, "depth": 2, "embed_dim": 12, "num_heads": 3}),
    ],
)
def test_attention(fake, monkeypatch, network, options):
    """Without the backward passes: gradients are zeros of the right device."""
    pytest.importorskip("captum")
    import trainer.attention.maps
    from trainer.attention import attend
    from trainer.attention.feature_maps import plain_copy

    asked = []

    def grad(outputs, inputs, **_):
        one = isinstance(inputs, torch.Tensor)
        inputs = [inputs] if one else inputs
        asked.extend(inputs)
        return tuple(torch.zeros_like(each) for each in inputs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    model = teacher_of(network, **options).module.requires_grad_()
    copied = plain_copy(model)  # fakes cannot be copied
    monkeypatch.setattr(trainer.attention.maps, "plain_copy", lambda model: copied)
    crop = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    with fake, Values():
        found = attend(model, crop, config(model=network, model_kwargs=options), device=CUDA)
    assert found.guided.shape == (SIDE, SIDE, 3)
    assert len(asked) > 2
    assert are_on_the_gpu(*asked)


class NoDoubles(TorchDispatchMode):
    """A GPU that has no float64, as Apple's: refuses to hold one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(each, torch.Tensor) and each.device.type == "cuda":
                assert each.dtype != torch.float64, f"{func} makes float64 on the device"
        return made


@pytest.mark.parametrize("mixing", MIXING)
def test_no_float64_reaches_the_device(fake, mixing):
    wanted = config(mixing=mixing, ground_truth_weight=0.5, label_smoothing=0.1)
    with fake, NoDoubles():
        crops = loaded()
        with pytest.raises(AssertionError, match="float64 on the device"):
            torch.zeros(3, dtype=torch.float64).to(CUDA)
        view = StudentView(wanted, CUDA, None)
        pixels, labels, truth = view(crops, mixing_rng(0, 0))
        logits = torch.zeros(len(pixels), CLASSES, device=CUDA)
        DistillationLoss(SparseSoftCrossEntropy(2.0, kl=True), 0.5)(logits, labels, truth)
        judged(logits, truth[0][:, 0].to("cpu"))
