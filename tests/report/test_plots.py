"""Every picture of a filled store is drawn from its labels; what makes no sense is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore.calibration import RegionThresholds
from labelstore.codecs import MarginalSmoothing
from labelstore.errors import UsageError
from labelstore.report import PLOTS, plot, shown_crops
from labelstore.testing.filled_store import filled_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """30 images x 12 crops of 6 classes, and a mask."""
    rng = np.random.default_rng(0)
    drawn = rng.gamma(rng.uniform(0.05, 2, (30, 12, 1)) * np.ones(6)) + 1e-4
    labels = (drawn / drawn.sum(-1, keepdims=True)).astype(np.float32)
    path = tmp_path_factory.mktemp("plots") / "p.labels"
    codec = MarginalSmoothing(k=5, dtype="float32")
    with filled_store(path, labels, codec, images_per_shard=10, bad={3}) as made:
        labelstore.calibrate(made.label_set(), RegionThresholds(), name="ferkd")
    with labelstore.open(path, readonly=True) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_draws(store, name, tmp_path):
    figure = plot(store.label_set(), name, mask="ferkd" if name == "regions" else None, sample=200)
    axes = figure.axes[0]
    assert axes.patches or axes.lines or axes.collections
    assert axes.get_xlabel()
    assert "teacher" in axes.get_title(loc="left") or "ferkd" in axes.get_title(loc="left")
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_the_histogram_is_table_1(store):
    axes = plot(store.label_set(), "histogram").axes[0]
    largest = store.label_set().recover(np.flatnonzero(store.label_set().present)).max(-1)
    edges = np.float32([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.1])
    counted, _ = np.histogram(largest, edges)
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights, 100 * counted / largest.size)


def test_refused_plots(store):
    labels = store.label_set()
    with pytest.raises(UsageError, match="histogram"):
        plot(labels, "pie")
    with pytest.raises(UsageError, match="`mask=NAME`"):
        plot(labels, "regions")
    with pytest.raises(UsageError, match="sample"):
        plot(labels, "area", sample=0)


@pytest.mark.parametrize("image", [0, 17])
def test_hardest_crops_come_before_easiest(store, image):
    labels = store.label_set()
    found = shown_crops(labels, image, count=3)
    assert [crop.kind for crop in found] == ["hardest"] * 3 + ["easiest"] * 3
    hardest, easiest = ([c.max_probability for c in found if c.kind == k] for k in ("hardest", "easiest"))  # fmt: skip
    assert max(hardest) <= min(easiest)
    every = np.sort(labels.recover([image])[0].max(-1))
    np.testing.assert_array_equal(np.float32(hardest), every[:3])
    np.testing.assert_array_equal(np.float32(easiest), every[::-1][:3])
    boxes = labels.boxes([image])[0]
    for crop in found:
        assert [crop.top, crop.left, crop.height, crop.width] == boxes[crop.crop].tolist()


def test_show_prints_the_same(store, capsys):
    arguments = ["show", str(store.path), "4", "--count", "2", "--json"]
    assert errors.run(labelstore_app.commands, "labelstore", arguments) == 0
    record = json.loads(capsys.readouterr().out)
    found = shown_crops(store.label_set(), 4, count=2)
    assert record["crops"] == [crop.to_record() for crop in found]


def test_show_of_an_image_without_labels(store, capsys):
    assert errors.run(labelstore_app.commands, "labelstore", ["show", str(store.path), "3"]) == 8
    assert "left out" in capsys.readouterr().err
    assert errors.run(labelstore_app.commands, "labelstore", ["show", str(store.path), "none"]) == 2
