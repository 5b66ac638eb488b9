"""Loops of other projects, where they are installed, take the data set, the collation and the loss as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import labelstore
from labelstore import MarginalSmoothing
from tests.flat_options import CropDataset, label_images
from tests.generation.conftest import CLASSES, write_photographs, write_teacher
from trainer import SparseSoftCrossEntropy, collate_crops


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("loops")
    photographs = write_photographs(root / "photographs", per_class=2)
    label_images(
        root / "s", images=photographs, teacher=str(write_teacher(root / "teacher")), device="cpu",
        codec=MarginalSmoothing(k=2), num_crops=4, images_per_shard=4, workers=1,
    )  # fmt: skip
    with labelstore.open(root / "s") as store:
        yield store.label_set(), photographs


@pytest.fixture
def dataset(place):
    made = CropDataset(*place, 2, input_size=32)
    yield made
    made.close()


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, len(CLASSES)))


def of(loss_of, network, batch):
    logits = network(batch["pixels"].float() / 255)
    return loss_of(logits, batch["class_ids"], batch["probs"], batch["rest"])


def plain_losses(dataset):
    """Of two passes, in plain torch."""
    network, loss_of, losses = model(), SparseSoftCrossEntropy(), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for nth in range(2):
        dataset.set_pass(nth)
        for batch in DataLoader(dataset, batch_size=3, collate_fn=collate_crops):
            loss = of(loss_of, network, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def test_accelerate(dataset):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    network, loss_of, losses = model(), SparseSoftCrossEntropy(), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loader = DataLoader(dataset, batch_size=3, collate_fn=collate_crops)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    for nth in range(2):
        dataset.set_pass(nth)
        for batch in loader:
            loss = of(loss_of, network, batch)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    np.testing.assert_allclose(losses, plain_losses(dataset), rtol=1e-6)


def test_transformers(dataset, tmp_path):
    transformers = pytest.importorskip("transformers")
    losses, loss_of = [], SparseSoftCrossEntropy()

    class NextPass(transformers.TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            dataset.set_pass(int(state.epoch or 0))

    class StoredLabelsTrainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss = of(loss_of, model, inputs)
            losses.append(loss.item())
            return loss

        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(dataset)

    arguments = transformers.TrainingArguments(
        tmp_path, num_train_epochs=2, per_device_train_batch_size=3, learning_rate=0.1,
        lr_scheduler_type="constant", optim="sgd", max_grad_norm=0, report_to=[], use_cpu=True,
        save_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    StoredLabelsTrainer(
        model(), arguments, data_collator=collate_crops, train_dataset=dataset,
        callbacks=[NextPass()],
    ).train()  # fmt: skip
    np.testing.assert_allclose(losses, plain_losses(dataset), rtol=1e-5)


def test_lightning(dataset, tmp_path):
    lightning = pytest.importorskip("lightning")
    losses = []

    class Student(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.loss_of = model(), SparseSoftCrossEntropy(dataset.temperature)

        def on_train_epoch_start(self):
            dataset.set_pass(self.current_epoch)

        def training_step(self, batch, index):
            loss = of(self.loss_of, self.model, batch)
            losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Student(), DataLoader(dataset, batch_size=3, collate_fn=collate_crops))
    np.testing.assert_allclose(losses, plain_losses(dataset), rtol=1e-5)
