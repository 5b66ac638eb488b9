"""Label files as other projects write them, from given labels: for tests of the importers."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image


@dataclass(kw_only=True)
class Made:
    """An image folder and labels for it."""

    root: Path
    keys: list[str]
    truth: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    """(N, M, 4) pixels."""
    flips: np.ndarray
    logits: np.ndarray
    """(N, M, C)."""

    @property
    def probs(self) -> np.ndarray:
        e = np.exp(self.logits - self.logits.max(-1, keepdims=True))
        return (e / e.sum(-1, keepdims=True)).astype("f4")

    def kept(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Class ids and probabilities (N, M, K), descending."""
        ids = np.argsort(-self.probs, axis=-1, kind="stable")[..., :k]
        return ids, np.take_along_axis(self.probs, ids, -1)

    @property
    def shares(self) -> np.ndarray:
        """(N, M, 4) float32, as FKD computes them: Python floats, then float32."""
        sides = self.sizes[:, [0, 1, 0, 1]].astype(float)
        return (self.boxes / sides[:, None]).astype("f4")


def make(root: Path, *, num_images=8, num_crops=6, num_classes=12, classes=4, seed=0) -> Made:
    """Images in `root`/train with random sizes, never square, and labels that know their class."""
    rng = np.random.default_rng(seed)
    keys, sizes = [], []
    for number in range(num_images):
        key = f"c{number * classes // num_images:02d}/im_{number:03d}.png"
        height, width = (
            int(n) for n in rng.permutation([rng.integers(30, 60), rng.integers(61, 90)])
        )
        path = root / "train" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        keys.append(key)
        sizes.append((height, width))
    sizes = np.array(sizes)
    truth = np.arange(num_images) * classes // num_images
    shape = (num_images, num_crops)
    sides = sizes[:, None]
    extent = 1 + np.floor(rng.random((*shape, 2)) * sides).astype(int)
    corner = np.floor(rng.random((*shape, 2)) * (sides - extent + 1)).astype(int)
    logits = rng.normal(size=(*shape, num_classes)) * 2
    np.put_along_axis(logits, truth[:, None, None] + np.zeros((*shape, 1), int), 5.0, -1)
    return Made(
        root=root / "train",
        keys=keys,
        truth=truth,
        sizes=sizes,
        boxes=np.concatenate([corner, extent], -1).astype("u2"),
        flips=rng.random(shape) < 0.5,
        logits=logits.astype("f4"),
    )


def save(value, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, **options)
    return path


def fkd_labels(made: Made, kind: str, k: int) -> np.ndarray:
    ids, probs = made.kept(k)
    if kind == "hard":
        return ids[..., 0].astype("i8")
    if kind == "full":
        return made.probs
    if kind == "smoothing":
        return np.stack([ids[..., 0], probs[..., 0]], -1).astype("f4")
    return np.stack([ids, probs], 2).astype("f4")


def write_fkd(
    made: Made, folder: Path, kind="ms", *, k=3, half=False, tensors=False, numpy1=False, **options
) -> Path:
    """FKD's files below folder/train, as its generator writes them."""
    labels, shares = fkd_labels(made, kind, k), made.shares
    for row, key in enumerate(made.keys):
        value = [shares[row], made.flips[row], labels[row]]
        if half:
            value = [x.astype("f2") if x.dtype == np.float32 else x for x in value]
        if tensors:
            value = [torch.from_numpy(np.array(x)) for x in value]
        path = save(value, folder / "train" / key.replace(".png", ".tar"), **options)
        if numpy1:
            path.write_bytes(as_numpy1(path.read_bytes()))
    return folder


def as_numpy1(data: bytes) -> bytes:
    """The same zip with the names under which NumPy 1 pickles its arrays."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            new.writestr(name, content)
    return out.getvalue()


def write_maps(made: Made, folder: Path, maps: np.ndarray, *, k=3, half=False) -> Path:
    """Maps (N, C, H, W) of outputs, the K largest of each cell, as ReLabel and TokenLabeling write them."""
    for row, key in enumerate(made.keys):
        values, ids = torch.from_numpy(maps[row]).topk(k, dim=0)
        tensor = torch.stack([values, ids.to(values.dtype)])
        save(tensor.half() if half else tensor, folder / key.replace(".png", ".pt"))
    return folder


def sampler_orders(count: int, epochs: int, seed=42) -> list[list[int]]:
    """What torch's RandomSampler draws, epoch after epoch."""
    generator = torch.Generator().manual_seed(seed)
    sampler = torch.utils.data.RandomSampler(range(count), generator=generator)
    return [list(sampler) for _ in range(epochs)]


def write_batches(
    made: Made, folder: Path, flavour="sre2l", *, batch=3, mix=None, k=None, half=False, seed=1
) -> tuple[Path, list[list[int]]]:
    """One epoch per crop; logits as given, whatever the mixing. Returns the folder and each epoch's order."""
    rng = np.random.default_rng(seed)
    n, epochs = made.logits.shape[:2]
    orders = sampler_orders(n, epochs)
    indices: dict[str, list[int]] = {}
    total = 0
    for epoch, order in enumerate(orders):
        if flavour == "lpld":
            indices[str(epoch)] = order
        for number, first in enumerate(range(0, n, batch)):
            rows = order[first : first + batch]
            shares = torch.from_numpy(made.shares[rows, epoch])
            mixing = [None, None, None]
            if mix:
                partner = torch.from_numpy(rng.permutation(len(rows)))
                box = [np.int64(b) for b in (3, 5, 11, 17)] if mix == "cutmix" else None
                mixing = [partner, np.float64(0.25), box]
            outputs = torch.from_numpy(made.logits[rows, epoch])
            flips = torch.from_numpy(made.flips[rows, epoch])
            path = folder / f"epoch_{epoch}" / f"batch_{number}.tar"
            tail = [outputs.half() if half else outputs]
            if flavour == "lpqld":
                path = folder / f"batch_{total}.tar"
                indices[str(total)] = rows
                shares = shares.half()
                if mix:
                    mixing[0] = mixing[0].to(torch.uint8)
                    if mixing[2]:
                        mixing[2] = [torch.tensor(int(b), dtype=torch.uint8) for b in mixing[2]]
                values, ids = outputs.topk(k, dim=1)
                tail = [values.half(), ids.short()]
            total += 1
            save([shares, flips, *mixing, *tail], path)
    if flavour != "sre2l":
        what = "batch" if flavour == "lpqld" else "epoch"
        (folder / f"sampler_indices_{what}.json").write_text(json.dumps(indices))
    return folder, orders


def write_hald(made: Made, folder: Path, *, batch=3, mix="cutmix", side=96, seed=1) -> Path:
    """HALD's files as its relabel_slc.py writes them: an epoch per crop, its order torch.randperm of 42 + epoch."""
    rng = np.random.default_rng(seed)
    n, epochs = made.logits.shape[:2]
    indices = {}
    for epoch in range(epochs):
        generator = torch.Generator()
        generator.manual_seed(42 + epoch)
        order = torch.randperm(n, generator=generator).tolist()
        indices[str(epoch)] = order
        batches = []
        for first in range(0, n, batch):
            rows = order[first : first + batch]
            mixing = [None, None, None]
            if mix == "cutmix":
                share = float(rng.beta(1, 1))
                half = int(side * np.sqrt(1 - share)) // 2
                centre = [int(c) for c in rng.integers(0, side, 2)]
                box = [np.clip(c + s, 0, side) for s in (-half, half) for c in centre]
                mixing = [torch.from_numpy(rng.permutation(len(rows))), share, box]
            outputs = torch.from_numpy(made.logits[rows, epoch])
            batches.append(
                [
                    torch.from_numpy(made.shares[rows, epoch]).half(),
                    torch.from_numpy(made.flips[rows, epoch]),
                    *mixing,
                    torch.softmax(outputs / 20, dim=1).half(),
                ]
            )
        save(batches, folder / f"epoch_{epoch}.tar")
    save(indices, folder / "sampler_indices_dict.pt")
    return folder


def write_ml_dr(
    made: Made, folder: Path, *, k=3, mixing=False, augment=False, blend=None, size=224
) -> Path:
    """ml-dr's files; with `mixing`, odd crops were cut into from the next image, blended with it before by `blend`."""
    augmentation = {
        "uint8": {"enable": True},
        "random_resized_crop": {"enable": True, "size": size},
        "random_horizontal_flip": {"enable": True},
        "to_tensor": {},
        "rand_augment": {"enable": augment},
        "random_erase": {"enable": augment},
        "mixup": {"enable": mixing},
        "cutmix": {"enable": mixing},
    }
    m = made.logits.shape[1]
    save(
        {"reinforce": {"num_samples": m, "image_augmentation": augmentation, "compress": True}},
        folder / "config.pth.tar",
    )
    ids, probs = made.kept(k)
    n = len(made.keys)
    for row in range(n):
        samples = []
        for crop in range(m):
            mine = tuple(int(e) for e in made.boxes[row, crop])
            params = [mine, bool(made.flips[row, crop])]
            more = [[(3, 0.5), (0, 0.0)], (1, 2, 3, 4)] if augment else []
            if mixing and crop % 2:
                other = (row + 1) % n
                theirs = tuple(int(e) for e in made.boxes[other, 0])
                params = [[mine, theirs], [params[1], bool(made.flips[other, 0])]]
                params = [other, *params, *[[p, p] for p in more], blend]
                params.append([0.3, np.int64(2), np.int64(3), np.int64(12), np.int64(23)])
            elif mixing:
                params = [None, *params, *more, None, None]
            else:
                params += more
            shuffle = np.random.default_rng(crop).permutation(k)
            prob = (probs[row, crop, shuffle].tolist(), ids[row, crop, shuffle].tolist())
            samples.append({"params": params, "prob": prob})
        save((row, samples), folder / f"{row}.pth.tar", pickle_protocol=4)
    return folder


def write_tinyvit(made: Made, folder: Path, seeds: np.ndarray, *, k=3, ranks=2) -> Path:
    """TinyViT's records, keys being places in the data set; the last rank repeats an image to come out even."""
    ids, probs = made.kept(k)
    n, epochs = made.logits.shape[:2]
    for epoch in range(epochs):
        place = folder / f"logits_top{k}_epoch{epoch}"
        place.mkdir(parents=True)
        order = np.random.default_rng(epoch).permutation(n)
        padded = np.r_[order, order[: -n % ranks]]
        for rank in range(ranks):
            rows = padded[rank::ranks]
            records = b"".join(
                seeds[row, epoch].astype("<i4").tobytes()
                + ids[row, epoch].astype("<i2").tobytes()
                + probs[row, epoch].astype("<f2").tobytes()
                for row in rows
            )
            (place / f"rank{rank}-values.bin").write_bytes(records)
            (place / f"rank{rank}-keys.txt").write_text("".join(f"{row}\n" for row in rows))
    return folder


def write_torchdistill(made: Made, folder: Path) -> Path:
    for row in range(len(made.keys)):
        digits = f"{row:04d}"
        outputs = torch.from_numpy(made.logits[row, 0])
        inner = {"layer4": {"output": torch.zeros(2, 3)}}
        save(
            {"teacher_outputs": outputs, "extracted_outputs": inner},
            folder / digits[-4:] / f"{digits}.pt",
        )
    return folder


def write_npz(made: Made, path: Path, *, compressed=False, **fields) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, key=np.array(made.keys), **fields)
    return path


def write_parquet(made: Made, path: Path, *, k=3, row_group_size=7) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, m = made.logits.shape[:2]
    ids, probs = made.kept(k)
    order = np.random.default_rng(3).permutation(n * m)
    rows, crops = np.divmod(order, m)
    box = made.boxes[rows, crops]
    table = {
        "key": [made.keys[row] for row in rows],
        "crop": crops,
        **{name: box[:, i] for i, name in enumerate(("top", "left", "height", "width"))},
        "flip": made.flips[rows, crops],
        "class_ids": list(ids[rows, crops].astype("u2")),
        "probs": list(probs[rows, crops]),
        "entropy": np.zeros(len(rows)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=row_group_size)
    return path


def datacompdr_crops(made: Made, row: int, *, flips=False, randaug=True) -> list[list]:
    """What `Compose.compress` of MobileCLIP gives per crop; every third one skipped RandAugment."""
    return [
        [
            made.boxes[row, crop].tolist(),
            *([bool(made.flips[row, crop])] if flips else []),
            *([None if crop % 3 == 2 else [(crop % 14, 0.3), (9, 0.0)]] if randaug else []),
        ]
        for crop in range(made.boxes.shape[1])
    ]


def write_datacompdr(
    made: Made, folder: Path, *, half=False, unpacked=False, as_text=True, per_shard=5, **crops
) -> Path:
    """Shards by webdataset's own writer, with the entries that RayGen's `TarWriter` makes of an item."""
    import webdataset

    folder.mkdir(parents=True)
    for first in range(0, len(made.keys), per_shard):
        shard = folder / f"{first // per_shard:08d}.tar"
        with webdataset.TarWriter(str(shard)) as sink:
            for row in range(first, min(first + per_shard, len(made.keys))):
                params = datacompdr_crops(made, row, **crops)
                arrays = {"image_emb": made.logits[row], "text_emb": made.logits[row][:2]}
                if half:
                    arrays = {k: torch.tensor(v, dtype=torch.bfloat16) for k, v in arrays.items()}
                image = made.root / made.keys[row]
                sink.write(
                    {
                        "__key__": Path(made.keys[row]).stem,
                        "url.txt": f"http://example.org/{row}",
                        "syn.json": json.dumps({"syn_text": ["a dog"] * 5}),
                        "paug.json": json.dumps(
                            {"param_aug": json.dumps(params) if as_text else params}
                        ),
                        "pth.gz" if half else "npz": arrays,
                        "json": json.dumps(
                            {"uid": str(row), "sha256": sha256(image.read_bytes()).hexdigest()}
                        ),
                    }
                )
        if unpacked:
            with tarfile.open(shard) as tar:
                tar.extractall(folder, filter="data")
            shard.unlink()
    return folder
