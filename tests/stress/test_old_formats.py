"""R15: every store of an older format in tests/data opens and answers as the version that wrote it did."""

import hashlib
import itertools
import shutil
import sqlite3
import stat
from contextlib import closing

import numpy as np
import pytest

import labelstore
from labelstore import RegionThresholds
from labelstore.care.migration import migrate
from labelstore.care.verification import verify
from labelstore.catalogue import FORMAT_VERSION
from labelstore.catalogue.migrations import SCRIPTS, revisions
from labelstore.catalogue.schema import BASELINE
from labelstore.errors import FormatVersionError, StorageError
from tests.data.make_stores import BACKENDS, DATA, PARTS, answers, make
from tests.stress.crafted import sql

NAMES = [f"{backend}-{part}" for backend in BACKENDS for part in PARTS]
KEPT = sorted(path.stem for path in DATA.glob("v*-*.npz"))
ROUNDING = 2e-6
"""Labels may differ by a few 2^-24 between machines (FORMAT.md 6.4)."""
RELEASED = {
    "r0001_baseline.py": "9ac44548597b6d247ba56665a2e72c9ff9d823e46e1b7669c4e121112321c637",
    "r0002_image_blocks.py": "9ba3034c3ea5a418a612f0fbb380e5812cee1e456b87f64db213a0cb0535b7b8",
}
"""Revisions that somebody's stores have, one per format version: SHA-256 of each file, which never changes."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of the format as it is now: what would be committed if it were released today."""
    path = tmp_path_factory.mktemp("formats") / NAMES[-1]
    make(path, *NAMES[-1].split("-"))
    return path


def digests(path):
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def as_checked_out(path, target):
    """A copy with modes as git makes them: it keeps neither read-only bits nor times."""
    shutil.copytree(path, target)
    for file in target.rglob("*"):
        if file.is_file():
            file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    return target


def check(path, expected, *, frozen) -> int:
    with labelstore.open(path, readonly=True) as store:
        found = answers(store)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert (array.shape, array.dtype.kind) == (expected[name].shape, expected[name].dtype.kind)
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=ROUNDING, err_msg=name)
        else:
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    report = verify(path, "deep")
    assert report.is_sound, [str(problem) for problem in report.problems]
    assert (path / "labelstore.json").exists() == frozen
    return len(found)


def expected_of(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", KEPT)
def test_every_kept_store_is_read_and_not_changed(name, tmp_path, matrix):
    copy = as_checked_out(DATA / name, tmp_path / name)
    before = digests(copy)
    assert before == digests(DATA / name)
    found = check(copy, expected_of(name), frozen=True)
    with labelstore.open(copy) as store:
        assert store.catalogue.readonly
        with pytest.raises(StorageError, match="frozen"):
            store.catalogue.add_classes(["x"])
    assert digests(copy) == before
    matrix.record("R15", kept=1, stores=1, answers=found, wrong=0)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", [name for name in KEPT if name.endswith("-ms")])
def test_a_kept_store_can_be_written_once_it_is_migrated(name, tmp_path, matrix):
    copy = as_checked_out(DATA / name, tmp_path / name)
    (copy / "labelstore.json").unlink()  # as it was before it was frozen
    shards = {key: value for key, value in digests(copy).items() if "/c." in key or ".h5" in key}
    assert shards
    migrate(copy)
    assert migrate(copy).revisions == ()
    check(copy, {**expected_of(name), "format_version": np.array(FORMAT_VERSION)}, frozen=False)
    with labelstore.open(copy) as store:
        mask = labelstore.calibrate(store.label_set(), RegionThresholds(low=0.2), name="another")
        assert mask.is_complete
    assert verify(copy, "deep").is_sound
    assert shards.items() <= digests(copy).items()  # no committed file is written again
    matrix.record("R15", migrated=1, wrong=0)


def test_every_codec_and_format_version_is_kept():
    """A format that was released has its stores here, of both backends and every codec it knows."""
    versions = {int(name.removeprefix("v").partition("-")[0]) for name in KEPT}
    assert versions == set(range(1, len(RELEASED) + 1))
    for version, backend in itertools.product(versions, BACKENDS):
        kept = [name for name in KEPT if name.startswith(f"v{version}-{backend}-")]
        codecs, masks, seeded = set(), 0, set()
        for name in kept:
            with labelstore.open(DATA / name, readonly=True) as store:
                codecs |= {store.label_set(each).codec.name for each in store.label_sets}
                masks += len(store.masks)
                seeded |= {row.stored for row in store.catalogue.plans.all()}
        assert codecs == {"full", "hard", "smoothing", "ms", "mr", "logits", "labelmap"}
        assert masks
        assert seeded == {True, False}
    kept_files = [*DATA.glob("v*.npz"), *DATA.glob("v*/**/*")]
    size = sum(file.stat().st_size for file in kept_files if file.is_file())
    assert size < 1_000_000 * len(versions)


def test_a_released_revision_never_changes():
    """Somebody's catalogue was made or migrated by it. A change of the format is a new revision: CONTRIBUTING.md."""
    versions = SCRIPTS / "versions"
    scripts = sorted(file.name for file in versions.glob("r*.py"))
    assert scripts[: len(RELEASED)] == list(RELEASED)
    for name, digest in RELEASED.items():
        assert hashlib.sha256((versions / name).read_bytes()).hexdigest() == digest, name
    # one number for both: format N is what revision N makes
    assert len(revisions()) == len(scripts) == FORMAT_VERSION
    assert f"{FORMAT_VERSION:04d}" == BASELINE == revisions()[-1]
    for name in KEPT:
        with closing(sqlite3.connect(f"file:{DATA / name}/catalogue.db?mode=ro", uri=True)) as db:
            (revision,) = db.execute("SELECT version_num FROM alembic_version").fetchone()
        assert name.startswith(f"v{int(revision)}-")


def test_what_is_written_today_answers_the_same(made, matrix):
    """Made again, the newest kept store has the same answers: the format did not change unnoticed."""
    name = f"v{FORMAT_VERSION}-{NAMES[-1]}"
    if name not in KEPT:
        pytest.skip(f"{name} is not released yet: python -m tests.data.make_stores")
    matrix.record("R15", answers=check(made, expected_of(name), frozen=True), wrong=0)
    kept = {file for file in digests(DATA / name) if file != "catalogue.db"}
    assert kept == {file for file in digests(made) if file != "catalogue.db"}


def test_a_format_of_tomorrow_is_refused_and_nothing_is_written(made, tmp_path):
    copy = as_checked_out(made, tmp_path / "copy")
    (copy / "labelstore.json").unlink()
    sql(copy, f"UPDATE store SET format_version = {FORMAT_VERSION + 1}")
    before = (copy / "catalogue.db").read_bytes()
    with pytest.raises(FormatVersionError, match="update labelstore"):
        labelstore.open(copy)
    assert (copy / "catalogue.db").read_bytes() == before
