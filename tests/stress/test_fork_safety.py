"""R13: a store that was opened before the workers start is read rightly by all of them, however they start."""

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from labelstore import MarginalSmoothing
from labelstore.testing.filled_store import IMAGE_SIZE, filled_store
from tests.flat_options import CropDataset
from tests.stress.workers import soft_labels
from trainer.loader.dataset import collate_crops

NUM_IMAGES, NUM_CROPS, TIMEOUT = 24, 4, 600
READS = {"fork": 200, "forkserver": 100, "spawn": 100}


class Reads(Dataset):
    """Item n: one crop of one image, read through the handle that came from the other process."""

    def __init__(self, labels, number):
        self.labels, self.number = labels, number

    def __len__(self):
        return self.number

    def __getitem__(self, n):
        image, crop = n % NUM_IMAGES, n // NUM_IMAGES % NUM_CROPS
        label = self.labels.recover([image], [[crop]])[0, 0]
        return n, label, self.labels.boxes([image])[0, crop].astype(np.int64)


@pytest.fixture(params=["zarr", "hdf5"])
def store(request, tmp_path):
    with filled_store(
        tmp_path / "store",
        soft_labels(NUM_IMAGES, NUM_CROPS),
        MarginalSmoothing(k=3),
        images_per_shard=4,
        crops_per_shard=2,
        backend=request.param,
    ) as store:
        yield store


@pytest.mark.sample(1)
@pytest.mark.parametrize("method", list(READS))
def test_a_handle_opened_before_the_workers_start(store, method, scale, matrix):
    if scale < 2 and (store.arrays.name, method) in {("hdf5", "spawn"), ("zarr", "forkserver")}:
        pytest.skip(
            "a new interpreter takes seconds: in the sample each way is tried on one backend"
        )
    labels = store.label_set()
    # handles are warm: whatever a read leaves open is open when the workers start
    expected = labels.recover(range(NUM_IMAGES))
    boxes = labels.boxes(range(NUM_IMAGES)).astype(np.int64)
    number = (
        round(READS[method] * scale) if scale < 20 else max(10_000, round(READS[method] * scale))
    )
    loader = DataLoader(
        Reads(labels, number),
        batch_size=16,
        num_workers=1 if scale < 2 and method != "fork" else 2,
        multiprocessing_context=method,
        timeout=TIMEOUT,
    )
    seen = wrong = 0
    for numbers, found, found_boxes in loader:
        at = numbers.numpy() % NUM_IMAGES, numbers.numpy() // NUM_IMAGES % NUM_CROPS
        wrong += int((found.numpy() != expected[at]).any(-1).sum())
        wrong += int((found_boxes.numpy() != boxes[at]).any(-1).sum())
        seen += len(numbers)
        # the parent reads on beside its workers
        assert (labels.recover([seen % NUM_IMAGES]) == expected[seen % NUM_IMAGES]).all()
    assert (seen, wrong) == (number, 0)
    matrix.record("R13", reads=seen, wrong=wrong, hangs=0)


@pytest.mark.sample(1)
def test_crops_of_forked_workers_while_the_next_pass_is_laid_out(store, scale, matrix, tmp_path):
    """The thread that lays out the next pass holds its lock at the moment of the fork, often enough."""
    rng = np.random.default_rng(0)
    for key in store.image_columns["key"]:
        path = tmp_path / "data" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (*IMAGE_SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=30)
    dataset = CropDataset(
        store.label_set(), tmp_path / "data", crops_per_image=2, input_size=8, scratch=tmp_path
    )
    expected, crops = store.label_set().recover(range(NUM_IMAGES)), 0
    for number in range(max(2, round(2 * scale))):
        dataset.set_pass(number)
        loader = DataLoader(
            dataset,
            batch_size=8,
            num_workers=2,
            multiprocessing_context="fork",
            collate_fn=collate_crops,
            timeout=TIMEOUT,
        )
        for batch in loader:
            images = batch["image"].repeat_interleave(2).numpy()
            wanted = expected[images, batch["crops"].reshape(-1).numpy()]
            found = np.take_along_axis(
                wanted, batch["class_ids"].reshape(len(wanted), -1).numpy(), -1
            )
            np.testing.assert_allclose(
                found, batch["probs"].reshape(len(wanted), -1).numpy(), atol=1e-6
            )
            crops += len(wanted)
    dataset.close()
    matrix.record("R13", reads=crops, wrong=0, hangs=0)
