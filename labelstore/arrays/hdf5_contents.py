"""What an HDF5 shard may hold: one group of chunked datasets with built-in filters, and no way out of the file.

Our own reader never follows HDF5's metadata; other programs do, and a link, an external storage file or a
virtual dataset would lead readers to other files. `labelstore verify --deep` looks.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import Any

FILTERS = {1, 2, 3}
"""deflate, shuffle, fletcher32: those of `hdf5_arrays`."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def contents_problem(data: bytes, names: Collection[str]) -> str | None:
    """What the bytes of one shard file hold besides the datasets of these names; None when all is well."""
    import h5py  # type: ignore[import-untyped]

    if not data.startswith(SIGNATURE):
        return "is not an HDF5 file"
    try:
        # from memory: nothing that a link names can be opened relative to it, and no link is followed here
        with h5py.File(io.BytesIO(data), "r") as file:
            return _problem(file, names)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        return f"is not an HDF5 file that labelstore writes ({str(error).splitlines()[0][:100]})"


def _problem(file: Any, names: Collection[str]) -> str | None:  # noqa: ANN401 - h5py has no types
    import h5py

    held = list(file)
    for name in held:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = {h5py.SoftLink: "a soft link", h5py.ExternalLink: "an external link"}.get(
                type(link), "a link"
            )
            return f"holds {kind} {name!r}"
    if sorted(held) != sorted(names):
        return f"holds {sorted(held)} where {sorted(names)} are due"
    for name in held:
        node = file[name]
        if not isinstance(node, h5py.Dataset):
            return f"holds {name!r}, which is no dataset"
        if node.is_virtual:
            return f"holds a virtual dataset {name!r}"
        if node.external:
            return f"keeps {name!r} in another file"
        created = node.id.get_create_plist()
        filters = {created.get_filter(n)[0] for n in range(created.get_nfilters())}
        if node.chunks is None or not filters <= FILTERS:
            return f"stores {name!r} in another way than labelstore does"
    return None
