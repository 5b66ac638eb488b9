"""Claims are tested together: what the adjustments promise, and what a verdict may say."""

import math

import numpy as np
import pytest

pytest.importorskip("scipy")

from benchmarks.papers.claims import (
    LEVEL,
    Claim,
    benjamini_hochberg,
    holm,
    judge,
    measure,
    smallest_visible,
)

RNG = np.random.default_rng(0)


def finding(differences, *, paper=None, primary=False):
    claim = Claim(text="b above a", above="b", below="a", paper=paper, primary=primary)
    b = dict(enumerate(differences))
    return measure(claim, {"a": dict.fromkeys(b, 0.0), "b": b})


@pytest.mark.slow
def test_primary_claims_alone_are_rarely_found_where_nothing_is_there():
    wrong = 0
    for _ in range(400):
        measured = [finding(RNG.normal(size=6), primary=True) for _ in range(4)]
        wrong += any(one.adjusted < LEVEL for one in judge(measured))
    assert wrong / 400 < 0.08


def test_adjusted_values_keep_their_order_and_are_never_smaller():
    p = RNG.random(20).tolist()
    for adjust in (holm, benjamini_hochberg):
        adjusted = adjust(p)
        assert np.all(np.asarray(adjusted) >= p)
        assert np.all(np.diff(np.asarray(adjusted)[np.argsort(p)]) >= 0)
        assert adjust([]) == []
    assert np.all(np.asarray(holm(p)) >= benjamini_hochberg(p))


@pytest.mark.slow
def test_the_smallest_visible_effect_is_seen_four_times_in_five():
    effect = smallest_visible(1.0, 6)
    seen = np.mean([finding(effect + RNG.normal(size=6)).p < LEVEL for _ in range(2000)])
    assert seen == pytest.approx(0.8, abs=0.03)


def test_a_verdict_says_no_more_than_the_runs():
    noisy, steady = [-3.0, 4.0, -5.0, 4.5, 0.5], [0.5, 0.51, 0.49, 0.5, 0.5]
    holds, backwards, hidden, order_only = judge(
        [
            finding(steady, paper=0.4),
            finding([-value for value in steady], paper=0.4),
            finding(noisy, paper=0.4),
            finding(noisy),
        ]
    )
    assert holds.verdict == "holds"
    assert backwards.verdict == "reversed in this setting"
    assert hidden.verdict == "cannot be seen at this size"
    assert order_only.verdict == "undecided"
    (alone,) = judge([finding([1.0], paper=0.4)])
    assert alone.verdict == "cannot be seen at this size"
    assert math.isnan(alone.visible)


def test_a_primary_claim_that_has_not_run_counts():
    alone = finding([1.0, 1.2, 1.5], primary=True)
    (one,), (of_five,) = judge([alone]), judge([alone], named=5)
    assert of_five.adjusted == pytest.approx(min(5 * one.adjusted, 1))
    assert of_five.visible > one.visible


def test_the_order_of_the_claims_stays():
    claims = [finding([1.0, 2.0, 1.5], primary=at % 2 == 0) for at in range(5)]
    assert [one.claim for one in judge(claims)] == [one.claim for one in claims]
