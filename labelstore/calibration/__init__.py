"""Calibration (FerKD 3.2, Eq. 4): which crops to draw, and which labels to replace by the ground truth."""

from labelstore.calibration.choices import (
    Choice,
    Preview,
    count_rules,
    preview,
    preview_of,
    too_many_left_out,
    usual_choices,
)
from labelstore.calibration.criterion import Criterion
from labelstore.calibration.masking import calibrate, check_calibrate, check_update, update
from labelstore.calibration.quantiles import exact_quantiles
from labelstore.calibration.queries import RegionQuery, rule_from_record
from labelstore.calibration.regions import (
    RegionQuantiles,
    RegionThresholds,
    Rule,
)
from labelstore.calibration.threshold_counts import RegionCounts, ThresholdCounts, count_thresholds
from labelstore.store.region_mask import Region, calibrate_dense, calibrate_label, is_usable

__all__ = [
    "Choice",
    "Criterion",
    "Preview",
    "Region",
    "RegionCounts",
    "RegionQuantiles",
    "RegionQuery",
    "RegionThresholds",
    "Rule",
    "ThresholdCounts",
    "calibrate",
    "calibrate_dense",
    "calibrate_label",
    "check_calibrate",
    "check_update",
    "count_rules",
    "count_thresholds",
    "exact_quantiles",
    "is_usable",
    "preview",
    "preview_of",
    "rule_from_record",
    "too_many_left_out",
    "update",
    "usual_choices",
]
