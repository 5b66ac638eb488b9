"""CropDataset: the plain-torch face gives what the loader gives, in any kind of worker."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from labelstore.calibration.ensembles import ensemble
from labelstore.errors import RejectedInput, UsageError
from tests.flat_options import CropDataset, CropLoader, StoredPasses
from tests.trainer.dense_reference import dense_labels
from trainer.loader import collate_crops
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
SERVER = pytest.param("forkserver", True, marks=pytest.mark.slow)


@pytest.mark.parametrize(("method", "persistent"), [("fork", True), SPAWN, SERVER, (None, False)])
def test_workers_follow_set_pass(dataset, method, persistent):
    # a new interpreter takes seconds to import torch
    workers = {"num_workers": 2 if method == "fork" else 1, "multiprocessing_context": method}
    batches = DataLoader(
        dataset, batch_size=5, shuffle=True, collate_fn=collate_crops,
        persistent_workers=persistent, **(workers if method else {}),
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


@pytest.mark.parametrize("order", ["random", "easy-to-hard", "hard-to-easy"])
def test_order_and_range_are_those_of_a_run(labels, data, tmp_path, order):
    """The crops of every pass are those that a run with the same settings draws."""
    given = {"seed": 3, "order": order, "probability_range": (0.3, 0.9), "allow_empty_images": True}
    schedule = PassSchedule.of(passes=3, crops_per_image=2)
    made = CropDataset(
        labels, data, crops_per_image=2, passes=3, input_size=SIZE, scratch=tmp_path, **given
    )
    probabilities = np.concatenate([labels.max_probability(block) for block in labels.blocks])
    with StoredPasses(labels, schedule=schedule, scratch=tmp_path, **given) as source:
        assert np.array_equal(made.images, source.table.images)
        for p in (0, 2):
            made.set_pass(p)
            items = collate_crops([made[i] for i in range(len(made))])
            crops = items["crops"].view(-1, 2).numpy()
            assert np.array_equal(crops, source.pass_labels(p).crops)
            drawn = np.take_along_axis(probabilities[made.images], crops, axis=1)
            assert ((drawn >= np.float32(0.3)) & (drawn <= np.float32(0.9))).all()
    made.close()


def test_an_ensemble_is_a_label_set_too(labels, mask, data, tmp_path):
    both = ensemble([labels, labels], [None, mask])
    made = CropDataset(
        both, data, input_size=SIZE, scratch=tmp_path, passes=2, allow_empty_images=True
    )
    item = made[3]
    row, crops = int(item["image"]), item["crops"].tolist()
    dense = dense_labels(item["class_ids"], item["probs"], item["rest"], labels.num_classes)
    np.testing.assert_allclose(dense, both.recover([row], [crops])[0], atol=1e-6)
    made.close()
    with pytest.raises(UsageError, match="beside an ensemble"):
        CropDataset(both, data, mask=mask, scratch=tmp_path)


def test_an_order_that_is_none_is_refused(labels, data, tmp_path):
    with pytest.raises(UsageError, match="choose one of random, easy-to-hard"):
        CropDataset(labels, data, order="easy", scratch=tmp_path)
    with pytest.raises(UsageError, match="passes="):
        CropDataset(labels, data, order="easy-to-hard", scratch=tmp_path)
    with pytest.raises(UsageError, match=r"give .low, high."):
        CropDataset(labels, data, probability_range=(0.9, 0.1), scratch=tmp_path)


def test_a_damaged_image_is_named(dataset, data, tmp_path, labels):
    (tmp_path / "other").mkdir()
    with pytest.raises(RejectedInput, match="`data`"):
        CropDataset(labels, tmp_path / "other", scratch=tmp_path, allow_empty_images=True)
