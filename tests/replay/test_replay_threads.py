"""The heavy parts let other threads run: while they work, this thread must get on."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from labelstore.cropping.replay import decode, replay


def turns_while(work):
    """How often this thread gets a turn while another is inside `work()`."""
    started, done = threading.Event(), threading.Event()

    def run():
        started.set()
        work()
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    turns = 0
    while not done.wait(0.001):
        turns += 1
    thread.join()
    return turns


@pytest.fixture(scope="module")
def large():
    coarse = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    return Image.fromarray(coarse).resize((4000, 3000))


def test_decode_releases_the_gil(large):
    file = io.BytesIO()
    large.save(file, "JPEG")
    # under a held lock, the turns are the one or two between the calls
    assert turns_while(lambda: decode(file.getvalue(), "x")) > 10


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_replay_releases_the_gil(large, interpolation):
    image = torch.from_numpy(np.array(large)).permute(2, 0, 1)
    # this resize alone takes tens of milliseconds
    assert turns_while(lambda: replay(image, (0, 0, 3000, 4000), True, 2000, interpolation)) > 10
