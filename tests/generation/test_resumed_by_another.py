"""A label set is one teacher's: another one, or one that is shown other pixels, does not go on with it unnoticed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import labelstore
from labelstore import MarginalSmoothing, PlanOptions
from labelstore.care.dropping import drop
from labelstore.catalogue.records import TeacherRow
from labelstore.errors import ConflictError, RejectedInput, StorageError
from labelstore.images import digest
from labelstore.labelling.teacher_blocks import ImageBlock, TeacherBlocks
from labelstore.store import Store
from labelstore.teachers.teacher import Teacher
from tests.flat_options import generate
from tests.generation.conftest import write_photographs

M = 3
STOP = 2
"""Batches until a teacher that stops does so: less than a block."""


class Always(torch.nn.Module):
    """Says one class; after some batches it stops, or does what it is given to do."""

    def __init__(self, says: int, batches: int | None = None, then: object = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.says, self.batches, self.then, self.seen = says, batches, then, 0

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        if crops.any():
            self.seen += 1
            if self.seen == self.batches and callable(self.then):
                with torch.inference_mode(False):
                    self.then()
            elif self.batches is not None and self.seen > self.batches and self.then is None:
                raise KeyboardInterrupt
        return 5.0 * torch.nn.functional.one_hot(torch.full((len(crops),), self.says), 3)


def teacher(says: int, batches: int | None = None, then: object = None, **row: object) -> Teacher:
    settings: dict[str, object] = {
        "name": f"says{says}",
        "source": f"timm:says{says}",
        "architecture": "says",
        "digest": str(says) * 64,
        "num_classes": 3,
        "input_size": 32,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    made = TeacherRow(**{**settings, **row})  # type: ignore[arg-type]
    return Teacher(module=Always(says, batches, then).eval(), row=made)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "images", per_class=2)


@pytest.fixture
def store(tmp_path: Path, images: Path) -> Store:
    return labelstore.create(
        tmp_path / "s", images=images, plan=PlanOptions(num_crops=M, images_per_shard=3)
    )


def label(store: Store, images: Path, given: Teacher, name: str = "soft", **options: object):
    return generate(
        store,
        teacher=given,
        codec=MarginalSmoothing(k=1, dtype="float32"),
        images=images,
        name=name,
        device="cpu",
        batch_size=M,
        workers=1,
        **options,
    )


def drop_at_once(store: Store) -> None:
    """As where the owners of leases are taken for dead."""
    store.catalogue.leases.release(*store.catalogue.leases.live("labels/soft"))
    drop(store, "label-set", "soft")


def says(store: Store, name: str = "soft") -> set[int]:
    return set(np.unique(store.label_set(name).recover(range(6)).argmax(-1)).tolist())


def test_the_spool_of_a_dropped_label_set_is_not_taken_for_another_teachers(
    store: Store, images: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        label(store, images, teacher(0, STOP))
    assert list((store.path / "spool" / "soft").iterdir())
    store.catalogue.groups.drop("labels/soft")  # and killed before the files went
    assert label(store, images, teacher(1)).num_crops == 6 * M
    assert says(store) == {1}
    assert not list((store.path / "spool" / "soft").iterdir())


def test_the_spool_of_the_same_label_set_is_taken(store: Store, images: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        label(store, images, teacher(0, STOP))
    assert label(store, images, teacher(0)).num_crops < 6 * M
    assert says(store) == {0}


def test_a_worker_whose_label_set_is_made_anew_stops_and_commits_nothing(
    store: Store, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelstore.commit.worker.POLL_SECONDS", 0.0)

    def made_anew() -> None:
        with labelstore.open(store.path) as other:
            drop_at_once(other)
            with pytest.raises(KeyboardInterrupt):
                label(other, images, teacher(1, STOP))

    with pytest.raises(ConflictError, match="created again"):
        label(store, images, teacher(0, 2, made_anew))
    with labelstore.open(store.path) as again:
        label(again, images, teacher(1))
        assert says(again) == {1}
        assert labelstore.verify(again, "deep").is_sound


def test_a_worker_that_finds_another_label_set_complete_does_not_report_success(
    store: Store, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelstore.commit.worker.POLL_SECONDS", 0.0)

    def another() -> None:
        with labelstore.open(store.path) as other:
            drop_at_once(other)
            label(other, images, teacher(1))

    jobs = TeacherBlocks._jobs
    # the last look for a free block is over when the other label set is made
    monkeypatch.setattr(TeacherBlocks, "_jobs", lambda self, leased: [*jobs(self, leased)])
    with pytest.raises(ConflictError, match="created again"):
        label(store, images, teacher(0, 6, another))
    with labelstore.open(store.path) as again:
        assert says(again) == {1}


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": (0.0, 0.0, 0.0)}, "teacher mean"),
        ({"std": (1.0, 1.0, 1.0)}, "teacher std"),
        ({"interpolation": "bicubic"}, "teacher interpolation"),
        ({"crop_pct": 0.9}, "teacher crop_pct"),
        ({"input_size": 16}, "teacher input size"),
        ({"digest": "7" * 64}, "teacher weights 000000000000, asked for 777777777777"),
    ],
)
def test_the_same_weights_shown_other_pixels_are_another_teacher(
    store: Store, images: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        label(store, images, teacher(0, STOP))
    with pytest.raises(ConflictError, match=words):
        label(store, images, teacher(0, **change))
    assert len(store.catalogue.teachers.all()) == 1
    # under another name it is a teacher of its own, whatever names are taken
    held = store.catalogue.teachers.all()[0]
    others = [replace(held, mean=(number / 10, 0.0, 0.0)) for number in range(5)]
    names = [store.catalogue.teachers.register(row, "soft") for row in others]
    assert len({held.name, *names}) == 6
    assert [store.catalogue.teachers.register(row, "else") for row in others] == names


def test_two_that_register_at_once_compare_all_facts(
    store: Store, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelstore.catalogue import Catalogue

    together, begun = Catalogue.together, []

    def slower(self: Catalogue, work: Callable[[], object]) -> object:
        if not begun:  # it looked, nothing was there, and it is about to register
            begun.append(1)
            with pytest.raises(KeyboardInterrupt), labelstore.open(store.path) as other:
                label(other, images, teacher(0, STOP), autocast="bf16")
        return together(self, work)

    monkeypatch.setattr(Catalogue, "together", slower)
    with pytest.raises(ConflictError, match="autocast bf16, asked for none"):
        label(store, images, teacher(0))


def test_skip_bad_takes_no_image_from_another_label_set(store: Store, images: Path) -> None:
    label(store, images, teacher(0), "first")
    broken = images / "dog" / "1.jpg"
    before = broken.stat()
    broken.write_bytes(bytes(before.st_size))
    os.utime(broken, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk's fault, not a hand's
    with pytest.raises(RejectedInput, match=r"dog/1\.jpg.*restore the file"):
        label(store, images, teacher(1), "second", skip_bad=True)
    store.refresh()
    assert store.label_set("first").present.all()
    assert not store.bad.any()


@pytest.mark.parametrize("skip_bad", [True, False])
def test_a_missing_file_is_the_disks_fault_and_not_the_images(
    store: Store, images: Path, skip_bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("labelstore.labelling.generate")
    check = module.check_images

    def then_gone(*arguments: object, **options: object) -> object:
        found = check(*arguments, **options)
        (images / "dog" / "1.jpg").unlink()
        return found

    monkeypatch.setattr(module, "check_images", then_gone)
    with pytest.raises(StorageError, match=r"dog/1\.jpg is missing.*bring it back"):
        label(store, images, teacher(0), skip_bad=skip_bad)
    store.refresh()
    assert not store.bad.any()


@pytest.mark.slow
def test_an_image_that_another_worker_could_decode_meanwhile_is_not_left_out(
    store: Store, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked in the transaction of the commit: this worker's copy of the images table is older."""
    broken = images / "dog" / "1.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(bytes(len(whole)))
    leave_out = ImageBlock.leave_out

    def then_mended(self: ImageBlock, image: int, reason: str) -> None:
        leave_out(self, image, reason)
        broken.write_bytes(whole)
        with labelstore.open(store.path) as other:
            label(other, images, teacher(0), "first")

    monkeypatch.setattr(ImageBlock, "leave_out", then_mended)
    with pytest.raises(ConflictError, match="first has labels for it"):
        label(store, images, teacher(1), "second", skip_bad=True)
    with labelstore.open(store.path) as again:
        assert again.label_set("first").present.all()
        label(again, images, teacher(1), "second")
        assert says(again, "second") == {1}


def test_an_image_of_a_dropped_label_set_may_be_left_out(store: Store, images: Path) -> None:
    """Import says so of images without labels, when nobody else has any."""
    label(store, images, teacher(0), "first")
    drop(store, "label-set", "first")
    with store.catalogue.transaction() as connection:
        store.catalogue.images.mark_bad(connection, 5, "no labels", "labels/second")
    store.refresh()
    assert store.bad.tolist() == [False] * 5 + [True]
    assert store.image_columns["has_digest"][5]
    assert digest((images / "dog" / "1.jpg").read_bytes()) == (
        store.image_columns["digest"][5].tobytes()
    )
