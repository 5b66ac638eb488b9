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

if TYPE_CHECKING:
    from labelstore.analysis.arrow_batches import crop_frames as crop_frames
    from labelstore.analysis.arrow_batches import crops as crops
    from labelstore.analysis.sql import sql as sql
    from labelstore.calibration import Region as Region
    from labelstore.calibration import RegionQuantiles as RegionQuantiles
    from labelstore.calibration import RegionThresholds as RegionThresholds
    from labelstore.calibration import calibrate as calibrate
    from labelstore.calibration.ensembles import ensemble as ensemble
    from labelstore.care.auditing import audit as audit
    from labelstore.care.freezing import freeze as freeze
    from labelstore.care.leftovers import gc as gc
    from labelstore.care.repairing import repair as repair
    from labelstore.care.verification import verify as verify
    from labelstore.codecs import Full as Full
    from labelstore.codecs import Hard as Hard
    from labelstore.codecs import LabelMap as LabelMap
    from labelstore.codecs import Logits as Logits
    from labelstore.codecs import MarginalRenorm as MarginalRenorm
    from labelstore.codecs import MarginalSmoothing as MarginalSmoothing
    from labelstore.codecs import ProductCodes as ProductCodes
    from labelstore.codecs import Smoothing as Smoothing
    from labelstore.cropping.crop_augmentation import CropAugmentation as CropAugmentation
    from labelstore.cropping.crop_mixing import CropMixing as CropMixing
    from labelstore.cropping.crop_plan import CropPlan as CropPlan
    from labelstore.errors import LabelStoreError as LabelStoreError
    from labelstore.exchange import ImportOptions as ImportOptions
    from labelstore.exchange import Selection as Selection
    from labelstore.exchange import Stated as Stated
    from labelstore.exchange import export_labels as export_labels
    from labelstore.exchange import import_labels as import_labels
    from labelstore.labelling.deriving import derive as derive
    from labelstore.labelling.generate import generate as generate
    from labelstore.labelling.generation_options import GenerationOptions as GenerationOptions
    from labelstore.labelling.growing import grow as grow
    from labelstore.labelling.label_images import label_images as label_images
    from labelstore.sharing.hub import pull as pull
    from labelstore.sharing.hub import push as push
    from labelstore.sharing.merge import merge as merge
    from labelstore.store import LabelSet as LabelSet
    from labelstore.store import Mask as Mask
    from labelstore.store import PlanOptions as PlanOptions
    from labelstore.store import Store as Store
    from labelstore.store import create as create
    from labelstore.store import open_store

    open = open_store

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
