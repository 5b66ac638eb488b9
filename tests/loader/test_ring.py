"""Threads that fill batches: order, bound, errors, and that they always end."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from labelstore.arrays.reading_threads import Stopped, for_each
from trainer.loader.ring import BatchRing


def our_threads():
    return [t for t in threading.enumerate() if t.name.startswith("labelstore-loader")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert not our_threads()


@pytest.mark.sample(2)
@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("depth", [1, 3])
def test_every_item_of_every_batch_is_filled(workers, depth):
    sizes = [3, 0, 5, 1, 0, 0, 4, 2, 0]
    opened = []

    def open_batch(batch):
        opened.append(batch)
        return [None] * sizes[batch]

    def fill(filled, item):
        time.sleep(0.001 * (item % 3))
        filled[item] = item

    ring = BatchRing(sizes, open_batch, fill, depth=depth, workers=workers)
    for batch, size in enumerate(sizes):
        assert ring.get(batch) == list(range(size))
        assert len(opened) <= batch + depth
        ring.release(batch)
    ring.close()
    assert opened == list(range(len(sizes)))


def test_no_more_than_depth_batches_are_open():
    opened = []
    filled = threading.Semaphore(0)
    ring = BatchRing(
        [1] * 10,
        lambda batch: opened.append(batch),
        lambda _, item: filled.release(),
        depth=2,
        workers=3,
    )
    for _ in range(2):
        assert filled.acquire(timeout=300)
    assert not filled.acquire(timeout=0.05)
    assert opened == [0, 1]
    ring.get(0)
    assert not filled.acquire(timeout=0.05)  # the consumer still has it
    ring.release(0)
    assert filled.acquire(timeout=300)
    assert opened == [0, 1, 2]
    ring.close()


@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_error_in_order_wins(workers):
    def fill(batch, item):
        if batch == 2 and item in (1, 3):
            time.sleep(0.02 if item == 1 else 0)
            raise KeyError(f"{batch}.{item}")
        if batch == 3:
            raise ValueError("later")

    for _ in range(5):
        ring = BatchRing([4] * 5, lambda batch: batch, fill, depth=3, workers=workers)
        for batch in range(2):
            assert ring.get(batch) == batch
            ring.release(batch)
        with pytest.raises(KeyError, match=r"2\.1"):
            ring.get(2)
        ring.close()


def test_an_error_on_opening_belongs_to_its_batch():
    def open_batch(batch):
        if batch == 1:
            raise OSError("no such plane")
        return batch

    ring = BatchRing([2, 0, 2], open_batch, lambda *_: None, depth=3, workers=3)
    assert ring.get(0) == 0
    with pytest.raises(OSError, match="no such plane"):
        ring.get(1)
    ring.close()


def test_dropping_the_ring_ends_its_threads():
    ring = BatchRing([1] * 9, lambda batch: batch, lambda *_: None, depth=1, workers=3)
    assert len(our_threads()) == 3
    del ring
    assert not our_threads()


def test_closing_wakes_a_waiting_consumer():
    release = threading.Event()
    ring = BatchRing([1], lambda batch: batch, lambda *_: release.wait(300), depth=1, workers=1)
    raised = []

    def consume():
        try:
            ring.get(0)
        except RuntimeError as error:
            raised.append(str(error))

    consumer = threading.Thread(target=consume)
    consumer.start()
    closer = threading.Thread(target=ring.close)
    closer.start()
    consumer.join(300)
    release.set()
    closer.join(300)
    assert raised == ["this loader is closed"]


@pytest.mark.parametrize("threads", [1, 3])
def test_for_each(threads):
    seen = []
    for_each(seen.append, range(50), threads=threads)
    assert sorted(seen) == list(range(50))

    def fail(item):
        if item == 5:
            raise KeyError(item)
        time.sleep(0.001)
        seen.append(item)

    seen.clear()
    with pytest.raises(KeyError, match="5"):
        for_each(fail, range(1000), threads=threads)
    assert len(seen) < 50
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        for_each(seen.append, range(3), threads=threads, stop=stop)
