"""Objects under one URL of object storage (S3, Google Cloud, Azure, plain HTTP), whole or by range.

Endpoint, region and credentials are as for every tool of that service: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME ... A server may lie: no more is read than was
asked for, and every request has a deadline.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from labelstore.arrays.shard_files import ShardFile
from labelstore.arrays.sharding import Damage
from labelstore.errors import StorageError, StoreNotFound, UsageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

UNSIGNED_VARIABLE = "LABELSTORE_S3_UNSIGNED"
"""Set to read a public bucket without credentials."""
SCHEMES = "s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH or https://HOST/PATH"

NO_CREDENTIALS = (
    "no credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for a public bucket "
    f"{UNSIGNED_VARIABLE}=1"
)

CONNECT_SECONDS = 5
REQUEST_SECONDS = 30
"""For one request, its body included."""
RETRIES = 2
PIECE_BYTES = 4 << 20
"""Whole objects are read in pieces of this size, so that each can arrive within its deadline."""
SMALL_BYTES = 16 << 10
"""Pieces up to this size are kept: the indexes of shards, which every pass asks for again."""
KEPT_PIECES = 20_000

_process: int | None = None
"""The process whose threads serve obstore; after a fork they are gone, and a request would wait for ever."""


class Missing(Exception):
    """There is no object of that key."""


class Bucket:
    """What lies under a URL such as s3://BUCKET/PREFIX. Threads may share it; a pickled copy connects again."""

    def __init__(self, url: str) -> None:
        url = url.rstrip("/")
        match = re.fullmatch(r"(\w+)://([A-Za-z0-9][A-Za-z0-9._:-]{1,253})((?:/[^/]+)*)", url)
        parts = [] if match is None else match[3].split("/")[1:]
        if match is None or any(part in (".", "..") for part in parts):
            raise UsageError(f"{url}: give a frozen store in object storage as {SCHEMES}")
        self.url, self._scheme = url, match[1]
        self._store = _connect(url)
        self._pieces: OrderedDict[tuple[str, int, int], tuple[bytes, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])  # type: ignore[misc]

    def read(self, key: str, *, most: int) -> bytes:
        """A whole object of at most `most` bytes. Missing, StorageError, StoreNotFound for the bucket."""
        data, size = self._range(key, 0, most)
        if size > most:
            raise StorageError(f"{self.url}/{key}: has {size:,} bytes, {most:,} may be")
        return data

    def pieces(self, key: str, size: int) -> Iterator[bytes]:
        """The first `size` bytes of an object piece by piece: fewer if it is shorter, one more if it is longer."""
        whole = size
        for offset in range(0, size, PIECE_BYTES):
            if offset < whole:
                piece, whole = self._range(key, offset, min(PIECE_BYTES, size - offset))
                yield piece
        if whole > size:
            yield b"\0"

    def read_range(self, key: str, offset: int, size: int) -> tuple[bytes, int]:
        """Up to `size` bytes of an object from `offset` on, and the size of the whole object."""
        place = (key, offset, size)
        with self._lock:
            if place in self._pieces:
                self._pieces.move_to_end(place)
                return self._pieces[place]
        piece = self._range(key, offset, size)
        if size <= SMALL_BYTES:
            with self._lock:
                self._pieces[place] = piece
                if len(self._pieces) > KEPT_PIECES:
                    self._pieces.popitem(last=False)
        return piece

    def _range(self, key: str, offset: int, size: int) -> tuple[bytes, int]:
        """As `read_range`, from the server; tried again where the answer breaks off."""
        import obstore

        if _process != os.getpid():
            raise StorageError(
                f"{self.url}: object storage cannot be read in a forked process: "
                "start workers with 'spawn' or 'forkserver'"
            )
        for attempt in range(1 + RETRIES):
            try:
                with self._translated(key):
                    answer = obstore.get(
                        self._store, key, options={"range": (offset, offset + size)}
                    )
                    body = bytearray()
                    for part in answer.stream(min_chunk_size=1 << 16):
                        body += part
                        if len(body) > size:
                            raise StorageError(
                                f"{self.url}/{key}: the server sends more than the {size:,} bytes that were asked for"
                            )
                    return bytes(body), int(answer.meta["size"])
            except StorageError:
                if attempt == RETRIES:
                    raise
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Return an error of obstore as one of ours; Missing for an object that is not there."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        where = f"{self.url}/{key}"
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise StoreNotFound(
                    f"{self.url}: there is no such bucket at {_endpoint(self._scheme)}: check the name and the endpoint"
                ) from None
            raise Missing(where) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StorageError(
                f"{where}: access denied ({_line(error)}): check the credentials; for a public bucket set "
                f"{UNSIGNED_VARIABLE}=1"
            ) from None
        except (BaseError, OSError, ValueError) as error:
            text = str(error)
            if "InvalidRange" in text or "416" in text:
                raise Damage("is shorter than the ledger says") from None
            if "169.254.169.254" in text:
                # the address that hands out credentials inside the cloud, asked where no others are set
                raise StorageError(f"{where}: {NO_CREDENTIALS}") from None
            if "connect" in text.lower():
                raise StorageError(
                    f"{where}: {_endpoint(self._scheme)} does not answer: check the network and the endpoint"
                ) from None
            raise StorageError(f"{where}: cannot be read ({_line(error)})") from None


class BucketFolder:
    """The array folder of a frozen store in object storage."""

    def __init__(self, bucket: Bucket, folder: str) -> None:
        self._bucket, self._folder = bucket, folder
        self.url = f"{bucket.url}/{folder}"

    @contextmanager
    def opened(self, key: str, record: ShardFile) -> Iterator[BucketFile]:
        """A reader of one file; it asks for nothing before it is read from."""
        yield BucketFile(self._bucket, f"{self._folder}/{key}", record.size)


class BucketFile:
    """One file, read piece by piece."""

    def __init__(self, bucket: Bucket, key: str, size: int) -> None:
        self._bucket, self._key, self._size = bucket, key, size

    def read_range(self, offset: int, size: int) -> bytes:
        """Bytes of the file from `offset` on, fewer only at its end. Damage unless it has the recorded size."""
        try:
            data, whole = self._bucket.read_range(self._key, offset, size)
        except Missing:
            raise Damage("is missing") from None
        if whole != self._size:
            raise Damage(f"has {whole} bytes where the ledger says {self._size}")
        return data


def _connect(url: str) -> ObjectStore:
    global _process
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise UsageError("object storage needs obstore: pip install 'labelstore[cloud]'") from None

    settings: dict[str, Any] = {
        "client_options": {
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "timeout": timedelta(seconds=REQUEST_SECONDS),
            "allow_http": True,  # a server of one's own often has no certificate
        },
        "retry_config": {
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=REQUEST_SECONDS),
        },
    }
    if url.startswith("s3://"):
        if os.environ.get(UNSIGNED_VARIABLE):
            settings["config"] = {"skip_signature": True}
        elif os.environ.get("AWS_PROFILE"):
            settings["credential_provider"] = _profile(os.environ["AWS_PROFILE"])
    try:
        store: ObjectStore = from_url(url, **settings)
    except (BaseError, ValueError) as error:
        if "AccessKey" in str(error):
            raise StorageError(f"{url}: {NO_CREDENTIALS}") from None
        raise UsageError(f"{url}: {_line(error)}; give {SCHEMES}") from None
    _process = _process or os.getpid()
    return store


def _profile(name: str) -> Any:  # noqa: ANN401 - obstore's protocol
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise UsageError(
            f"AWS_PROFILE={name}: profiles are read by boto3: pip install boto3, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from None
    from boto3 import Session

    return Boto3CredentialProvider(Session(profile_name=name))


def _endpoint(scheme: str) -> str:
    variables = {
        "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "az": ("AZURE_STORAGE_ENDPOINT",),
    }
    return next(
        (os.environ[v] for v in variables.get(scheme, ()) if os.environ.get(v)), "its server"
    )


def _line(error: Exception) -> str:
    """The first line of what obstore says; what follows it is for its developers."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:300]
