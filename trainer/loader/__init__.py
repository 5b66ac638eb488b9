"""The data path of a run: labels of a pass laid out once, pixels made by threads straight into batches."""

from trainer.loader.crop_loader import CropBatch, CropBatches, CropLoader, LoaderOptions
from trainer.loader.dataset import CropDataset, collate_crops
from trainer.loader.ground_truth import GroundTruthPasses, read_sizes
from trainer.loader.pass_labels import PassLabels
from trainer.loader.phased import PhasedPasses
from trainer.loader.source import DrawCounts, DrawOptions, ImageTable, PassSource
from trainer.loader.stored import StoredPasses
from trainer.loader.supervision import Supervision

__all__ = [
    "CropBatch",
    "CropBatches",
    "CropDataset",
    "CropLoader",
    "DrawCounts",
    "DrawOptions",
    "GroundTruthPasses",
    "ImageTable",
    "LoaderOptions",
    "PassLabels",
    "PassSource",
    "PhasedPasses",
    "StoredPasses",
    "Supervision",
    "collate_crops",
    "read_sizes",
]
