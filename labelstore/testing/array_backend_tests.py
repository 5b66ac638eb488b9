"""What every array backend must do, as a test class to inherit: set `backend` and pytest does the rest."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from labelstore.arrays import ArrayBackend, ArraySpec, open_arrays
from labelstore.arrays.durable import StagedFiles
from labelstore.arrays.shard_files import ShardFile
from labelstore.errors import DamagedShard, NotGenerated, UsageError

IMAGES, CROPS = 10, 12
"""Two whole image blocks of 4 and one of 2; two crop shards of three chunk columns."""


def field_spec(
    name: str,
    dtype: str,
    fill: float,
    row: tuple[int, ...] = (),
    **options: Any,  # noqa: ANN401 - passed on as they are
) -> ArraySpec:
    """The spec of one small array of the label set "r50"."""
    return ArraySpec(
        path=f"labels/r50/{name}",
        dtype=dtype,
        shape=(IMAGES, CROPS, *row),
        shard=(4, 6, *row),
        chunk=(4, 2, *row),
        dimensions=("image", "crop", *(f"{name}_{axis}" for axis in range(len(row)))),
        fill=fill,
        **options,
    )


SPECS = (
    field_spec("class_id", "<u2", 65535, (5,), row_axes_first=True),
    field_spec("probability", "<f2", float("nan"), (5,), shuffle="shuffle"),
    field_spec("tail", "u1", 255, attributes={"scale": "log2", "steps": [1, 2]}),
    field_spec("escape", "<u4", 2**32 - 1, (3,), may_be_empty=True, shuffle="noshuffle"),
    # one row per image and crop shard, as a class table has
    ArraySpec(
        path="labels/r50/table",
        dtype="<u2",
        shape=(IMAGES, 2 * 7),
        shard=(4, 7),
        chunk=(4, 7),
        dimensions=("image", "rank"),
        fill=65535,
    ),
)


def random_arrays(
    specs: Sequence[ArraySpec], rng: np.random.Generator, images: int = 4
) -> dict[str, NDArray[Any]]:
    """Valid arrays of one shard with `images` images; the `escape` array has one entry."""
    arrays: dict[str, NDArray[Any]] = {}
    for spec in specs:
        shape = (images, *spec.shard[1:])
        if spec.dtype.startswith("<f"):
            arrays[spec.name] = rng.random(shape).astype(spec.dtype)
        else:
            arrays[spec.name] = rng.integers(0, 200, shape).astype(spec.dtype)
        if spec.may_be_empty:
            arrays[spec.name][...] = spec.fill
            arrays[spec.name][0, 0] = rng.integers(2**31)
    return arrays


def draw_array(data: st.DataObject) -> tuple[ArraySpec, NDArray[Any], NDArray[Any]]:
    """Any spec that makes sense, an array for one shard of it, and what reading must give."""
    dtype = data.draw(st.sampled_from(["u1", "<u2", "<u4", "<f2", "<f4"]))
    fill = float("nan") if dtype.startswith("<f") else np.iinfo(dtype).max
    row = data.draw(st.sampled_from([(), (1,), (5,), (2, 3), (70,)]))
    spec = field_spec(
        "field",
        dtype,
        fill,
        row,
        row_axes_first=bool(row) and data.draw(st.booleans()),
        may_be_empty=data.draw(st.booleans()),
        shuffle=data.draw(st.sampled_from(["bitshuffle", "shuffle", "noshuffle"])),
        level=data.draw(st.integers(1, 9)),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    images = data.draw(st.integers(1, spec.shard[0]))
    values = rng.integers(0, 256, (images, *spec.shard[1:])).astype(dtype)
    values[:, data.draw(st.integers(0, spec.shard[1])) :] = np.array(fill, dtype)
    expected = np.full(spec.shard, fill, dtype)
    expected[:images] = values
    return spec, values, expected


def put_shard(
    backend: ArrayBackend,
    specs: Sequence[ArraySpec],
    index: tuple[int, int],
    arrays: Mapping[str, NDArray[Any]],
) -> list[ShardFile]:
    """Encode one shard, write it durably, return what the ledger would hold."""
    with StagedFiles() as staged:
        files = backend.encode_shard(specs, index, arrays)
        for file in files:
            staged.stage(backend.root / file.record.key, file.data)
        staged.publish()
    return [file.record for file in files]


def _read_in_child(backend: ArrayBackend, files: list[ShardFile], expected: bytes) -> bool:
    return backend.read(SPECS[0], (0, 0), files).tobytes() == expected


class ArrayBackendTests:
    """Laws of `ArrayBackend`. A subclass names its backend and may narrow what damage looks like."""

    backend: ClassVar[str]
    """Value of `--backend`."""

    notices_every_flip: ClassVar[bool]
    """True where no byte of a file is outside the chunks and the index that a full read checks."""

    @pytest.fixture
    def arrays(self, tmp_path: Path) -> ArrayBackend:
        """An empty array folder."""
        return open_arrays(tmp_path / "in1k.labels" / "arrays", self.backend)

    @pytest.fixture
    def shard(self, arrays: ArrayBackend) -> list[ShardFile]:
        """Files of shard (0, 0), on disk."""
        return put_shard(arrays, SPECS, (0, 0), random_arrays(SPECS, np.random.default_rng(0)))

    @pytest.fixture(params=["first", "last"])
    def victim(
        self, request: pytest.FixtureRequest, arrays: ArrayBackend, shard: list[ShardFile]
    ) -> Path:
        """A file to damage."""
        return arrays.root / shard[0 if request.param == "first" else -1].key

    # -- both directions ---------------------------------------------------------------------------

    def test_what_is_written_is_read(self) -> None:
        """Any dtype, row, order, shuffle and columns."""

        # inside, because hypothesis refuses a law that several classes inherit
        @settings(max_examples=40, deadline=None)
        @given(data=st.data())
        def law(data: st.DataObject) -> None:
            spec, values, expected = draw_array(data)
            columns = data.draw(st.sampled_from([range(3), range(1), range(1, 3), range(2, 0, -1)]))
            wanted = [expected[:, 2 * column : 2 * column + 2] for column in columns]
            with tempfile.TemporaryDirectory() as folder:
                backend = open_arrays(Path(folder), self.backend)
                files = put_shard(backend, [spec], (2, 1), {"field": values})
                if not files:
                    assert spec.may_be_empty
                    return
                np.testing.assert_array_equal(backend.read(spec, (2, 1), files), expected)
                part = backend.read(spec, (2, 1), files, columns)
                for column, due in zip(
                    backend.columns(spec, (2, 1), files, columns), wanted, strict=True
                ):
                    np.testing.assert_array_equal(column, due)
            np.testing.assert_array_equal(part, np.concatenate(wanted, axis=1))
            assert part.dtype == np.dtype(spec.dtype)
            assert part.flags.c_contiguous

        law()

    def test_border_shard_is_padded_with_sentinels(self, arrays: ArrayBackend) -> None:
        """The last image block has fewer images; its rows beyond them read as sentinels."""
        values = random_arrays(SPECS, np.random.default_rng(1), images=2)
        files = put_shard(arrays, SPECS, (2, 1), values)
        for spec in SPECS:
            read = arrays.read(spec, (2, 1), files)
            assert read.shape == spec.shard
            np.testing.assert_array_equal(read[:2], values[spec.name])
            np.testing.assert_array_equal(read[2:], np.full_like(read[2:], spec.fill))

    def test_equal_arrays_give_equal_bytes(self, arrays: ArrayBackend) -> None:
        """A shard made twice, by two workers, is one shard."""
        values = random_arrays(SPECS, np.random.default_rng(2))
        assert arrays.encode_shard(SPECS, (1, 0), values) == arrays.encode_shard(
            SPECS, (1, 0), values
        )

    def test_encoding_touches_no_disk_and_records_the_truth(self, arrays: ArrayBackend) -> None:
        """Key, size, digest and one checksum per chunk."""
        files = arrays.encode_shard(SPECS, (0, 1), random_arrays(SPECS, np.random.default_rng(3)))
        assert not arrays.root.exists()
        chunks: dict[str, tuple[int | None, ...]] = {}
        for file in files:
            assert file.record.size == len(file.data)
            assert file.record.sha256 == sha256(file.data).hexdigest()
            assert ".." not in file.record.key
            assert not file.record.key.startswith("/")
            chunks.update(file.record.chunks)
        assert {path: len(sums) for path, sums in chunks.items()} == {
            "labels/r50/class_id": 3,
            "labels/r50/probability": 3,
            "labels/r50/tail": 3,
            "labels/r50/escape": 3,
            "labels/r50/table": 1,
        }
        assert chunks["labels/r50/escape"][1:] == (None, None)
        assert len({file.record.key for file in files}) == len(files)

    def test_an_empty_array_reads_as_sentinels(self, arrays: ArrayBackend) -> None:
        """Nothing but sentinels where that is legal takes no chunk."""
        values = random_arrays(SPECS, np.random.default_rng(4))
        values["escape"][...] = 2**32 - 1
        files = put_shard(arrays, SPECS, (0, 0), values)
        assert all(
            checksum is None
            for record in files
            for checksum in record.chunks.get("labels/r50/escape", ())
        )
        read = arrays.read(SPECS[3], (0, 0), files)
        np.testing.assert_array_equal(read, values["escape"])
        assert arrays.verify(SPECS, (0, 0), files, "deep") == []

    def test_an_array_of_sentinels_is_stored_where_empty_is_not_legal(
        self, arrays: ArrayBackend
    ) -> None:
        """A block of bad images differs from a hole."""
        values = random_arrays(SPECS, np.random.default_rng(5))
        values["tail"][...] = 255
        files = arrays.encode_shard(SPECS, (0, 0), values)
        (tail,) = [
            f.record.chunks["labels/r50/tail"]
            for f in files
            if "labels/r50/tail" in f.record.chunks
        ]
        assert None not in tail

    def test_arguments_that_make_no_sense(
        self, arrays: ArrayBackend, shard: list[ShardFile]
    ) -> None:
        """UsageError, one line."""
        values = random_arrays(SPECS, np.random.default_rng(6))
        wrong: list[dict[str, Any]] = [
            {**values, "tail": values["tail"].astype("<u2")},
            {**values, "tail": np.zeros((5, 6), "u1")},
            {**values, "tail": np.zeros((4, 6, 1), "u1")},
            {**values, "extra": values["tail"]},
            {name: array for name, array in values.items() if name != "tail"},
        ]
        for given_arrays in wrong:
            with pytest.raises(UsageError):
                arrays.encode_shard(SPECS, (0, 0), given_arrays)
        for columns in (range(2, 4), range(-1, 1)):
            with pytest.raises(UsageError):
                arrays.read(SPECS[0], (0, 0), shard, columns)

    # -- attributes --------------------------------------------------------------------------------

    def test_attributes_come_back(self, arrays: ArrayBackend) -> None:
        """The store's uuid and format version live there."""
        given_attributes: dict[str, dict[str, Any]] = {
            "": {"uuid": "u", "format": 1},
            "labels/r50": {"teacher": "t"},
        }
        self._write_metadata(arrays, given_attributes)
        assert arrays.attributes() == given_attributes[""]
        assert arrays.attributes("labels/r50") == given_attributes["labels/r50"]

    def test_metadata_is_reproducible(self, arrays: ArrayBackend) -> None:
        """Intent rows compare digests."""
        assert arrays.metadata(SPECS, {"": {"a": 1}}) == arrays.metadata(SPECS, {"": {"a": 1}})

    @pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b'{"attributes": 3}', b"\xff"])
    def test_damaged_attributes(self, arrays: ArrayBackend, content: bytes | None) -> None:
        """Missing or unreadable metadata is damage, in one line."""
        for path in self._write_metadata(arrays, {"": {}}):
            path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(DamagedShard) as error:
            arrays.attributes()
        assert "\n" not in str(error.value)

    def _write_metadata(
        self, arrays: ArrayBackend, attributes: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[Path]:
        files = arrays.metadata(SPECS, attributes)
        with StagedFiles() as staged:
            for key, data in files.items():
                staged.stage(arrays.root / key, data)
            staged.publish()
        return (arrays.root / key for key in files)

    # -- damage ------------------------------------------------------------------------------------

    def test_flipped_bits(self, arrays: ArrayBackend, shard: list[ShardFile]) -> None:
        """No flip changes what is read; `verify` notices every one."""
        expected = [arrays.read(spec, (0, 0), shard) for spec in SPECS]
        rng = np.random.default_rng(7)
        messages: list[str] = []
        for number in range(120):
            path = arrays.root / shard[number % len(shard)].key
            data = path.read_bytes()
            bit = int(rng.integers(8 * len(data)))
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            try:
                for spec, array in zip(SPECS, expected, strict=True):
                    np.testing.assert_array_equal(arrays.read(spec, (0, 0), shard), array)
            except DamagedShard as error:
                messages.append(str(error))
            (problem,) = arrays.verify(SPECS, (0, 0), shard, "digest")
            assert arrays.root / problem.key == path
            path.write_bytes(data)
        assert len(messages) == 120 or not self.notices_every_flip
        assert messages
        assert all(str(arrays.root) in message for message in messages)
        assert arrays.verify(SPECS, (0, 0), shard, "deep") == []

    @pytest.mark.parametrize(
        "damage", ["missing", "empty", "truncated", "longer", "folder", "link", "pipe", "zeros"]
    )
    def test_damaged_file(
        self, arrays: ArrayBackend, shard: list[ShardFile], victim: Path, damage: str
    ) -> None:
        """The error names the file, the images and the command, in one line."""
        data = victim.read_bytes()
        victim.unlink()
        match damage:
            case "empty":
                victim.write_bytes(b"")
            case "truncated":
                victim.write_bytes(data[:-1])
            case "longer":
                victim.write_bytes(data + b"\0")
            case "folder":
                victim.mkdir()
            case "link":
                elsewhere = victim.with_name("elsewhere")
                elsewhere.write_bytes(data)
                victim.symlink_to(elsewhere)
            case "pipe":
                os.mkfifo(victim)
            case "zeros":
                victim.write_bytes(bytes(len(data)))
        self._assert_damaged(arrays, shard, victim, "digest" if damage == "zeros" else "fast")

    def test_stale_file(self, arrays: ArrayBackend, shard: list[ShardFile], victim: Path) -> None:
        """A whole shard of the same place with other labels."""
        old = victim.read_bytes()
        changed = random_arrays(SPECS, np.random.default_rng(8))
        files = put_shard(arrays, SPECS, (0, 0), changed)
        victim.write_bytes(old)
        self._assert_damaged(arrays, files, victim, "digest")

    def test_swapped_files(self, arrays: ArrayBackend, shard: list[ShardFile]) -> None:
        """Two whole shards in each other's place; values differ, sizes may not."""
        other = put_shard(arrays, SPECS, (1, 0), random_arrays(SPECS, np.random.default_rng(9)))
        for mine, theirs in zip(shard, other, strict=True):
            first, second = arrays.root / mine.key, arrays.root / theirs.key
            one, two = first.read_bytes(), second.read_bytes()
            first.write_bytes(two)
            second.write_bytes(one)
            self._assert_damaged(arrays, shard, first, "digest")
            self._assert_damaged(arrays, other, second, "digest", (1, 0))
            first.write_bytes(one)
            second.write_bytes(two)

    def test_what_the_ledger_does_not_say(
        self, arrays: ArrayBackend, shard: list[ShardFile]
    ) -> None:
        """No row is NotGenerated; a row that leaves out an array or a chunk is damage."""
        with pytest.raises(NotGenerated, match="images 0 to 3"):
            arrays.read(SPECS[0], (0, 0), [])
        stranger = replace(shard[0], key="labels/r50/other")
        with pytest.raises(DamagedShard, match="images 0 to 3"):
            arrays.read(SPECS[0], (0, 0), [stranger])
        assert arrays.verify(SPECS, (0, 0), [*shard, stranger], "fast")
        fewer = [
            replace(record, chunks={path: sums[:-1] for path, sums in record.chunks.items()})
            for record in shard
        ]
        with pytest.raises(DamagedShard):
            arrays.read(SPECS[0], (0, 0), fewer)

    def test_verify_sees_files_of_nobody(self, arrays: ArrayBackend) -> None:
        """A file in a shard's place that the ledger does not name."""
        put_shard(arrays, SPECS, (0, 0), random_arrays(SPECS, np.random.default_rng(10)))
        assert arrays.verify(SPECS, (0, 0), [], "fast")

    def _assert_damaged(
        self,
        arrays: ArrayBackend,
        files: list[ShardFile],
        path: Path,
        level: Literal["fast", "digest", "deep"],
        index: tuple[int, int] = (0, 0),
    ) -> None:
        key = path.relative_to(arrays.root).as_posix()
        (record,) = [record for record in files if record.key == key]
        for spec in SPECS:
            if spec.path in record.chunks:
                with pytest.raises(DamagedShard) as error:
                    arrays.read(spec, index, files)
                first = 4 * index[0]
                for part in (str(path), f"images {first} to {first + 3}", "labelstore.repair"):
                    assert part in str(error.value)
                assert "\n" not in str(error.value)
        (problem,) = arrays.verify(SPECS, index, files, level)
        assert problem.key == key
        assert problem.in_ledger

    # -- readers side by side ----------------------------------------------------------------------

    def test_threads(self, arrays: ArrayBackend, shard: list[ShardFile]) -> None:
        """Reads do not disturb each other."""
        expected = arrays.read(SPECS[0], (0, 0), shard).tobytes()
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(_read_in_child, arrays, shard, expected) for _ in range(200)]
            assert all(job.result() for job in jobs)

    def test_threads_that_write(self, arrays: ArrayBackend) -> None:
        """Shards may be encoded side by side, and equal arrays give equal bytes all the same."""
        given = random_arrays(SPECS, np.random.default_rng(0), 4)

        def encoded(_: int) -> list[bytes]:
            return [file.data for file in arrays.encode_shard(SPECS, (0, 0), given)]

        expected = encoded(0)
        with ThreadPoolExecutor(8) as pool:
            assert all(found == expected for found in pool.map(encoded, range(100)))

    @pytest.mark.parametrize("start", ["fork", "spawn"])
    def test_processes(self, arrays: ArrayBackend, shard: list[ShardFile], start: str) -> None:
        """A backend that was used before crosses into worker processes."""
        expected = arrays.read(SPECS[0], (0, 0), shard).tobytes()
        context = multiprocessing.get_context(start)
        with context.Pool(2) as pool:
            jobs = [pool.apply_async(_read_in_child, (arrays, shard, expected)) for _ in range(20)]
            assert all(job.get(timeout=600) for job in jobs)

    def test_a_copied_store_reads_the_same(
        self, arrays: ArrayBackend, shard: list[ShardFile], tmp_path: Path
    ) -> None:
        """Nothing in the files depends on where they lie."""
        copy = shutil.copytree(arrays.root, tmp_path / "copy")
        moved = open_arrays(Path(copy), self.backend)
        for spec in SPECS:
            np.testing.assert_array_equal(
                moved.read(spec, (0, 0), shard), arrays.read(spec, (0, 0), shard)
            )
        assert pickle.loads(pickle.dumps(moved)) == moved
