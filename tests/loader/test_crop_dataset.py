"""CropDataset: the plain-torch face gives what the loader gives, in any kind of worker."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from labelstore.errors import RejectedInput, UsageError
from trainer.loader import CropDataset, CropLoader, StoredPasses, collate_crops
from trainer.losses import SparseSoftCrossEntropy
from trainer.sampler import PassSchedule

SIZE = 16


@pytest.fixture
def dataset(labels, data, tmp_path):
    made = CropDataset(
        labels, data, crops_per_image=3, seed=9, input_size=SIZE, scratch=tmp_path,
        allow_empty_images=True,
    )  # fmt: skip
    yield made
    made.close()


def crops_of(batches):
    """Crop numbers by image row."""
    found = {}
    for batch in batches:
        for image, crops in zip(batch["image"].tolist(), batch["crops"].view(-1, 3), strict=True):
            found[image] = crops.tolist()
    return found


def test_items_are_what_the_loader_makes(dataset, labels, data, tmp_path):
    schedule = PassSchedule.of(passes=4, crops_per_image=3)
    dataset.set_pass(2)
    assert len(dataset) == 22
    with StoredPasses(
        labels, schedule=schedule, seed=9, scratch=tmp_path, allow_empty_images=True
    ) as source:
        places = {int(image): i for i, image in enumerate(dataset.images)}
        for batch in CropLoader(source, data, batch_size=15, input_size=SIZE).batches(2):
            items = [dataset[places[image]] for image in batch.images.tolist()]
            made = collate_crops(items)
            for name in ("pixels", "class_ids", "probs", "rest", "crops"):
                assert torch.equal(made[name], getattr(batch, name)), name
            assert torch.equal(made["image"], batch.images)


SPAWN = pytest.param("spawn", True, marks=pytest.mark.slow)


@pytest.mark.parametrize(("method", "persistent"), [("fork", True), SPAWN, (None, False)])
def test_workers_follow_set_pass(dataset, method, persistent):
    workers = {"num_workers": 2, "multiprocessing_context": method} if method else {}
    batches = DataLoader(
        dataset, batch_size=5, shuffle=True, collate_fn=collate_crops,
        persistent_workers=persistent, **workers,
    )  # fmt: skip
    for p in (0, 1, 5):
        dataset.set_pass(p)
        wanted = crops_of([collate_crops([dataset[i] for i in range(len(dataset))])])
        found = crops_of(batches)
        assert found == wanted
        assert len(found) == 22


def test_default_collate_keeps_images_apart(dataset):
    batch = next(iter(DataLoader(dataset, batch_size=5)))
    assert batch["pixels"].shape == (5, 3, 3, SIZE, SIZE)
    logits = torch.zeros(15, 7)
    flat = collate_crops([dataset[i] for i in range(5)])
    loss = SparseSoftCrossEntropy()(logits, flat["class_ids"], flat["probs"], flat["rest"])
    assert loss.item() == pytest.approx(np.log(7), rel=1e-5)


def test_a_copy_for_a_worker_only_reads(dataset):
    copy = pickle.loads(pickle.dumps(dataset))
    dataset.set_pass(3)
    for name, tensor in copy[4].items():
        assert torch.equal(tensor, dataset[4][name])
    with pytest.raises(UsageError, match="worker"):
        copy.set_pass(1)
    copy.close()
    assert torch.equal(copy[-1]["image"], dataset[21]["image"])


def test_index_and_pass_outside_are_refused(dataset):
    with pytest.raises(IndexError):
        dataset[22]
    with pytest.raises(UsageError, match="pass 1000"):
        dataset.set_pass(1000)


def test_a_mask_is_kept(labels, mask, data, tmp_path):
    masked = CropDataset(
        labels, str(data), mask=mask, passes=3, input_size=SIZE, scratch=tmp_path,
        allow_empty_images=True,
    )  # fmt: skip
    regions = np.concatenate([mask.regions(block) for block in mask.blocks])
    item = masked[7]
    assert np.isin(regions[int(item["image"]), item["crops"].numpy()], [1, 2]).all()
    masked.close()


def test_a_damaged_image_is_named(dataset, data, tmp_path, labels):
    (tmp_path / "other").mkdir()
    with pytest.raises(RejectedInput, match="--data"):
        CropDataset(labels, tmp_path / "other", scratch=tmp_path, allow_empty_images=True)
