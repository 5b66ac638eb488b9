"""The scale benchmarks at toy size: every promised key, finite ratios, other layouts read back what was written."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import imagenet_scale, scale_measures
from benchmarks.scale_report import TARGETS, markdown, verdict

IN_A_PROCESS = imagenet_scale._in_a_process
ROOT = Path(__file__).parents[2]
KEYS = [
    "images",
    "crops",
    "label_model",
    "distinct_ids_per_image_mean",
    "bytes_per_crop_float16",
    "bytes_per_crop_uint8",
    "bytes_per_crop_seeded_uint8",
    "write_crops_per_s",
    "pass_seconds",
    "pass_mb",
    "pass_ratio_vs_fkd",
    "draw_file_seconds",
    "stats_ratio_vs_decode",
    "calibrate_ratio_vs_decode",
    "random_image_ms",
]


def here(name, store, label_set):
    """One measure in this process: seven interpreters would take most of the time."""
    if name == "open":
        return IN_A_PROCESS(name, store, label_set)
    return scale_measures.MEASURES[name](store, label_set)


@pytest.mark.slow
def test_the_scale_run_ends_with_every_promised_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(imagenet_scale, "_in_a_process", here)
    options = ["--images", "100", "--crops", "20", "--compared-images", "20", "--json"]
    monkeypatch.setattr(sys, "argv", ["imagenet_scale", *options, "--work", str(tmp_path)])
    imagenet_scale.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(KEYS) <= result.keys()
    assert (result["images"], result["crops"], result["label_model"]) == (100, 20, "reference/2")
    for key in set(KEYS) - {"label_model"}:
        assert math.isfinite(result[key]), key
        assert result[key] > 0 or key == "pass_mb", key
    stored, eight, seeded = (
        result["bytes_per_crop"][n] for n in ("float16", "uint8", "seeded_uint8")
    )
    assert {"box", "flip"} <= stored.keys()
    assert not {"box", "flip"} & seeded.keys()
    for parts in (stored, eight, seeded):
        whole = sum(size for name, size in parts.items() if name != "total")
        assert parts["total"] == pytest.approx(whole, abs=0.01)
    disk = sum(p.stat().st_size for p in (tmp_path / "seeded.labels").rglob("*") if p.is_file())
    assert seeded["total"] * 100 * 20 == pytest.approx(disk, rel=0.01), (
        "bytes that were not counted"
    )
    page = markdown(result)
    assert all(target.words in page for target in TARGETS)
    assert "first 20 images" in page


def test_the_line_through_two_stores_gives_both_back():
    def seconds(decode):
        return {"seconds": 0.3 + 1.7 * decode, "decode_seconds": decode}

    found = imagenet_scale.growth(seconds(0.9), seconds(0.02))
    assert found["ratio_of_further_crops"] == pytest.approx(1.7)
    assert found["fixed_seconds"] == pytest.approx(0.3)


def test_a_verdict_says_by_how_much():
    by_key = {target.key: target for target in TARGETS}
    assert verdict(by_key["pass_ratio_vs_fkd"], 200, 10, 200) == "**met**"
    assert "2.00 times" in verdict(by_key["pass_ratio_vs_fkd"], 50, 10, 200)
    assert verdict(by_key["pass_seconds"], 1.2, 1_281_167, 200) == "**met**"
    assert verdict(by_key["pass_seconds"], 1.2, 640_000, 200) != "**met**", (
        "half the images, half the time"
    )
    assert verdict(by_key["random_image_ms"], 19, 10, 200) == "**met**"


@pytest.mark.sample(1)
@pytest.mark.parametrize("option", ["--images", "--compared-images"])
def test_nonsense_is_refused(option):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.imagenet_scale", option, "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "at least 1" in done.stderr


@pytest.mark.slow
def test_real_networks_keep_the_laws_of_the_eight_bit_form():
    from benchmarks import real_tail

    result = real_tail.run(num_images=8, num_crops=10, steps=4)
    assert set(result["teachers"]) == {"numbers", "places", "label model reference/2"}
    for teacher in result["teachers"].values():
        assert teacher["uint8_kl_mean"] <= 1e-4
        assert teacher["uint8_kl_worst"] <= 1e-3
        assert teacher["uint8_max_probability_error"] <= 0.01
        for row in teacher["kl"].values():
            assert all(math.isfinite(value) for value in row.values())
            assert row["uint8"] == pytest.approx(row["float32"], rel=0.05)
            assert row["float16"] == pytest.approx(row["float32"], rel=0.1)
    page = real_tail.markdown(result)
    assert "places" in page
