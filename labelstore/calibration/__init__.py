"""Calibration (FerKD 3.2, Eq. 4): which crops to draw, and which labels to replace by the ground truth."""

from labelstore.calibration.choices import Choice, Preview, RegionCounts, preview, usual_choices
from labelstore.calibration.labels import calibrate_label
from labelstore.calibration.masking import calibrate, check_update, update
from labelstore.calibration.probability import Criterion
from labelstore.calibration.quantiles import exact_quantiles
from labelstore.calibration.regions import Region, RegionQuantiles, RegionThresholds, Rule

__all__ = [
    "Choice",
    "Criterion",
    "Preview",
    "Region",
    "RegionCounts",
    "RegionQuantiles",
    "RegionThresholds",
    "Rule",
    "calibrate",
    "calibrate_label",
    "check_update",
    "exact_quantiles",
    "preview",
    "update",
    "usual_choices",
]
