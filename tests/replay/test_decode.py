"""Decoding: what ImageFolder would load, for every format and mode, and refusals that name the image."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from labelstore.cropping import pictures, replay
from labelstore.errors import LabelStoreError, RejectedInput, StorageError


def picture(height=37, width=53):
    """A smooth colour image: noise would let two JPEG decoders differ more than photographs do."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9 + c) + np.cos(columns / (5 + c)) for c in range(3)]
    return Image.fromarray((np.stack(waves, axis=-1) * 60 + 128).astype(np.uint8))


def encoded(kind, mode="RGB", **options):
    file = io.BytesIO()
    picture().convert(mode).save(file, kind, **options)
    return file.getvalue()


def as_image_folder(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "L", {}),
        ("PNG", "P", {}),
        ("PNG", "P", {"transparency": bytes(range(256))}),
        ("PNG", "1", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
        ("PPM", "RGB", {}),
    ],
)
def test_same_pixels_as_image_folder(kind, mode, options):
    data = encoded(kind, mode, **options)
    pixels = replay.decode(data, "x")
    assert pixels.dtype == torch.uint8
    # Reading a transparent palette the plain way warns; the code under test must not
    if "transparency" in options:
        with pytest.warns(UserWarning, match="Transparency"):
            expected = as_image_folder(data)
    else:
        expected = as_image_folder(data)
    assert np.array_equal(pixels.numpy(), expected)


def test_without_simplejpeg_pillow_decodes_the_same(monkeypatch):
    data = encoded("JPEG")
    expected = replay.decode(data, "x")
    monkeypatch.setattr(pictures, "DECODE_JPEG", None)
    assert torch.equal(replay.decode(data, "x"), expected)


def test_the_name_does_not_decide(tmp_path):
    path = tmp_path / "n02105855_2933.JPEG"
    path.write_bytes(encoded("PNG"))
    assert np.array_equal(replay.read_image(path).numpy(), as_image_folder(path.read_bytes()))


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert replay.decode(encoded("JPEG", exif=exif), "x").shape == (3, 37, 53)


def test_truncated_jpeg_is_refused_by_name():
    data = encoded("JPEG")
    for length in (0, 2, 30, len(data) // 3, len(data) - 20, len(data) - 1):
        with pytest.raises(RejectedInput, match=r"cat/7\.jpg") as caught:
            replay.decode(data[:length], "cat/7.jpg")
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]),
    st.floats(0, 0.999),
    st.binary(min_size=1, max_size=4),
)
def test_damaged_images_end_in_one_error_or_in_pixels(kind, at, patch):
    data = bytearray(encoded(kind))
    start = int(at * len(data))
    data[start : start + len(patch)] = patch
    try:
        pixels = replay.decode(bytes(data), "x")
    except LabelStoreError as error:
        message = str(error)
    else:
        assert pixels.dtype == torch.uint8
        message = ""
    assert "\n" not in message


def test_too_many_pixels(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_DECODING_BYTES", 3 * 37 * 53 - 1)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(RejectedInput, match="53 x 37 pixels"):
            replay.decode(encoded(kind), "x")


def test_missing_file(tmp_path):
    with pytest.raises(StorageError, match=r"gone\.jpg"):
        replay.read_image(tmp_path / "gone.jpg")
