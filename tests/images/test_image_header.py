"""Headers: format and size without decoding, against Pillow."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from labelstore.errors import LabelStoreError, RejectedInput, StorageError
from labelstore.images import digest, image_size, jpeg_frame, sniff

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]


def encoded(kind, height=23, width=41, mode="RGB", **options):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_format_and_size(kind, tmp_path):
    data = encoded(kind)
    assert sniff(data) == kind.lower()
    assert image_size(data) == (23, 41)
    # the name lies, the bytes do not
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    assert image_size(path) == (23, 41)


@pytest.mark.parametrize(
    ("mode", "options", "components"),
    [
        ("RGB", {"progressive": True}, 3),
        ("L", {}, 1),
        ("CMYK", {}, 4),
        ("RGB", {"exif": b"Exif\0\0" + b"\0" * 60_000}, 3),
        ("RGB", {"comment": b"\xff\xc0" * 30_000}, 3),
        ("RGB", {"icc_profile": b"p" * 200_000}, 3),
    ],
)
def test_jpeg_headers(mode, options, components, tmp_path):
    data = encoded("JPEG", mode=mode, **options)
    assert jpeg_frame(data)[:4] == (23, 41, components, "progressive" not in options)
    path = tmp_path / "x"
    path.write_bytes(data)
    assert image_size(path) == (23, 41)


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert image_size(encoded("JPEG", exif=exif)) == (23, 41)


def test_not_an_image(tmp_path):
    path = tmp_path / "n01.JPEG"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(RejectedInput, match=r"n01\.JPEG"):
        image_size(path)
    with pytest.raises(StorageError, match=r"gone\.JPEG"):
        image_size(tmp_path / "gone.JPEG")
    for data in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0"):
        with pytest.raises(RejectedInput):
            image_size(data)


# Pillow warns about odd TIFF tags before it gives up on a file
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 10**6), st.binary(min_size=1, max_size=3))
def test_damaged_headers_end_in_one_error(kind, at, patch):
    data = bytearray(encoded(kind))
    at %= min(len(data), 400)
    data[at : at + len(patch)] = patch
    for damaged in (bytes(data), bytes(data[:at])):
        message = ""
        try:
            assert min(image_size(damaged)) > 0
        except LabelStoreError as error:
            message = str(error)
        assert "\n" not in message


def test_a_header_that_loops_ends():
    assert jpeg_frame(b"\xff\xd8" + b"\xff" * 1_000_000) is None
    assert jpeg_frame(b"\xff\xd8" + b"\xff\xe0\x00\x00" * 10_000) is None


def test_digest():
    assert digest(b"abc") == hashlib.sha256(b"abc").digest()[:16]
