"""Calls inside a transaction are part of it: they see what it wrote, and stay or go with it."""

from __future__ import annotations

import threading

import pytest

from labelstore.errors import ConflictError


def test_what_is_written_together_is_there_or_not(catalogue):
    def both() -> None:
        catalogue.add_classes(["a", "b"])
        catalogue.images.add(["a/0.jpg"], [0], [1], [1])
        assert catalogue.classes() == ("a", "b"), "a call inside does not see what was written"
        raise ConflictError("somebody else was faster")

    with pytest.raises(ConflictError, match="faster"):
        catalogue.together(both)
    assert catalogue.classes() == ()
    assert catalogue.images.num_images() == 0


def test_one_state_is_seen_however_many_calls(catalogue):
    catalogue.add_classes(["a"])
    began, found = [], []
    with catalogue.reading() as connection:
        catalogue.classes()
        with catalogue.reading() as inner:
            began.append(inner is connection)
        # another thread is not part of it
        thread = threading.Thread(target=lambda: found.append(catalogue.classes()))
        thread.start()
        thread.join()
    assert began == [True]
    assert found == [("a",)]


def test_a_transaction_that_only_reads_writes_nothing(catalogue):
    with pytest.raises(AssertionError), catalogue.reading():
        catalogue.add_classes(["a"])
    assert catalogue.classes() == ()
