"""Where frozen stores are shared: the Hugging Face Hub, or a folder that keeps commits as the Hub does."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from labelstore.arrays.durable import (
    TEMPORARY_SUFFIX,
    check_new_place,
    make_folders,
    storage_errors,
    write_file,
)
from labelstore.errors import ConflictError, DamagedShard, StorageError, StoreNotFound, UsageError
from labelstore.sharing.hub_requests import HubReader, NotThere, limited_call

DEFAULT_REVISION = "main"
MAX_FILES = 100_000
"""Files in a repository that the Hub takes."""
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FOLDERS = ("commits", "refs")


class Remote(Protocol):
    """A repository with revisions: every commit is a whole set of files and never changes."""

    where: str
    """For messages."""

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit stands for; None if there is none."""

    def files(self, commit: str) -> dict[str, int]:
        """Path -> bytes of every file of a commit."""

    def download(self, commit: str, path: str, size: int, target: Path) -> None:
        """Bring one file of a commit, listed with `size` bytes, to `target`, which does not exist."""

    def prepare(self, revision: str, *, private: bool) -> None:
        """Make the repository and the branch where they are missing."""

    def commit(
        self,
        revision: str,
        add: Mapping[str, Path | bytes],
        remove: Collection[str],
        *,
        message: str,
        parent: str | None,
    ) -> str:
        """Add and remove files in one commit on top of `parent`; its id.

        ConflictError where somebody else committed meanwhile.
        """


def open_remote(repo: str) -> Remote:
    """`OWNER/NAME` on the Hub; a folder for file:///PATH and for paths that begin with `/`, `./` or `../`."""
    if repo.startswith("file:"):
        parts = urlsplit(repo)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise UsageError(f"{repo}: give a folder of this machine as file:///PATH")
        return FolderRemote(Path(unquote(parts.path)))
    if repo.startswith(("/", "./", "../")):
        return FolderRemote(Path(repo))
    if _REPO.fullmatch(repo) is None or ".." in repo or "--" in repo:
        raise UsageError(
            f"no repository {repo!r}: give OWNER/NAME of a data set on the Hub, or a folder as ./PATH or file:///PATH"
        )
    return HubRemote(repo)


def check_revision(revision: str) -> str:
    """The revision; UsageError for what is no name of a branch, tag or commit."""
    parts = revision.split("/")
    if _REVISION.fullmatch(revision) is None or any(
        part == "" or part.startswith(".") or part.endswith((".", ".lock")) or ".." in part
        for part in parts
    ):
        raise UsageError(
            f"`revision={revision!r}`: give a branch, a tag or a commit (letters, digits, '.', '_', '-', '/')"
        )
    return revision


class FolderRemote:
    """`commits/ID/...` holds the files of each commit, `refs/BRANCH` the id of the latest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.where = str(root)
        self._made = False

    def check_place(self) -> None:
        """Before a push: UsageError inside a store, ConflictError for a file or a folder with something else in it."""
        check_new_place(self.root)
        if os.path.lexists(self.root) and not self.root.is_dir():
            raise ConflictError(f"{self.root} is a file: give another folder, or one that is new")
        if not self.root.is_dir() or any((self.root / name).is_dir() for name in _FOLDERS):
            return
        with storage_errors(self.root):
            first_entry = min((entry.name for entry in self.root.iterdir()), default=None)
        if first_entry is not None:
            raise ConflictError(
                f"{self.root} holds something else ({first_entry}): give this store a folder of its own"
            )

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, or the commit itself."""
        if _COMMIT.fullmatch(revision) and (self.root / "commits" / revision).is_dir():
            return revision
        path = self.root / "refs" / revision
        if path.is_symlink() or not path.is_file():
            return None
        with storage_errors(path), path.open("rb") as file:
            commit = file.read(64).decode(errors="replace").strip()
        if _COMMIT.fullmatch(commit) is None or not (self.root / "commits" / commit).is_dir():
            raise DamagedShard(f"{path}: does not name a commit of {self.root}: push again")
        return commit

    def files(self, commit: str) -> dict[str, int]:
        """Path -> bytes; a link is refused, since it would lead out of the commit."""
        top = self.root / "commits" / commit
        sizes = {}
        for folder, folders, names in os.walk(top):
            for name in (*folders, *names):
                path = Path(folder, name)
                if path.is_symlink() or not (path.is_file() or path.is_dir()):
                    raise DamagedShard(f"{path}: is a link or a device, no file that was pushed")
            for name in names:
                path = Path(folder, name)
                sizes[path.relative_to(top).as_posix()] = path.stat().st_size
        return sizes

    def download(self, commit: str, path: str, size: int, target: Path) -> None:
        """Copy one file."""
        source = self.root / "commits" / commit / path
        # what fails while both are open is the target's disk, which is full
        with (
            storage_errors(source),
            source.open("rb") as old,
            storage_errors(target),
            target.open("xb") as new,
        ):
            shutil.copyfileobj(old, new, 1 << 22)

    def prepare(self, revision: str, *, private: bool) -> None:
        """Make the folders; who may read them is the folder's own matter."""
        if private:
            raise UsageError(
                f"`private` is for the Hub: who may read {self.root} is said by the folder's permissions"
            )
        self._made = not self.root.is_dir()
        make_folders(self.root / "commits")
        make_folders((self.root / "refs" / revision).parent)

    def commit(
        self,
        revision: str,
        add: Mapping[str, Path | bytes],
        remove: Collection[str],
        *,
        message: str,
        parent: str | None,
    ) -> str:
        """Copy everything into a new commit, which then gets its name and becomes the branch's latest."""
        commits = self.root / "commits"
        building = commits / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        name = secrets.token_hex(20)
        try:
            building.mkdir()
            kept = self.files(parent) if parent else {}
            for path in sorted(set(kept) - set(remove) - set(add)):
                make_folders((building / path).parent)
                self.download(str(parent), path, kept[path], building / path)
            for path, source in add.items():
                target = building / path
                make_folders(target.parent)
                with storage_errors(target):
                    if isinstance(source, bytes):
                        target.write_bytes(source)
                    else:
                        shutil.copyfile(source, target)
            if self.resolve(revision) != parent:
                raise ConflictError(f"{self.root}: somebody else pushed to {revision}: push again")
            with storage_errors(commits):
                building.rename(commits / name)
            write_file(self.root / "refs" / revision, f"{name}\n".encode())
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            # remove the folders that this push made; others' are not empty
            for folder, _, _ in os.walk(self.root, topdown=False) if self._made else ():
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            raise
        return name


class HubRemote:
    """A data set repository on the Hugging Face Hub; the token is the one that `hf auth login` stored."""

    def __init__(self, repo: str, api: Any = None) -> None:  # noqa: ANN401 - an HfApi, or what stands for one
        if api is None:
            # only what talks to the Hub waits for this import
            from huggingface_hub import HfApi

            api = HfApi(library_name="labelstore")
        self.api = api
        self.repo = repo
        self.where = f"https://huggingface.co/datasets/{repo}"

    @cached_property
    def _reader(self) -> HubReader:
        # exported, but by name at run time
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        return HubReader(
            endpoint=str(self.api.endpoint).rstrip("/"),
            repo=self.repo,
            headers=build_hf_headers(token=self.api.token, library_name="labelstore"),
            where=self.where,
        )

    def resolve(self, revision: str) -> str | None:
        """Ask the Hub which commit it is."""
        try:
            commit = self._reader.commit(revision)
        except NotThere:
            return None
        if _COMMIT.fullmatch(commit) is None:
            raise StorageError(f"{self.where}: the server names no commit: it is not the Hub")
        return commit

    def files(self, commit: str) -> dict[str, int]:
        """Ask the Hub for the tree of a commit."""
        with self._gone(f"commit {commit}"):
            return self._reader.files(commit, 2 * MAX_FILES)

    def download(self, commit: str, path: str, size: int, target: Path) -> None:
        """Fetch one file, never through the shared cache: no more bytes than were listed, within a deadline."""
        with self._gone(path):
            self._reader.download(commit, path, size, target)

    @contextlib.contextmanager
    def _gone(self, what: str) -> Iterator[None]:
        try:
            yield
        except NotThere:
            raise StoreNotFound(f"{self.where}: {what} is not there any more; pull again") from None

    def prepare(self, revision: str, *, private: bool) -> None:
        """Make repository and branch."""

        def make() -> None:
            self.api.create_repo(self.repo, repo_type="dataset", private=private, exist_ok=True)
            if revision != DEFAULT_REVISION:
                self.api.create_branch(
                    self.repo, branch=revision, repo_type="dataset", exist_ok=True
                )

        try:
            limited_call(make, self.where)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001
            raise self._refusal(error) from None

    def commit(
        self,
        revision: str,
        add: Mapping[str, Path | bytes],
        remove: Collection[str],
        *,
        message: str,
        parent: str | None,
    ) -> str:
        """One commit for everything, so that no revision is half a store."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        try:
            operations = [
                *(CommitOperationAdd(path_in_repo=p, path_or_fileobj=s) for p, s in add.items()),
                *(CommitOperationDelete(path_in_repo=p) for p in remove),
            ]
            size = sum(len(s) if isinstance(s, bytes) else s.stat().st_size for s in add.values())
            upload = partial(
                self.api.create_commit, self.repo, operations, commit_message=message, repo_type="dataset",
                revision=revision, parent_commit=parent,
            )  # fmt: skip
            done = limited_call(upload, self.where, size)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in (409, 412):
                raise ConflictError(
                    f"{self.where}: somebody else pushed to {revision}: push again"
                ) from None
            raise self._refusal(error) from None
        return str(done.oid)

    def _refusal(self, error: Exception) -> Exception:
        what = " ".join(str(error).split())[:300] or type(error).__name__
        # the Hub says 401 or 404 alike for what is private and what is not there
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            return StoreNotFound(f"{self.where}: not allowed ({what}); log in with `hf auth login`")
        return StorageError(
            f"{self.where}: the Hub refused or cannot be reached ({what}); try again"
        )
