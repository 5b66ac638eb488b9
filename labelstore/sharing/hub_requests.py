"""Requests to the Hugging Face Hub: no answer may be longer, or take longer, than what it should hold.

The Hub's own client reads a body to its end, whatever it is, and waits for it without a limit: what is read comes by
requests of our own (`HubReader`), what is written goes by the client's calls, within limits (`limited_call`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from labelstore.arrays.durable import storage_errors
from labelstore.errors import DamagedShard, LabelStoreError, StorageError, StoreNotFound

SILENT_SECONDS = 10
"""How long the server may send nothing."""
ANSWER_SECONDS = 60
"""How long one answer may take, beside the time for a file's bytes."""
LISTING_SECONDS = 600
"""How long all pages of a list of files may take."""
SLOWEST = 100_000
"""Bytes a second; a file that comes more slowly is given up."""
ATTEMPTS = 3
MAX_ANSWER_BYTES = 8 << 20
"""Of one answer in JSON: a page lists a thousand files in less than a tenth of it."""
MAX_PAGES = 2_000
MAX_VALUES = 1_000_000
"""Of one JSON text: each takes some hundred bytes of memory, whatever the text's own length is."""

_T = TypeVar("_T")


class NotThere(Exception):
    """The Hub says that there is no such repository, revision or file, or not for this token."""


class _Slow(Exception):
    pass


class _TooLong(Exception):
    pass


def parse_json(data: bytes) -> Any:  # noqa: ANN401 - whatever the server says
    """A JSON text of at most `MAX_VALUES` values; ValueError for more, and for what is no JSON."""
    if sum(data.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested without end") from None


@dataclass(frozen=True, kw_only=True)
class HubReader:
    """One data set repository, by plain GET requests. StorageError where the server fails, or lies."""

    endpoint: str
    repo: str
    headers: Mapping[str, str]
    where: str
    """For messages."""

    def commit(self, revision: str) -> str:
        """Ask the Hub for a revision's commit; NotThere for none."""
        url = f"{self.endpoint}/api/datasets/{self.repo}/revision/{quote(revision, safe='')}"
        answer, _ = self._answer(f"{url}?expand=sha", ANSWER_SECONDS)
        sha = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(sha, str):
            raise self._lie("names no commit")
        return sha

    def files(self, commit: str, most: int) -> dict[str, int]:
        """Path -> bytes of every file of a commit; StorageError for more than `most` files."""
        url: str | None = f"{self.endpoint}/api/datasets/{self.repo}/tree/{commit}?recursive=true"
        until, found = time.monotonic() + LISTING_SECONDS, dict[str, int]()
        for _ in range(MAX_PAGES):
            page, url = self._answer(str(url), until - time.monotonic())
            try:
                found.update(_file(entry) for entry in page if entry["type"] == "file")
            except (TypeError, KeyError, ValueError):
                raise self._lie("lists what is no file") from None
            if len(found) > most:
                raise self._lie(f"lists more than {most:,} files, which no data set there has")
            if url is None:
                return found
        raise self._lie("lists files without end")

    def download(self, commit: str, path: str, size: int, target: Path) -> None:
        """Bring a file of `size` bytes to `target`, a new file; DamagedShard for one of more or fewer bytes."""
        url = f"{self.endpoint}/datasets/{self.repo}/resolve/{commit}/{quote(path)}"

        def fetch(is_over: threading.Event) -> int:
            with storage_errors(target), target.open("wb") as file:
                return sum(file.write(part) for part in self._body(url, size, is_over)[1])

        received = self._tried(fetch, ANSWER_SECONDS + size / SLOWEST, path)
        if received != size:
            raise DamagedShard(
                f"{self.where}: {path} has {received:,} bytes where the list of files says {size:,}; pull again"
            )

    def _answer(self, url: str, seconds: float) -> tuple[Any, str | None]:
        """The JSON value at a URL, and the URL of the next page."""

        def fetch(is_over: threading.Event) -> tuple[bytes, str | None]:
            links, parts = self._body(url, MAX_ANSWER_BYTES, is_over)
            return b"".join(parts), links.get("next", {}).get("url")

        data, following = self._tried(fetch, min(seconds, ANSWER_SECONDS))
        if following is not None:
            following = urljoin(url, following)
            if urlsplit(following)[:2] != urlsplit(self.endpoint)[:2]:
                # the token would go there
                raise self._lie("continues its list on another server")
        try:
            return parse_json(data), following
        except ValueError:
            raise self._lie("answers what is no JSON of its own") from None

    def _body(
        self, url: str, most: int, is_over: threading.Event
    ) -> tuple[Mapping[str | None, Mapping[str, str]], Iterator[bytes]]:
        """The links in an answer's header, and its bytes, at most `most` and some."""
        from huggingface_hub import get_session

        opened = get_session().stream(
            "GET",
            url,
            headers={**self.headers, "Accept-Encoding": "identity"},
            timeout=SILENT_SECONDS,
            follow_redirects=True,
        )
        response = opened.__enter__()
        try:
            self._check(response)
        except BaseException:
            opened.__exit__(None, None, None)
            raise

        def parts() -> Iterator[bytes]:
            received = 0
            try:
                # as they come, decoded by nobody: a part of a given length would be waited for
                for part in response.iter_raw():
                    received += len(part)
                    if is_over.is_set():
                        raise _Slow
                    yield part
                    if received > most:
                        raise self._lie(f"sends more than {most:,} bytes", url, DamagedShard)
            finally:
                opened.__exit__(None, None, None)

        return response.links, parts()

    def _check(self, response: Any) -> None:  # noqa: ANN401 - of the client's HTTP library
        status, about = response.status_code, response.headers
        if status in (200, 206):
            encoding = about.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise self._lie(f"sends {encoding!r}, which was not asked for")
            return
        code, said = about.get("X-Error-Code", ""), about.get("X-Error-Message", "")
        bad_token = said == "Invalid credentials in Authorization header"
        if status == 403 or code == "GatedRepo" or (status == 401 and bad_token):
            what = " ".join((said or f"HTTP {status}").split())[:300]
            raise StoreNotFound(f"{self.where}: not allowed ({what}); log in with `hf auth login`")
        # the Hub says 401 or 404 alike for what is private and what is not there
        if status in (401, 404):
            raise NotThere
        raise StorageError(f"{self.where}: the Hub answers HTTP {status}; try again")

    def _tried(
        self, fetch: Callable[[threading.Event], _T], seconds: float, path: str | None = None
    ) -> _T:
        """Call `fetch`, again if the connection fails, a few times."""
        where = self.where if path is None else f"{self.where}: {path}"
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _within(seconds, fetch)
            except (LabelStoreError, NotThere):
                raise
            except _Slow:
                raise StorageError(
                    f"{where}: the Hub did not send it within {seconds:,.0f} s; try again later"
                ) from None
            except Exception as error:  # noqa: BLE001 - what the client raises changes with its version
                if attempt == ATTEMPTS:
                    what = " ".join(str(error).split())[:300] or type(error).__name__
                    raise StorageError(
                        f"{where}: the Hub refused or cannot be reached ({what}); try again"
                    ) from None
        raise AssertionError("the last attempt returns or raises")

    def _lie(
        self, what: str, url: str | None = None, kind: type[LabelStoreError] = StorageError
    ) -> LabelStoreError:
        about = (
            self.where if url is None else f"{self.where}: {urlsplit(url).path.rpartition('/')[2]}"
        )
        return kind(
            f"{about}: the server {what}; it is not the Hub, or something between changes its answers"
        )


def _within(seconds: float, work: Callable[[threading.Event], _T]) -> _T:
    """Call `work`; _Slow after so many seconds, whatever it waits for.

    A header may come by the byte, too, and the client has no limit for that.
    """
    ended: list[_T | BaseException] = []
    is_over = threading.Event()

    def run() -> None:
        try:
            ended.append(work(is_over))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join(max(seconds, 0))
    finally:
        is_over.set()
    if not ended:
        raise _Slow
    (found,) = ended
    if isinstance(found, BaseException):
        raise found
    return found


def limited_call(work: Callable[[], _T], where: str, size: int | None = None) -> _T:
    """What a call of the Hub's client returns, which sends `size` bytes, or asks.

    StorageError where it takes too long, or for an answer without end: one may take `ANSWER_SECONDS` without a byte,
    and hold `MAX_ANSWER_BYTES`.
    """
    from huggingface_hub import get_session

    seconds = 2 * ANSWER_SECONDS if size is None else LISTING_SECONDS + size / SLOWEST

    def limited(is_over: threading.Event) -> _T:
        def stop(request: object) -> None:
            if is_over.is_set():
                raise _Slow

        def bound(response: Any) -> None:  # noqa: ANN401 - of the client's HTTP library
            # decoded, as it is kept: a few bytes may unpack to gigabytes
            parts = response.iter_bytes
            response.iter_bytes = lambda *more: _bounded(parts(*more), is_over)

        client = get_session()
        timeout, hooks = client.timeout, client.event_hooks
        client.timeout = ANSWER_SECONDS
        client.event_hooks = {
            "request": [*hooks["request"], stop],
            "response": [*hooks["response"], bound],
        }
        try:
            return work()
        finally:
            client.timeout, client.event_hooks = timeout, hooks

    try:
        return _within(seconds, limited)
    except _Slow:
        raise StorageError(
            f"{where}: the Hub did not answer within {seconds:,.0f} s; try again later"
        ) from None
    except _TooLong:
        raise StorageError(
            f"{where}: the server sends more than {MAX_ANSWER_BYTES:,} bytes for an answer; it is not the Hub, or "
            "something between changes its answers"
        ) from None


def _bounded(parts: Iterator[bytes], is_over: threading.Event) -> Iterator[bytes]:
    received = 0
    for part in parts:
        received += len(part)
        if is_over.is_set():
            raise _Slow
        if received > MAX_ANSWER_BYTES:
            raise _TooLong
        yield part


def _file(entry: Any) -> tuple[str, int]:  # noqa: ANN401 - whatever the server says
    """Path and size of an entry of a list of files; TypeError for what is none."""
    path, size = entry["path"], entry["size"]
    if not isinstance(path, str) or type(size) is not int or size < 0:
        raise TypeError
    return path, size
