"""Labels in the store are the teacher's labels of the replayed crops, whatever happened on the way."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import labelstore
from labelstore import Full, MarginalSmoothing, PlanOptions
from labelstore.codecs import codec_from_options, top_k
from labelstore.commit.lease_keeper import is_dead, owner_name
from labelstore.cropping.replay import read_image, replay
from labelstore.errors import (
    ConflictError,
    DamagedShard,
    IncompleteError,
    RejectedInput,
    UsageError,
)
from labelstore.teachers.labeller import Labeller
from labelstore.teachers.teacher import Teacher, load_teacher
from tests.flat_options import generate, label_images
from tests.generation.conftest import write_photographs, write_teacher

M = 12


def create(
    path: Path, photographs: Path, teacher: Path | Teacher | str, **options: object
) -> object:
    settings: dict[str, object] = {
        "codec": MarginalSmoothing(k=2, dtype="float32"),
        "num_crops": M,
        "images_per_shard": 4,
        "batch_size": 10,
        "device": "cpu",
        "workers": 2,
    }
    settings.update(options)
    teacher = str(teacher) if isinstance(teacher, Path) else teacher
    return label_images(path, images=photographs, teacher=teacher, **settings)  # type: ignore[arg-type]


def teacher_probabilities(photographs: Path, key: str, run_folder: Path) -> np.ndarray:
    """(M, C): one crop at a time, the plain way."""
    teacher = load_teacher(str(run_folder))
    image = read_image(photographs / key)
    boxes, flips = labelstore.CropPlan().crops(key, *image.shape[-2:], np.arange(M))
    probs = []
    for box, flip in zip(boxes, flips, strict=True):
        crop = replay(image, box, bool(flip), 32, "bilinear").float() / 255
        with torch.inference_mode():
            probs.append(torch.softmax(teacher.module(((crop - 0.5) / 0.25)[None]), 1)[0].numpy())
    return np.stack(probs)


def test_stored_labels_are_the_teachers(
    tmp_path: Path, photographs: Path, run_folder: Path
) -> None:
    codec = MarginalSmoothing(k=2, dtype="float32")
    report = create(tmp_path / "s", photographs, run_folder, codec=codec)
    assert report.num_crops == 21 * M
    assert report.bad == {}
    store = labelstore.open(tmp_path / "s")
    labels = store.label_set()
    assert labels.is_complete
    assert labels.present.all()
    for key in ("bird/3.jpg", "cat/0.jpg", "dog/6.jpg"):
        dense = teacher_probabilities(photographs, key, run_folder)
        expected = codec.recover(codec.encode(top_k(dense[None], 2), 3), 3)[0]
        np.testing.assert_allclose(labels.recover([key])[0], expected, atol=2e-6)
        boxes, flips = labelstore.CropPlan().crops(
            key, *read_image(photographs / key).shape[-2:], np.arange(M)
        )
        np.testing.assert_array_equal(labels.boxes([key])[0], boxes)
        np.testing.assert_array_equal(labels.flips([key])[0], flips)
    chosen = labels.recover(images=[20, 0], crops=[[11, 0], [5, 5]])
    whole = labels.recover(images=[20, 0])
    np.testing.assert_array_equal(chosen, np.stack([whole[0, [11, 0]], whole[1, [5, 5]]]))
    assert list(labels.crop_table("dog/6.jpg")["crop"]) == list(range(M))


@pytest.mark.sample(2)
@pytest.mark.parametrize("compression", ["full", "hard", "smoothing", "ms", "mr"])
@pytest.mark.parametrize("stored_crops", [True, False])
def test_every_codec_and_seeded_crops(
    tmp_path: Path, photographs: Path, run_folder: Path, compression: str, stored_crops: bool
) -> None:
    k = 2 if compression in ("ms", "mr") else None
    codec = codec_from_options(compression, k, None if compression == "hard" else "float16")
    create(tmp_path / "s", photographs, run_folder, codec=codec, stored_crops=stored_crops)
    labels = labelstore.open(tmp_path / "s").label_set()
    recovered = labels.recover(["cat/2.jpg"])[0]
    np.testing.assert_allclose(recovered.sum(-1), 1, atol=1e-6)
    dense = teacher_probabilities(photographs, "cat/2.jpg", run_folder)
    np.testing.assert_array_equal(recovered.argmax(-1), dense.argmax(-1))
    boxes, _ = labelstore.CropPlan().crops(
        "cat/2.jpg", *read_image(photographs / "cat/2.jpg").shape[-2:], np.arange(M)
    )
    np.testing.assert_array_equal(labels.boxes(["cat/2.jpg"])[0], boxes)


def test_the_same_command_resumes_without_decoding_what_is_committed(
    tmp_path: Path, photographs: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled: list[int] = []
    real = Labeller.__call__

    def slow(self: Labeller, pixels: torch.Tensor) -> dict[str, np.ndarray]:
        if sum(labelled) >= 9 * M:
            raise KeyboardInterrupt
        labelled.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(Labeller, "__call__", slow)
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path / "s", photographs, run_folder)
    monkeypatch.setattr(Labeller, "__call__", real)
    opened: list[str] = []
    from labelstore.labelling import labelling

    decode = labelling.decode
    monkeypatch.setattr(
        labelling, "decode", lambda data, name: (opened.append(name), decode(data, name))[1]
    )
    report = create(tmp_path / "s", photographs, run_folder)
    # nine images were finished before the stop: two committed blocks and one image in the spool
    assert report.already_committed == 8 * M
    assert len(opened) == 21 - 9
    assert report.num_crops == 12 * M
    fresh = tmp_path / "fresh"
    create(fresh, photographs, run_folder)
    a, b = (labelstore.open(p).label_set().recover(range(21)) for p in (tmp_path / "s", fresh))
    np.testing.assert_array_equal(a, b)
    assert not list((tmp_path / "s" / "spool").rglob("*.spool"))
    assert create(tmp_path / "s", photographs, run_folder).num_crops == 0


def test_max_time_stops_cleanly(tmp_path: Path, photographs: Path, run_folder: Path) -> None:
    with pytest.raises(IncompleteError, match="run the same command again"):
        create(tmp_path / "s", photographs, run_folder, max_seconds=0.0)
    # what came before the labels counts: here an hour, that a program took to load the teacher
    began = time.monotonic() - 3600
    with pytest.raises(IncompleteError, match="max_seconds"):
        create(tmp_path / "t", photographs, run_folder, max_seconds=3599.0, started=began)
    assert create(tmp_path / "s", photographs, run_folder).num_crops > 0


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_crops": 6}, "num crops"),
        ({"seed": 1}, "seed"),
        ({"flip_prob": 0.0}, "flip prob"),
        ({"codec": MarginalSmoothing(k=1)}, "compression"),
        ({"codec": MarginalSmoothing(k=2, dtype="uint8")}, "compression"),
        ({"codec": Full()}, "compression"),
        ({"temperature": 4.0}, "temperature"),
    ],
)
def test_a_store_with_something_else_is_refused(
    tmp_path: Path, photographs: Path, run_folder: Path, change: dict[str, object], words: str
) -> None:
    create(tmp_path / "s", photographs, run_folder)
    with pytest.raises(ConflictError, match=words):
        create(tmp_path / "s", photographs, run_folder, **change)


@pytest.mark.slow
def test_another_teacher_under_the_same_name_is_refused(
    tmp_path: Path, photographs: Path, run_folder: Path
) -> None:
    create(tmp_path / "s", photographs, run_folder)
    other = write_teacher(tmp_path / "teacher", seed=1)
    with pytest.raises(ConflictError, match="weights"):
        create(tmp_path / "s", photographs, other)
    create(tmp_path / "s", photographs, other, name="other")
    store = labelstore.open(tmp_path / "s")
    assert store.label_sets == ("other", "teacher")
    a, b = (store.label_set(name) for name in store.label_sets)
    np.testing.assert_array_equal(a.boxes([3]), b.boxes([3]))
    assert not np.allclose(a.recover([3]), b.recover([3]))


def test_bad_images_are_named_or_left_out(tmp_path: Path, run_folder: Path) -> None:
    photographs = write_photographs(tmp_path / "data")
    broken = photographs / "cat" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(RejectedInput, match=r"cat/3\.jpg.*`skip_bad`"):
        create(tmp_path / "s", photographs, run_folder)
    report = create(tmp_path / "s", photographs, run_folder, skip_bad=True)
    assert list(report.bad) == ["cat/3.jpg"]
    store = labelstore.open(tmp_path / "s")
    labels = store.label_set()
    assert labels.is_complete
    assert labels.present.sum() == 20
    row = int(store.image_rows(["cat/3.jpg"])[0])
    assert not labels.present[row]
    assert np.isnan(labels.recover([row])).all()
    assert "cat/3.jpg" in str(store.images().loc[row, "bad"])
    assert create(tmp_path / "s", photographs, run_folder, skip_bad=True).num_crops == 0


def test_a_changed_image_is_refused(tmp_path: Path, run_folder: Path) -> None:
    photographs = write_photographs(tmp_path / "data")
    create(tmp_path / "s", photographs, run_folder)
    shutil.copy(photographs / "dog" / "1.jpg", photographs / "dog" / "2.jpg")
    with pytest.raises(RejectedInput, match=r"dog/2\.jpg changed"):
        create(tmp_path / "s", photographs, run_folder, name="again")


def test_nan_from_the_teacher_names_the_crop(
    tmp_path: Path, photographs: Path, run_folder: Path
) -> None:
    teacher = load_teacher(str(run_folder))
    with torch.no_grad():
        teacher.module.fc.bias[0] = torch.nan  # type: ignore[index,union-attr]
    with pytest.raises(RejectedInput, match=r"NaN for crop 0 of bird/0\.jpg"):
        create(tmp_path / "s", photographs, teacher)
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_classes_that_do_not_match_need_a_map(tmp_path: Path, photographs: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher", classes=("cat", "bird", "fish", "dog"))
    create(tmp_path / "by_name", photographs, teacher)
    labels = labelstore.open(tmp_path / "by_name").label_set()
    assert labels.num_classes == 3
    strange = load_teacher(str(write_teacher(tmp_path / "strange", classes=("a", "b", "c", "d"))))
    nameless = Teacher(module=strange.module, row=strange.row)
    with pytest.raises(UsageError, match="4 classes and the images 3"):
        create(tmp_path / "s", photographs, nameless)
    assert not (tmp_path / "s").exists()
    mapping = tmp_path / "map.csv"
    mapping.write_text("bird,3\ncat,0\ndog,1\n")
    create(tmp_path / "s", photographs, nameless, class_map=mapping, allow_lost_mass=True)
    mapping.write_text("bird,3\ncat,9\ndog,1\n")
    with pytest.raises(RejectedInput, match="output 9"):
        create(tmp_path / "t", photographs, nameless, class_map=mapping)


def test_too_many_kept_classes_and_no_crops(
    tmp_path: Path, photographs: Path, run_folder: Path
) -> None:
    with pytest.raises(UsageError):
        create(tmp_path / "s", photographs, run_folder, codec=MarginalSmoothing(k=5))
    with pytest.raises(UsageError, match="at least one crop"):
        create(tmp_path / "s", photographs, run_folder, num_crops=0)
    with pytest.raises(UsageError, match="at most"):
        create(tmp_path / "s", photographs, run_folder, num_crops=10**20)
    assert not list(tmp_path.glob("*s*"))


def test_names_and_temperatures_are_refused_before_anything_is_written(
    tmp_path: Path, photographs: Path, run_folder: Path
) -> None:
    for temperature in (0.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="temperature"):
            create(tmp_path / "s", photographs, run_folder, temperature=temperature)
    assert not (tmp_path / "s").exists()
    with pytest.raises(UsageError, match="name"):
        create(tmp_path / "s", photographs, run_folder, name="../x")
    create(tmp_path / "s", photographs, run_folder)
    store = labelstore.open(tmp_path / "s")
    for name in ("", "../x", "a/b", "<b>"):
        with pytest.raises(UsageError, match="name"):
            labelstore.calibrate(store.label_set(), name=name)
    assert labelstore.open(tmp_path / "s").masks == ()


@pytest.mark.slow
def test_a_complete_store_with_a_missing_file_is_not_called_complete(
    tmp_path: Path, photographs: Path, run_folder: Path
) -> None:
    create(tmp_path / "s", photographs, run_folder)
    store = labelstore.open(tmp_path / "s")
    (row, *_) = store.catalogue.ledger.shards("labels/teacher")
    (store.arrays.root / row.files[0].key).unlink()
    with pytest.raises(DamagedShard, match="is missing"):
        create(tmp_path / "s", photographs, run_folder)


def test_an_owner_of_this_machine_can_be_found_dead() -> None:
    mine = owner_name()
    assert not is_dead(mine)
    host, namespace, boot, _, _, noise = mine.split("/")
    assert is_dead(f"{host}/{namespace}/{boot}/4194305/1/{noise}")
    assert not is_dead(f"elsewhere/{namespace}/{boot}/4194305/1/{noise}")
    assert not is_dead("somebody")


def test_generate_needs_a_label_set_per_store(
    tmp_path: Path, photographs: Path, run_folder: Path
) -> None:
    store = labelstore.create(
        tmp_path / "s", images=photographs, plan=PlanOptions(num_crops=M, images_per_shard=8)
    )
    report = generate(
        store,
        teacher=str(run_folder),
        codec=MarginalSmoothing(k=2, dtype="uint8"),
        images=photographs,
        name="small",
    )
    assert report.label_set == "small"
    assert labelstore.open(tmp_path / "s").label_set().row.codec["dtype"] == "uint8"
