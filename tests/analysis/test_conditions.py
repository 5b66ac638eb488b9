"""Conditions over columns: they mean what pandas means by them, and nothing else can be said."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.analysis.arrow_batches import crops
from labelstore.blocks.columns import COLUMNS
from labelstore.blocks.condition import Condition
from labelstore.blocks.crop_slab import CropSlab
from labelstore.errors import UsageError

SAME_IN_PANDAS = {
    "area < 0.3": "area < 0.3",
    "area < 0.3 and max_probability >= 0.5": "area < 0.3 and max_probability >= 0.5",
    "flip or not agrees": "flip or not agrees",
    "class = 'class0002' or class == top1": "`class` == 'class0002' or `class` == top1",
    "0.2 <= area < 0.4": "0.2 <= area < 0.4",
    "class in ('class0001', \"class0004\")": "`class` in ('class0001', 'class0004')",
    "crop not in (1, 2, 5)": "crop not in (1, 2, 5)",
    "height * width > 30000 + 2 * 1e4": "height * width > 50000",
    "1 - max_probability > area / 2": "1 - max_probability > area / 2",
    "NOT (entropy > 1 OR flip)": "not (entropy > 1 or flip)",
    "crop % 3 == 0 and - centre_y < -0.5": "crop % 3 == 0 and centre_y > 0.5",
    "startswith(key, 'class0003/')": "key.str.startswith('class0003/')",
    "contains(top1, '5') and endswith(key, '.jpg')": "top1.str.contains('5')",
    "abs(centre_x - 0.5) < 0.1 and sqrt(area) > 0.5": "abs(centre_x - 0.5) < 0.1 and area > 0.25",
    "flip == true and class <> top1": "flip == True and `class` != top1",
    "isnan(entropy)": "entropy != entropy",
}


@pytest.mark.parametrize("condition", SAME_IN_PANDAS)
def test_a_condition_means_what_it_means_in_pandas(store, table, condition):
    labels = store.label_set()
    found = crops(labels, ["image", "crop"], where=condition)
    expected = table.query(SAME_IN_PANDAS[condition], engine="python")
    assert found.to_numpy().tolist() == expected[["image", "crop"]].to_numpy().tolist()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "character 1: a column, a number or 'text' is missing"),
        ("area", "a number and not a condition"),
        ("area <", "is missing"),
        ("area < 0.1 and", "is missing"),
        ("area < 0.1; drop table images", "';' is not understood"),
        ("__import__('os')", "no function '__import__'"),
        ("key.system('true')", r"'\.' is not understood"),
        ("area.__class__ == 1", r"'\.' is not understood"),
        ("().__class__", "is missing|understood"),
        ("lambda: 1", "':' is not understood"),
        ("[x for x in (1,)]", "is not understood"),
        ("area < 'small'", "a number is compared with a text"),
        ("class < 'a'", "text has no order"),
        ("flip + 1 > 0", "wants a number and got a bool"),
        ("flip = 1", "a bool is compared with a number"),
        ("class and flip", "wants a bool and got a text"),
        ("size < 1", "no column 'size': choose from image, key"),
        ("exec('1')", "no function 'exec'"),
        ("startswith(area, 'a')", "wants a text column"),
        ("class in (1, 2)", "a text is looked for in a list with a number"),
        ("area < 1e999", "too large"),
        ("area < 1_000", "is not understood"),
        ("area < 0x10", "is not understood"),
        ("\0", "is not understood"),
        ("'unclosed", "is not understood"),
        ("(" * 60 + "flip" + ")" * 60, "nested more than 40 deep"),
        ("-" * 500 + "1 < area", "names, numbers and signs|nested"),
        ("flip or " * 400 + "flip", "names, numbers and signs"),
        ("flip or " * 4000 + "flip", "characters"),
        ("region = 'HARD'", "needs a mask"),
    ],
)
def test_anything_else_is_refused_in_one_line(store, text, problem):
    with pytest.raises(UsageError, match=problem) as refused:
        crops(store.label_set(), where=text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700


@given(st.text(max_size=60) | st.text(alphabet="()<>=.,'\"+-*/% 01eandorti", max_size=80))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    with contextlib.suppress(UsageError):
        assert Condition.parse(text).columns <= COLUMNS.keys()


@given(st.floats(0, 1, width=32))
def test_thresholds_are_compared_as_calibration_compares_them(value):
    probability = np.array([value, np.nextafter(np.float32(value), np.float32(2))], np.float32)

    class Crops(CropSlab):
        def __init__(self):
            self.shape = (1, 2)

        def __getitem__(self, name):
            return probability[None]

    found = Condition.parse(f"max_probability <= {float(value):.12f}").holds(Crops())
    threshold = np.float32(float(f"{float(value):.12f}"))
    assert found[0].tolist() == (probability <= threshold).tolist()


def test_division_by_zero_and_logarithms_of_nothing_are_no_errors(store):
    labels = store.label_set()
    assert len(crops(labels, ["crop"], where="area / 0 > 1 and log(0 * area) < 0")) == 23 * 12
    assert len(crops(labels, ["crop"], where="1 / 0 > 1")) == 23 * 12
