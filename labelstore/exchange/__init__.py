"""Labels of other projects in: files are read as data, checked, and become a label set.

Each format has a module; `importing` does what all of them share. Nothing that a file names is ever run. Names are
loaded when first used: `Stated`, which options are made of, needs none of what reads files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelstore.exchange.exported import Form, Selection
    from labelstore.exchange.exporting import EXPORTS, ExportReport, export_labels
    from labelstore.exchange.formats import FORMATS
    from labelstore.exchange.importing import (
        ImportPlan,
        ImportReport,
        RejectedFiles,
        import_labels,
        plan_import,
    )
    from labelstore.exchange.labels import BadFile
    from labelstore.exchange.stated import Stated

_HOMES = {
    "EXPORTS": "exporting",
    "FORMATS": "formats",
    "BadFile": "source",
    "ExportReport": "exporting",
    "Form": "exported",
    "ImportPlan": "importing",
    "ImportReport": "importing",
    "RejectedFiles": "importing",
    "Selection": "exported",
    "Stated": "stated",
    "export_labels": "exporting",
    "import_labels": "importing",
    "plan_import": "importing",
}

__all__ = [
    "EXPORTS",
    "FORMATS",
    "BadFile",
    "ExportReport",
    "Form",
    "ImportPlan",
    "ImportReport",
    "RejectedFiles",
    "Selection",
    "Stated",
    "export_labels",
    "import_labels",
    "plan_import",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module 'labelstore.exchange' has no attribute {name!r}")
    return getattr(importlib.import_module(f"labelstore.exchange.{_HOMES[name]}"), name)
