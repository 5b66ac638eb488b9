"""One distance of two label sets, whoever asks: `variants`, `stats --disagreement` and `quality` say the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cli import errors, labelstore_app
from labelstore.codecs import Full, MarginalSmoothing
from tests.analysis.conftest import soft_labels
from tests.kept_stores import kept_store

CODECS = {
    "ms": (MarginalSmoothing(k=5, dtype="float32"), ["--compression", "ms", "--k", "2"]),
    "mr": (MarginalSmoothing(k=5, dtype="float32"), ["--compression", "mr", "--k", "2"]),
    "hard": (MarginalSmoothing(k=5, dtype="float32"), ["--compression", "hard"]),
    "dense": (Full(dtype="float32"), ["--compression", "ms", "--k", "2"]),
}


@pytest.fixture
def run(capsys):
    def run(*arguments):
        assert errors.run(labelstore_app.commands, "labelstore", [str(a) for a in arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("case", CODECS)
def test_three_commands_say_one_distance(run, tmp_path, case):
    codec, variant = CODECS[case]
    path = tmp_path / "s.labels"
    kept_store(path, soft_labels(), codec, images_per_shard=10, bad={3}).close()
    lost = run("variants", path, *variant, "--name", "cheap", "--json")["kl"]
    pairs = run("stats", path, "--disagreement", "--json")["disagreement"]["pairs"]
    (pair,) = pairs
    kl = {
        pair["label_sets"][0]: pair["kl"],
        pair["label_sets"][1]: pair["kl_reversed"],
    }
    crossed = {
        (row["a"], row["b"]): row["distance"] for row in run("quality", path, "--json")["pairs"]
    }
    measures = run("stats", path, "--all", "--label-set", "teacher", "--json")["label_sets"][0]
    entropy = {m["name"]: m["mean"] for m in measures["profile"]["measures"]}["entropy"]
    assert lost["num_crops"] == pair["num_crops"] == 23 * 12
    assert lost["mean"] > 0
    assert kl["teacher"] == pytest.approx(lost["mean"], rel=1e-6)
    # KL(p || q) = cross-entropy of q from p, less the entropy of p
    assert crossed["cheap", "teacher"] - entropy == pytest.approx(lost["mean"], rel=2e-5)


def test_the_distance_is_the_definition(run, tmp_path):
    """KL and JS of `quality`'s and `stats`' pair from the labels themselves."""
    import labelstore

    path = tmp_path / "s.labels"
    kept_store(path, soft_labels(), CODECS["ms"][0], images_per_shard=10, bad={3}).close()
    run("variants", path, "--compression", "ms", "--k", "1", "--name", "cheap", "--json")
    with labelstore.open(path, readonly=True) as store:
        rows = np.flatnonzero(store.label_set("teacher").present)
        p, q = (store.label_set(name).recover(rows).astype(float) for name in ("teacher", "cheap"))
    (pair,) = run("stats", path, "--disagreement", "--json")["disagreement"]["pairs"]
    if pair["label_sets"][0] == "cheap":
        p, q = q, p
    m = (p + q) / 2
    js = ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2
    assert pair["kl"] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-5)
    assert pair["kl_reversed"] == pytest.approx((q * np.log(q / p)).sum(-1).mean(), rel=1e-5)
    assert pair["js"] == pytest.approx(js.mean(), rel=1e-5)
    assert pair["js_worst"] == pytest.approx(js.max(), rel=1e-5)
