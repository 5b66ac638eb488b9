"""R9: label files of other projects, crafted and mutated: refused in one line, in bounds of memory and time.

The files are those of tests/exchange, whose own tests take a sample of them in `make test`; here are all, and counted.
Each is read by a child with 1 GiB and 10 s, which must outlive it.
"""

import json

import pytest

from tests.exchange import malformed_files as malformed
from tests.exchange.test_crafted_label_files import (
    ARGUMENTS,
    FULL,
    child,
    fkd_source,
    refused,
    samples,
)

__all__ = ["child", "fkd_source"]
STATED = json.dumps({"compression": "ms", "num_classes": malformed.C})


@pytest.fixture(autouse=True)
def all_of_them(scale):
    if scale < 2:
        pytest.skip("tests/exchange reads a sample in the same command")


def test_every_crafted_file(child, fkd_source, tmp_path, matrix):
    """By the reader and by the command: exit code 7, one line, nothing of it was run."""
    path = fkd_source / "b" / "other.tar"
    count = 0
    for number, (name, data) in enumerate(malformed.fkd_cases(child.folder)):
        path.write_bytes(data)
        code, lines = child.ask("read", "fkd", fkd_source, STATED)
        assert code == 7, f"{name}: {code} {lines}"
        refused(child.ask("command", "fkd", fkd_source, *ARGUMENTS, "--name", f"c{number}"), name)
        count += 1
    path.write_bytes(malformed.good())
    archive = tmp_path / "l.npz"
    for name, data in malformed.npz_cases(child.folder):
        archive.write_bytes(data)
        code, lines = child.ask("read", "npz", archive, json.dumps({"whole_images": True}))
        assert code == 7, f"{name}: {code} {lines}"
        count += 1
    assert not (child.folder / malformed.CANARY).exists()
    matrix.record("R9", crafted=count, refused=count, crashes=0)


def test_mutated_files_of_every_format(child, tmp_path, scale, matrix):
    """Damaged at random: read as before or refused, never anything else."""
    sources = samples(child, tmp_path)
    each = -(-round(FULL * scale / 20) // len(sources))
    ends = {0: 0, 7: 0}
    for name, (format_name, source, file, stated) in sources.items():
        data = file.read_bytes()
        for number in range(each):
            broken = malformed.mutated(data, number)
            if number % 2 and file.suffix in (".tar", ".pt") and not name.endswith("legacy"):
                broken = malformed.mutated_pickle(data, number)
            file.write_bytes(broken)
            code, lines = child.ask("read", format_name, source, json.dumps(stated))
            assert code in ends, f"{name}, mutation {number}: {code} {lines}"
            ends[code] += 1
        file.write_bytes(data)
    assert not (child.folder / malformed.CANARY).exists()
    matrix.record("R9", mutated=sum(ends.values()), refused=ends[7], crashes=0)
