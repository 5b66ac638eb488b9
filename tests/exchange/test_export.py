"""Files in and out again are what they were: FKD's, ReLabel's, TokenLabeling's, ml-dr's, NumPy's and Parquet's.

The other direction, a store out and in again with every codec, is tests/stress/test_round_trips.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import labelstore
from labelstore.exchange import Stated, export_labels
from labelstore.exchange.readers.fkd import label_file, read_fkd
from labelstore.exchange.readers.tables import read_npz
from tests.exchange import foreign_files as foreign
from tests.flat_options import import_labels


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return foreign.make(tmp_path_factory.mktemp("images"))


@pytest.fixture
def there_and_back(made, tmp_path):
    """Imports files into a new store and exports it in the same format, or another; the folder with them."""

    def run(format_name, source, *, target="ours", dtype="float32", **stated):
        options = {} if stated.get("compression") == "hard" else {"dtype": dtype}
        import_labels(
            tmp_path / "s.labels",
            format=format_name,
            source=source,
            images=made.root,
            stated=Stated(**{"temperature": 1.0, **stated}),
            images_per_shard=5,
            **options,
        )
        with labelstore.open(tmp_path / "s.labels") as store:
            run.report = export_labels(
                store.label_set(), format=format_name, target=tmp_path / target
            )
        return tmp_path / target

    return run


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["ms", "mr", "hard", "smoothing", "full"])
def test_fkd_files_come_back_as_they_were(made, tmp_path, there_and_back, kind):
    source = foreign.write_fkd(made, tmp_path / "theirs", kind, k=5)
    ours = there_and_back("fkd", source, compression=kind, num_classes=12)
    assert there_and_back.report.files == there_and_back.report.images == len(made.keys)
    for key in made.keys:
        theirs = read_fkd(source / "train" / label_file(key))
        again = read_fkd(ours / label_file(key))
        for before, after in zip(theirs[:2], again[:2], strict=True):
            assert before.tobytes() == after.tobytes()
        if kind == "mr":  # the store keeps what FKD's trainer makes of it (FKD Eq. 7)
            probs = theirs[2][:, 1]
            np.testing.assert_array_equal(again[2][:, 0], theirs[2][:, 0])
            wanted = probs / probs.sum(-1, keepdims=True)
            np.testing.assert_allclose(again[2][:, 1], wanted, rtol=2**-22)
        else:
            assert again[2].dtype == theirs[2].dtype
            np.testing.assert_array_equal(again[2], theirs[2])


@pytest.mark.sample(1)
@pytest.mark.parametrize(("name", "dtype"), [("relabel", "float32"), ("tokenlabeling", "float16")])
def test_maps_come_back_as_they_were(made, tmp_path, there_and_back, name, dtype):
    maps = np.random.default_rng(0).normal(size=(8, 12, 5, 7)).astype("f4") * 3
    source = foreign.write_maps(made, tmp_path / "theirs", maps, k=4, half=dtype == "float16")
    ours = there_and_back(name, source, dtype=dtype, num_classes=12)
    for key in made.keys:
        path = key.replace(".png", ".pt")
        theirs, again = (torch.load(folder / path, weights_only=True) for folder in (source, ours))
        assert again.dtype == theirs.dtype
        assert torch.equal(again, theirs)


@pytest.mark.sample(1)
@pytest.mark.parametrize("mixing", [False, True])
def test_ml_dr_files_come_back_as_they_were(made, tmp_path, there_and_back, mixing):
    source = foreign.write_ml_dr(made, tmp_path / "theirs", mixing=mixing)
    ours = there_and_back("ml-dr", source, num_classes=12)
    config = torch.load(ours / "config.pth.tar", weights_only=True)["reinforce"]
    assert (config["num_samples"], config["topk"], config["compress"]) == (6, 3, True)
    assert ("cutmix" in config["image_augmentation"]) is mixing
    for row in range(len(made.keys)):
        name = f"{row}.pth.tar"
        theirs = torch.load(source / name, weights_only=False)  # NumPy's integers among its boxes
        index, samples = torch.load(ours / name, weights_only=True)
        assert index == theirs[0] == row
        for again, before in zip(samples, theirs[1], strict=True):
            assert dict(zip(*again["prob"], strict=True)) == dict(zip(*before["prob"], strict=True))
            assert again["prob"][0] == sorted(before["prob"][0], reverse=True)
            wanted = before["params"]
            if (
                mixing and wanted[-1] is not None
            ):  # its share of the area goes out as the box has it
                top, left, bottom, right = wanted[-1][1:]
                area = 1 - (bottom - top) * (right - left) / 224**2
                wanted = [*wanted[:-1], [float(area), *wanted[-1][1:]]]
            assert again["params"] == wanted


def test_archives_come_back_as_they_were(made, tmp_path, there_and_back):
    ids, probs = made.kept(3)
    fields = {
        "box": made.boxes,
        "flip": made.flips.astype("u1"),
        "class_id": ids.astype("u2"),
        "prob": probs,
        "tail": (1 - probs.sum(-1, dtype="f8")).astype("f4"),
    }
    source = foreign.write_npz(made, tmp_path / "theirs.npz", **fields)
    ours = there_and_back("npz", source, compression="ms", num_classes=12)
    parts = [read_npz(path) for path in sorted(ours.glob("*.npz"))]
    assert len(parts) == 2
    assert np.concatenate([part["key"] for part in parts]).tolist() == made.keys
    for name, values in fields.items():
        again = np.concatenate([part[name] for part in parts])
        assert (again.dtype, again.tobytes()) == (values.dtype, values.tobytes())


def test_parquet_rows_come_back_as_they_were(made, tmp_path, there_and_back):
    import pandas as pd

    source = foreign.write_parquet(made, tmp_path / "theirs.parquet")
    ours = pd.read_parquet(there_and_back("parquet", source, num_classes=12))
    theirs = pd.read_parquet(source).sort_values(["key", "crop"], ignore_index=True)
    assert (ours["store_crop"] == ours["crop"]).all()
    for name in ("key", "crop", "top", "left", "height", "width", "flip"):
        assert (ours[name] == theirs[name]).all()
    for name in ("class_ids", "probs"):
        np.testing.assert_array_equal(np.stack(ours[name]), np.stack(theirs[name]))


def test_torch_reads_the_files_without_trusting_them(made, tmp_path, there_and_back):
    source = foreign.write_fkd(made, tmp_path / "theirs", "ms", k=5)
    ours = there_and_back("fkd", source, compression="ms", num_classes=12)
    boxes, flips, labels = torch.load(ours / label_file(made.keys[0]), weights_only=True)
    assert (boxes.dtype, flips.dtype, labels.dtype) == (torch.float32, torch.bool, torch.float32)
    assert labels.shape[1:] == (2, 5)
