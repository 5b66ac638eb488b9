"""Looking at labels before a training run: tables of crops, SQL, thresholds, label quality. No torch."""

from labelstore.analysis.advice import Advice, ClassEffect, advise, example_crops
from labelstore.analysis.arrow_batches import crop_batches
from labelstore.analysis.crop_frames import crop_frames, crops
from labelstore.analysis.distances import Distances, distances
from labelstore.analysis.duplicates import duplicates
from labelstore.analysis.noise import Noise, label_noise
from labelstore.analysis.sql import sql, sql_batches, sql_columns
from labelstore.analysis.threshold_counts import ThresholdCounts, count_thresholds
from labelstore.crop_columns import COLUMNS

__all__ = [
    "COLUMNS",
    "Advice",
    "ClassEffect",
    "Distances",
    "Noise",
    "ThresholdCounts",
    "advise",
    "count_thresholds",
    "crop_batches",
    "crop_frames",
    "crops",
    "distances",
    "duplicates",
    "example_crops",
    "label_noise",
    "sql",
    "sql_batches",
    "sql_columns",
]
