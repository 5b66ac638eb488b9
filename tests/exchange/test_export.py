"""Labels out and in again: the same labels, boxes to the pixel; FKD's files come back as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import labelstore
from labelstore.errors import ConflictError, UsageError
from labelstore.exchange import Selection, Stated, export_labels, import_labels
from labelstore.exchange.fkd import label_file, read_fkd
from tests.exchange import foreign_files as foreign


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return foreign.make(tmp_path_factory.mktemp("images"))


def imported(made, path, source, format_name="fkd", **stated):
    options = {} if stated.get("compression") == "hard" else {"dtype": "float32"}
    import_labels(
        path,
        format=format_name,
        source=source,
        images=made.root,
        stated=Stated(**stated),
        images_per_shard=5,
        **options,
    )
    return labelstore.open(path)


@pytest.mark.parametrize("kind", ["ms", "mr", "hard", "smoothing", "full"])
def test_fkd_files_come_back_as_they_were(made, tmp_path, kind):
    foreign.write_fkd(made, tmp_path / "theirs", kind, k=5)
    stated = {"compression": kind, "num_classes": 12}
    with imported(made, tmp_path / "a.labels", tmp_path / "theirs", **stated) as store:
        export_labels(store.label_set(), format_name="fkd", target=tmp_path / "ours")
    for key in made.keys:
        theirs = read_fkd(next((tmp_path / "theirs").rglob(label_file(key))))
        ours = read_fkd(tmp_path / "ours" / label_file(key))
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
        expected = theirs[2].copy()
        if kind == "mr":  # the store keeps what FKD's trainer makes of it (FKD Eq. 7)
            expected[:, 1] /= expected[:, 1].sum(-1, keepdims=True)
        # recovered labels are scaled to sum to one, which moves a float32 by its last places
        np.testing.assert_allclose(ours[2], expected, rtol=2**-21, atol=0)


def test_torch_reads_the_files_without_trusting_them(made, tmp_path):
    foreign.write_fkd(made, tmp_path / "theirs", "ms", k=5)
    with imported(
        made, tmp_path / "a.labels", tmp_path / "theirs", compression="ms", num_classes=12
    ) as store:
        report = export_labels(store.label_set(), format_name="fkd", target=tmp_path / "ours")
    assert report.files == report.images == len(made.keys)
    boxes, flips, labels = torch.load(
        tmp_path / "ours" / label_file(made.keys[0]), weights_only=True
    )
    assert (boxes.dtype, flips.dtype, labels.dtype) == (torch.float32, torch.bool, torch.float32)
    assert labels.shape[1:] == (2, 5)


@pytest.mark.parametrize("format_name", ["npz", "parquet"])
@pytest.mark.parametrize("kind", ["ms", "full"])
def test_tables_hold_what_the_store_holds(made, tmp_path, format_name, kind):
    foreign.write_fkd(made, tmp_path / "theirs", kind, k=5)
    stated = {"compression": kind, "num_classes": 12}
    with imported(made, tmp_path / "a.labels", tmp_path / "theirs", **stated) as store:
        labels = store.label_set()
        export_labels(labels, format_name=format_name, target=tmp_path / "out")
        again = {"num_classes": 12, "compression": kind}
        with imported(made, tmp_path / "b.labels", tmp_path / "out", format_name, **again) as other:
            rows = list(range(store.num_images))
            np.testing.assert_allclose(
                other.label_set().recover(rows), labels.recover(rows), rtol=2**-20, atol=1e-7
            )
            np.testing.assert_array_equal(other.label_set().boxes(rows), labels.boxes(rows))
            np.testing.assert_array_equal(other.label_set().flips(rows), labels.flips(rows))


def test_a_selection_holds_the_chosen_images_and_crops(made, tmp_path):
    foreign.write_fkd(made, tmp_path / "theirs", "ms", k=5)
    with imported(
        made, tmp_path / "a.labels", tmp_path / "theirs", compression="ms", num_classes=12
    ) as store:
        labels = store.label_set()
        key = made.keys[3]
        chosen = Selection(images=[key], crops=range(1, 3))
        export_labels(labels, format_name="fkd", target=tmp_path / "one", selection=chosen)
        files = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
        assert files == [tmp_path / "one" / label_file(key)]
        _, flips, values = read_fkd(files[0])
        ids, probs = values[:, 0].astype(int), values[:, 1]
        dense = labels.recover([key], [[1, 2]])[0]
        np.testing.assert_allclose(np.take_along_axis(dense, ids, 1), probs, rtol=2**-20)
        np.testing.assert_array_equal(flips, labels.flips([key])[0, 1:3])
        for wrong in (Selection(classes=["nowhere"]), Selection(crops=range(10**6))):
            with pytest.raises(UsageError):
                export_labels(labels, format_name="fkd", target=tmp_path / "x", selection=wrong)
        with pytest.raises(ConflictError, match="exists already"):
            export_labels(labels, format_name="fkd", target=tmp_path / "one")
        with pytest.raises(UsageError, match="choose one of fkd"):
            export_labels(labels, format_name="zip", target=tmp_path / "x")
        assert not (tmp_path / "x").exists()
