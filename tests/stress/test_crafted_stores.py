"""R10: stores from elsewhere, made to do harm: refused with one line, in bounds of memory and time."""

import shutil

import pytest

from labelstore.care.verification import verify
from labelstore.store import open_store
from labelstore.testing.filled_store import fill_blocks
from tests.stress.conftest import told
from tests.stress.crafted import CASES
from tests.stress.workers import soft_labels

SECRET = b"secret"


@pytest.fixture
def sound(empty):
    path = empty()
    with open_store(path) as store:
        fill_blocks(store, soft_labels(store.num_rows, store.num_crops), name="teacher")
    return path


def use(nursery, path, result):
    """A child's words on everything that one does with a store, and how it ended."""
    pid = nursery.start("use", result, path)
    return nursery.wait(pid, 60), told(result)


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_sound_store_can_be_used(sound, nursery, tmp_path):
    status, said = use(nursery, sound, tmp_path / "result")
    assert status == 0
    assert [(record["action"], record["code"]) for record in said] == [
        ("open", 0), ("images", 0), ("read", 0), ("verify", 0), ("freeze", 0), ("write", 0)
    ]  # fmt: skip


@pytest.mark.sample(1)
def test_crafted_stores_are_refused(sound, nursery, scale, matrix, tmp_path):
    cases = sorted(CASES)
    if scale < 20:
        # a sample: other ones for each backend
        step = max(1, round(8 / scale))
        first = 0 if (sound / "arrays").is_dir() else step // 2
        cases = cases[first::step]
    found, refused = [], 0
    keep, outside = tmp_path / "keep", tmp_path / "outside"
    shutil.copytree(sound, keep)
    for name in cases:
        shutil.rmtree(sound)
        shutil.copytree(keep, sound)
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        (outside / "secret").write_bytes(SECRET)
        CASES[name](sound, outside)
        before = files_of(outside)
        result = tmp_path / f"{name}.result"
        status, said = use(nursery, sound, result)
        codes = {record["code"] for record in said}
        wrongs = {
            f"ended with {status}": status != 0,
            "exit code": not codes <= {0, 3, 4, 6, 7, 8},
            "not refused": not codes & {3, 4, 7},
            "verify finds it sound": any(
                record["action"] == "verify" and record["code"] == 0 for record in said
            ),
            "several lines": any("\n" in record["message"] for record in said),
            "read wrongly": not all(record["right"] for record in said),
            "changed a file elsewhere": files_of(outside) != before,
            "showed a file from elsewhere": any(
                SECRET.decode() in record["message"].replace("outside/secret", "")
                for record in said
            ),
        }
        found += [(name, wrong, said) for wrong, is_so in wrongs.items() if is_so]
        refused += bool(codes & {3, 4, 7})
    matrix.record("R10", stores=len(cases), refused=refused, harmed=len(found))
    assert not found, "\n".join(map(str, found))


def test_verify_names_every_image_key_that_is_none(sound, tmp_path):
    """Also where the table's digest was made to match."""
    whole = (sound / "catalogue.db").read_bytes()
    names = [name for name in CASES if name.startswith("image_key-")]
    assert names
    for name in names:
        (sound / "catalogue.db").write_bytes(whole)
        CASES[name](sound, tmp_path)
        with open_store(sound, readonly=True, checked=False) as store:
            report = verify(store)
        assert any("image_blocks" in problem.what for problem in report.problems), name
