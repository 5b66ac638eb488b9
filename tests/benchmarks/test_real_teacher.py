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


@pytest.mark.slow
def test_a_real_teachers_labels_keep_the_laws_of_the_eight_bit_form(tmp_path):
    pytest.importorskip(PACKAGES[VARIANT])
    from benchmarks import real_labels
    from benchmarks.papers.real import stamps

    if not stamps.STAMPS.is_dir():
        pytest.skip(stamps.INSTALL)
    found = real_labels.run(tmp_path, num_images=4, num_crops=12)
    labels = found["labels"]
    assert labels["uint8_kl_mean"] <= 1e-4
    assert labels["uint8_kl_worst"] <= 1e-3
    assert labels["uint8_max_probability_error"] <= 0.01
    assert sum(labels["bins"]) == pytest.approx(1)
    for row in labels["kl"].values():
        assert row["uint8"] == pytest.approx(row["float32"], rel=0.05)
        assert row["float16"] == pytest.approx(row["float32"], rel=0.1)
    # a tail of the image takes fewer bytes than two more classes of every crop
    sizes = found["bytes_per_crop_at_200"]
    assert (
        sizes["MS, K = 3 + tail 100, uint8"]
        < sizes["MS, K = 5, uint8"]
        < sizes["MS, K = 5, float16"]
    )
    parts = labels["bytes_per_crop"]["uint8"]
    assert sum(
        size for name, size in parts.items() if name not in ("total", "class_ids")
    ) == pytest.approx(parts["total"])
    page = real_labels.markdown(found)
    assert "FerKD Table 1" in page
