"""Progress lines, and JSON on stdout."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli.output import print_fields, print_json
from cli.progress import Progress, describe


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_lines_come_now_and_then_and_at_the_end():
    stream, clock = io.StringIO(), Clock()
    with Progress("labels", "crops", stream=stream, every=10, clock=clock) as progress:
        for second in range(25):
            clock.now = float(second)
            progress(100 + second, 125)
    lines = stream.getvalue().splitlines()
    assert [line.split(" of ")[0] for line in lines] == [
        "labels: 110",
        "labels: 120",
        "labels: 124",
    ]
    # what was there at the start is not counted into the rate
    assert lines[0] == "labels: 110 of 125 crops (88 %), 1 crops/s, 15 s left"


def test_nothing_is_printed_twice_and_nothing_for_nothing():
    stream, clock = io.StringIO(), Clock()
    with Progress("labels", "crops", stream=stream, clock=clock):
        pass
    assert stream.getvalue() == ""
    with Progress("labels", "crops", stream=stream, clock=clock) as progress:
        progress(0, 5)
        clock.now = 20
        progress(5, 5)
    assert stream.getvalue().count("\n") == 1


def test_a_second_count_begins_again_beside_the_first():
    """An evaluation after each pass: its own rate, on the same bar of a terminal, gone when it is complete."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream, clock = io.StringIO(), Clock()
    with Progress("training", "steps", stream=stream, clock=clock) as progress:
        evaluated = progress.beside("evaluation", "images")
        for began in (0.0, 100.0):
            for second in (0, 11, 22):
                clock.now = began + second
                evaluated(10 + second, 40)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "evaluation: 21 of 40 images (52 %), 1 images/s, 19 s left"
    assert lines[2] == lines[0]
    with Progress("training", "steps", stream=Terminal(), clock=clock) as progress:
        progress(3, 3)
        evaluated = progress.beside("evaluation", "images")
        for done in (10, 40):
            evaluated(done, 40)
            shown = [task.description for task in progress._bar.tasks if task.visible]
            assert shown == (["training", "evaluation"] if done < 40 else ["training"])


def test_the_last_line_is_shown_when_work_is_cut_short():
    stream = io.StringIO()
    try:
        with Progress("labels", "crops", stream=stream, clock=Clock()) as progress:
            progress(1, 4)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert stream.getvalue() == "labels: 1 of 4 crops (25 %)\n"


def test_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress("[labels]", "crops", stream=stream) as progress:
        progress(0, 4)
        progress(4, 4)
    assert "[labels]" in stream.getvalue()
    assert "4 of 4 crops (100 %)" in stream.getvalue()


def test_slow_rates_and_empty_totals_can_be_described():
    assert describe(1, 3, 1, 4.0, "images") == "1 of 3 images (33 %), 0.25 images/s, 8 s left"
    assert describe(0, 0, 0, 1.0, "images") == "0 of 0 images"


def test_json_is_one_line_of_valid_json(capsys):
    @dataclass
    class Record:
        path: Path
        values: tuple[float, ...]

    print_json(
        {
            "record": Record(Path("a/b"), (1.0, float("nan"))),
            "scalar": np.float32(0.5),
            "array": np.array([[1, 2]]),
            "digest": b"\x01\xff",
            3: None,
        }
    )
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {
        "record": {"path": "a/b", "values": [1.0, None]},
        "scalar": 0.5,
        "array": [[1, 2]],
        "digest": "01ff",
        "3": None,
    }


def test_fields_are_aligned(capsys):
    print_fields({"a": 1, "long": 2})
    assert capsys.readouterr().out == "a     1\nlong  2\n"
