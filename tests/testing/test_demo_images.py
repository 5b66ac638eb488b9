"""The demo's data set: reproducible, disjoint where it must be, and safe to run again."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from labelstore.errors import ConflictError, UsageError
from labelstore.images import scan_folder
from labelstore.testing import demo_folder
from labelstore.testing.demo_folder import make_demo_images
from labelstore.testing.digit_pictures import PHOTOGRAPHS, digits, plan, render

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

COUNTS = {"teacher": 40, "train": 20, "val": 30}


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def manifest(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "images"
    result = make_demo_images(folder, **COUNTS, workers=1)
    assert result.written == 90
    return folder


def test_three_image_folders(made):
    for name, count in COUNTS.items():
        found = scan_folder(made / name)
        assert found.classes == tuple(f"digit_{digit}" for digit in range(10))
        assert np.bincount(found.class_ids).tolist() == [count // 10] * 10


def test_train_is_part_of_teacher(made):
    for key in scan_folder(made / "train").keys:
        assert (made / "train" / key).read_bytes() == (made / "teacher" / key).read_bytes()


def test_same_files_for_any_number_of_workers(made, tmp_path):
    make_demo_images(tmp_path / "again", **COUNTS, workers=3)
    assert contents(tmp_path / "again") == contents(made)


def test_another_seed_gives_other_images():
    assert render(plan(1, "train", 0)) != render(plan(0, "train", 0))
    assert render(plan(0, "val", 0)) != render(plan(0, "train", 0))


def test_sizes_vary_within_bounds(made):
    sizes = []
    for path in (made / "teacher").glob("*/*.jpg"):
        with Image.open(path) as image:
            assert image.format == "JPEG"
            sizes.append(image.size)
    assert all(160 <= side <= 256 for size in sizes for side in size)
    assert len(set(sizes)) > 30


def test_no_digit_and_no_part_of_a_photograph_in_both_train_and_val(made):
    rows = manifest(made)
    assert len(rows) == 90
    used = {"teacher": set(), "train": set(), "val": set()}
    for row in rows:
        name = row["key"].partition("/")[0]
        used[name] |= {int(digit) for digit in [row["digit"], *row["fragments"].split()]}
        assert digits()[1][int(row["digit"])] == int(row["class"])
        assert (made / row["key"]).is_file()
        assert f"/digit_{row['class']}/" in row["key"]
        if name == "val":
            assert float(row["left"]) > 0.7
        else:
            assert float(row["right"]) < 0.7
    assert used["train"] <= used["teacher"]
    assert used["teacher"].isdisjoint(used["val"])


def test_digits_are_disjoint_over_many_pictures():
    drawn = {
        split: {
            glyph.digit
            for picture in (plan(3, split, number) for number in range(1500))
            for glyph in (picture.digit, *picture.fragments)
        }
        for split in ("train", "val")
    }
    assert drawn["train"].isdisjoint(drawn["val"])
    assert len(drawn["train"]) > 1000
    assert len(drawn["train"]) <= 1200
    assert 500 < len(drawn["val"]) <= 597


def test_pictures_vary_as_the_settings_say():
    pictures = [plan(0, "train", number) for number in range(600)]
    assert {len(picture.fragments) for picture in pictures} == {0, 1, 2, 3}
    assert {picture.occluder is None for picture in pictures} == {True, False}
    assert {picture.photograph for picture in pictures} == set(range(len(PHOTOGRAPHS)))
    for picture in pictures:
        short = min(picture.width, picture.height)
        assert 0.45 * short - 1 < picture.digit.side < 0.8 * short + 1
        assert picture.digit.left + picture.digit.side <= picture.width
        assert picture.digit.top + picture.digit.side <= picture.height
        assert all(0.15 * short - 1 < f.side < 0.3 * short + 1 for f in picture.fragments)
        assert all(digits()[1][f.digit] != picture.class_id for f in picture.fragments)
        assert all(120 <= value <= 255 for value in picture.digit.colour)
        assert max(picture.gains) <= 0.7
        assert 0 <= picture.box[0] < picture.box[2] <= 1
        assert 0 <= picture.box[1] < picture.box[3] <= 1


def test_the_digit_is_there():
    """With its own colour, where the plan says, on far more pixels than without it."""
    for number in range(30):
        picture = plan(0, "train", number)
        pixels = np.asarray(Image.open(io.BytesIO(render(picture))).convert("RGB")).astype(int)
        like = np.abs(pixels - np.array(picture.digit.colour)).max(axis=2) < 30
        glyph = picture.digit
        inside = like[glyph.top : glyph.top + glyph.side, glyph.left : glyph.left + glyph.side]
        assert inside.mean() > 0.08


def test_running_again_changes_nothing(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    again = make_demo_images(made, **COUNTS)
    assert again.written == 0
    assert "is complete" in str(again)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_an_interrupted_run_is_completed(made, tmp_path):
    class Stop(Exception):
        pass

    calls = []

    def stop(done, total):
        calls.append((done, total))
        raise Stop

    with pytest.raises(Stop):
        make_demo_images(tmp_path, **COUNTS, progress=stop)
    assert 0 < calls[0][0] < calls[0][1] == 90
    assert not (tmp_path / "manifest.csv").exists()
    (tmp_path / "teacher/digit_0/.t000000.jpg.1.tmp").write_bytes(b"left by a killed process")
    result = make_demo_images(tmp_path, **COUNTS, progress=lambda *call: calls.append(call))
    assert result.written == 90 - calls[0][0]
    assert calls[-1] == (result.written, result.written)
    (tmp_path / "teacher/digit_0/.t000000.jpg.1.tmp").unlink()
    assert contents(tmp_path) == contents(made)


def test_other_settings_or_other_content_are_refused(made, tmp_path):
    for change in ({"seed": 1}, {"val": 40}, {"train": 10}):
        with pytest.raises(ConflictError, match="asked for"):
            make_demo_images(made, **COUNTS | change)
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ConflictError, match="not empty"):
        make_demo_images(tmp_path, **COUNTS)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    (tmp_path / demo_folder.SETTINGS).write_text(json.dumps([1])[:-1])
    with pytest.raises(ConflictError, match="None"):
        make_demo_images(tmp_path, **COUNTS)


@pytest.mark.parametrize("change", [{"train": 50}, {"val": 9}, {"train": 5}, {"seed": -1}])
def test_impossible_counts(change, tmp_path):
    with pytest.raises(UsageError) as caught:
        make_demo_images(tmp_path / "new", **COUNTS | change)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_pictures_have_the_sides_that_were_asked_for(tmp_path):
    make_demo_images(tmp_path / "small", teacher=10, train=10, val=10, sides=(64, 96), workers=1)
    for path in (tmp_path / "small").rglob("*.jpg"):
        with Image.open(path) as picture:
            assert all(64 <= side <= 96 for side in picture.size)
    # other pictures than those of other sides: an interrupted folder is not completed with them
    with pytest.raises(ConflictError, match="sides"):
        make_demo_images(tmp_path / "small", teacher=10, train=10, val=10, workers=1)
    for sides in ((96, 64), (1, 96)):
        with pytest.raises(UsageError, match="shortest and the longest side"):
            make_demo_images(tmp_path / "none", teacher=10, train=10, val=10, sides=sides)
