"""The README's figures are those of the reports that it links to."""

import json
import re
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parents[2]
README = " ".join((ROOT / "README.md").read_text().split())


def report(name):
    return json.loads((ROOT / "benchmarks/reports" / f"{name}.json").read_text())


def loader():
    found = report("loader")
    return {
        r"takes ([\d.]+) times less CPU time per crop than FKD's": found["pixel_ratio_vs_fkd"],
        r"\((\d+) % of what decoding": 100 * found["pixel_share_of_floor"],
        r"at ([\d.]+) million crops/s": found["label_crops_per_s"] / 1e6,
    }


def scale():
    found = report("imagenet_scale")
    fkd = next(other for other in found["others"] if other["layout"].startswith("FKD's files"))
    return {
        r"takes ([\d.]+) bytes per crop in float16": found["bytes_per_crop_float16"],
        r"([\d.]+) with 8-bit probabilities": found["bytes_per_crop_uint8"],
        r"([\d.]+) where boxes follow": found["bytes_per_crop_seeded_uint8"],
        r"FKD's files take ([\d.]+)": fkd["bytes_per_crop"],
    }


def demo():
    found = report("demo")
    top1 = {name: mean(values) for name, values in found["top1"].items()}
    (claim,) = (one for one in found["claims"] if one["claim"].startswith("fkd"))
    return {
        r"ground truth, one crop per image \| ([\d.]+)": top1["ground truth, m=1"],
        r"ground truth, four crops per image \| ([\d.]+)": top1["ground truth, m=4"],
        r"four crops\*\* \| \*\*([\d.]+)": top1["fkd, m=4"],
        r"calibrated \(`ferkd`\), four crops \| ([\d.]+)": top1["ferkd, m=4"],
        r"ground-truth student by ([\d.]+)": claim["mean"],
        r"ground-truth student by [\d.]+ ± ([\d.]+) points": claim["ci95"],
    }


def papers():
    verdicts = Counter(one["verdict"] for one in report("papers"))
    return {
        r"for (\d+) claims": verdicts.total(),
        r"(\d+) hold": verdicts["holds"],
        r"(\d+) are reversed in this setting": verdicts["reversed in this setting"],
        r"(\d+) cannot be seen": verdicts["cannot be seen at this size"],
        r"(\d+) are undecided": verdicts["undecided"],
    }


@pytest.mark.parametrize("figures", [loader, scale, demo, papers], ids=lambda f: f.__name__)
def test_the_readme_says_what_the_reports_say(figures):
    for pattern, reported in figures().items():
        said = re.search(pattern, README)
        assert said, f"the README no longer says {pattern}"
        places = len(said[1].partition(".")[2])
        assert float(said[1]) == pytest.approx(reported, abs=0.51 * 10**-places), pattern
