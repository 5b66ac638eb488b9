"""A step prints its command, is timed and counted, and stops everything where it fails."""

import pytest

from benchmarks.steps import Steps


def test_steps_are_printed_timed_and_summed(capfd):
    steps = Steps(title="tour")
    for what in ("first", "second"):
        steps.run(what, "labelstore --version")
    printed = capfd.readouterr().out
    assert printed.count("$ labelstore --version\nlabelstore ") == 2
    assert [step.what for step in steps.done] == ["first", "second"]
    assert all(step.cpu_seconds > 0 and step.seconds > 0 for step in steps.done)
    total = sum(step.seconds for step in steps.done)
    (together,) = (line for line in steps.table().splitlines() if line.startswith("together"))
    assert float(together.split()[1]) == pytest.approx(total, abs=0.1)


def test_a_step_that_fails_ends_the_rest(tmp_path, capfd):
    steps = Steps(title="tour")
    with pytest.raises(SystemExit, match=r"tour: `labelstore info` ended with 4"):
        steps.run("info", f"labelstore info {tmp_path / 'none.labels'}")
    assert steps.done == []


def test_steps_that_run_together_are_told_one_after_the_other(capfd):
    steps = Steps(title="demo")
    ended = steps.run_together({"one": "labelstore --version", "two": "trainer --version"})
    printed = capfd.readouterr().out
    assert [step.what for step in ended] == [step.what for step in steps.done] == ["one", "two"]
    assert all(step.cpu_seconds > 0 for step in ended)
    assert printed.index("one:\nlabelstore ") < printed.index("two:\n")
    (together,) = (line for line in steps.table().splitlines() if line.startswith("together"))
    assert float(together.split()[1]) == pytest.approx(sum(steps.clock), abs=0.1)


def test_a_step_that_fails_ends_those_beside_it(tmp_path, capfd):
    steps = Steps(title="demo")
    with pytest.raises(SystemExit, match=r"demo: `labelstore info` ended with 4"):
        steps.run_together(
            {"info": f"labelstore info {tmp_path / 'none.labels'}", "two": "trainer --version"}
        )
    assert steps.done == []
