"""The GPU's benchmark runs here as a whole at toy size, keeps what it has, and goes on after a part that fails."""

import json

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_every_part_runs_and_is_reported(tmp_path):
    toy = [
        "--device",
        "cpu",
        "--toy",
        "--workers",
        "2",
        "--minutes",
        "60",
        "--output",
        str(tmp_path),
    ]
    assert gpu.main(toy) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert list(record["parts"]) == list(gpu.PARTS)
    for name, found in record["parts"].items():
        assert "not_run" not in found, name
        assert len(found) > 1, name
    parts = record["parts"]
    assert "skipped" in parts["tests"]["tests marked gpu"]["result"]
    assert parts["labels"]["pixels"]["largest"] <= 2
    assert parts["labels"]["decoding, torchcodec, 4:4:4"]["taken"]
    assert "crops_per_s" in parts["labels"]["resnet18, bf16, decoded on the device"]
    assert "crops_per_s" in parts["training"]["our threads, decoded on the device"]
    assert parts["labels"]["resnet18, float32"]["largest_difference_from_cpu_labels"] == 0
    (ranks,) = [found for name, found in parts["ranks"].items() if name != "seconds"]
    assert ranks["largest_difference"] < 1e-5 < ranks["largest_gradient"]
    (resumed,) = [found for name, found in parts["resume"].items() if name != "seconds"]
    assert resumed["largest_difference_of_weights"] == 0
    page = (tmp_path / "gpu.md").read_text()
    assert all(f"## {name}" in page for name in gpu.PARTS)
    assert "the figures mean nothing" in page


def test_what_was_measured_is_kept_when_a_part_fails(tmp_path, monkeypatch):
    def works(job):
        yield "one", {"crops_per_s": 1.0}
        assert "one" in (tmp_path / "gpu.json").read_text()
        raise RuntimeError("out of memory")

    def later(job):
        yield "two", {"crops_per_s": 2.0}

    monkeypatch.setattr(gpu, "PARTS", {"works": works, "later": later, "left": later})
    arguments = ["--device", "cpu", "--toy", "--output", str(tmp_path), "--skip", "left"]
    assert gpu.main(arguments) == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["works"]["one"] == {"crops_per_s": 1.0}
    assert parts["works"]["failed"] == "RuntimeError: out of memory"
    assert parts["later"]["two"] == {"crops_per_s": 2.0}
    assert parts["left"] == {"not_run": "skipped"}


def test_no_measurement_begins_after_the_minutes(tmp_path, monkeypatch):
    def part(job):
        yield "one", {}

    monkeypatch.setattr(gpu, "PARTS", {"part": part})
    assert gpu.main(["--device", "cpu", "--toy", "--output", str(tmp_path), "--minutes", "0"]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]["part"]
    assert found == {"not_run": "the minutes were over"}
