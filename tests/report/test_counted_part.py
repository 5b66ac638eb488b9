"""The report of a label set with very many crops: counts over some chunk columns, and it says so."""

from __future__ import annotations

import json

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore.calibration import RegionThresholds
from labelstore.calibration.threshold_counts import count_thresholds
from labelstore.codecs import Hard, MarginalSmoothing
from labelstore.errors import UsageError
from labelstore.report import write_page
from labelstore.report.threshold_data import counted_columns
from labelstore.testing.filled_store import filled_store

IMAGES, CROPS, CHUNK, CLASSES = 25, 24, 6, 5


def soft_labels():
    rng = np.random.default_rng(0)
    drawn = rng.gamma(rng.uniform(0.05, 2, (IMAGES, CROPS, 1)) * np.ones(CLASSES)) + 1e-4
    return (drawn / drawn.sum(-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("part") / "p.labels"
    options = {"images_per_shard": 10, "crops_per_shard": CHUNK, "bad": {3}}
    codec = MarginalSmoothing(k=3, dtype="float32")
    with filled_store(path, soft_labels(), codec, **options) as made:
        rule = RegionThresholds(low=0.3, middle=0.5, top=0.9)
        labelstore.calibrate(made.label_set(), rule, name="m")
    with labelstore.open(path, readonly=True) as opened:
        yield opened


def data_of(page):
    text = page.read_text()
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


@pytest.mark.sample(1)
@pytest.mark.parametrize(("most", "columns"), [(1, 1), (150, 1), (300, 2), (575, 3), (576, 4), (None, 4)])  # fmt: skip
def test_as_many_columns_as_hold_about_that_number(store, most, columns):
    labels = store.label_set()
    assert (labels.layout.num_columns, labels.layout.crops_per_chunk) == (4, CHUNK)
    found = counted_columns(labels, most, seed=0)
    if columns == 4:
        assert found is None
        return
    assert len(found) == columns
    assert 0 <= found.start < found.stop <= 4
    starts = {counted_columns(labels, most, seed=seed).start for seed in range(40)}
    assert starts == set(range(5 - columns))


def test_counts_of_some_columns_are_those_of_their_crops(store):
    labels = store.label_set()
    largest = labels.recover(np.flatnonzero(labels.present)).max(-1)
    values = [0.2, 0.5, 0.9]
    for columns in (range(1), range(1, 3), range(4)):
        found = count_thresholds(labels, values, columns=columns)
        own = largest[:, columns.start * CHUNK : columns.stop * CHUNK]
        assert found.labelled.sum() == own.size
        assert found.missing == len(columns) * CHUNK
        for at, value in enumerate(values):
            assert found.below[:, at].sum() == (own < np.float32(value)).sum()
            assert found.above[:, at].sum() == (own > np.float32(value)).sum()


def test_the_page_of_a_part(store, tmp_path):
    page = write_page(store, tmp_path / "part.html", mask="m", counted=150)
    data = data_of(tmp_path / "part.html")
    labels = store.label_set()
    columns = counted_columns(labels, 150, seed=0)
    largest = labels.recover(np.flatnonzero(labels.present)).max(-1)
    own = largest[:, columns.start * CHUNK : columns.stop * CHUNK]
    assert (page.counted_crops, page.crops) == (own.size, largest.size)
    assert data["counted"] == {"crops": own.size, "of": largest.size}
    assert data["thresholds"]["labelled"] == own.size
    counted, _ = np.histogram(own, np.float32([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.1]))  # fmt: skip
    assert [row["count"] for row in data["table1"]] == counted.tolist()
    named = {choice["title"]: choice for choice in data["choices"]}
    assert named["mask m"]["counts"]["too_hard"] == (own < np.float32(0.3)).sum()
    assert named["mask m"]["counts"]["too_easy"] == (own > np.float32(0.9)).sum()
    assert named["mask m"]["counts"]["images_without_crop"] is None
    # every crop is in the sample of this small store, and so the quantile is exact
    low = named["quantiles 5/15/90 %"]["rule"]["low"]
    assert low == np.quantile(largest, 0.05, method="inverted_cdf")


def test_whole_and_part_agree_where_the_part_is_all(store, tmp_path):
    whole = write_page(store, tmp_path / "a.html", counted=None)
    other = write_page(store, tmp_path / "b.html", counted=IMAGES * CROPS)
    assert whole.counted_crops == other.counted_crops == whole.crops
    one, two = data_of(tmp_path / "a.html"), data_of(tmp_path / "b.html")
    assert one["counted"] is two["counted"] is None
    assert one["table1"] == two["table1"]
    with pytest.raises(UsageError, match="counted"):
        write_page(store, tmp_path / "c.html", counted=0)


def test_it_says_so_in_a_browser(store, chromium, tmp_path):
    write_page(store, tmp_path / "part.html", counted=150)
    chromium.get_log("browser")
    chromium.get((tmp_path / "part.html").as_uri())
    assert chromium.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert chromium.get_log("browser") == []
    for section in ("table1", "calibration"):
        text = chromium.execute_script(f"return document.getElementById('{section}').textContent")
        assert "144 of 576 crops" in text


def test_labels_without_probabilities_are_counted_whole(tmp_path):
    with filled_store(tmp_path / "h.labels", soft_labels(), Hard(), images_per_shard=10) as made:
        page = write_page(made, tmp_path / "h.html", counted=1)
    assert "thresholds" in page.unavailable
    assert page.counted_crops == page.crops


@pytest.mark.slow
def test_command_says_so(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("labelstore.report.page.COUNTED", 150)
    path, out = str(store.location), str(tmp_path / "r.html")
    assert errors.run(labelstore_app.commands, "labelstore", ["report", path, "--out", out]) == 0
    assert "counted over 144 crops" in capsys.readouterr().err
    words = ["report", path, "--out", out, "--all", "--json"]
    assert errors.run(labelstore_app.commands, "labelstore", words) == 0
    assert json.loads(capsys.readouterr().out)["counted_crops"] == 576
