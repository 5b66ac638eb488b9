"""timm's own distillation task with the teacher online, and ours with its labels read: the same loss step by step."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch.utils.data import DataLoader

import labelstore
from labelstore import Full, MarginalSmoothing
from labelstore.teachers.teacher import load_teacher
from tests.flat_options import CropDataset, label_images
from tests.generation.conftest import CLASSES, OPTIONS, write_photographs, write_teacher
from trainer import StoredLabelsTask, collate_crops, pack_labels

task_module = pytest.importorskip("timm.task")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photographs, a teacher, and a store of its labels: all C probabilities, and the top 2."""
    root = tmp_path_factory.mktemp("task")
    photographs = write_photographs(root / "photographs", per_class=4)
    teacher = load_teacher(str(write_teacher(root / "teacher")), input_size=32)
    work = {"images": photographs, "teacher": teacher, "device": "cpu", "workers": 1}
    codec = Full(dtype="float32")
    label_images(root / "s", codec=codec, num_crops=8, images_per_shard=4, name="full", **work)
    with labelstore.open(root / "s") as store:
        labelstore.derive(store.label_set("full"), MarginalSmoothing(k=2), name="ms")
        yield photographs, teacher.module, store


def student(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("resnet18", num_classes=len(CLASSES), **OPTIONS)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": MEAN, "std": STD}
    return model


def steps(task, dataset, target_of, passes=3):
    """Losses of a plain loop over three passes, one image's crops in a step."""
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.05, momentum=0.9)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    task.train()
    losses = []
    for nth in range(passes):
        dataset.set_pass(nth)
        for batch in DataLoader(dataset, batch_size=4, collate_fn=collate_crops):
            pixels = (batch["pixels"].float() / 255 - mean) / std
            result = task(pixels, target_of(batch))
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
            losses.append(result["loss"].item())
            assert result["output"].shape == (len(pixels), len(CLASSES))
    return losses


@pytest.mark.sample(1)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_that_of_the_online_teacher(place, temperature):
    photographs, teacher, store = place
    teacher = copy.deepcopy(teacher)
    teacher.pretrained_cfg = {"mean": MEAN, "std": STD}
    dataset = CropDataset(
        store.label_set("full"), photographs, 4, input_size=32, temperature=temperature
    )
    online = task_module.LogitDistillationTask(
        student(0), teacher, criterion=torch.nn.CrossEntropyLoss(), task_loss_weight=0.0,
        distill_loss_weight=1.0, temperature=temperature, verbose=False,
    )  # fmt: skip
    stored = StoredLabelsTask(student(0), temperature, verbose=False)
    wanted = steps(
        online, dataset, lambda batch: torch.zeros(len(batch["probs"]), dtype=torch.long)
    )
    found = steps(stored, dataset, pack_labels)
    assert len(set(wanted)) == len(wanted) == 9
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-6, atol=1e-6)
    dataset.close()


def test_sparse_labels_are_taken_apart_as_they_were_put_together(place):
    """The packed target gives the loss of the dense labels."""
    photographs, _, store = place
    dataset = CropDataset(store.label_set("ms"), photographs, 2, input_size=32)
    batch = next(iter(DataLoader(dataset, batch_size=6, collate_fn=collate_crops)))
    packed = pack_labels(batch)
    assert packed.shape == (12, 5)
    task = StoredLabelsTask(student(1), verbose=False).eval()
    result = task(batch["pixels"].float(), packed)
    labels = (
        batch["rest"][:, None]
        .repeat(1, len(CLASSES))
        .scatter(1, batch["class_ids"], batch["probs"])
    )
    log_q = torch.log_softmax(result["output"], dim=-1)
    wanted = torch.nn.functional.kl_div(log_q, labels, reduction="batchmean")
    torch.testing.assert_close(result["loss"], wanted, rtol=1e-5, atol=1e-6)
    dataset.close()
