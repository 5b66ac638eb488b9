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

_HOMES = {
    "open": ("labelstore.store", "open_store"),
    "create": ("labelstore.store", "create"),
    "Store": ("labelstore.store", "Store"),
    "LabelSet": ("labelstore.store", "LabelSet"),
    "Mask": ("labelstore.store", "Mask"),
    "PlanOptions": ("labelstore.store", "PlanOptions"),
    "label_images": ("labelstore.labelling.label_images", "label_images"),
    "GenerationOptions": ("labelstore.labelling.generation_options", "GenerationOptions"),
    "generate": ("labelstore.labelling.generate", "generate"),
    "grow": ("labelstore.labelling.growing", "grow"),
    "derive": ("labelstore.labelling.deriving", "derive"),
    "calibrate": ("labelstore.calibration", "calibrate"),
    "crops": ("labelstore.analysis.arrow_batches", "crops"),
    "crop_frames": ("labelstore.analysis.arrow_batches", "crop_frames"),
    "sql": ("labelstore.analysis.sql", "sql"),
    "verify": ("labelstore.care.verification", "verify"),
    "repair": ("labelstore.care.repairing", "repair"),
    "audit": ("labelstore.care.auditing", "audit"),
    "gc": ("labelstore.care.leftovers", "gc"),
    "freeze": ("labelstore.care.freezing", "freeze"),
    "merge": ("labelstore.sharing.merge", "merge"),
    "import_labels": ("labelstore.exchange", "import_labels"),
    "ImportOptions": ("labelstore.exchange", "ImportOptions"),
    "Stated": ("labelstore.exchange", "Stated"),
    "export_labels": ("labelstore.exchange", "export_labels"),
    "Selection": ("labelstore.exchange", "Selection"),
    "push": ("labelstore.sharing.hub", "push"),
    "pull": ("labelstore.sharing.hub", "pull"),
    "Region": ("labelstore.calibration", "Region"),
    "RegionThresholds": ("labelstore.calibration", "RegionThresholds"),
    "RegionQuantiles": ("labelstore.calibration", "RegionQuantiles"),
    "CropAugmentation": ("labelstore.cropping.crop_augmentation", "CropAugmentation"),
    "CropMixing": ("labelstore.cropping.crop_mixing", "CropMixing"),
    "CropPlan": ("labelstore.cropping.crop_plan", "CropPlan"),
    "Full": ("labelstore.codecs", "Full"),
    "Hard": ("labelstore.codecs", "Hard"),
    "Smoothing": ("labelstore.codecs", "Smoothing"),
    "MarginalSmoothing": ("labelstore.codecs", "MarginalSmoothing"),
    "MarginalRenorm": ("labelstore.codecs", "MarginalRenorm"),
    "ensemble": ("labelstore.calibration.ensembles", "ensemble"),
    "LabelMap": ("labelstore.codecs", "LabelMap"),
    "Logits": ("labelstore.codecs", "Logits"),
    "ProductCodes": ("labelstore.codecs", "ProductCodes"),
    "LabelStoreError": ("labelstore.errors", "LabelStoreError"),
}

__all__ = [
    "CropAugmentation",
    "CropMixing",
    "CropPlan",
    "Full",
    "GenerationOptions",
    "Hard",
    "ImportOptions",
    "LabelMap",
    "LabelSet",
    "LabelStoreError",
    "Logits",
    "MarginalRenorm",
    "MarginalSmoothing",
    "Mask",
    "PlanOptions",
    "ProductCodes",
    "Region",
    "RegionQuantiles",
    "RegionThresholds",
    "Selection",
    "Smoothing",
    "Stated",
    "Store",
    "audit",
    "calibrate",
    "create",
    "crop_frames",
    "crops",
    "derive",
    "ensemble",
    "export_labels",
    "freeze",
    "gc",
    "generate",
    "grow",
    "import_labels",
    "label_images",
    "merge",
    "open",
    "pull",
    "push",
    "repair",
    "sql",
    "verify",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module 'labelstore' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
