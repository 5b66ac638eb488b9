"""The ground truth on a store's own crops: what FKD Table 7 compares stored labels with."""

import numpy as np
import pytest

from labelstore.codecs import MarginalSmoothing
from labelstore.testing.filled_store import filled_store
from tests.flat_options import StoredPasses
from tests.loader.conftest import soft_labels
from trainer.sampler import PassSchedule

SCHEDULE = PassSchedule.of(passes=2, crops_per_image=3)
CHOICES = [
    {},
    {"order": "easy-to-hard"},
    {"probability_range": (0.3, 0.9)},
]


def planes(labels, **options):
    """Records (positions, images) of the whole run, and its images."""
    with StoredPasses(labels, schedule=SCHEDULE, allow_empty_images=True, **options) as source:
        found = [source.pass_labels(number) for number in range(SCHEDULE.num_passes)]
        return np.stack([plane for each in found for plane in each.planes]), source.table


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_crops_are_those_of_the_stored_labels_and_the_label_is_the_class(
    labels, choice, smoothing, tmp_path
):
    stored, _ = planes(labels, **choice)
    truth, table = planes(labels, ground_truth=smoothing, **choice)
    for name in ("crop", "box", "flip"):
        np.testing.assert_array_equal(truth[name], stored[name])
    classes = len(labels.store.class_names)
    expected = np.broadcast_to(table.ground_truth, truth.shape)
    np.testing.assert_array_equal(truth["class_ids"][..., 0], expected)
    np.testing.assert_allclose(truth["probs"][..., 0], 1 - smoothing + smoothing / classes)
    np.testing.assert_allclose(truth["rest"], smoothing / classes, rtol=1e-6)
    assert truth["probs"].shape[-1] == 1


def test_draw_files_of_stored_labels_and_of_the_ground_truth_are_told_apart(labels, scratch):
    """Both are kept in one scratch folder, in any order, and each run finds its own."""
    choice = {"order": "easy-to-hard", "scratch": scratch, "keep_draws": 1.0}
    alone = [planes(labels, order="easy-to-hard", ground_truth=s)[0] for s in (None, 0.0, 0.1)]
    for _ in range(2):
        for smoothing, expected in zip((None, 0.0, 0.1), alone, strict=True):
            found, _ = planes(labels, ground_truth=smoothing, **choice)
            np.testing.assert_array_equal(found["probs"], expected["probs"])
            np.testing.assert_array_equal(found["crop"], expected["crop"])


def test_labels_of_other_outputs_than_the_classes_lend_their_crops_too(tmp_path):
    codec = MarginalSmoothing(k=2, dtype="float32")
    with filled_store(tmp_path / "s", soft_labels(6, 4, num_classes=5), codec) as store:
        found, table = planes(store.label_set(), ground_truth=0.0)
        assert found["class_ids"].max() < len(store.class_names)
        assert len(table) == 6
