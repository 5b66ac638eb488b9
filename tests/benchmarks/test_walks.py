"""How far one `create` walks: bounds on counts, so that a second check or transaction on the way is noticed."""

from __future__ import annotations

import pytest

from benchmarks import walks

MOST_TRANSACTIONS = 25
MOST_TURNS = 1000


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    return walks.measure(tmp_path_factory.mktemp("walks"), 16, 8)


def test_one_create_begins_few_transactions(counted):
    assert 0 < counted["transactions"] <= MOST_TRANSACTIONS


def test_one_create_turns_from_file_to_file_a_bounded_number_of_times(counted):
    assert 0 < counted["turns"] <= MOST_TURNS


def test_calibrate_decodes_each_label_once(counted):
    assert counted["label_decodes"] == 1


def test_turns_are_counted_where_the_file_changes():
    walk = [("a", "f"), ("a", "g"), ("b", "f"), ("a", "f"), ("a", "f")]
    assert walks.turns(walk) == 2
    assert walks.turns([]) == 0
