"""Objects under one prefix of an S3-compatible bucket, whole or by range; what goes wrong is one line.

Endpoint, region and credentials are as for every AWS tool: AWS_ENDPOINT_URL, AWS_PROFILE, AWS_ACCESS_KEY_ID ...
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from labelstore.arrays.sharding import Damage
from labelstore.errors import StorageError, StoreNotFound, UsageError
from labelstore.shard_files import ShardFile

UNSIGNED_VARIABLE = "LABELSTORE_S3_UNSIGNED"
"""Set to read a public bucket without credentials."""

CONNECT_SECONDS = 5
READ_SECONDS = 30
ATTEMPTS = 3
SMALL_BYTES = 16 << 10
"""Pieces up to this size are kept: the indexes of shards, which every pass asks for again."""
KEPT_PIECES = 20_000

_DENIED = {
    "403",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
}
_MISSING = {"404", "NoSuchKey"}


class Missing(Exception):
    """There is no object of that key."""


class Bucket:
    """What lies under s3://BUCKET/PREFIX. Threads may share it; another process makes its own connection."""

    def __init__(self, url: str) -> None:
        match = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,62})(?:/(.*?))?/*", url)
        prefix = "" if match is None or match[2] is None else match[2]
        if match is None or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
            raise UsageError(f"{url}: give a frozen store in object storage as s3://BUCKET/PATH")
        _need_boto3()
        self.url = f"s3://{match[1]}/{prefix}".rstrip("/")
        self._bucket, self._prefix = match[1], f"{prefix}/" if prefix else ""
        self._clients: dict[int, Any] = {}
        self._pieces: OrderedDict[tuple[str, int, int], tuple[bytes, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])  # type: ignore[misc]

    def read(self, key: str, *, most: int) -> bytes:
        """A whole object of at most `most` bytes. Missing, StorageError, StoreNotFound for the bucket."""
        with self._translated(key):
            found = self._client().get_object(Bucket=self._bucket, Key=self._prefix + key)
            if found["ContentLength"] > most:
                raise StorageError(
                    f"{self.url}/{key}: has {found['ContentLength']:,} bytes, {most:,} may be"
                )
            data: bytes = found["Body"].read()
            return data

    def pieces(self, key: str, piece_bytes: int = 8 << 20) -> Iterator[bytes]:
        """A whole object piece by piece."""
        with self._translated(key):
            found = self._client().get_object(Bucket=self._bucket, Key=self._prefix + key)
            yield from found["Body"].iter_chunks(piece_bytes)

    def read_range(self, key: str, offset: int, size: int) -> tuple[bytes, int]:
        """Up to `size` bytes of an object from `offset` on, and the size of the whole object."""
        place = (key, offset, size)
        with self._lock:
            if place in self._pieces:
                self._pieces.move_to_end(place)
                return self._pieces[place]
        for attempt in range(ATTEMPTS):
            try:
                with self._translated(key):
                    found = self._client().get_object(
                        Bucket=self._bucket,
                        Key=self._prefix + key,
                        Range=f"bytes={offset}-{offset + size - 1}",
                    )
                    piece = (found["Body"].read(), _whole_size(found))
                break
            except StorageError:
                if attempt == ATTEMPTS - 1:
                    raise
        if size <= SMALL_BYTES:
            with self._lock:
                self._pieces[place] = piece
                if len(self._pieces) > KEPT_PIECES:
                    self._pieces.popitem(last=False)
        return piece

    def _client(self) -> Any:  # noqa: ANN401 - a client that boto3 makes at run time
        with self._lock:
            # not carried over a fork: two processes would read from one connection
            if os.getpid() not in self._clients:
                self._clients = {os.getpid(): _client()}
            return self._clients[os.getpid()]

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """What boto3 raises as one of ours; Missing for an object that is not there."""
        from botocore import exceptions

        where = f"{self.url}/{key}"
        try:
            yield
        except exceptions.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _MISSING:
                raise Missing(where) from None
            if code == "NoSuchBucket":
                raise StoreNotFound(
                    f"{self.url}: there is no bucket {self._bucket} at {_endpoint()}: check the name and "
                    "AWS_ENDPOINT_URL"
                ) from None
            if code in ("416", "InvalidRange"):
                raise Damage("is shorter than the ledger says") from None
            if code in _DENIED:
                raise StorageError(
                    f"{where}: access denied ({code}): check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID)"
                ) from None
            raise StorageError(f"{where}: cannot be read ({_line(error)})") from None
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
            raise StorageError(
                f"{where}: no credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for "
                f"a public bucket {UNSIGNED_VARIABLE}=1"
            ) from None
        except exceptions.EndpointConnectionError:
            raise StorageError(
                f"{where}: {_endpoint()} does not answer: check the network and AWS_ENDPOINT_URL"
            ) from None
        except (exceptions.BotoCoreError, exceptions.HTTPClientError, ValueError) as error:
            raise StorageError(f"{where}: cannot be read ({_line(error)})") from None


class S3Folder:
    """The array folder of a frozen store in a bucket: a `RangeSource`."""

    def __init__(self, bucket: Bucket, folder: str) -> None:
        self._bucket, self._folder = bucket, folder
        self.url = f"{bucket.url}/{folder}"

    @contextmanager
    def opened(self, key: str, record: ShardFile) -> Iterator[_S3File]:
        """A reader of one file; it asks for nothing before it is read from."""
        yield _S3File(self._bucket, f"{self._folder}/{key}", record.size)


class _S3File:
    def __init__(self, bucket: Bucket, key: str, size: int) -> None:
        self._bucket, self._key, self._size = bucket, key, size

    def read_range(self, offset: int, size: int) -> bytes:
        try:
            data, whole = self._bucket.read_range(self._key, offset, size)
        except Missing:
            raise Damage("is missing") from None
        if whole != self._size:
            raise Damage(f"has {whole} bytes where the ledger says {self._size}")
        return data


def _whole_size(found: dict[str, Any]) -> int:
    """Of "bytes 0-99/1234" the 1234; the length where the server sent everything."""
    text = str(found.get("ContentRange", ""))
    size = text.rpartition("/")[2]
    return int(size) if size.isdigit() else int(found["ContentLength"])


def _need_boto3() -> None:
    try:
        import boto3  # noqa: F401
    except ImportError:
        raise UsageError("s3:// needs boto3: pip install 'labelstore[s3]'") from None


def _client() -> Any:  # noqa: ANN401 - a client that boto3 makes at run time
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    more = {"signature_version": UNSIGNED} if os.environ.get(UNSIGNED_VARIABLE) else {}
    return boto3.session.Session().client(
        "s3",
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            max_pool_connections=32,
            **more,
        ),
    )


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
