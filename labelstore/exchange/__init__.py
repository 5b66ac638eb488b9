"""Labels of other projects in and out: files are read as data, checked, and become a label set.

Each format has a module; `importing` does what all of them share. Nothing that a file names is ever run. Names are
loaded when first used: `Stated` and `ImportOptions` need none of what reads files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelstore.exchange.exported import Form as Form
    from labelstore.exchange.exported import Selection as Selection
    from labelstore.exchange.exporting import EXPORTS as EXPORTS
    from labelstore.exchange.exporting import ExportReport as ExportReport
    from labelstore.exchange.exporting import export_labels as export_labels
    from labelstore.exchange.importing import FORMATS as FORMATS
    from labelstore.exchange.importing import ImportPlan as ImportPlan
    from labelstore.exchange.importing import ImportReport as ImportReport
    from labelstore.exchange.importing import RejectedFiles as RejectedFiles
    from labelstore.exchange.importing import import_labels as import_labels
    from labelstore.exchange.importing import plan_import as plan_import
    from labelstore.exchange.labels import BadFile as BadFile
    from labelstore.exchange.stated import ImportOptions as ImportOptions
    from labelstore.exchange.stated import Stated as Stated

_NAMES = {
    "exported": "Form Selection",
    "exporting": "EXPORTS ExportReport export_labels",
    "importing": "FORMATS ImportPlan ImportReport RejectedFiles import_labels plan_import",
    "labels": "BadFile",
    "stated": "ImportOptions Stated",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)  # noqa: PLE0605 - the names above, once


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module 'labelstore.exchange' has no attribute {name!r}")
    return getattr(importlib.import_module(f"labelstore.exchange.{_HOMES[name]}"), name)
