"""Images decoded on the device: the same pixels as the CPU's where they are, and the CPU where they would not be.

Here the device is the CPU with torchcodec's decoder. simplejpeg's `fastupsample` stands for nvJPEG as torchcodec calls
it: it repeats chroma of half size where all else here interpolates it.
"""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
import simplejpeg
import torch

import labelstore
from cli import errors, labelstore_app
from labelstore import MarginalSmoothing
from labelstore.care.auditing import audit
from labelstore.catalogue.records import LabelSetRow
from labelstore.cropping import device_decoding as decoding
from labelstore.cropping.crop_augmentation import CropAugmentation
from labelstore.cropping.device_decoding import DeviceDecoding, jpeg_kind, with_torchcodec
from labelstore.cropping.replay import decode
from labelstore.errors import ConflictError, RejectedInput, UsageError
from labelstore.testing.digit_pictures import photographs as real_photographs
from tests.flat_options import generate, grow, label_images

CPU = torch.device("cpu")
HALF_CHROMA = 2
JITTER = CropAugmentation(color_jitter=(0.4, 0.4, 0.4, 0.1))


def jpeg(picture, **how):
    held = io.BytesIO()
    picture.save(held, "JPEG", **{"quality": 90, "subsampling": HALF_CHROMA, **how})
    return held.getvalue()


@pytest.fixture(scope="module")
def picture():
    """A photograph whose colours change from pixel to pixel."""
    return real_photographs()[0].resize((200, 150))


def repeats_chroma(images, device):
    """As nvJPEG does it without being told otherwise."""
    made = [simplejpeg.decode_jpeg(data, fastupsample=True) for data in images]
    return [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in made]


def test_kinds_of_jpeg(picture):
    whole = jpeg(picture)
    assert jpeg_kind(whole) == "4:2:0"
    assert jpeg_kind(jpeg(picture, subsampling=0)) == "4:4:4"
    assert jpeg_kind(jpeg(picture, subsampling=1)) == "4:2:2"
    assert jpeg_kind(jpeg(picture.convert("L"))) == "grey"
    assert jpeg_kind(jpeg(picture, exif=b"Exif\0\0" + b"x" * 5000)) == "4:2:0"
    held = io.BytesIO()
    picture.save(held, "PNG")
    red = simplejpeg.encode_jpeg(np.asarray(picture), colorspace="RGB")
    assert jpeg_kind(red) in ("4:4:4", "4:2:0")
    for other in (
        jpeg(picture, progressive=True),
        jpeg(picture.convert("CMYK")),
        jpeg(picture, keep_rgb=True, subsampling=0),
        held.getvalue(),
        whole[:-2],
        whole[: len(whole) // 2],
        whole[:20],
        b"",
    ):
        assert jpeg_kind(other) is None


def test_a_decoder_with_the_cpus_pixels_is_taken_and_one_without_refused(picture, monkeypatch):
    sample = {f"{n}.jpg": jpeg(picture.rotate(n)) for n in range(3)}
    about = {"size": 64, "interpolation": "bilinear"}
    found = decoding.measured(with_torchcodec, sample, CPU, **about)
    assert found["4:2:0"].is_small
    assert found["4:2:0"].images == 3
    gap = decoding.measured(repeats_chroma, sample, CPU, **about)["4:2:0"]
    assert not gap.is_small
    assert gap.beyond_one > 0.05
    assert gap.largest > 10
    monkeypatch.setattr(decoding, "decoders_for", lambda device: {"other": repeats_chroma})
    notes = []
    with pytest.raises(UsageError) as caught:
        decoding.device_decoding(CPU, sample, note=notes.append, **about)
    line = str(caught.value)
    assert f"4:2:0: {gap.beyond_one:.2%} of the values differ by more than 1" in line
    assert "use `decode_device=cpu`" in line
    # full chroma is the same in both; a kind of which the sample has none is decoded by the CPU
    sample["full.jpg"] = jpeg(picture, subsampling=0)
    chosen = decoding.device_decoding(CPU, sample, note=notes.append, **about)
    assert chosen.kinds == {"4:4:4"}
    (note,) = notes
    assert "4:4:4 chroma; 3 of 4 images" in note
    for data in (*sample.values(), jpeg(picture.convert("L"))):
        assert torch.equal(chosen(data, "x"), decode(data, "x"))
    assert chosen.counts == {"device": 1, "cpu": 4}
    # the closest of several
    both = {"other": repeats_chroma, "torchcodec": with_torchcodec}
    monkeypatch.setattr(decoding, "decoders_for", lambda device: both)
    assert decoding.device_decoding(CPU, sample, note=notes.append, **about).kinds == {
        "4:4:4", "4:2:0",
    }  # fmt: skip


def test_where_no_image_is_a_jpeg_or_no_decoder_there(picture):
    held = io.BytesIO()
    picture.save(held, "PNG")
    about = {"size": 64, "interpolation": "bilinear", "note": print}
    with pytest.raises(UsageError, match="there is no baseline JPEG"):
        decoding.device_decoding(CPU, {"a.png": held.getvalue()}, **about)
    with pytest.raises(UsageError, match="on mps: JPEGs are decoded on cuda and cpu"):
        decoding.device_decoding(torch.device("mps"), {}, **about)


def test_threads_share_calls_and_a_damaged_image_is_its_own(picture):
    sizes = []

    def slow(images, device):
        sizes.append(len(images))
        time.sleep(0.05)
        return with_torchcodec(images, device)

    data = [jpeg(picture.rotate(n)) for n in range(12)]
    middle = len(data[5]) // 2
    data[5] = data[5][: middle - 400] + b"\xff\xc0" * 400 + data[5][middle + 400 :]
    assert jpeg_kind(data[5]) == "4:2:0"
    decoder = DeviceDecoding(slow, CPU, ["4:2:0"])
    found = {}

    def ask(number):
        try:
            found[number] = decoder(data[number], str(number))
        except RejectedInput as error:
            found[number] = error

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(sizes) > 1
    for number, one in enumerate(data):
        try:
            assert torch.equal(found[number], decode(one, "x"))
        except RejectedInput:
            assert isinstance(found[number], RejectedInput)
    assert isinstance(found[5], RejectedInput)


def label(place, images, teacher, **options):
    return label_images(
        place, images=images, teacher=str(teacher), codec=MarginalSmoothing(k=2, dtype="float32"),
        num_crops=6, batch_size=10, device="cpu", workers=2, **options,
    )  # fmt: skip


def test_labels_are_those_of_device_crops_and_what_made_them_is_recorded(
    tmp_path, photographs, run_folder
):
    notes = []
    label(tmp_path / "cpu", photographs, run_folder, crop_device="device")
    label(tmp_path / "s", photographs, run_folder, decode_device="device", note=notes.append)
    assert any("1 of 21 images looked at are decoded by the CPU" in note for note in notes)
    with (
        labelstore.open(tmp_path / "cpu") as other,
        labelstore.open(tmp_path / "s") as store,
    ):
        row: LabelSetRow = store.label_set_row()
        assert (row.facts["decode_device"], row.facts["crop_device"]) == ("device", "cuda")
        assert other.label_set_row().facts["decode_device"] == "cpu"
        ours, theirs = (s.label_set().recover(range(21)) for s in (store, other))
        assert np.abs(ours - theirs).max() < 1e-5
        assert audit(store, device="cpu", workers=2).largest < 1e-5
        about = {"teacher": str(run_folder), "codec": MarginalSmoothing(k=2, dtype="float32")}
        with pytest.raises(ConflictError, match="images decoded on device, asked for cpu"):
            generate(store, **about, decode_device="cpu", device="cpu")
        with pytest.raises(ConflictError, match="images decoded on cpu, asked for device"):
            generate(other, **about, decode_device="device", device="cpu")
        grown = grow(store, num_crops=12, teacher=str(run_folder), device="cpu")
        assert grown.num_crops == 21 * 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decode_device": "moon"}, "`decode_device=moon`: choose one of cpu, device"),
        ({"decode_device": "device", "crop_device": "cpu"}, "leave `crop_device` out"),
        ({"decode_device": "device", "augmentation": JITTER}, "run on the CPU"),
    ],
)
def test_what_cannot_be(tmp_path, photographs, run_folder, options, words):
    with pytest.raises(UsageError, match=words):
        label(tmp_path / "s", photographs, run_folder, **options)
    assert not (tmp_path / "s").exists()


def test_the_command(tmp_path, photographs, run_folder, capsys):
    command = [
        "create", str(tmp_path / "s"), "--images", str(photographs), "--teacher", str(run_folder), "--num-crops", "2", "--k", "2",
        "--device", "cpu", "--workers", "1", "--decode-device",
    ]  # fmt: skip
    assert errors.run(labelstore_app.commands, "labelstore", [*command, "moon"]) == 2
    assert "--decode-device moon" in capsys.readouterr().err
    assert errors.run(labelstore_app.commands, "labelstore", [*command, "device"]) == 0
    assert "decoded by the CPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torchcodec", "nvimgcodec"])
def test_on_a_gpu(picture, name):
    """Full chroma, and with nvImageCodec interpolated chroma too, is within the law."""
    device = torch.device("cuda")
    decoder = decoding.decoders_for(device).get(name)
    if decoder is None:
        pytest.skip(f"{name} is not installed")
    full, half = (
        {f"{n}.jpg": jpeg(picture.rotate(n), subsampling=s) for n in range(4)} for s in (0, 2)
    )
    about = {"size": 96, "interpolation": "bilinear"}
    assert decoding.measured(decoder, full, device, **about)["4:4:4"].is_small
    gap = decoding.measured(decoder, half, device, **about)["4:2:0"]
    assert gap.is_small == (name == "nvimgcodec")
