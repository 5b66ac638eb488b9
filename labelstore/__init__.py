# ruff: noqa: F401
"""The place where soft labels for vision models live.

    import labelstore

    store = labelstore.open("in1k.labels")
    labels = store.label_set()
    labels.recover(images=[42, 7], crops=[[3, 17], [0, 1]])   # float32 (2, 2, C)

Names are loaded when first used, so that importing the package stays fast and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and the reference; what runs is `_NAMES`
    from labelstore.analysis.arrow_batches import crop_frames, crops
    from labelstore.analysis.sql import sql
    from labelstore.calibration import (
        Region,
        RegionQuantiles,
        RegionThresholds,
        calibrate,
    )
    from labelstore.calibration.ensembles import ensemble
    from labelstore.care.auditing import audit
    from labelstore.care.freezing import freeze
    from labelstore.care.leftovers import gc
    from labelstore.care.repairing import repair
    from labelstore.care.verification import verify
    from labelstore.codecs import (
        Full,
        Hard,
        LabelMap,
        Logits,
        MarginalRenorm,
        MarginalSmoothing,
        ProductCodes,
        Smoothing,
    )
    from labelstore.cropping.crop_augmentation import CropAugmentation
    from labelstore.cropping.crop_mixing import CropMixing
    from labelstore.cropping.crop_plan import CropPlan
    from labelstore.errors import LabelStoreError
    from labelstore.exchange import ImportOptions, Selection, Stated, export_labels, import_labels
    from labelstore.labelling.deriving import derive
    from labelstore.labelling.generate import generate
    from labelstore.labelling.generation_options import GenerationOptions
    from labelstore.labelling.growing import grow
    from labelstore.labelling.label_images import label_images
    from labelstore.sharing.hub import pull, push
    from labelstore.sharing.merge import merge
    from labelstore.store import LabelSet, Mask, PlanOptions, Store, create
    from labelstore.store import open_store as open

_NAMES = {
    "analysis.arrow_batches": "crop_frames crops",
    "analysis.sql": "sql",
    "calibration": "Region RegionQuantiles RegionThresholds calibrate",
    "calibration.ensembles": "ensemble",
    "care.auditing": "audit",
    "care.freezing": "freeze",
    "care.leftovers": "gc",
    "care.repairing": "repair",
    "care.verification": "verify",
    "codecs": "Full Hard LabelMap Logits MarginalRenorm MarginalSmoothing ProductCodes Smoothing",
    "cropping.crop_augmentation": "CropAugmentation",
    "cropping.crop_mixing": "CropMixing",
    "cropping.crop_plan": "CropPlan",
    "errors": "LabelStoreError",
    "exchange": "ImportOptions Selection Stated export_labels import_labels",
    "labelling.deriving": "derive",
    "labelling.generate": "generate",
    "labelling.generation_options": "GenerationOptions",
    "labelling.growing": "grow",
    "labelling.label_images": "label_images",
    "sharing.hub": "pull push",
    "sharing.merge": "merge",
    "store": "LabelSet Mask PlanOptions Store create",
}
"""Module -> what it gives."""
_HOMES = {name: (module, name) for module, names in _NAMES.items() for name in names.split()}
_HOMES["open"] = ("store", "open_store")
__all__ = sorted(_HOMES)  # noqa: PLE0605 - the names above, once


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module 'labelstore' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(f"labelstore.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
