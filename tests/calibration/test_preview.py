"""What `calibrate --dry-run` says is what the mask would hold."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cli import errors, labelstore_app
from labelstore.calibration import (
    Region,
    RegionQuantiles,
    RegionQuery,
    RegionThresholds,
    calibrate,
    preview,
    preview_of,
    usual_choices,
)
from labelstore.errors import UsageError
from labelstore.store import LabelSet

RULES = {
    "thresholds": RegionThresholds(low=0.2, middle=0.40, top=0.95),
    "shares": RegionQuantiles(low=0.1, middle=0.3, top=0.8),
    "truth": RegionThresholds(low=0.1, criterion="ground_truth_probability"),
}


def test_counts_are_those_of_the_masks(make_store, p_max):
    store = make_store(p_max, images_per_shard=8, bad={2})
    labels = store.label_set()
    found = preview(labels, RULES)
    assert store.masks == (), "a preview writes nothing"
    assert (found.num_images, found.num_crops, found.is_complete) == (20, 10, True)
    for choice in found.choices:
        mask = calibrate(labels, RULES[choice.title], name=choice.title)
        codes = np.concatenate([mask.regions(block) for block in mask.blocks])
        counts = choice.counts
        regions = (Region.TOO_HARD, Region.HARD, Region.IMPORTANT, Region.TOO_EASY, Region.MISSING)
        assert [
            counts.too_hard,
            counts.hard,
            counts.important,
            counts.too_easy,
            counts.missing,
        ] == [np.count_nonzero(codes == region) for region in regions]
        usable = np.isin(codes, (Region.HARD, Region.IMPORTANT)).any(axis=1)
        assert counts.images == 19
        assert counts.images_without_crop == 19 - np.count_nonzero(usable)
        assert counts.num_crops == 190
        assert choice.rule == RegionThresholds.from_record(mask.rule)
    assert found.choices[0].counts.images_without_crop == 2  # image 7 too easy, 11 too hard


def test_blocks_may_be_spread_over_threads(make_store, p_max):
    labels = make_store(p_max, images_per_shard=4).label_set()
    with ThreadPoolExecutor(2) as pool:
        assert preview(labels, map_blocks=pool.map) == preview(labels)


def test_the_usual_choices_become_json(make_store, p_max):
    record = preview(make_store(p_max).label_set()).to_record()
    assert json.loads(json.dumps(record)) == record
    assert [choice["title"] for choice in record["choices"]] == list(usual_choices())
    for choice in record["choices"]:
        shares = choice["shares"]
        assert sum(
            shares[r] for r in ("too_hard", "hard", "important", "too_easy")
        ) == pytest.approx(1)


def test_ties_are_said_in_words(make_store):
    p_max = np.full((10, 10), 1.0, np.float32)
    p_max[:5] = np.linspace(0.2, 0.9, 10)
    choice = preview(make_store(p_max).label_set(), {"sharp": RegionQuantiles()}).choices[0]
    assert choice.rule.top == 1.0
    assert choice.counts.too_easy == 0
    (note,) = (note for note in choice.notes if note.startswith("too easy"))
    assert note.startswith("too easy 0.0% instead of 10.0%: many crops share probability 1,")
    assert "\n" not in note


def test_the_paper_shares_discard_the_same_from_a_sharper_teacher(make_store, p_max):
    choices = {c.title: c.counts for c in preview(make_store(p_max**0.05).label_set()).choices}
    discarded = {title: 1 - c.share(c.usable) for title, c in choices.items()}
    assert discarded["FerKD 4.2"] > 0.5
    assert discarded["FerKD's shares 0.9/2.6/99.7 %"] <= 0.012 + 1e-9


def test_a_rule_that_cannot_be_applied_is_refused(make_store, p_max):
    truth = np.full(20, -1)
    labels = make_store(p_max, ground_truth=truth).label_set()
    with pytest.raises(UsageError, match="20 of 20 images have no ground truth"):
        preview(labels)


@pytest.mark.sample(1)
@pytest.mark.parametrize("rule", ["thresholds", "shares", "conditions"])
def test_a_mask_does_what_its_rule_said_it_would(make_store, p_max, rule):
    rules = RULES | {"conditions": RegionQuery(discard="max_probability < 0.4", harden="flip")}
    labels = make_store(p_max, images_per_shard=8, bad={2}).label_set()
    (before,) = preview(labels, {"m": rules[rule]}).choices
    (after,) = preview_of(labels, calibrate(labels, rules[rule], name="m")).choices
    assert (after.rule, after.counts) == (before.rule, before.counts)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("command", "walks"),
    [
        (["calibrate", "--json"], 1),
        (["calibrate", "--name", "again", "--json"], 1),
        (["calibrate", "--dry-run", "--low", "0.1", "--middle", "0.1", "--json"], 3),
        (["mask", "--name", "c", "--discard", "max_probability < 0.4", "--json"], 1),
        (["advise", "--quantiles", "0.1,0.2,0.9", "--json"], 3),
    ],
)
def test_labels_are_decoded_once_for_a_mask(make_store, p_max, monkeypatch, capsys, command, walks):
    """Quantiles take two walks more; what a mask does is counted from its codes."""
    path = make_store(p_max, images_per_shard=8).path
    decoded = []
    names = ("max_probability", "max_probabilities", "ground_truth_probability", "sparse", "dense")
    for name in names:
        own = getattr(LabelSet, name)

        def counting(labels, block, columns=None, *rest, own=own):
            decoded.append(block)
            return own(labels, block, columns, *rest)

        monkeypatch.setattr(LabelSet, name, counting)
    name, *options = command
    assert errors.run(labelstore_app.commands, "labelstore", [name, str(path), *options]) == 0
    capsys.readouterr()
    assert sorted(decoded) == sorted([0, 1, 2] * walks)
