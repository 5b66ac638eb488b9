"""Files that want to do harm (reliability R9): refused in one line with exit code 7, nothing run, nothing taken."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.exchange import foreign_files as foreign
from tests.exchange import malformed_files as malformed

ROOT = Path(__file__).parents[2]
FULL = 2000
"""Mutated files of the whole matrix; the ordinary run reads a twentieth of them."""


class Child:
    """A process that reads one file after the other, with 1 GiB and 10 s for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        for name in ("a/im.png", "b/other.png"):
            (self.images / name).parent.mkdir(parents=True)
            pixels = np.zeros((malformed.HEIGHT, malformed.WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(self.images / name)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.exchange.malformed_child"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        )

    def ask(
        self, mode: str, format_name: str, source: Path, *arguments: str
    ) -> tuple[int, list[str]]:
        question = [
            mode,
            format_name,
            str(source),
            str(self.images),
            str(self.folder / "s"),
            arguments,
        ]
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"{source}: the process died with {self.process.wait()}"
        code, lines, _ = json.loads(answer)
        return code, lines

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(300)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    child = Child(tmp_path_factory.mktemp("malformed"))
    yield child
    child.close()


def refused(answer: tuple[int, list[str]], name: str) -> None:
    code, lines = answer
    assert code == 7, f"{name}: exit code {code}, {lines}"
    told = [line for line in lines if not line.startswith(("import: ", "cannot be used: "))]
    assert len(told) == 1, f"{name}: {lines}"
    assert told[0].startswith("labelstore: ")
    assert told[0].isprintable(), told[0]


@pytest.fixture(scope="module")
def fkd_source(child):
    source = child.folder / "fkd"
    for name in ("a/im.tar", "b/other.tar"):
        (source / name).parent.mkdir(parents=True)
        (source / name).write_bytes(malformed.good())
    return source


ARGUMENTS = ("--compression", "ms", "--num-classes", str(malformed.C), "--temperature", "1")


def test_the_good_file_is_imported(child, fkd_source):
    code, lines = child.ask("command", "fkd", fkd_source, *ARGUMENTS, "--name", "good")
    assert code == 0, lines


@pytest.mark.slow
def test_crafted_fkd_files(child, fkd_source):
    """In the place of one image's file, some of all; each is read, a sixth of them by the command."""
    cases = malformed.fkd_cases(child.folder)
    assert len(cases) >= 60
    assert len({name for name, _ in cases}) == len(cases)
    stated = json.dumps({"compression": "ms", "num_classes": malformed.C})
    for number, (name, data) in enumerate(cases):
        (fkd_source / "b" / "other.tar").write_bytes(data)
        code, lines = child.ask("read", "fkd", fkd_source, stated)
        assert code == 7, f"{name}: {code} {lines}"
        if number % 12 == 0:
            refused(
                child.ask("command", "fkd", fkd_source, *ARGUMENTS, "--name", f"l{number}"), name
            )
        if number % 12 == 6:
            (fkd_source / "a" / "im.tar").write_bytes(data)
            refused(
                child.ask("command", "fkd", fkd_source, *ARGUMENTS, "--name", f"l{number}"), name
            )
            (fkd_source / "a" / "im.tar").write_bytes(malformed.good())
        assert not (child.folder / malformed.CANARY).exists(), f"{name} was run"
    (fkd_source / "b" / "other.tar").write_bytes(malformed.good())


def test_odd_files_in_the_place_of_one(child, fkd_source):
    path = fkd_source / "b" / "other.tar"
    path.unlink()
    refused(child.ask("command", "fkd", fkd_source, *ARGUMENTS, "--name", "gone"), "missing")
    path.mkdir()
    refused(child.ask("command", "fkd", fkd_source, *ARGUMENTS, "--name", "gone"), "folder")
    path.rmdir()
    path.symlink_to("/dev/zero")
    refused(child.ask("command", "fkd", fkd_source, *ARGUMENTS, "--name", "gone"), "endless")
    path.unlink()
    os.mkfifo(path)
    refused(child.ask("command", "fkd", fkd_source, *ARGUMENTS, "--name", "gone"), "pipe")
    path.unlink()
    path.write_bytes(malformed.good())


@pytest.mark.slow
def test_mutated_files_of_every_format(child, tmp_path, request):
    """Damaged at random: read as before or refused, never anything else."""
    scale = float(request.config.getoption("--stress-scale"))
    sources = samples(child, tmp_path)
    count = max(1, round(FULL * scale / 20 / len(sources)))
    ends = {0: 0, 7: 0}
    for name, (format_name, source, file, stated) in sources.items():
        data = file.read_bytes()
        for number in range(count):
            broken = malformed.mutated(data, number)
            is_torch_zip = file.suffix in (".tar", ".pt") and data.startswith(b"PK")
            if number % 2 and is_torch_zip:
                broken = malformed.mutated_pickle(data, number)
            file.write_bytes(broken)
            code, _ = child.ask("read", format_name, source, json.dumps(stated))
            assert code in ends, f"{name}, mutation {number}: exit code {code}"
            ends[code] += 1
        file.write_bytes(data)
    assert ends[7] > ends[0]
    assert not (child.folder / malformed.CANARY).exists()


def samples(child, folder):
    """A small valid source of every format: name -> (format, source, the file that is damaged, what is stated)."""
    made = foreign.Made(
        root=child.images,
        keys=["a/im.png", "b/other.png"],
        truth=np.array([0, 1]),
        sizes=np.tile([malformed.HEIGHT, malformed.WIDTH], (2, 1)),
        boxes=np.tile(malformed.GOOD_BOX, (2, 1, 1)).astype("u2"),
        flips=np.tile(malformed.FLIPS, (2, 1)),
        logits=np.random.default_rng(0).normal(size=(2, 4, malformed.C)).astype("f4"),
    )
    classes = {"num_classes": malformed.C}
    ms = {**classes, "compression": "ms"}
    maps = np.random.default_rng(1).normal(size=(2, malformed.C, 3, 3)).astype("f4")
    named = {"axis_order": "rows-first", **classes}
    dropped = {**classes, "drop_augmentations": True}
    augmented = {"drop_augmentations": True}
    folder_order = {"order": "folder"}
    drawn = {"order": "two-permutations", "sampler_seed": 42, "input_size": 32}
    found = {}
    for name, form in {
        "fkd": {},
        "fkd-tensors": {"tensors": True},
        "fkd-legacy": {"tensors": True, "_use_new_zipfile_serialization": False},
    }.items():
        source = foreign.write_fkd(made, folder / name, **form) / "train"
        found[name] = ("fkd", source, source / "b/other.tar", ms)
    source = foreign.write_maps(made, folder / "maps", maps, k=2)
    found["maps"] = ("relabel", source, source / "b/other.pt", named)
    source, _ = foreign.write_batches(made, folder / "sre2l", batch=2, mix="cutmix")
    found["sre2l"] = ("sre2l", source, source / "epoch_1/batch_0.tar", drawn)
    source, _ = foreign.write_batches(made, folder / "lpqld", "lpqld", batch=2, k=2)
    found["lpqld"] = ("lpqld", source, source / "batch_1.tar", classes)
    found["lpqld-json"] = ("lpqld", source, source / "sampler_indices_batch.json", classes)
    source = foreign.write_ml_dr(made, folder / "dr", k=2, mixing=True)
    found["ml-dr"] = ("ml-dr", source, source / "1.pth.tar", {**classes, **folder_order})
    found["ml-dr-config"] = (
        "ml-dr",
        source,
        source / "config.pth.tar",
        {**classes, **folder_order},
    )
    seeds = np.arange(8).reshape(2, 4)
    source = foreign.write_tinyvit(made, folder / "tv", seeds, k=2, ranks=1)
    for file in ("rank0-values.bin", "rank0-keys.txt"):
        found[file] = ("tinyvit", source, source / "logits_top2_epoch1" / file, dropped)
    source = foreign.write_torchdistill(made, folder / "td")
    found["torchdistill"] = (
        "torchdistill",
        source,
        source / "0001/0001.pt",
        {"whole_images": True, **folder_order},
    )
    for compressed in (False, True):
        path = folder / f"n{compressed}.npz"
        foreign.write_npz(
            made, path, compressed=compressed, prob=made.probs, box=made.boxes, flip=made.flips
        )
        found[path.name] = ("npz", path, path, {})
    path = foreign.write_parquet(made, folder / "l.parquet", k=2)
    found["parquet"] = ("parquet", path, path, classes)
    for half, ending in ((False, "npz"), (True, "pth.gz")):
        source = foreign.write_datacompdr(made, folder / ending, half=half, unpacked=True)
        for file in (f"other.{ending}", "other.paug.json"):
            found[f"datacompdr-{ending}-{file}"] = ("datacompdr", source, source / file, augmented)
    source = foreign.write_datacompdr(made, folder / "shards")
    found["datacompdr-shard"] = ("datacompdr", source, source / "00000000.tar", augmented)
    return found


def test_every_sample_is_read_before_it_is_damaged(child, tmp_path):
    for name, (format_name, source, _, stated) in samples(child, tmp_path).items():
        code, lines = child.ask("read", format_name, source, json.dumps(stated))
        assert code == 0, f"{name}: {lines}"


def test_crafted_archives_of_numpy(child, tmp_path):
    for name, data in malformed.npz_cases(child.folder):
        path = tmp_path / "l.npz"
        path.write_bytes(data)
        code, _ = child.ask("read", "npz", path, json.dumps({"whole_images": True}))
        assert code == 7, name
        assert not (child.folder / malformed.CANARY).exists(), name


def test_crafted_tables_of_indices(child, tmp_path):
    sources = samples(child, tmp_path)
    _, source, path, stated = sources["lpqld-json"]
    for text in (
        malformed.json_bomb(),
        "[]",
        '{"0": "abc"}',
        '{"0": [1e99, 2]}',
        '{"0": [-1, 0], "1": [0, 1], "2": [0, 1], "3": [0, 1]}',
        '{"0": [0, 99], "1": [0, 1], "2": [0, 1], "3": [0, 1]}',
        '{"0": [0, 1]}',
        '{"0": [' + "9" * 5000 + "]}",
    ):
        path.write_text(text)
        code, _ = child.ask("read", "lpqld", source, json.dumps(stated))
        assert code == 7, text[:60]


def test_the_reference_agrees_that_the_harm_is_real(tmp_path):
    """The canary works: what refuses the files is the reader, not the file."""
    folder = tmp_path
    name, data = next(iter(malformed.harmful(folder)))
    assert name == "os-system-2"
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        pickle.loads(file.read("archive/data.pkl"))
    assert (folder / malformed.CANARY).exists()
