"""Shows where a network looks: Grad-CAM and guided backpropagation of several checkpoints side by side (FKD Fig. 6)."""

from trainer.attention.feature_maps import FeatureMap, feature_maps
from trainer.attention.maps import Attention, attend
from trainer.attention.picture import Looked, draw_attention, find_image, image_folders

__all__ = [
    "Attention",
    "FeatureMap",
    "Looked",
    "attend",
    "draw_attention",
    "feature_maps",
    "find_image",
    "image_folders",
]
