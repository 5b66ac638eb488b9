"""R15: every store of an older format in tests/data opens and answers as the version that wrote it did."""

import json
import shutil
import stat

import pytest

import labelstore
from labelstore.catalogue import FORMAT_VERSION
from labelstore.errors import FormatVersionError, StorageError
from labelstore.integrity import verify
from tests.data.make_stores import BACKENDS, DATA, PARTS, answers, make
from tests.stress.crafted import sql

NAMES = [f"{backend}-{part}" for backend in BACKENDS for part in PARTS]
KEPT = sorted(path.stem for path in DATA.glob("v*-*.json"))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Stores of the format as it is now: what would be committed if it were released today."""
    folder = tmp_path_factory.mktemp("formats")
    for name in NAMES:
        make(folder / name, *name.split("-"))
        with labelstore.open(folder / name) as store:
            record = {"format_version": FORMAT_VERSION, "answers": answers(store)}
        (folder / f"{name}.json").write_text(json.dumps(record))
    return folder


def check(path, record) -> int:
    # a checkout makes files writable and may not keep their times
    assert (path / "labelstore.json").exists()
    with labelstore.open(path) as store:
        assert store.catalogue.format_version == record["format_version"]
        assert store.catalogue.readonly
        found = answers(store)
    assert found == record["answers"]
    assert verify(path, "deep").is_sound
    return len(found)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_today(made, name, tmp_path, matrix):
    path = made / name
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert size < 200_000
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    for file in copy.rglob("*"):
        if file.is_file():
            file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    found = check(copy, json.loads((made / f"{name}.json").read_text()))
    with labelstore.open(copy) as store, pytest.raises(StorageError, match="frozen"):
        store.catalogue.add_classes(["x"])
    matrix.record("R15", stores=1, answers=found, wrong=0)


@pytest.mark.parametrize(
    "name", KEPT or [pytest.param("", marks=pytest.mark.skip("none kept yet"))]
)
def test_every_kept_store(name, tmp_path, matrix):
    copy = tmp_path / name
    shutil.copytree(DATA / name, copy)
    record = json.loads((DATA / f"{name}.json").read_text())
    matrix.record("R15", kept=1, stores=1, answers=check(copy, record), wrong=0)


def test_a_format_of_tomorrow_is_refused_and_nothing_is_written(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made / NAMES[0], copy)
    (copy / "labelstore.json").chmod(0o644)
    (copy / "labelstore.json").unlink()
    (copy / "catalogue.db").chmod(0o644)
    sql(copy, f"UPDATE store SET format_version = {FORMAT_VERSION + 1}")
    before = (copy / "catalogue.db").read_bytes()
    with pytest.raises(FormatVersionError, match="update labelstore"):
        labelstore.open(copy)
    assert (copy / "catalogue.db").read_bytes() == before
