import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from labelstore.cropping.replay import centre_crop, read_image
from labelstore.errors import RejectedInput, UsageError
from trainer.config import TrainConfig
from trainer.evaluation import Evaluation, evaluate
from trainer.models import Normalise

CONFIG = TrainConfig(
    labels="ground-truth", num_classes=7, input_size=16, eval_batch_size=4, workers=2, crop_pct=0.9
)
CLASSES = ("ant", "bee", "cat")


class Probe(nn.Module):
    """Logits from the mean colour of a crop; counts the images that it saw."""

    def __init__(self, outputs=7):
        super().__init__()
        weight = torch.randn(3, outputs, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight)
        self.seen = 0

    def forward(self, crops):
        assert not self.training
        self.seen += len(crops)
        return crops.mean((2, 3)) @ self.weight


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    root = tmp_path_factory.mktemp("val")
    rng = np.random.default_rng(0)
    for name, count in zip(CLASSES, (4, 1, 6), strict=True):
        (root / name).mkdir()
        for i in range(count):
            colour = rng.integers(0, 256, 3)
            pixels = np.broadcast_to(colour, (20 + i, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def by_hand(val, names, model):
    """Class, logits of every image, one at a time."""
    normalise = Normalise(CONFIG.mean, CONFIG.std)
    rows = []
    for path in sorted(val.glob("*/*.png")):
        crop = centre_crop(read_image(path), 16, 0.9, "bilinear")
        rows.append((names.index(path.parent.name), model(normalise(crop[None]))[0].detach()))
    return rows


@pytest.mark.parametrize(
    "names", [("ant", "bee", "cat", "d", "e", "f", "g"), ("g", "cat", "x", "bee", "y", "ant", "z")]
)
def test_counts_equal_one_image_at_a_time(val, names):
    model = Probe()
    config = dataclasses.replace(CONFIG, class_names=names)
    result = evaluate(model, val, config)
    assert model.training
    assert model.seen == result.num_images == 11
    rows = by_hand(val, names, model.eval())
    top1 = [int(logits.argmax()) == truth for truth, logits in rows]
    top5 = [truth in logits.topk(5).indices.tolist() for truth, logits in rows]
    loss = [
        nn.functional.cross_entropy(logits, torch.tensor(truth)).item() for truth, logits in rows
    ]
    assert result.top1 == pytest.approx(100 * np.mean(top1))
    assert result.top5 == pytest.approx(100 * np.mean(top5))
    assert result.loss == pytest.approx(np.mean(loss), rel=1e-5)
    assert result.images[names.index("cat")] == 6
    assert np.isnan(result.top1_per_class).sum() == 4


def test_batches_threads_and_ranks_do_not_change_the_counts(val):
    config = dataclasses.replace(CONFIG, class_names=("ant", "bee", "cat", "d", "e", "f", "g"))
    whole = evaluate(Probe(), val, config)
    other = dataclasses.replace(config, eval_batch_size=100, workers=1, channels_last=True)
    ranks = [evaluate(Probe(), val, other, rank=rank, world_size=3) for rank in range(3)]
    total = ranks[0] + ranks[1] + ranks[2]
    for name in ("images", "correct", "correct5"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(total, name))
    assert whole.loss == pytest.approx(total.loss, rel=1e-5)


def test_progress_is_reported(val):
    calls = []
    config = dataclasses.replace(CONFIG, num_classes=3)
    evaluate(Probe(3), val, config, report=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 11), (8, 11), (11, 11)]


def test_folders_that_do_not_match_the_classes_are_refused(val):
    with pytest.raises(UsageError, match="3 classes, the network 7"):
        evaluate(Probe(), val, CONFIG)
    config = dataclasses.replace(CONFIG, num_classes=2, class_names=("ant", "cat"))
    with pytest.raises(RejectedInput, match="'bee'"):
        evaluate(Probe(2), val, config)


def test_a_damaged_image_is_named(val, tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "bee").mkdir()
    for i in range(9):
        Image.new("RGB", (20, 20)).save(tmp_path / "ant" / f"{i}.jpg")
    (tmp_path / "bee" / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    with pytest.raises(RejectedInput, match=r"broken\.jpg"):
        evaluate(Probe(2), tmp_path, dataclasses.replace(CONFIG, num_classes=2, eval_batch_size=2))


def test_an_empty_evaluation_divides_by_nothing():
    zero = np.zeros(3, np.int64)
    empty = Evaluation(images=zero, correct=zero, correct5=zero, loss_sum=0.0)
    assert (empty.top1, empty.top5, empty.loss) == (0, 0, 0)
