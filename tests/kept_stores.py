"""Stores of given labels, each built once per test process and then copied, which takes a tenth of the time."""

from __future__ import annotations

import atexit
import hashlib
import pickle
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import labelstore
from labelstore.testing.filled_store import filled_store

_built: dict[tuple[str, int], Path] = {}
_asked: Counter[tuple[Path, str]] = Counter()


def kept_store(path: Path, soft_labels: Any, codec: Any, **options: Any) -> labelstore.Store:
    """As `filled_store`. Two alike in one folder are two stores, each with a uuid of its own."""
    if options.get("catalogue"):
        return filled_store(path, soft_labels, codec, **options)
    said = hashlib.sha256(pickle.dumps((soft_labels, codec, sorted(options.items())))).hexdigest()
    key = said, _asked[path.parent, said]
    _asked[path.parent, said] += 1
    if key not in _built:
        _built[key] = _folder() / f"{len(_built)}.labels"
        filled_store(_built[key], soft_labels, codec, **options).close()
    shutil.copytree(_built[key], path)
    return labelstore.open(path)


def _folder() -> Path:
    """Of this process, as long as it runs."""
    if not hasattr(_folder, "path"):
        _folder.path = Path(tempfile.mkdtemp(prefix="kept-stores"))
        atexit.register(shutil.rmtree, _folder.path, ignore_errors=True)
    return _folder.path
