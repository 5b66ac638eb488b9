"""The packages' weights are timm's network: it names real photographs as ImageNet does."""

import pytest

from benchmarks.real_teacher import PACKAGES, weights
from labelstore.errors import UsageError
from labelstore.teachers.teacher import load_teacher

VARIANT = "tf_efficientnet_lite0"


def test_the_teacher_names_real_photographs(tmp_path):
    pytest.importorskip(PACKAGES[VARIANT])
    data = pytest.importorskip("skimage.data")
    import numpy as np
    import torch
    from PIL import Image
    from timm.data import ImageNetInfo

    path = weights(VARIANT, tmp_path)
    assert weights(VARIANT, tmp_path) == path
    teacher = load_teacher(str(path), architecture=f"timm:{VARIANT}")
    info = ImageNetInfo("imagenet-1k")
    for photograph, word in ((data.coffee(), "espresso"), (data.chelsea(), "tabby")):
        square = Image.fromarray(photograph).resize((224, 224), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(square).transpose(2, 0, 1)[None] / 127.5 - 1).float()
        with torch.inference_mode():
            (first,) = teacher.module(pixels).topk(3).indices.tolist()
        assert any(word in info.index_to_description(index) for index in first)


def test_another_network_is_refused(tmp_path):
    with pytest.raises(UsageError, match="tf_efficientnet_lite0"):
        weights("resnet50", tmp_path)
