"""The tour takes photographs as people have them: in class folders, by WordNet id or not, or all in one folder."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import tour
from labelstore.errors import LabelStoreError
from labelstore.images import open_images
from labelstore.images.class_names import wordnet_ids


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)


def test_shipped_photographs_are_of_classes_that_the_teacher_knows(tmp_path):
    found = tour.shipped(tmp_path / "photographs")
    assert found.have_truth
    assert set(tour.SHIPPED.values()) <= set(wordnet_ids("imagenet-1k"))
    assert len(open_images(found.images).keys) == len(tour.SHIPPED) == len(found.keys)


def test_photographs_all_in_one_folder_are_listed_and_have_no_ground_truth(tmp_path):
    for name in ("a b.jpg", "c,d.png"):
        picture(tmp_path / "own" / name)
    (tmp_path / "own" / "notes.txt").write_text("no picture")
    found = tour.own(tmp_path / "own", tmp_path / "tour")
    assert not found.have_truth
    assert open_images(found.images).keys == found.keys == ("a b.jpg", "c,d.png")
    assert all(open_images(found.images).file(key).exists() for key in found.keys)


@pytest.mark.parametrize(("name", "have_truth"), [("n02124075", True), ("holiday", False)])
def test_class_folders_are_a_ground_truth_where_they_are_imagenets(tmp_path, name, have_truth):
    picture(tmp_path / "own" / name / "a.jpg")
    found = tour.own(tmp_path / "own", tmp_path / "tour")
    assert (found.images, found.have_truth) == (str(tmp_path / "own"), have_truth)


def test_a_folder_without_photographs_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(LabelStoreError, match="folder"):
            tour.own(folder, tmp_path / "tour")
