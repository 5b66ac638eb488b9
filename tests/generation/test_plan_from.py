"""Another store's plan gives another store's boxes, or none."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

import labelstore
from cli import errors, labelstore_app
from labelstore import MarginalSmoothing
from labelstore.catalogue.named_rows import change_record
from labelstore.catalogue.schema import plans
from labelstore.cropping.crop_plan import IMPORTED_LAW
from labelstore.errors import ConflictError, RejectedInput, UsageError
from tests.flat_options import label_images
from tests.generation.conftest import write_photographs

WORK = {"codec": MarginalSmoothing(k=2), "batch_size": 16, "device": "cpu", "workers": 2}


@pytest.fixture(scope="module")
def reference(tmp_path_factory, photographs, run_folder):
    path = tmp_path_factory.mktemp("reference") / "store"
    label_images(
        path,
        images=photographs,
        teacher=str(run_folder),
        num_crops=6,
        seed=11,
        scale=(0.3, 0.9),
        flip_prob=0.25,
        crops_per_shard=3,
        images_per_shard=5,
        plan_name="drawn",
        **WORK,
    )
    return path


def boxes(path):
    with labelstore.open(path) as store:
        labels = store.label_set()
        keys = list(store.images()["key"])
        return dict(
            zip(keys, zip(labels.boxes(keys), labels.flips(keys), strict=True), strict=True)
        )


@pytest.mark.sample(1)
@pytest.mark.parametrize("stored_crops", [True, False])
def test_boxes_are_equal_for_equal_keys_and_sizes(
    tmp_path, photographs, run_folder, reference, stored_crops
):
    """Some images are missing, others are new, and the rows differ."""
    images = shutil.copytree(photographs, tmp_path / "images")
    (images / "bird" / "0.jpg").unlink()
    shutil.copy(images / "dog" / "1.jpg", images / "cat" / "new.jpg")
    said = []
    label_images(
        tmp_path / "s",
        images=images,
        teacher=str(run_folder),
        plan_of=reference,
        stored_crops=stored_crops,
        note=said.append,
        **WORK,
    )
    assert "1 of 21 images are not in" in said[0]
    ours, theirs = boxes(tmp_path / "s"), boxes(reference)
    common = ours.keys() & theirs.keys()
    assert len(common) == 20
    for key in common:
        for mine, other in zip(ours[key], theirs[key], strict=True):
            np.testing.assert_array_equal(mine, other)
    with labelstore.open(tmp_path / "s") as store, labelstore.open(reference) as other:
        mine, given = store.plan(), other.plan()
        assert (mine.images_per_shard, mine.crops_per_shard) == (5, 3)
        assert (mine.parameters, mine.num_crops) == (given.parameters, 6)
        assert mine.stored is stored_crops
    # again with the reference it resumes, with another plan it does not
    again = {"images": images, "teacher": str(run_folder), **WORK}
    assert label_images(
        tmp_path / "s", plan_of=reference, stored_crops=stored_crops, **again
    ).num_crops == 0  # fmt: skip
    with pytest.raises(
        ConflictError, match=r"exists with (seed 11, asked for 0|flip prob 0.25, asked for 0.5)"
    ):
        label_images(tmp_path / "s", num_crops=6, stored_crops=stored_crops, **again)


def test_what_cannot_match_is_refused(tmp_path, photographs, run_folder, reference):
    about = {"teacher": str(run_folder), "plan_of": reference, **WORK}
    for option in ({"seed": 0}, {"num_crops": 7}, {"scale": (0.08, 1.0)}, {"flip_prob": 0.5}):
        with pytest.raises(UsageError, match=r"with `plan_of=.*leave one of the two out"):
            label_images(tmp_path / "s", images=photographs, **option, **about)
    others = write_photographs(tmp_path / "others")
    for folder in others.iterdir():
        for number, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / f"other{number}.jpg")
    with pytest.raises(RejectedInput, match="none of the 21 images"):
        label_images(tmp_path / "s", images=others, **about)
    resized = shutil.copytree(photographs, tmp_path / "resized")
    picture = Image.open(resized / "dog" / "6.jpg")
    picture.resize((picture.width + 1, picture.height)).save(resized / "dog" / "6.jpg")
    with pytest.raises(RejectedInput, match=r"dog/6\.jpg has .* pixels, there it has"):
        label_images(tmp_path / "s", images=resized, **about)
    broken = shutil.copytree(reference, tmp_path / "broken")
    with labelstore.open(broken) as store, store.catalogue.transaction() as connection:
        change_record(connection, plans, "drawn", {"parameters": {"law": IMPORTED_LAW}})
    with pytest.raises(RejectedInput, match="cannot be computed"):
        label_images(tmp_path / "s", images=photographs, **about | {"plan_of": broken})
    assert not (tmp_path / "s").exists()


def test_the_command_and_fkds_name_for_it(tmp_path, photographs, run_folder, reference, capsys):
    for flag in ("--plan-from", "--reference_path"):
        store = tmp_path / flag.strip("-")
        command = ["create", store, "--images", photographs, "--teacher", run_folder, "--k", "2"]
        command += [flag, reference, "--device", "cpu", "--workers", "2"]
        assert errors.run(labelstore_app.commands, "labelstore", list(map(str, command))) == 0
        with labelstore.open(store) as opened:
            assert opened.plan().parameters["seed"] == 11
    assert errors.run(labelstore_app.commands, "labelstore", ["create", "--help"]) == 0
    assert "--reference-path" not in capsys.readouterr().out
