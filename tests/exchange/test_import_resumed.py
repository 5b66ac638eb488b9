"""An import goes on with its own label set only: what was said of the labels must be what was said before."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import labelstore
from labelstore.errors import ConflictError
from labelstore.exchange import Stated
from labelstore.exchange.block_import import ImportedBlocks
from tests.flat_options import import_labels

KEYS = [f"c{c}/{i}.png" for c in range(2) for i in range(2)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("import") / "images"
    for at, key in enumerate(KEYS):
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 40 * at, np.uint8)).save(root / key)
    return root


def labels_of(folder, says):
    """NumPy archives of two crops per image, whose labels all say one class."""
    folder.mkdir()
    probs = np.full((len(KEYS), 2, 2), 0.1, "f4")
    probs[..., says] = 0.9
    boxes = np.broadcast_to(np.array([0, 0, 9, 9], "i4"), (len(KEYS), 2, 4)).copy()
    flips = np.zeros((len(KEYS), 2), "u1")
    np.savez(folder / "a.npz", key=np.array(KEYS), box=boxes, flip=flips, prob=probs)
    return folder


def begun(tmp_path, images, monkeypatch, **stated):
    """A store in which an import was stopped after its first block."""
    source = labels_of(tmp_path / "first", 0)
    call, calls = ImportedBlocks.arrays, []

    def stop(self, block):
        if calls:
            raise KeyboardInterrupt
        calls.append(block)
        return call(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(ImportedBlocks, "arrays", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, source, images, **stated)
    return source


def run(tmp_path, source, images, **stated):
    return import_labels(
        tmp_path / "s",
        format="npz",
        source=source,
        images=images,
        name="soft",
        images_per_shard=2,
        stated=Stated(**{"temperature": 1.0, **stated}),
    )


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        ({"teacher": "timm:a"}, {"teacher": "timm:b"}, "`teacher` timm:a, asked for timm:b"),
        ({}, {"teacher": "timm:b"}, "`teacher` left out, asked for timm:b"),
        ({"teacher": "timm:a"}, {}, "`teacher` timm:a, asked for left out"),
        ({"input_size": 8}, {"input_size": 9}, "`input_size` 8, asked for 9"),
        ({"interpolation": "bicubic"}, {}, "`interpolation` bicubic, asked for left out"),
    ],
)
def test_other_statements_are_refused(tmp_path, images, monkeypatch, first, then, words):
    begun(tmp_path, images, monkeypatch, **first)
    other = labels_of(tmp_path / "then", 1)
    with pytest.raises(ConflictError, match=words):
        run(tmp_path, other, images, **then)
    with labelstore.open(tmp_path / "s") as store:
        assert [row.block for row in store.catalogue.ledger.shards("labels/soft")] == [0]


def test_the_same_statements_and_defaults_that_are_said_go_on(tmp_path, images, monkeypatch):
    source = begun(tmp_path, images, monkeypatch, teacher="timm:a")
    report = run(
        tmp_path, source, images, teacher="timm:a", num_classes=2, temperature=1.0, skip_bad=True
    )
    assert (report.already_committed, report.num_images) == (1, 2)


@pytest.mark.slow
def test_a_label_set_that_is_made_anew_meanwhile_gets_nothing(tmp_path, images, monkeypatch):
    source, call = labels_of(tmp_path / "first", 0), ImportedBlocks.arrays

    def made_anew(self, block):
        if block.block == 1 and self.store.label_set_row("soft").uuid == self.row.uuid:
            with monkeypatch.context() as patch:
                patch.setattr(ImportedBlocks, "arrays", call)
                # as where the owner of the lease is taken for dead
                leases = self.store.catalogue.leases
                leases.release(*leases.live("labels/soft"))
                self.store.catalogue.groups.drop("labels/soft")
                run(tmp_path, labels_of(tmp_path / "then", 1), images, teacher="timm:b")
        return call(self, block)

    monkeypatch.setattr(ImportedBlocks, "arrays", made_anew)
    with pytest.raises(ConflictError, match="created again"):
        run(tmp_path, source, images, teacher="timm:a")
    with labelstore.open(tmp_path / "s") as store:
        labels = store.label_set("soft")
        assert labels.is_complete
        assert (labels.recover(range(4)).argmax(-1) == 1).all()
