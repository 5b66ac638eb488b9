"""R29, law: labels that other projects' own programs wrote are each image's own, or the import asks.

For every order, seed and precision that files can have, reading them gives the right labels, or stops with the question
to answer; never a label of another image. What is right is worked out here in other ways than the importers':
torch's own RandomSampler, sorted names, timm's sort key, and the files themselves.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.utils.misc import natural_key

import labelstore
from cli.wording import import_facts
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange import Stated
from labelstore.exchange.importing import open_source
from labelstore.exchange.readers.boxes import possible_sides
from labelstore.exchange.readers.image_orders import weigh
from labelstore.images import image_size, open_images
from labelstore.untrusted.inert_values import InertArray
from labelstore.untrusted.torch_archive import load_torch
from tests.exchange import foreign_files as foreign
from tests.flat_options import import_labels

DATA = Path(__file__).parents[1] / "data" / "peers"
WHOLE = os.environ.get("LABELSTORE_PEER_FILES")
needs_whole_runs = pytest.mark.skipif(
    not WHOLE, reason="LABELSTORE_PEER_FILES names no folder of whole runs"
)
ASKS = "state order"


def write_images(root: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    for key, (height, width) in sizes.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, height)).save(root / key, "PNG")
    return root


@pytest.fixture(scope="module")
def peers(tmp_path_factory) -> Path:
    """Files that peers' programs wrote, and stand-ins of the right size for their images."""
    root = tmp_path_factory.mktemp("peers")
    with tarfile.open(DATA / "labels.tar.xz") as archive:
        archive.extractall(root, filter="data")
    sizes = json.loads((root / "image_sizes.json").read_text())
    write_images(root / "images" / "train", sizes)
    write_images(root / "square", dict.fromkeys(sizes, (128, 128)))
    return root


def pack(folder: Path, path: Path) -> Path:
    """A tar of a folder's images without classes beside them, in no order, as `tar c .` makes it."""
    with tarfile.open(path, "w") as archive:
        files = [file for file in folder.rglob("*") if file.is_file()]
        for file in np.random.default_rng(0).permutation(sorted(files)).tolist():
            archive.add(file, f"./{Path(file).relative_to(folder).as_posix()}")
    return path


def read(format_name: str, source: Path, images: Path, tmp_path: Path, **stated):
    """Key -> ImageLabels of every image, and the source's facts."""
    folder = open_images(images)
    found = open_source(format_name, source, folder, Stated(**stated))
    found.prepare(tmp_path / "scratch", lambda done, total: None)
    try:
        if found.bad:
            raise RejectedInput(found.bad[0].reason)
        sizes = [image_size(folder.file(key)) for key in folder.keys]
        labels = {key: found.read(row, *sizes[row]) for row, key in enumerate(folder.keys)}
    finally:
        found.close()
    return labels, found.facts, found.contents


def plain(value):
    """A torch file's value as NumPy arrays and Python numbers."""
    if isinstance(value, InertArray):
        return value.array()
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return {key: plain(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def sorted_keys(images: Path) -> list[str]:
    return sorted(p.relative_to(images).as_posix() for p in images.rglob("*") if p.is_file())


# --- the files of peers' own programs


def test_edc_and_gvbsm_say_whose_rows_they_have(peers, tmp_path):
    images = peers / "images" / "train"
    keys = sorted_keys(images)
    for name in ("edc", "gvbsm"):
        labels, facts, contents = read(name, peers / name, images, tmp_path)
        assert (
            facts["axis_order"] == "swapped"
        )  # they divide by width and height the wrong way round
        assert contents.input_size == 96
        assert (facts["rows"], facts["rows_left_out"]) == (36, 0)
        for path in (peers / name / "epoch_0").iterdir():
            shares, flips, partner, share, box, outputs, positions = plain(load_torch(path))[:7]
            for row, position in enumerate(positions):
                key = keys[position]
                found = labels[key]
                np.testing.assert_array_equal(found.labels[0], outputs[row].astype("f4"))
                assert found.flips[0] == flips[row]
                height, width = image_size(images / key)
                pixels = shares[row] * np.array([width, height, width, height])
                np.testing.assert_allclose(found.boxes[0], pixels, atol=1e-3)
                assert found.mixed["mix_image"][0] == positions[partner[row]]
                top, left, bottom, right = box
                pasted = [top, left, bottom - top, right - left]
                assert found.mixed["mix_box"][0].tolist() == pasted
                assert found.mixed["mix_share"][0] == np.float32(share)


@pytest.mark.parametrize("name", ["rd_mixing", "rd_randaug_mixing"])
def test_ml_dr_crops_are_mixes_even_where_they_were_blended_and_cut_into(peers, tmp_path, name):
    images = peers / "images" / "train"
    keys = sorted_keys(images)
    augmented = {"drop_augmentations": True} if "randaug" in name else {}
    labels, facts, contents = read(
        "ml-dr", peers / name, images, tmp_path, num_classes=1000, **augmented
    )
    assert (facts["order"], facts["order_is"]) == ("folder", "only")  # dataset: imagenet
    assert contents.input_size == 96
    both = 0
    for at, key in enumerate(keys):
        found = labels[key]
        index, samples = plain(load_torch(peers / name / f"{at}.pth.tar"))
        assert index == at
        for crop, sample in enumerate(samples):
            partner, box, flip, *_, mixup, cutmix = sample["params"]
            boxes = box if partner is not None else [box, None]
            assert found.boxes[crop].tolist() == list(boxes[0])
            assert found.mixed["mix_image"][crop] == (at if partner is None else partner)
            if partner is not None:
                assert found.mixed["mix_from"][crop].tolist() == list(boxes[1])
                assert found.mixed["mix_flip"][crop] == flip[1]
            assert found.mixed["mix_share"][crop] == np.float32(1 if mixup is None else mixup)
            edges = [0, 0, 0, 0] if cutmix is None else cutmix[1:]
            pasted = [edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]]
            assert found.mixed["mix_box"][crop].tolist() == pasted
            probs, ids = sample["prob"]
            best = np.argsort(-np.array(probs), kind="stable")
            assert found.labels.class_ids[crop].tolist() == np.array(ids)[best].tolist()
            both += mixup is not None and cutmix is not None
    assert both > 10


def test_fkd_hard_labels_in_half_precision(peers, tmp_path):
    images = peers / "images" / "train"
    labels, _, _ = read(
        "fkd", peers / "fkd_hardfp16", images, tmp_path, compression="hard", num_classes=1000
    )
    for key, found in labels.items():
        file = (peers / "fkd_hardfp16" / "imagenet" / "train" / key).with_suffix(".tar")
        shares, flips, classes = plain(load_torch(file))
        assert classes.dtype == np.float16
        assert found.labels.class_ids[:, 0].tolist() == classes.astype(int).tolist()
        np.testing.assert_array_equal(found.flips, flips)
        height, width = image_size(images / key)
        np.testing.assert_allclose(found.boxes / [height, width, height, width], shares, atol=2e-3)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", [None, "folder", "natural"])
def test_tinyvit_positions_are_of_the_stated_order(peers, tmp_path, order, packed):
    """The run read a folder; had it read train.tar, the same files would mean other images."""
    folder = peers / "images" / "train"
    images = pack(folder, tmp_path / "train.tar") if packed else folder
    arguments = ("tinyvit", peers / "tinyvit_folder", images, tmp_path)
    stated = {"num_classes": 1000, "drop_augmentations": True, "order": order}
    if order is None:
        with pytest.raises(RejectedInput, match=r"state order: folder .*, or natural") as refused:
            read(*arguments, **stated)
        assert refused.value.exit_code == 7
        return
    labels, facts, _ = read(*arguments, **stated)
    assert (facts["order"], facts["order_is"]) == (order, "stated")
    keys = sorted(sorted_keys(folder), key=natural_key if order == "natural" else str)
    for epoch in range(3):
        place = peers / "tinyvit_folder" / f"logits_top10_epoch{epoch}"
        positions = [int(line) for line in (place / "rank0-keys.txt").read_text().split()]
        records = (place / "rank0-values.bin").read_bytes()
        for line, position in enumerate(positions):
            ids = np.frombuffer(records, "<i2", 10, 44 * line + 4)
            assert labels[keys[position]].labels.class_ids[epoch].tolist() == ids.tolist()


@pytest.mark.parametrize("seed", [None, 42, 7])
@pytest.mark.parametrize("order", [None, "two-permutations", "one-permutation"])
def test_sre2l_rows_on_images_of_one_size(peers, tmp_path, seed, order):
    """Seed 7 is right: no box and no class tells, the labels of an image in two epochs do."""
    images = peers / "square"
    arguments = ("sre2l", peers / "sq_seed7", images, tmp_path)
    stated = {"order": order, "sampler_seed": seed}
    if seed != 7 or order == "one-permutation":
        with pytest.raises(RejectedInput, match=r"state order|is proved|fits as well as any other"):
            read(*arguments, **stated)
        return
    labels, facts, _ = read(*arguments, **stated)
    assert facts["order"] == "two-permutations"
    assert facts["proof"]["p"] < 1e-20
    keys = sorted_keys(images)
    for epoch, drawn in enumerate(foreign.sampler_orders(36, 2, seed=7)):
        for number in range(4):
            outputs = plain(load_torch(peers / "sq_seed7" / f"epoch_{epoch}/batch_{number}.tar"))[5]
            for row, position in enumerate(drawn[10 * number : 10 * number + 10]):
                np.testing.assert_array_equal(
                    labels[keys[position]].labels[epoch], outputs[row].astype("f4")
                )


def test_the_store_says_how_the_order_is_known(peers, tmp_path):
    report = import_labels(
        tmp_path / "s.labels",
        format="sre2l",
        source=peers / "sq_seed7",
        images=peers / "square",
        stated=Stated(sampler_seed=7),
    )
    assert report.facts["order_is"] == "proved"
    with labelstore.open(tmp_path / "s.labels") as store:
        found = store.label_set_row().facts["found"]
        assert found["proof"]["kind"] == "an image's labels in two epochs"
        assert (found["rows"], found["rows_left_out"]) == (72, 0)


# --- the like, in every order, seed and precision


def made_like(tmp_path: Path, *, sides: str, classes: int, names: str, outputs: int = 40):
    """36 images and labels that know their image: all of one size, or of many; the outputs' classes or others."""
    rng = np.random.default_rng(3)
    numbers = [1000, 10, 111, 20, 3, 9] if names == "plain" else range(6)
    keys = [
        f"n{c}/im_{number:04d}.png" if names == "padded" else f"n{c}/im_{number}.png"
        for c in range(6)
        for number in numbers
    ]
    keys = sorted(keys)
    sizes = np.full((36, 2), 64) if sides == "one" else rng.integers(40, 120, (36, 2))
    root = write_images(
        tmp_path / "images",
        {key: tuple(size) for key, size in zip(keys, sizes.tolist(), strict=True)},
    )
    truth = np.arange(36) // 6
    c = 6 if classes == 6 else outputs
    own = rng.normal(size=(36, 1, c)) * 2
    if classes == 6:
        own[np.arange(36), 0, truth] += 5
    extent = 1 + np.floor(rng.random((36, 3, 2)) * sizes[:, None]).astype(int)
    corner = np.floor(rng.random((36, 3, 2)) * (sizes[:, None] - extent + 1)).astype(int)
    return foreign.Made(
        root=root,
        keys=keys,
        truth=truth,
        sizes=sizes,
        boxes=np.concatenate([corner, extent], -1).astype("u2"),
        flips=rng.random((36, 3)) < 0.5,
        logits=(own + rng.normal(size=(36, 3, c))).astype("f4"),
    )


def older_orders(count: int, epochs: int, seed: int) -> list[list[int]]:
    """One permutation per epoch, as torch drew them up to version 1.8."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(count, generator=generator).tolist() for _ in range(epochs)]


@pytest.mark.sample(1)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("draws", ["two-permutations", "one-permutation"])
@pytest.mark.parametrize(("sides", "classes"), [("many", 40), ("one", 6), ("one", 40)])
def test_every_sampler_is_found_or_asked_for(tmp_path, monkeypatch, sides, classes, draws, half):
    made = made_like(tmp_path, sides=sides, classes=classes, names="plain")
    right = wrong = asked = 0
    for seed in (42, 7):
        law = foreign.sampler_orders if draws == "two-permutations" else older_orders
        drawn = law(36, 3, seed)
        with monkeypatch.context() as patch:
            patch.setattr(foreign, "sampler_orders", lambda count, epochs, drawn=drawn: drawn)
            folder = tmp_path / f"{seed}"
            foreign.write_batches(made, folder, batch=7, half=half)
        for stated_seed, order in product(
            (None, 42, 7), (None, "two-permutations", "one-permutation")
        ):
            try:
                labels, _, _ = read(
                    "sre2l", folder, made.root, tmp_path, sampler_seed=stated_seed, order=order
                )
            except RejectedInput:
                asked += 1
                continue
            expected = made.logits.astype("f2") if half else made.logits
            same = all(
                np.array_equal(labels[key].labels, expected[at].astype("f4"))
                for at, key in enumerate(made.keys)
            )
            right, wrong = right + same, wrong + (not same)
    assert wrong == 0
    assert right >= 6  # the right seed, with no order, the right one, and where it is not stated
    assert asked >= 6


@pytest.mark.sample(2)
@pytest.mark.parametrize("sides", ["many", "one"])
@pytest.mark.parametrize("order", ["folder", "natural", "within classes"])
def test_ml_dr_positions_of_a_data_set_that_is_not_imagenet(tmp_path, sides, order):
    """As Food-101 and Flowers-102 have them: in an order of their own, or in a known one; boxes tell, if sizes differ."""
    made = made_like(tmp_path, sides=sides, classes=40, names="plain")
    rng = np.random.default_rng(7)
    rows = {
        "folder": np.arange(36),
        "natural": np.array(sorted(range(36), key=lambda row: natural_key(made.keys[row]))),
        "within classes": np.concatenate([6 * c + rng.permutation(6) for c in range(6)]),
    }[order]
    # crops of whole height or width, as random resized crops often are
    made.boxes[:, ::2, 0], made.boxes[:, ::2, 2] = 0, made.sizes[:, :1]
    made.boxes[:, 1::2, 1], made.boxes[:, 1::2, 3] = 0, made.sizes[:, 1:]
    shuffled = foreign.Made(
        root=made.root,
        keys=[made.keys[row] for row in rows],
        truth=made.truth[rows],
        sizes=made.sizes[rows],
        boxes=made.boxes[rows],
        flips=made.flips[rows],
        logits=made.logits[rows],
    )
    source = foreign.write_ml_dr(shuffled, tmp_path / "dr")
    listing = tmp_path / "order.txt"
    listing.write_text("".join(f"{key}\n" for key in shuffled.keys))
    as_json = tmp_path / "train.json"
    groups: dict[str, list[str]] = {}
    for key in shuffled.keys:
        groups.setdefault(key.partition("/")[0], []).append(key.removesuffix(".png"))
    as_json.write_text(json.dumps(groups))

    def is_right(**stated) -> bool:
        labels, facts, _ = read("ml-dr", source, made.root, tmp_path, num_classes=40, **stated)
        is_right.facts = facts
        return all(
            np.array_equal(labels[key].boxes, made.boxes[at])
            and np.array_equal(labels[key].labels.class_ids, made.kept(3)[0][at])
            for at, key in enumerate(made.keys)
        )

    if sides == "many" and order != "within classes":
        assert is_right()
        assert (is_right.facts["order"], is_right.facts["order_is"]) == (order, "proved")
        assert is_right.facts["proof"]["p"] <= 1e-4
    else:
        with pytest.raises(RejectedInput, match=ASKS):
            is_right()
    assert is_right(order=str(listing))
    if order != "natural":  # Food-101's file lists class by class
        assert is_right(order=str(as_json))
    if sides == "many":
        for other in {"folder", "natural"} - {order}:
            with pytest.raises(RejectedInput):
                is_right(order=other)


def test_boxes_prove_no_order_that_is_nearly_right(tmp_path):
    """Two images changed places: all others fit, far beyond chance, and yet it is another order."""
    made = made_like(tmp_path, sides="many", classes=40, names="padded")
    made.boxes[..., :2], made.boxes[..., 2:] = 0, made.sizes[:, None]
    tall = made.sizes[:, 0] - made.sizes[:, 1]
    one, two = int(tall.argmax()), int(tall.argmin())
    places = np.arange(36)
    places[[one, two]] = two, one
    made.boxes = made.boxes[places]
    source = foreign.write_ml_dr(made, tmp_path / "dr")
    with pytest.raises(RejectedInput, match=ASKS):
        read("ml-dr", source, made.root, tmp_path, num_classes=40)


def test_an_order_file_lists_every_image_once(tmp_path):
    made = made_like(tmp_path, sides="one", classes=40, names="plain")
    source = foreign.write_ml_dr(made, tmp_path / "dr")
    listing = tmp_path / "order.txt"
    for lines, says in (
        (made.keys[:-1], "does not list image n5/im_9.png"),
        ([*made.keys, made.keys[0]], "lists image n0/im_10.png twice"),
    ):
        listing.write_text("".join(f"{key}\n" for key in lines))
        with pytest.raises(RejectedInput, match=says):
            read("ml-dr", source, made.root, tmp_path, num_classes=40, order=str(listing))
    with pytest.raises(UsageError, match="order alphabetic: choose folder, natural, listed, named"):
        read("ml-dr", source, made.root, tmp_path, num_classes=40, order="alphabetic")
    with pytest.raises(UsageError, match="fkd files say which image is which"):
        read("fkd", source, made.root, tmp_path, order="folder")


def test_positions_beyond_the_folder_are_refused(tmp_path):
    """One image fewer, and every later position would mean its neighbour."""
    made = made_like(tmp_path, sides="one", classes=40, names="padded")
    seeds = np.random.default_rng(5).integers(0, 2**31, (36, 3))
    sources = {
        "tinyvit": foreign.write_tinyvit(made, tmp_path / "tv", seeds),
        "ml-dr": foreign.write_ml_dr(made, tmp_path / "dr"),
        "torchdistill": foreign.write_torchdistill(made, tmp_path / "td"),
        "lpld": foreign.write_batches(made, tmp_path / "lpld", "lpld", batch=7)[0],
        "sre2l": foreign.write_batches(made, tmp_path / "sre2l", batch=9)[0],
    }
    (made.root / made.keys[4]).unlink()
    for name, source in sources.items():
        with pytest.raises(RejectedInput, match=r"36 images|names image 35|has 35"):
            read(
                name,
                source,
                made.root,
                tmp_path,
                num_classes=None if name in ("lpld", "sre2l", "torchdistill") else 40,
                drop_augmentations=True,
                whole_images=True,
                order="two-permutations"
                if name == "sre2l"
                else None
                if name == "lpld"
                else "folder",
                sampler_seed=42,
            )


# --- rows that are left out, and the size of the teacher's input


def test_rows_that_are_left_out_are_counted(tmp_path):
    """LPLD's pruned files: images have 1 to 3 crops, and each keeps as many as the poorest."""
    made = made_like(tmp_path, sides="many", classes=40, names="plain")
    folder, orders = foreign.write_batches(made, tmp_path / "lpld", "lpld", batch=9)
    (folder / "epoch_2" / "batch_3.tar").unlink()
    (folder / "epoch_1" / "batch_0.tar").unlink()
    _, facts, contents = read("lpld", folder, made.root, tmp_path)
    counts = np.bincount([*orders[0], *orders[1][9:], *orders[2][:27]], minlength=36)
    assert contents.num_crops == counts.min()
    assert facts["rows"] == counts.sum() == 90
    assert facts["rows_left_out"] == 90 - 36 * counts.min()
    assert facts["crops_of_an_image"] == [counts.min(), counts.max()]
    assert import_facts(facts)[-1].startswith(f"left out: {facts['rows_left_out']} of 90 rows")


def test_a_batch_that_is_the_last_of_its_epoch_is_at_the_end(tmp_path):
    """Six rows of batch 3 are rows 30 to 35 of an epoch of tens, not 18 to 23 of one of sixes."""
    made = made_like(tmp_path, sides="one", classes=40, names="plain")
    folder, orders = foreign.write_batches(made, tmp_path / "lpld", "lpld", batch=10)
    for number in range(3):
        (folder / "epoch_0" / f"batch_{number}.tar").unlink()
    labels = {}
    source = open_source("lpld", folder, open_images(made.root), Stated(num_crops=1))
    source.prepare(tmp_path / "scratch", lambda done, total: None)
    try:
        for row in orders[0][30:]:
            labels[made.keys[row]] = source.read(row, 64, 64).labels[0]
    finally:
        source.close()
    for row in orders[0][30:]:
        np.testing.assert_array_equal(labels[made.keys[row]], made.logits[row, 0])
    for epoch in (1, 2):
        for number in range(3):
            (folder / f"epoch_{epoch}" / f"batch_{number}.tar").unlink()
    with pytest.raises(UsageError, match="had 6 or 10 rows: state batch_size"):
        open_source("lpld", folder, open_images(made.root), Stated())


def drawn_boxes(side: int, count: int, seed: int) -> list[tuple[float, tuple[int, int, int, int]]]:
    """CutMix as the programs draw it."""
    rng = np.random.default_rng(seed)
    found = []
    for share in rng.beta(1, 1, count):
        half = int(side * np.sqrt(1 - share)) // 2
        centre = rng.integers(0, side, 2)
        (top, left), (bottom, right) = (np.clip(centre + by, 0, side) for by in (-half, half))
        found.append((float(share), (top, left, bottom - top, right - left)))
    return found


@pytest.mark.parametrize("side", [32, 96, 224, 300])
def test_mix_boxes_prove_the_teachers_input(side):
    proved = 0
    for seed in range(40):
        boxes = [b for b in drawn_boxes(side, 40, seed) if b[1][2] and b[1][3]]
        sides = possible_sides(boxes)
        assert side in sides
        proved += sides == [side]
    assert proved >= 38


def test_a_stated_input_size_is_compared_with_the_mix_boxes(peers, tmp_path):
    arguments = ("edc", peers / "edc", peers / "images" / "train", tmp_path)
    assert read(*arguments, input_size=96)[2].input_size == 96
    with pytest.raises(RejectedInput, match="a mix box ends at pixel 96, beyond input_size 64"):
        read(*arguments, input_size=64)
    with pytest.raises(RejectedInput, match="inputs of 96 pixels, not of input_size 224"):
        read(*arguments, input_size=224)
    with pytest.raises(RejectedInput, match="crops are of 96 pixels, and input_size 224"):
        read(
            "ml-dr",
            peers / "rd_mixing",
            peers / "images" / "train",
            tmp_path,
            num_classes=1000,
            input_size=224,
        )


def test_the_chance_level_is_that_of_random_permutations():
    """The z of random matrices is standard normal; the identity of n rows is (n - 1) from chance."""
    rng = np.random.default_rng(0)
    z = [weigh("noise", [rng.normal(size=(20, 20))]).z for _ in range(2000)]
    assert abs(np.mean(z)) < 0.1
    assert 0.93 < np.std(z) < 1.07
    assert weigh("boxes", [np.eye(9)]).z == pytest.approx(8)
    assert weigh("boxes", [np.ones((9, 9))]) is None  # every box fits every image
    assert weigh("boxes", [np.eye(3)]).chance == pytest.approx(1 / 6)


# --- whole runs, where they are at hand


@needs_whole_runs
@pytest.mark.parametrize(
    ("name", "images", "batch", "seed"),
    [
        ("sre2l_cutmix", "images/train", 7, 42),
        ("sq_new", "square", 7, 42),
        ("sq_seed7", "square", 10, 7),
    ],
)
def test_whole_runs_of_sre2l(tmp_path, name, images, batch, seed):
    root, images = Path(WHOLE) / name, Path(WHOLE) / images
    labels, facts, contents = read("sre2l", root, images, tmp_path, sampler_seed=seed)
    assert facts["order_is"] == "proved"
    assert contents.input_size == (96 if name == "sre2l_cutmix" else None)
    keys = sorted_keys(images)
    for epoch, drawn in enumerate(foreign.sampler_orders(36, 3, seed=seed)):
        for path in (root / f"epoch_{epoch}").iterdir():
            first = batch * int(re.findall(r"\d+", path.name)[0])
            outputs = plain(load_torch(path))[5]
            for row, position in enumerate(drawn[first : first + batch]):
                np.testing.assert_array_equal(
                    labels[keys[position]].labels[epoch], outputs[row].astype("f4")
                )


@needs_whole_runs
def test_a_pruned_run_of_lpld(tmp_path):
    images, root = Path(WHOLE) / "images" / "train", Path(WHOLE) / "lpld_cut"
    report = import_labels(
        tmp_path / "s.labels",
        format="lpld",
        source=root,
        images=images,
        stated=Stated(skip_bad=True, input_size=96),
    )
    assert report.facts["rows"] == 70
    assert report.facts["rows_left_out"] == 70 - report.num_images
    assert report.num_images + report.num_bad == 36
    listed = json.loads((root / "sampler_indices_epoch.json").read_text())
    keys = sorted_keys(images)
    with labelstore.open(tmp_path / "s.labels") as store:
        first = {}
        for epoch in ("0", "1", "2"):
            for at, position in enumerate(listed[epoch]):
                path = root / f"epoch_{epoch}" / f"batch_{at // 10}.tar"
                first.setdefault(keys[position], plain(load_torch(path))[5][at % 10])
        rows = {str(key): row for row, key in enumerate(store.images()["key"])}
        for key, outputs in first.items():
            found = store.label_set().recover([rows[key]])[0, 0]
            e = np.exp(outputs.astype(float) - outputs.max())
            np.testing.assert_allclose(found, e / e.sum(), atol=2e-3)
