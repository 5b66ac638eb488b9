"""Sharing: what was pushed comes back as it was, and nothing else comes back at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from types import SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import pytest
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

import labelstore
from labelstore import MarginalSmoothing
from labelstore.care.verification import verify
from labelstore.catalogue.records import TeacherRow
from labelstore.errors import (
    ConflictError,
    DamagedShard,
    RejectedInput,
    StorageError,
    StoreNotFound,
    UsageError,
)
from labelstore.sharing import hub
from labelstore.sharing.card import code
from labelstore.sharing.remotes import FolderRemote, HubRemote, open_remote
from labelstore.store.frozen_store import Manifest, ManifestFile, parse_manifest
from tests.exchange.hub_server import TOKEN, served
from tests.kept_stores import kept_store

EVIL = "<img src=x onerror=alert(1)> [a](javascript:b) `c` ![d](http://e) | # f"


def soft_labels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(5, 0.2), (6, 4)).astype(np.float32)


def make(path, seed=0, *, frozen=True, **options):
    store = kept_store(
        path, soft_labels(seed), MarginalSmoothing(k=2), images_per_shard=3, **options
    )
    if frozen:
        labelstore.freeze(store)
    return store


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    with make(tmp_path_factory.mktemp("s") / "store") as store:
        yield store


@pytest.fixture
def remote(tmp_path) -> FolderRemote:
    return FolderRemote(tmp_path / "remote")


@pytest.fixture(scope="module")
def pushed_once(frozen, tmp_path_factory):
    root = tmp_path_factory.mktemp("r") / "remote"
    return root, hub.push(frozen, str(root))


@pytest.fixture
def pushed(pushed_once, remote):
    root, found = pushed_once
    shutil.copytree(root, remote.root)
    return found


def tree(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def left_in(folder, *expected):
    return sorted(p.name for p in folder.iterdir()) == sorted(expected)


@pytest.mark.sample(1)
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_what_is_pulled_is_what_was_pushed(tmp_path, remote, backend):
    with make(tmp_path / "store", backend=backend) as store:
        pushed = hub.push(store, str(remote.root))
        pulled = hub.pull(remote.root.as_uri(), tmp_path / "pulled", expect_root=pushed.root)
        assert tree(tmp_path / "pulled") == tree(store.path)
        assert pulled.commit == pushed.commit
        assert not any(
            path.stat().st_mode & 0o222
            for path in (tmp_path / "pulled").rglob("*")
            if path.is_file()
        )
        assert verify(tmp_path / "pulled", "deep").is_sound
        again = hub.push(store, str(remote.root))
        assert (again.already, again.commit) == (True, pushed.commit)
    assert left_in(tmp_path, "store", "remote", "pulled")


@pytest.mark.slow
def test_a_commit_stays_what_it_was(tmp_path, remote):
    with make(tmp_path / "store", frozen=False) as store:
        labelstore.freeze(store, tmp_path / "first")
        labelstore.calibrate(store.label_set(), name="ferkd")
        labelstore.freeze(store)
        with labelstore.open(tmp_path / "first") as first:
            old = hub.push(first, str(remote.root))
            new = hub.push(store, str(remote.root))
            # back again: files that only the later version has go away
            hub.push(first, str(remote.root), revision="release/1")
            hub.push(first, str(remote.root))
        hub.pull(str(remote.root), tmp_path / "a", revision=old.commit)
        hub.pull(str(remote.root), tmp_path / "b", revision=new.commit)
        hub.pull(str(remote.root), tmp_path / "c")
        hub.pull(str(remote.root), tmp_path / "d", revision="release/1")
        assert tree(tmp_path / "a") == tree(tmp_path / "first") == tree(tmp_path / "c")
        assert tree(tmp_path / "d") == tree(tmp_path / "first")
        assert tree(tmp_path / "b") == tree(store.path)
    with pytest.raises(DamagedShard, match="another version"):
        hub.pull(str(remote.root), tmp_path / "e", expect_root=new.root)
    for revision in ("nowhere", "0" * 40):
        with pytest.raises(StoreNotFound, match="no revision"):
            hub.pull(str(remote.root), tmp_path / "e", revision=revision)
    for revision in ("../main", "a/../b", "/main", "-f", "", "a b", "x\n", "a//b"):
        with pytest.raises(UsageError, match="`revision="):
            hub.pull(str(remote.root), tmp_path / "e", revision=revision)
    assert not (tmp_path / "e").exists()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def link(path):
    (path.parent / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "harm",
    [
        flip,
        link,
        os.unlink,
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: (path.parent / "more").write_bytes(b""),
    ],
)
@pytest.mark.parametrize("what", ["catalogue.db", "c.*"])
def test_a_tampered_file_is_refused(tmp_path, remote, pushed, harm, what, labelstore_command):
    commit = remote.root / "commits" / pushed.commit
    path = min(commit.rglob(what))
    path.chmod(0o644)
    harm(path)
    code, out, err = labelstore_command("pull", remote.root, tmp_path / "pulled")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1].startswith(f"labelstore: {remote.root}")
    assert left_in(tmp_path, "remote")


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "arrays.zarr/../../evil", "catalogue.url", "a/b", "arrays.zarr/x\ny"],
)
def test_a_manifest_may_not_name_what_is_no_part_of_a_store(tmp_path, remote, pushed, name):
    path = remote.root / "commits" / pushed.commit / "labelstore.json"
    held = parse_manifest(path.read_bytes(), "manifest")
    files = {**held.files, name: ManifestFile(bytes=1, sha256="0" * 64)}
    path.unlink()
    path.write_bytes(
        Manifest(uuid=held.uuid, format_version=held.format_version, files=files).to_bytes()
    )
    with pytest.raises((RejectedInput, DamagedShard)):
        hub.pull(str(remote.root), tmp_path / "pulled")
    assert left_in(tmp_path, "remote")


def test_a_sound_manifest_over_another_catalogue_is_refused(tmp_path, remote, pushed):
    path = remote.root / "commits" / pushed.commit / "labelstore.json"
    held = parse_manifest(path.read_bytes(), "manifest")
    path.unlink()
    path.write_bytes(
        Manifest(uuid="f" * 32, format_version=held.format_version, files=held.files).to_bytes()
    )
    with pytest.raises(DamagedShard, match="the catalogue of"):
        hub.pull(str(remote.root), tmp_path / "pulled")
    assert left_in(tmp_path, "remote")


@pytest.mark.parametrize("error", [KeyboardInterrupt, StorageError])
def test_an_interrupted_pull_leaves_nothing(tmp_path, remote, pushed, error):
    class Broken(FolderRemote):
        def download(self, commit, path, size, target):
            if path.startswith("arrays.zarr/labels"):
                raise error("gone")
            super().download(commit, path, size, target)

    with pytest.raises(error):
        hub.pull("./x", tmp_path / "pulled", remote=Broken(remote.root))
    assert left_in(tmp_path, "remote")


def test_what_is_not_pushed(tmp_path, remote, frozen, pushed, labelstore_command):
    before = tree(remote.root)
    with make(tmp_path / "open", frozen=False):
        code, out, err = labelstore_command("push", tmp_path / "open", tmp_path / "new")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "labelstore freeze" in err
    assert not (tmp_path / "new").exists()
    with make(tmp_path / "other", seed=1) as other:
        with pytest.raises(ConflictError, match="repository of its own"):
            hub.push(other, str(remote.root))
        with pytest.raises(ConflictError, match="repository of its own"):
            hub.push(other, str(remote.root), revision="branch")
        shard = next((other.path / "arrays.zarr/labels").rglob("c.*"))
        shard.chmod(0o644)
        flip(shard)
        with pytest.raises(DamagedShard, match=r"labelstore\.verify"):
            hub.push(other, str(tmp_path / "new"))
    with pytest.raises(UsageError, match="`private`"):
        hub.push(frozen, str(tmp_path / "new"), private=True)
    for licence in ("", "a\nb", "x" * 200):
        with pytest.raises(UsageError, match="`licence="):
            hub.push(frozen, str(tmp_path / "new"), licence=licence)
    for repo in (
        "name",
        "a/b/c",
        "a/../b",
        "a b/c",
        "https://huggingface.co/a/b",
        "file://host/x",
    ):
        with pytest.raises(UsageError, match="give"):
            open_remote(repo)
    with pytest.raises(ConflictError, match="exists already"):
        hub.pull(str(remote.root), tmp_path / "open")
    assert tree(remote.root) == before


def test_dry_runs_write_nothing(tmp_path, remote, frozen, labelstore_command):
    code, out, _ = labelstore_command("push", frozen.path, remote.root, "--dry-run", "--json")
    assert (code, json.loads(out)["commit"]) == (0, None)
    assert left_in(tmp_path)
    code, out, _ = labelstore_command("push", frozen.path, remote.root, "--json")
    commit = json.loads(out)["commit"]
    code, out, _ = labelstore_command("pull", remote.root, tmp_path / "p", "--dry-run", "--json")
    assert (code, json.loads(out)["commit"]) == (0, commit)
    assert left_in(tmp_path, "remote")
    code, out, _ = labelstore_command("pull", remote.root, tmp_path / "p")
    assert code == 0
    assert commit in out


def limits(count=1, folder="arrays.zarr/{}/c", size=1):
    files = {folder.format(i): ManifestFile(bytes=size, sha256="0" * 64) for i in range(count)}
    return Manifest(uuid="0", format_version=1, files=files)


def test_the_hubs_limits():
    hub.check_limits(limits(9_999))
    hub.check_limits(limits(size=20 * 10**9))
    for manifest, words in (
        (limits(10_001), "arrays.zarr has 10,001 entries"),
        (limits(10_001, "arrays.zarr/c{}"), "arrays.zarr has 10,001 entries"),
        (limits(99_999), "100,001 files"),
        (limits(size=20 * 10**9 + 1), "20.0 GB"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)) as error:
            hub.check_limits(manifest)
        assert "\n" not in str(error.value)


def test_the_card_says_what_is_there(remote, frozen):
    pushed = hub.push(frozen, str(remote.root), licence="CC-BY-4.0")
    text = (remote.root / "commits" / pushed.commit / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "cc-by-4.0"
    for words in (
        pushed.root, pushed.uuid, "labelstore pull", "images: 6, in 5 classes", "`CC-BY-4.0`", "k 2, name ms`",
        "4 crops per image", "teacher `teacher`: `timm:teacher`", "complete", f"{pushed.files:,} files",
    ):  # fmt: skip
        assert words in body, words


def spans_removed(markdown: str) -> str:
    """What is left of Markdown without its code spans, by CommonMark's rule: runs of equal length."""
    return re.sub(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", "", markdown)


@pytest.mark.parametrize(
    "text", [EVIL, "`", "``a`", "a\n---\n# b", " x ", "\x1b[31m", "\u202eabc", "", "\n"]
)
def test_names_are_inert_in_a_card(text):
    shown = code(text)
    assert "\n" not in shown
    assert shown.isprintable()
    assert spans_removed(shown) in ("", "(empty)")


def test_a_card_with_markup_in_its_names(tmp_path, remote):
    with kept_store(tmp_path / "s", soft_labels(0), MarginalSmoothing(k=2)) as store:
        row = store.catalogue.teachers.all()[0]
        store.catalogue.teachers.add(
            TeacherRow(
                **{**vars(row), "name": "other", "source": f"/home/me/{EVIL}", "architecture": EVIL}
            )
        )
        labelstore.freeze(store)
        pushed = hub.push(store, str(remote.root), licence=EVIL)
    text = (remote.root / "commits" / pushed.commit / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "other"
    assert re.fullmatch(r"[a-z0-9.-]+", yaml.safe_load(header)["license_name"])
    assert "onerror" in body
    assert not re.search(r"[<>\[\]|]|onerror|javascript|http", spans_removed(body))
    assert "/home/me" not in text


class Hub:
    """What a push asks of the Hub's client, behind its signatures; reads go to an endpoint."""

    def __init__(self, folder: FolderRemote, endpoint: str) -> None:
        self.folder = folder
        self.api = create_autospec(HfApi(endpoint=endpoint, token=TOKEN), spec_set=True)
        self.api.endpoint, self.api.token = endpoint, TOKEN
        self.api.create_commit.side_effect = self.commit
        self.api.create_repo.side_effect = lambda repo, **_: self.folder.prepare(
            "main", private=False
        )

    def commit(self, repo, operations, *, commit_message, repo_type, revision, parent_commit):
        added = {o.path_in_repo: o for o in operations if isinstance(o, CommitOperationAdd)}
        gone = [o.path_in_repo for o in operations if isinstance(o, CommitOperationDelete)]
        files = {}
        for path, operation in added.items():
            with operation.as_file() as file:
                files[path] = file.read()
        oid = self.folder.commit(revision, files, gone, message="", parent=parent_commit)
        return SimpleNamespace(oid=oid)


def test_a_hub_gives_back_what_was_pushed(tmp_path, remote, frozen):
    with served(remote) as endpoint:
        fake = Hub(remote, endpoint)
        hub_remote = HubRemote("me/labels", api=fake.api)
        with pytest.raises(StoreNotFound, match="no such repository"):
            hub.pull("me/labels", tmp_path / "pulled", remote=hub_remote)
        pushed = hub.push(frozen, "me/labels", private=True, remote=hub_remote)
        assert fake.api.create_repo.call_args.kwargs["private"] is True
        again = hub.push(frozen, "me/labels", remote=hub_remote)
        assert (again.already, again.commit) == (True, pushed.commit)
        pulled = hub.pull(
            "me/labels", tmp_path / "pulled", revision=pushed.commit, remote=hub_remote
        )
        assert tree(tmp_path / "pulled") == tree(frozen.path)
        assert pulled.root == pushed.root
        assert left_in(tmp_path, "pulled", "remote")
        shutil.rmtree(tmp_path / "pulled")
        stranger = HubRemote("me/labels", api=HfApi(endpoint=endpoint, token=False))
        with pytest.raises(StoreNotFound, match="no such repository"):
            hub.pull("me/labels", tmp_path / "pulled", remote=stranger)
    # nobody listens there any more
    with pytest.raises(StorageError, match="cannot be reached") as error:
        hub.pull("me/labels", tmp_path / "pulled", remote=hub_remote)
    assert "\n" not in str(error.value)
    assert left_in(tmp_path, "remote")
