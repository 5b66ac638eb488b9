"""`package.module:function` on the command line: also found in the current folder, as `python -m` would find it."""

from __future__ import annotations

import sys
from pathlib import Path

_LIBRARIES = ("timm:", "torchvision:", "hf-hub:")


def importable_here(source: str | None) -> str | None:
    """The option's value as it is; where it names a function, modules of the current folder are found after all others.

    An installed program has its own folder on sys.path and not the current one. Only for what a person wrote on the
    command line: a name out of a file is never looked for here.
    """
    if source is not None and ":" in source and not source.startswith(_LIBRARIES):
        from labelstore.teachers.named_networks import is_function

        here = str(Path.cwd())
        if is_function(source) and here not in sys.path:
            sys.path.append(here)
    return source
