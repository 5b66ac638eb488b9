"""What `imagenet_scale` times in a store, each in a process of its own, so that its peak memory is known.

    python -m benchmarks.scale_measures NAME STORE [--label-set NAME]

prints one JSON object on one line. Every file is read once before anything is timed (warm page cache).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numcodecs import blosc

import labelstore
from labelstore.arrays.sharding import index_bytes
from labelstore.store import LabelSet, Store
from trainer.loader import DrawOptions

CROPS_PER_IMAGE = 4
"""m."""
DECODES = 3
"""How often the bare decode is timed: before, between and after what it is compared with."""
MASK = "ferkd"


def peak_mb() -> float:
    """Largest resident size of this process so far, mapped files included."""
    return _resident_mb("VmHWM")


def now_mb() -> float:
    """Resident size of this process: what its libraries take before the work begins."""
    return _resident_mb("VmRSS")


def _resident_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {name} in /proc/self/status")


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_timed(work: Callable[[], Any]) -> float:
    """CPU seconds of this process, all threads together: what carries over from a machine that others use too."""
    start = time.process_time()
    work()
    return time.process_time() - start


def bare_decode(store: Store, group: str, fields: Iterable[str]) -> int:
    """Read the files of these arrays shard by shard, decompress every chunk, do nothing with it; bytes decoded.

    No ledger, no checksums, no axis order: the floor for anything that looks at every crop.
    """
    specs = store.group(group).specs
    buffers = {name: np.empty(specs[name].chunk_bytes, np.uint8) for name in fields}
    wanted = {specs[name].path: name for name in fields}
    total = 0
    for row in store.catalogue.ledger.shards(group):
        for file in row.files:
            (path,) = file.chunks
            if path not in wanted:
                continue
            data = (store.arrays.root / file.key).read_bytes()
            count = len(file.chunks[path])
            end = len(data) - index_bytes(count)
            index = np.frombuffer(data, "<u8", 2 * count, end).reshape(-1, 2).tolist()
            view, buffer = memoryview(data), buffers[wanted[path]]
            for offset, length in index:
                blosc.decompress(view[offset : offset + length - 4], buffer)
            total += buffer.nbytes * count
    return total


def warm(store: Store, *groups: str) -> None:
    for group in groups:
        for row in store.catalogue.ledger.shards(group):
            for file in row.files:
                with (store.arrays.root / file.key).open("rb") as opened:
                    while opened.read(1 << 22):
                        pass


def measure_pass(path: Path, label_set: str) -> dict[str, Any]:
    """Labels of one pass, mean over the passes that share a chunk column."""
    from trainer.loader.stored import StoredPasses
    from trainer.sampler import PassSchedule

    start_mb = now_mb()
    begun = time.perf_counter()
    with labelstore.open(path, readonly=True) as store:
        labels = store.label_set(label_set)
        warm(store, f"labels/{label_set}", *_crops(store))
        warmed = time.perf_counter()
        passes = max(1, labels.plan.crops_per_chunk // CROPS_PER_IMAGE)
        schedule = PassSchedule.of(passes=2 * passes, crops_per_image=CROPS_PER_IMAGE)
        with StoredPasses(labels, schedule=schedule, seed=1, scratch=path.parent) as source:
            ready = time.perf_counter()
            seconds = [timed(lambda p=p: source.pass_labels(p)) for p in range(2 * passes)]
            found = source.pass_labels(0)
            crops = len(found.images) * CROPS_PER_IMAGE
    columns = [sum(seconds[:passes]) / passes, sum(seconds[passes:]) / passes]
    return {
        "crops": crops,
        "seconds": min(columns),
        "every_pass": seconds,
        "first_column": columns[0],
        "setup_seconds": ready - warmed,
        "open_seconds": warmed - begun,
        "peak_mb": peak_mb(),
        "start_mb": start_mb,
        "crops_per_s": crops / min(columns),
    }


def measure_draw_file(path: Path, label_set: str) -> dict[str, Any]:
    """The draw file of a run under the mask: all its positions, at most M, laid out in one walk."""
    from trainer.loader.stored import StoredPasses
    from trainer.sampler import PassSchedule

    start_mb = now_mb()
    with labelstore.open(path, readonly=True) as store:
        labels, mask = store.label_set(label_set), store.mask(MASK)
        schedule = PassSchedule.of(passes=75, crops_per_image=CROPS_PER_IMAGE)
        fields = [field.name for field in labels.codec.fields(labels.num_classes)]
        decode = timed(lambda: bare_decode(store, f"labels/{label_set}", fields))
        if labels.plan.stored:
            decode += timed(
                lambda: bare_decode(store, f"crops/{labels.plan.name}", ["box", "flip"])
            )
        begun = time.perf_counter()
        with StoredPasses(
            labels,
            schedule=schedule,
            seed=1,
            mask=mask,
            scratch=path.parent,
            draw=DrawOptions(allow_empty_images=True),
        ) as source:
            ready = time.perf_counter()
            source.pass_labels(0)
            seconds = time.perf_counter() - ready
            written = sum(file.stat().st_size for file in source.folder.glob("*.npy"))
            positions = sum(1 for _ in source.folder.glob("*.npy"))
    return {
        "seconds": seconds,
        "setup_seconds": ready - begun,
        "positions": positions,
        "bytes": written,
        "decode_seconds": decode,
        "ratio_vs_decode": seconds / decode,
        "peak_mb": peak_mb(),
        "start_mb": start_mb,
    }


def measure_random_image(path: Path, label_set: str) -> dict[str, Any]:
    """One random image's labels, boxes and flips: all M crops, and m of one chunk column. CPU time, and with waiting."""
    rng = np.random.default_rng(3)
    with labelstore.open(path, readonly=True) as store:
        labels = store.label_set(label_set)
        warm(store, f"labels/{label_set}", *_crops(store))
        images = rng.integers(0, store.num_images, 60)
        labels.recover([int(images[0])])
        whole, whole_cpu, drawn = [], [], []
        for image in images.tolist():
            begun = time.process_time()
            whole.append(timed(lambda i=image: (labels.recover([i]), _boxes_and_flips(labels, i))))
            whole_cpu.append(time.process_time() - begun)
            few = [list(range(CROPS_PER_IMAGE))]
            drawn.append(timed(lambda i=image, few=few: labels.recover([i], few)))
    return {
        "all_crops_cpu_ms": 1e3 * median(whole_cpu),
        "all_crops_ms": 1e3 * median(whole),
        "all_crops_p90_ms": 1e3 * float(np.quantile(whole, 0.9)),
        "m_crops_ms": 1e3 * median(drawn),
        "images": len(images),
    }


def measure_open(path: Path, label_set: str) -> dict[str, Any]:
    """Opening a store, and what the first question about its images adds."""
    start_mb = now_mb()
    begun = time.perf_counter()
    with labelstore.open(path, readonly=True) as store:
        opened = time.perf_counter()
        opened_mb = peak_mb()
        store.image_columns  # noqa: B018 - reads the table of images
        read = time.perf_counter()
        store.label_set(label_set)
        done = time.perf_counter()
    return {
        "open_ms": 1e3 * (opened - begun),
        "images_table_seconds": read - opened,
        "label_set_seconds": done - read,
        "open_peak_mb": opened_mb,
        "peak_mb": peak_mb(),
        "start_mb": start_mb,
    }


def measure_stats(path: Path, label_set: str) -> dict[str, Any]:
    """What `labelstore stats` does for one label set, against a bare decode of the chunks that it reads.

    CPU seconds; the label set is opened anew each time, with the columns of the table of images that are asked for.
    """
    from labelstore.analysis.disk import storage
    from labelstore.analysis.histogram import histogram
    from labelstore.analysis.summary import summary

    start_mb = now_mb()
    with labelstore.open(path, readonly=True) as store:
        labels, decode = _ready(store, label_set)
        decodes, times = [cpu_timed(decode)], []
        for _ in range(DECODES):
            store.refresh()
            begun = time.process_time()
            labels = store.label_set(label_set)
            _ = labels.present, labels.ground_truth
            opened = time.process_time() - begun
            parts = {
                "summary_seconds": lambda labels=labels: summary(labels),
                "storage_seconds": lambda: storage(store),
                "histogram_seconds": lambda labels=labels: histogram(labels),
            }
            found = {name: cpu_timed(work) for name, work in parts.items()}
            times.append({"opening_seconds": opened, **found})
            decodes.append(cpu_timed(decode))
        images = store.num_images
    best = min(times, key=lambda parts: sum(parts.values()))
    return {
        "images": images,
        "seconds": sum(best.values()),
        **best,
        "decode_seconds": min(decodes),
        "ratio": sum(best.values()) / min(decodes),
        "peak_mb": peak_mb(),
        "start_mb": start_mb,
    }


def measure_calibrate(path: Path, label_set: str) -> dict[str, Any]:
    """A mask of the whole label set, committed through the ledger; again against the bare decode, in CPU seconds."""
    from labelstore.calibration import RegionThresholds, calibrate
    from labelstore.care.dropping import drop

    start_mb = now_mb()
    with labelstore.open(path) as store:
        _, decode = _ready(store, label_set)
        decodes, times = [cpu_timed(decode)], []
        for _ in range(DECODES):
            if MASK in store.masks:
                drop(store, "mask", MASK)
            store.refresh()
            begun = time.perf_counter()
            seconds = cpu_timed(
                lambda: calibrate(store.label_set(label_set), RegionThresholds(), name=MASK)
            )
            times.append((seconds, time.perf_counter() - begun))
            decodes.append(cpu_timed(decode))
        seconds, wall = min(times)
        size = store.catalogue.ledger.counts()[f"masks/{MASK}"][1]
        crops = store.num_images * store.num_crops
    return {
        "seconds": seconds,
        "wall_seconds": wall,
        "decode_seconds": min(decodes),
        "ratio": seconds / min(decodes),
        "crops_per_s": crops / seconds,
        "mask_bytes_per_crop": size / crops,
        "peak_mb": peak_mb(),
        "start_mb": start_mb,
    }


def _ready(store: Store, label_set: str) -> tuple[LabelSet, Callable[[], int]]:
    labels = store.label_set(label_set)
    fields = labels.codec.max_probability_fields(labels.num_classes)
    warm(store, f"labels/{label_set}")
    return labels, lambda: bare_decode(store, f"labels/{label_set}", fields)


def _crops(store: Store) -> tuple[str, ...]:
    plan = store.plan()
    return (f"crops/{plan.name}",) if plan.stored else ()


def _boxes_and_flips(labels: LabelSet, image: int) -> None:
    labels.boxes([image])
    labels.flips([image])


MEASURES: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "pass": measure_pass,
    "draw_file": measure_draw_file,
    "random_image": measure_random_image,
    "open": measure_open,
    "stats": measure_stats,
    "calibrate": measure_calibrate,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("name", choices=MEASURES)
    options.add_argument("store", type=Path)
    options.add_argument("--label-set", default="float16")
    args = options.parse_args()
    print(json.dumps(MEASURES[args.name](args.store, args.label_set), separators=(",", ":")))


if __name__ == "__main__":
    main()
