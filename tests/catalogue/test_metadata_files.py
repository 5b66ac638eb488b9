from __future__ import annotations

import pytest

from labelstore.errors import ConflictError


def test_either_digest_is_acceptable_until_the_change_is_finished(catalogue):
    catalogue.metadata.finish(token=catalogue.metadata.begin({"zarr.json": (None, "a")}))
    token = catalogue.metadata.begin({"zarr.json": ("a", "b"), "x/zarr.json": (None, "c")})
    assert catalogue.metadata.digests() == {
        "zarr.json": frozenset({"a", "b"}),
        "x/zarr.json": frozenset({"", "c"}),
    }
    assert catalogue.metadata.pending() == {"zarr.json": "b", "x/zarr.json": "c"}
    written = []
    catalogue.metadata.finish(lambda: written.append(1), token)
    assert written == [1]
    assert catalogue.metadata.digests() == {
        "zarr.json": frozenset({"b"}),
        "x/zarr.json": frozenset({"c"}),
    }
    assert catalogue.metadata.pending() == {}
    catalogue.metadata.finish(token=catalogue.metadata.begin({"x/zarr.json": ("c", None)}))
    assert catalogue.metadata.digests() == {"zarr.json": frozenset({"b"})}
    catalogue.verify_digests()


def test_an_older_change_may_not_finish_after_a_newer_one_began(catalogue):
    older = catalogue.metadata.begin({"zarr.json": (None, "a")})
    newer = catalogue.metadata.begin({"zarr.json": (None, "ab")})
    written = []
    with pytest.raises(ConflictError):
        catalogue.metadata.finish(lambda: written.append("a"), older)
    assert written == []
    assert catalogue.metadata.digests()["zarr.json"] == {"", "a", "ab"}
    catalogue.metadata.finish(lambda: written.append("ab"), newer)
    assert catalogue.metadata.digests() == {"zarr.json": frozenset({"ab"})}
    with pytest.raises(ConflictError):
        catalogue.metadata.finish(lambda: written.append("a"), older)
    assert written == ["ab"]


def test_a_failed_write_keeps_the_intent(catalogue):
    token = catalogue.metadata.begin({"zarr.json": (None, "a")})

    def fail():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        catalogue.metadata.finish(fail, token)
    assert catalogue.metadata.pending() == {"zarr.json": "a"}


def test_a_change_from_stale_files_is_refused(catalogue):
    catalogue.metadata.finish(token=catalogue.metadata.begin({"zarr.json": (None, "a")}))
    with pytest.raises(ConflictError):
        catalogue.metadata.begin({"zarr.json": (None, "b")})
    with pytest.raises(ConflictError):
        catalogue.metadata.begin({"zarr.json": ("z", "b")})
