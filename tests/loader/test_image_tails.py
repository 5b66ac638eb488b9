"""Labels whose tails are stored once per image, in training: what a batch lists on the device is what `recover` gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import labelstore
from labelstore.calibration import RegionThresholds
from labelstore.calibration.ensembles import ensemble
from labelstore.codecs import MarginalSmoothing, densify
from labelstore.testing.filled_store import IMAGE_SIZE, filled_store
from tests.flat_options import CropDataset, CropLoader, StoredPasses
from trainer.losses import SparseSoftCrossEntropy
from trainer.sampler import PassSchedule

IMAGES, CROPS, CLASSES = 14, 8, 30
CODEC = MarginalSmoothing(k=3, tail_classes=10, dtype="uint8")


@pytest.fixture(scope="module")
def tailed(tmp_path_factory):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (IMAGES, 1, CLASSES)) + rng.normal(0, 1.5, (IMAGES, CROPS, CLASSES))
    probs = np.exp(logits)
    probs = (probs / probs.sum(-1, keepdims=True)).astype(np.float32)
    path = tmp_path_factory.mktemp("tails") / "s.labels"
    # two crop shards: every image has two tables
    with filled_store(path, probs, CODEC, images_per_shard=8, crops_per_shard=4, bad={5}) as store:
        labels = store.label_set()
        labelstore.calibrate(labels, RegionThresholds(low=0.25, middle=0.5, top=0.95), name="m")
        yield labels


@pytest.fixture(scope="module")
def images(tailed, tmp_path_factory):
    """A small picture for every key, of the size that the crops were made for."""
    root = tmp_path_factory.mktemp("images")
    for key in tailed.store.image_columns["key"]:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", IMAGE_SIZE[::-1]).save(path)
    return root


def dense_of(labels, num_classes):
    """Sparse tensors (B, K), classes listed more than once, -> (B, C)."""
    class_ids, probs, rest = labels
    dense = rest.unsqueeze(-1).repeat(1, num_classes)
    return dense.scatter_add(1, class_ids, probs - rest.unsqueeze(-1))


@pytest.mark.sample(1)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("how", ["columns", "curriculum", "mask"])
def test_batches_list_what_recover_gives(tailed, how, temperature, images):
    mask = tailed.store.mask("m") if how == "mask" else None
    order = "easy-to-hard" if how == "curriculum" else "random"
    schedule = PassSchedule.of(passes=4, crops_per_image=4)
    options = {"mask": mask, "order": order, "temperature": temperature}
    with StoredPasses(tailed, schedule=schedule, allow_empty_images=True, **options) as source:
        wanted = ensemble([tailed], [mask]).recover(source.table.images, temperature=temperature)
        assert source.planes.dtype.itemsize < 60, "a plane keeps K classes"
        loader = CropLoader(source, images, batch_size=16, input_size=8)
        for number in range(2):
            found = source.pass_labels(number)
            crops = found.crops.astype(int)
            expected = np.take_along_axis(wanted, crops[..., None], axis=1)
            np.testing.assert_allclose(densify(found.labels, CLASSES), expected, atol=1e-6)
            for batch in loader.batches(number):
                place = np.searchsorted(source.table.images, batch.images.numpy())
                same = expected[place].reshape(-1, CLASSES)
                np.testing.assert_allclose(dense_of(batch.labels, CLASSES), same, atol=1e-6)
                whole = [batch.part(i, i + 1, number=0).labels for i in range(len(batch.images))]
                parts = torch.cat([dense_of(one, CLASSES) for one in whole])
                np.testing.assert_allclose(parts, same, atol=1e-6)


def test_the_sparse_loss_equals_the_dense_one(tailed, images):
    schedule = PassSchedule.of(passes=1, crops_per_image=4)
    with StoredPasses(tailed, schedule=schedule, allow_empty_images=True) as source:
        loader = CropLoader(source, images, batch_size=32, input_size=8)
        batch = next(iter(loader.batches(0)))
    assert len(batch.tails.class_ids) == len(batch.images), "one table for each image"
    logits = torch.randn(len(batch), CLASSES, generator=torch.Generator().manual_seed(0))
    dense = torch.from_numpy(
        np.concatenate(
            [
                tailed.recover([int(image)], [crops.tolist()])[0]
                for image, crops in zip(
                    batch.images, batch.crops.reshape(len(batch.images), -1), strict=True
                )
            ]
        )
    )
    for temperature in (1.0, 3.0):
        for kl in (False, True):
            ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
            loss = SparseSoftCrossEntropy(temperature, kl=kl)(ours, *batch.labels)
            log_q = torch.log_softmax(theirs / temperature, -1)
            expected = -(dense * log_q).sum(-1).mean()
            if kl:
                expected = expected + torch.xlogy(dense, dense).sum(-1).mean()
            expected = expected * temperature**2
            loss.backward()
            expected.backward()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_plain_torch_gets_labels_that_list_the_tail(tailed, images):
    dataset = CropDataset(tailed, images, crops_per_image=2, input_size=8, allow_empty_images=True)
    item = dataset[3]
    dataset.close()
    labels = item["class_ids"], item["probs"], item["rest"]
    expected = tailed.recover([int(item["image"])], [item["crops"].tolist()])[0]
    np.testing.assert_allclose(dense_of(labels, CLASSES), expected, atol=1e-6)


def test_a_mean_with_another_teacher_is_the_mean(tailed):
    other = labelstore.derive(tailed, replace(CODEC, k=4, tail_classes=0), name="other")
    both = ensemble([tailed, other])
    assert both.num_tail_classes == 0
    labels, _ = both.labels(0)
    rows = list(tailed.block_rows(0))
    mean = (tailed.recover(rows) + other.recover(rows)) / 2
    there = ~np.isnan(mean).any(-1)
    np.testing.assert_allclose(densify(labels, CLASSES)[there], mean[there], atol=1e-6)
