"""R26: odd pictures end as the pixels that docs/how-to/images.md promises, or in one line; nothing else is started."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelstore.cropping.replay import decode
from labelstore.errors import RejectedInput
from labelstore.images import image_size

# Pillow warns of formats that it will drop, and of transparent palettes
pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]
KINDS = ("jpeg", "png", "gif", "webp", "bmp", "tiff", "ppm")
OTHER_KINDS = ("eps", "pdf", "jpeg2000", "tga", "pcx", "ico", "icns", "dds", "sgi", "im", "msp", "xbm", "spider", "avif", "qoi", "blp")  # fmt: skip
"""What Pillow writes and nothing here reads."""
MODES = tuple(dict.fromkeys((*Image.MODES, "I;16B", "I;16L")))
MOST_MB = 1074
"""1 GiB, with torch."""

CHILD = """
import io, json, sys, warnings
import numpy as np
from labelstore.errors import RejectedInput
from labelstore.images import image_size
from labelstore.cropping.replay import decode
warnings.simplefilter("ignore")
for path in sys.stdin.read().splitlines():
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins again
    data = open(path, "rb").read()
    ended = {"path": path}
    for what in ("size", "pixels"):
        try:
            if what == "size":
                ended[what] = list(image_size(data))
            else:
                pixels = decode(data, path).permute(1, 2, 0).numpy()
                ended[what] = list(pixels.shape)
                if pixels.size < 10**6:
                    np.save(path + ".npy", pixels)
                del pixels
        except RejectedInput as error:
            ended[what] = str(error)
        except BaseException as error:
            ended[what] = ended["escaped"] = repr(error)
    status = open("/proc/self/status").read()
    ended["peak_mb"] = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    print(json.dumps(ended), flush=True)
"""


def saved(picture: Image.Image, kind: str, **options) -> bytes | None:
    """The picture in a format, or None where that cannot hold its mode."""
    held = io.BytesIO()
    try:
        picture.save(held, kind, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return held.getvalue()


def sample(mode: str) -> Image.Image:
    grey = np.add.outer(np.arange(40) * 17, np.arange(44) * 23) % 256
    if mode.startswith("I;16"):
        wide = (
            (grey * 257 + np.arange(44)).clip(0, 65535).astype(">u2" if mode == "I;16B" else "<u2")
        )
        return Image.frombytes(mode, (44, 40), wide.tobytes())
    colours = Image.fromarray(np.stack([grey, grey[:, ::-1], 255 - grey], -1).astype(np.uint8))
    if mode in ("RGBa", "La"):
        return colours.convert(mode[:-1] + "A").convert(mode)
    if mode in ("LAB", "PA"):
        return colours.convert("P" if mode == "PA" else "RGB").convert(mode)
    return colours.convert(mode)


def expected(data: bytes) -> np.ndarray | None:
    """What the documentation says of a whole picture, by another way: None is a refusal."""
    with Image.open(io.BytesIO(data)) as opened:
        if opened.mode.startswith("I;16") or (
            opened.mode == "I" and opened.format in ("PNG", "PPM")
        ):
            grey = np.rint(np.asarray(opened).astype(np.float64) / 257).astype(np.uint8)
            return np.stack([grey] * 3, axis=-1)
        if opened.mode in ("I", "F"):
            return None
        return np.asarray(opened.convert("RGB"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def good() -> Iterator[tuple[str, bytes]]:
    """Every mode in every format that holds it, and rarer forms."""
    for mode in MODES:
        for kind in KINDS:
            if data := saved(sample(mode), kind):
                yield f"{mode.replace(';', '_')}.{kind}", data
    rgb, palette = sample("RGB"), sample("P")
    rarer = {
        "progressive": ("jpeg", rgb, {"progressive": True}),
        "keep-rgb": ("jpeg", rgb, {"keep_rgb": True}),
        "4-1-1": ("jpeg", rgb, {"subsampling": "4:1:1"}),
        "restarts": ("jpeg", rgb, {"restart_marker_blocks": 2}),
        "turned": ("jpeg", rgb, {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
        "transparent": ("png", palette, {"transparency": bytes(range(256))}),
        "one-transparent": ("png", palette, {"transparency": 3}),
        "grey-transparent": ("png", sample("L"), {"transparency": 3}),
        "several": ("tiff", rgb, {"save_all": True, "append_images": [sample("L")]}),
        "moving": ("webp", rgb, {"save_all": True, "append_images": [palette.convert("RGB")]}),
        "moving-gif": ("gif", palette, {"save_all": True, "append_images": [sample("L")]}),
        "moving-png": ("png", rgb, {"save_all": True, "append_images": [sample("RGB").rotate(180)]}),
        "mpo": ("mpo", rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "lossless": ("webp", sample("RGBA"), {"lossless": True}),
        "lzw": ("tiff", rgb, {"compression": "tiff_lzw"}),
        "jpeg-in": ("tiff", rgb, {"compression": "jpeg"}),
        "fax": ("tiff", sample("1"), {"compression": "group4"}),
        "big": ("tiff", rgb, {"big_tiff": True}),
        "one-pixel": ("png", rgb.crop((0, 0, 1, 1)), {}),
        "one-row": ("jpeg", rgb.crop((0, 0, 44, 1)), {}),
    }  # fmt: skip
    for name, (kind, picture, options) in rarer.items():
        data = saved(picture, kind, **options)
        assert data is not None, name
        yield f"{name}.{kind}", data
    wide = np.random.default_rng(0).integers(0, 1 << 16, (40, 44, 4)).astype(">u2")
    for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        rows = b"".join(b"\0" + row[:, :channels].tobytes() for row in wide)
        yield f"16-bit-{channels}.png", png(44, 40, 16, colour, rows)
    for depth in (1, 2, 4):
        yield f"{depth}-bit.png", png(44, 40, depth, 0, b"\0" * ((44 * depth + 7) // 8 + 1) * 40)
    yield "text.ppm", b"P3 2 1 255\n1 2 3 4 5 6\n"
    yield "16-bit.ppm", b"P5 2 1 65535\n\x01\x02\xff\xff"
    yield "10-bit.ppm", b"P5 2 1 1023\n\x01\x02\x03\xff"
    whole = saved(rgb, "jpeg")
    yield "trailing.jpeg", whole + bytes(1000)
    yield "name.png", whole


def bad() -> Iterator[tuple[str, bytes]]:
    """What is refused: other formats, PostScript above all, damage, headers that lie."""
    rgb = sample("RGB")
    for kind in OTHER_KINDS:
        for mode in ("RGB", "L", "1"):
            if data := saved(sample(mode), kind):
                yield f"{kind}-{mode}.jpg", data
                break
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 44 40\n%%EndComments\nshowpage\n%%EOF\n"
    )
    yield "postscript.jpg", postscript
    yield "dos-postscript.jpg", b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIII", 32, len(postscript), 0, 0, 0, 0) + b"\xff\xff\0\0" + postscript  # fmt: skip
    yield "float.ppm", b"Pf 2 1 -1.0\n" + struct.pack("<ff", 0.5, 1.0)
    yield "empty.jpg", b""
    yield "html.jpg", b"<html>not found</html>"
    for kind in KINDS:
        data = saved(rgb, kind)
        yield f"half.{kind}", data[: len(data) // 2]
        yield f"head.{kind}", data[:12]
    tagged = bytearray(saved(sample("I;16"), "tiff"))
    for name, tag, was, now in (("12-bit", 258, 16, 12), ("white-is-0", 262, 1, 0)):
        at = tagged.index(struct.pack("<HHIH", tag, 3, 1, was))
        lying = bytes(tagged[:at]) + struct.pack("<HHIH", tag, 3, 1, now) + bytes(tagged[at + 10 :])
        yield f"{name}.tiff", lying
    rows = zlib.compress(bytes(100))
    for side in (30_000, 1 << 30):
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        yield (
            f"lying-{side}.png",
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows),
        )
    yield "lying.bmp", b"BM" + struct.pack("<IIIIiiHHIIIIII", 60, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)  # fmt: skip
    yield "lying.gif", b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\x08\0;"  # fmt: skip
    yield "lying.ppm", b"P6 60000 60000 255\n" + bytes(100)
    jpeg = bytearray(saved(rgb, "jpeg"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    yield "lying.jpeg", bytes(jpeg)
    yield "text-bomb.png", png(2, 2, 8, 2, bytes(14))[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(90 << 20)))  # fmt: skip


def large(full: bool) -> Iterator[tuple[str, bytes]]:
    """Pictures as large as is allowed, and beyond: small files of many pixels."""
    from labelstore.cropping.pictures import BYTES_PER_PIXEL, MAX_DECODING_BYTES

    limit = {kind: MAX_DECODING_BYTES / each for kind, each in BYTES_PER_PIXEL.items()}
    forms = {
        "png": ("RGBA", "png", {}),
        "webp": ("RGB", "webp", {"lossless": True, "quality": 0, "method": 0}),
        "baseline jpeg": ("RGB", "jpeg", {"subsampling": 0}),
        "progressive jpeg": ("RGB", "jpeg", {"progressive": True, "subsampling": 0}),
        "jpeg": ("CMYK", "jpeg", {"progressive": True}),
        "tiff": ("RGB", "tiff", {"compression": "tiff_adobe_deflate"}),
        "gif": ("P", "gif", {}),
        "bmp": ("RGB", "bmp", {}),
    }
    for name in forms if full else ("png",):
        mode, kind, options = forms[name]
        side = int(limit[name] ** 0.5)
        for what, edge in (("allowed", side), ("beyond", side + 50)):
            held = io.BytesIO()
            Image.new(mode, (edge, edge)).save(held, kind, **options)
            yield f"{what}-{name.replace(' ', '-')}.{kind}", held.getvalue()


def test_every_mode_in_every_format_is_converted_or_refused(capfd):
    """R26, of whole pictures: the pixels that docs/how-to/images.md promises, without a word of a decoder's own."""
    for name, data in good():
        right = expected(data)
        if right is None:
            with pytest.raises(RejectedInput, match=name):
                decode(data, name)
        else:
            assert np.array_equal(decode(data, name).permute(1, 2, 0), right), name
            assert image_size(data) == right.shape[:2], name
    assert capfd.readouterr() == ("", "")


def test_odd_pictures(tmp_path, scale, matrix):
    """R26: pixels as documented or one line, 1 GiB with torch, no other program."""
    full = scale >= 2
    step = 1 if full else 4
    fates = {"good": [*good()][::step], "bad": [*bad()][::step], "large": [*large(full)]}
    paths: dict[str, str] = {}
    for fate, pictures in fates.items():
        for name, data in pictures:
            path = tmp_path / f"{fate}-{name}"
            path.write_bytes(data)
            paths[str(path)] = fate
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("gs", "djpeg", "xdg-open", "convert"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {programs}/started\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="\n".join(paths),
        cwd=ROOT,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["path"] for each in ended] == list(paths), done.stderr
    wrong = [each for each in ended if not is_right(each, paths[each["path"]])]
    peak = max(each["peak_mb"] for each in ended)
    started = (programs / "started").exists()
    matrix.record("R26", files=len(ended), wrong=len(wrong), programs=int(started), peak_mb=peak)
    assert not wrong
    assert not started
    assert peak <= MOST_MB, max(ended, key=lambda each: each["peak_mb"])


def is_right(ended: dict, fate: str) -> bool:
    """Whether a picture ended as it should."""
    path, pixels = Path(ended["path"]), ended["pixels"]
    refused = isinstance(pixels, str)
    if "escaped" in ended or (refused and ("\n" in pixels or str(path) not in pixels)):
        return False
    if fate == "large":
        return refused == path.name.startswith("large-beyond")
    if fate == "bad":
        return refused
    right = expected(path.read_bytes())
    if right is None or refused:
        return right is None and refused
    return np.array_equal(np.load(f"{path}.npy"), right) and ended["size"] == [*right.shape[:2]]


def test_there_are_enough():
    """The full size of R26."""
    assert sum(1 for _ in (*good(), *bad())) >= 120


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_tried_in_a_mode_of_its_own(kind):
    """So that `good` cannot become empty where Pillow changes."""
    assert any(name.endswith(kind) for name, _ in good())
