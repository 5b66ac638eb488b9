"""Labels of other projects in: files are read as data, checked, and become a label set.

Each format has a module; `importing` does what all of them share. Nothing that a file names is ever run.
"""

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
from labelstore.exchange.source import BadFile, Stated

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
