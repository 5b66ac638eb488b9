"""Every format: what the files hold is what the store recovers, boxes to the pixel."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from PIL import Image

import labelstore
from labelstore.care.verification import verify
from labelstore.cropping.crop_plan import CropPlan
from labelstore.errors import RejectedInput, StorageError, UsageError
from labelstore.exchange import RejectedFiles, Stated
from labelstore.exchange.readers import tables
from labelstore.exchange.readers.batch_order import permutations
from labelstore.exchange.readers.label_maps import MapFile, measured
from labelstore.exchange.readers.tinyvit import CropLaw
from labelstore.images import scan_folder
from tests.exchange import foreign_files as foreign
from tests.flat_options import import_labels, plan_import


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return foreign.make(tmp_path_factory.mktemp("images"))


UNSAID = ("fkd", "npz", "parquet")
"""Formats whose files do not say at which temperature their probabilities were made."""


@pytest.fixture
def store_of(made, tmp_path):
    """Imports into a new store and opens it; the store is sound in every respect."""

    def run(format_name, source, *, options=None, **stated):
        options = options or {}
        if stated.get("compression") != "hard":
            options = {"dtype": "float32", **options}
        run.report = import_labels(
            tmp_path / "s.labels",
            format=format_name,
            source=source,
            images=made.root,
            stated=Stated(**({"temperature": 1.0} if format_name in UNSAID else {}) | stated),
            images_per_shard=5,
            scratch=tmp_path / "scratch",
            **options,
        )
        assert not (tmp_path / "scratch").exists() or not list((tmp_path / "scratch").iterdir())
        return labelstore.open(tmp_path / "s.labels")

    return run


def expected(made, kind, k, num_classes=12):
    """Dense labels that FKD's own recovery gives (FKD Eq. 3-7)."""
    ids, probs = made.kept(k)
    probs = probs.astype(float)
    dense = np.zeros((*probs.shape[:2], num_classes))
    if kind == "full":
        return made.probs
    if kind == "hard":
        np.put_along_axis(dense, ids[..., :1], 1, -1)
        return dense
    if kind == "mr":
        np.put_along_axis(dense, ids, probs / probs.sum(-1, keepdims=True), -1)
        return dense
    if kind == "smoothing":
        ids, probs, k = ids[..., :1], probs[..., :1], 1
    dense[...] = (1 - probs.sum(-1, keepdims=True)) / (num_classes - k)
    np.put_along_axis(dense, ids, probs, -1)
    return dense


ZIP, LEGACY = {}, {"_use_new_zipfile_serialization": False}


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *((kind, ZIP) for kind in ("ms", "mr", "hard", "smoothing", "full")),
        ("ms", {"numpy1": True}),
        ("ms", {"tensors": True}),
        ("hard", {"tensors": True}),
        ("ms", {"half": True}),
        ("smoothing", {"half": True}),
        ("ms", LEGACY),
        ("ms", {"tensors": True, **LEGACY}),
    ],
)
def test_fkd(made, tmp_path, store_of, kind, form):
    source = foreign.write_fkd(made, tmp_path / "fkd", kind, **form)
    with store_of("fkd", source, compression=kind, num_classes=12) as store:
        labels = store.label_set()
        rows = range(store.num_images)
        exact = 2e-3 if form == {"half": True} else 1e-6
        np.testing.assert_allclose(labels.recover(rows), expected(made, kind, 3), atol=exact)
        np.testing.assert_array_equal(labels.boxes(rows), made.boxes)
        np.testing.assert_array_equal(labels.flips(rows), made.flips)
        assert [str(key) for key in store.images()["key"]] == made.keys
        assert store.label_set_row().facts["stated"]["compression"] == kind
        assert store.label_set_row().facts["imported_from"]["format"] == "fkd"


@pytest.mark.sample(1)
@pytest.mark.parametrize("k", [1, 2])
def test_fkd_with_fewer_classes_and_crops(made, tmp_path, store_of, k):
    source = foreign.write_fkd(made, tmp_path / "fkd", k=3)
    with store_of("fkd", source, compression="ms", num_classes=12, k=k, num_crops=4) as store:
        found = store.label_set().recover(range(8))
        np.testing.assert_allclose(found, expected(made, "ms", k)[:, :4], atol=1e-6)


def test_a_label_set_of_each_teacher_on_one_plan(made, tmp_path, store_of):
    one = foreign.write_fkd(made, tmp_path / "one")
    two = foreign.write_fkd(made, tmp_path / "two", "hard")
    store_of("fkd", one, compression="ms", num_classes=12).close()
    with store_of(
        "fkd", two, compression="hard", num_classes=12, teacher="timm:b0", options={"name": "hard"}
    ) as store:
        assert set(store.label_sets) == {"fkd", "hard"}
        assert {row.name for row in store.catalogue.teachers.all()} == {"fkd", "b0"}
        np.testing.assert_array_equal(store.label_set("hard").boxes(range(8)), made.boxes)


@pytest.mark.sample(2)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_label_maps_find_their_axis_order(made, tmp_path, store_of, turned, half):
    """The image's class is strong in its top left corner only: crops see it where they are."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(8, 4, 6, 6)).astype("f4")
    for row, truth in enumerate(made.truth):
        maps[row, :, :, 3:] = 0  # outside of it, another class
        maps[row, (truth + 1) % 4, :, 3:] = 4
        maps[row, truth, :, :3] = 6
    # taller than wide and the other way round: only one orientation fits the folder's crops
    source = foreign.write_maps(
        made, tmp_path / "maps", maps.swapaxes(2, 3).copy() if turned else maps, k=2, half=half
    )
    name = "tokenlabeling" if half else "relabel"
    order = "columns-first" if turned else "rows-first"
    with store_of(name, source, num_classes=4, axis_order=order) as store:
        labels = store.label_set()
        assert labels.codec.name == "labelmap"
        boxes = labels.boxes([0])[0].astype(int)
        (left,) = np.nonzero(boxes[:, 1] + boxes[:, 3] < made.sizes[0, 1] / 2)
        found = labels.recover([0], [left])[0]
        assert found[:, made.truth[0]].min() > 0.9
        assert store.plan().stored is False


@pytest.mark.parametrize("turned", [False, True])
def test_the_axis_order_of_maps_is_measured(tmp_path, turned):
    """Each image's class is strong where its crops lie on average, which is not on the diagonal."""
    made = foreign.make(tmp_path / "images", num_images=8, classes=4)
    rng = np.random.default_rng(1)
    maps = rng.normal(size=(8, 4, 6, 6)).astype("f4") * 0.01
    images = scan_folder(made.root)
    boxes, _ = CropPlan(ratio=(1 / 2, 2)).crops_of_images(
        list(images.keys), np.full((8, 2), 10_000), np.broadcast_to(np.arange(20), (8, 20))
    )
    centre = (boxes[..., :2] + boxes[..., 2:] / 2).mean(1) / 10_000
    for row, truth in enumerate(made.truth):
        cell = (centre[row] * 6).astype(int)
        maps[row, truth, cell[0], cell[1]] = 30
    given = maps.swapaxes(2, 3).copy() if turned else maps
    source = foreign.write_maps(made, tmp_path / "maps", given, k=2)
    names = [key.replace(".png", ".pt") for key in made.keys]
    means = measured(source, names, images, MapFile(shape=(6, 6), k=2, num_classes=4, turned=False))
    assert (means[1] > means[0]) is turned
    planned = plan_import(
        tmp_path / "s",
        format="relabel",
        source=source,
        images=made.root,
        stated=Stated(num_classes=4),
    )
    assert planned.source.facts["axis_order"] == ("columns-first" if turned else "rows-first")
    assert set(planned.source.facts["ground_truth_probability"]) == {"rows-first", "columns-first"}


@pytest.mark.sample(1)
@pytest.mark.parametrize("flavour", ["sre2l", "lpld"])
@pytest.mark.parametrize("compression", ["logits", "ms", "full"])
def test_batches(made, tmp_path, store_of, flavour, compression):
    source, _ = foreign.write_batches(made, tmp_path / "b", flavour)
    temperature = {} if compression == "logits" else {"temperature": 2.0}
    with store_of(flavour, source, compression=compression, **temperature) as store:
        labels = store.label_set()
        e = np.exp(made.logits / (1 if compression == "logits" else 2))
        wanted = e / e.sum(-1, keepdims=True)
        found = labels.recover(range(8))
        if compression == "ms":
            np.testing.assert_allclose(found.max(-1), wanted.max(-1), atol=1e-6)
        else:
            np.testing.assert_allclose(found, wanted, atol=1e-6)
        np.testing.assert_array_equal(labels.boxes(range(8)), made.boxes)
        np.testing.assert_array_equal(labels.flips(range(8)), made.flips)


@pytest.mark.sample(1)
@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
@pytest.mark.parametrize("flavour", ["sre2l", "lpqld"])
def test_what_crops_were_mixed_with_is_kept(made, tmp_path, store_of, flavour, mix):
    source, orders = foreign.write_batches(made, tmp_path / "b", flavour, mix=mix, k=3)
    stated = {"num_classes": 12, "compression": "mr"} if flavour == "lpqld" else {}
    with store_of(flavour, source, input_size=32, **stated) as store:
        row = store.plan()
        assert row.parameters["mixed"] is True
        group = store.group(f"crops/{row.name}")
        kept = {
            name: np.concatenate([group.read(block, None, name) for block in group.blocks])
            for name in ("mix_image", "mix_from", "mix_flip", "mix_share", "mix_box")
        }
        rng = np.random.default_rng(1)
        for epoch, order in enumerate(orders):
            for first in range(0, 8, 3):
                rows = np.array(order[first : first + 3])
                partner = rows[rng.permutation(len(rows))]
                np.testing.assert_array_equal(kept["mix_image"][rows, epoch], partner)
                np.testing.assert_array_equal(
                    kept["mix_from"][rows, epoch], made.boxes[partner, epoch]
                )
                np.testing.assert_array_equal(
                    kept["mix_flip"][rows, epoch], made.flips[partner, epoch]
                )
        report = verify(tmp_path / "s.labels", "deep", workers=1)
        assert report.is_sound, [str(problem) for problem in report.problems]
        assert (kept["mix_share"] == 0.25).all()
        assert (kept["mix_box"] == ([3, 5, 8, 12] if mix == "cutmix" else [0, 0, 0, 0])).all()


def test_lpqld_keeps_what_its_files_have(made, tmp_path, store_of):
    source, _ = foreign.write_batches(made, tmp_path / "b", "lpqld", k=3)
    with store_of("lpqld", source, num_classes=12, temperature=4.0) as store:
        values = -np.sort(-made.logits, -1)[..., :3]
        e = np.exp((values - values[..., :1]) / 4)
        wanted = e / e.sum(-1, keepdims=True)
        found = -np.sort(-store.label_set().recover(range(8)), -1)[..., :3]
        np.testing.assert_allclose(found, wanted, atol=2e-3)
    with pytest.raises(UsageError, match="choose mr, hard"):
        store_of("lpqld", source, num_classes=12, compression="ms")


def test_the_samplers_order_is_torchs():
    assert [order.tolist() for order in permutations(11, 4, 42, 2)] == foreign.sampler_orders(11, 4)


def test_an_order_with_one_permutation_per_epoch_is_found(made, tmp_path, store_of, monkeypatch):
    """As older versions of torch drew: the outputs tell, by the images' classes."""
    small = foreign.make(tmp_path / "other", classes=12, num_images=24, num_crops=3)
    orders = [order.tolist() for order in permutations(24, 3, 42, 1)]
    monkeypatch.setattr(foreign, "sampler_orders", lambda count, epochs: orders)
    source, _ = foreign.write_batches(small, tmp_path / "b", batch=8)
    report = import_labels(
        tmp_path / "s", format="sre2l", source=source, images=small.root, stated=Stated()
    )
    assert (report.facts["order"], report.facts["order_is"]) == ("one-permutation", "proved")
    assert report.ground_truth_probability > 0.4
    np.testing.assert_array_equal(
        labelstore.open(tmp_path / "s").label_set().boxes(range(24)), small.boxes
    )


@pytest.mark.sample(1)
@pytest.mark.parametrize("mixing", [False, True])
def test_ml_dr(made, tmp_path, store_of, mixing):
    source = foreign.write_ml_dr(made, tmp_path / "dr", mixing=mixing)
    with pytest.raises(UsageError, match="ml-dr labels are made at temperature 1"):
        store_of("ml-dr", source, num_classes=12, temperature=2.0)
    with store_of("ml-dr", source, num_classes=12) as store:
        labels = store.label_set()
        np.testing.assert_allclose(labels.recover(range(8)), expected(made, "ms", 3), atol=1e-6)
        np.testing.assert_array_equal(labels.boxes(range(8)), made.boxes)
        np.testing.assert_array_equal(labels.flips(range(8)), made.flips)
        if mixing:
            group = store.group("crops/plan")
            kept = np.concatenate([group.read(b, None, "mix_image") for b in group.blocks])
            np.testing.assert_array_equal(kept[:, ::2], np.repeat(np.arange(8)[:, None], 3, 1))
            np.testing.assert_array_equal(kept[:, 1], (np.arange(8) + 1) % 8)


def test_further_augmentations_are_dropped_only_when_that_is_said(made, tmp_path, store_of):
    source = foreign.write_ml_dr(made, tmp_path / "dr", augment=True)
    with pytest.raises(UsageError, match="`drop_augmentations`"):
        store_of("ml-dr", source, num_classes=12)
    with store_of("ml-dr", source, num_classes=12, drop_augmentations=True) as store:
        np.testing.assert_array_equal(store.label_set().boxes(range(8)), made.boxes)
        assert "rand_augment" in store.label_set_row().facts["lost"][0]


def reference_crop(seed, height, width):
    """TinyViT's law in its own words: a generator, one number at a time."""
    rng = np.random.Generator(np.random.PCG64(seed))
    for _ in range(10):
        area = (rng.random() * (1.0 - 0.08) + 0.08) * (height * width)
        aspect = np.exp(rng.random() * (np.log(4 / 3) - np.log(3 / 4)) + np.log(3 / 4))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if w <= width and h <= height:
            top = min(int(rng.random() * (height - h + 1)), height - h)
            left = min(int(rng.random() * (width - w + 1)), width - w)
            return (top, left, h, w), rng.random() < 0.5
    h, w = height, width
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return ((height - h) // 2, (width - w) // 2, h, w), rng.random() < 0.5


def test_tinyvits_boxes_follow_from_its_seeds(made, tmp_path, store_of):
    for seed, size in enumerate([(375, 500), (40, 900), (900, 40), (31, 33)] * 20):
        assert CropLaw().crop(seed, *size) == reference_crop(seed, *size)
    seeds = np.random.default_rng(5).integers(0, 2**31, (8, 6))
    source = foreign.write_tinyvit(made, tmp_path / "tv", seeds)
    with store_of("tinyvit", source, num_classes=12, drop_augmentations=True) as store:
        labels = store.label_set()
        crops = [[reference_crop(s, *made.sizes[i].tolist()) for s in seeds[i]] for i in range(8)]
        np.testing.assert_array_equal(
            labels.boxes(range(8)), [[box for box, _ in row] for row in crops]
        )
        np.testing.assert_array_equal(
            labels.flips(range(8)), [[flip for _, flip in row] for row in crops]
        )
        np.testing.assert_allclose(labels.recover(range(8)), expected(made, "ms", 3), atol=2e-3)


def test_torchdistill(made, tmp_path, store_of):
    source = foreign.write_torchdistill(made, tmp_path / "td")
    with pytest.raises(UsageError, match="`whole_images` is needed"):
        store_of("torchdistill", source)
    with pytest.raises(RejectedInput, match="state order: folder"):
        store_of("torchdistill", source, whole_images=True)
    with store_of("torchdistill", source, whole_images=True, order="folder") as store:
        np.testing.assert_allclose(
            store.label_set().recover(range(8))[:, 0], made.probs[:, 0], atol=1e-6
        )
        np.testing.assert_array_equal(store.label_set().boxes([2])[0, 0], [0, 0, *made.sizes[2]])


@pytest.mark.sample(1)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("fields", ["kept", "dense", "logits"])
def test_npz(made, tmp_path, store_of, fields, compressed):
    ids, probs = made.kept(3)
    given = {
        "kept": {"class_id": ids.astype("u2"), "prob": probs},
        "dense": {"prob": made.probs},
        "logits": {"logit": made.logits},
    }[fields]
    box = made.boxes if fields == "kept" else made.shares
    source = foreign.write_npz(
        made, tmp_path / "l.npz", compressed=compressed, box=box, flip=made.flips, **given
    )
    stated = {"num_classes": 12} if fields == "kept" else {}
    with store_of("npz", source, **stated) as store:
        wanted = expected(made, "ms", 3) if fields == "kept" else made.probs
        np.testing.assert_allclose(store.label_set().recover(range(8)), wanted, atol=1e-6)
        np.testing.assert_array_equal(store.label_set().boxes(range(8)), made.boxes)


def test_parquet_in_any_order_of_rows(made, tmp_path, store_of):
    foreign.write_parquet(made, tmp_path / "pq" / "a.parquet")
    with store_of("parquet", tmp_path / "pq", num_classes=12) as store:
        np.testing.assert_allclose(
            store.label_set().recover(range(8)), expected(made, "ms", 3), atol=1e-6
        )
        np.testing.assert_array_equal(store.label_set().boxes(range(8)), made.boxes)
        np.testing.assert_array_equal(store.label_set().flips(range(8)), made.flips)


@pytest.mark.parametrize(
    ("raised", "is_refused"),
    [
        (OSError(errno.EIO, "Input/output error"), False),
        (OSError(errno.EINVAL, "Invalid argument"), True),
        (OSError("could not verify page integrity"), True),
    ],
)
def test_a_disk_that_fails_is_no_damaged_parquet(
    made, tmp_path, store_of, monkeypatch, raised, is_refused
):
    path = foreign.write_parquet(made, tmp_path / "a.parquet")
    real, opened = tables._open, []

    def fails(path):
        opened.append(path)
        if len(opened) > 4:  # not before the labels themselves are read
            raise raised
        return real(path)

    monkeypatch.setattr(tables, "_open", fails)
    with pytest.raises(RejectedInput if is_refused else StorageError, match=str(path)):
        store_of("parquet", path, num_classes=12, skip_bad=True)


def test_a_bad_batch_takes_its_epoch_with_it(made, tmp_path, store_of):
    source, _ = foreign.write_batches(made, tmp_path / "b")
    (source / "epoch_2" / "batch_1.tar").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(RejectedFiles, match=r"epoch_2/batch_1.tar: is a"):
        store_of("sre2l", source)
    with store_of("sre2l", source, skip_bad=True) as store:
        assert store.num_crops == 5
        assert store_of.report.num_bad == 1
    with pytest.raises(RejectedInput, match="holds no sre2l file"):
        store_of("sre2l", made.root)


def test_grayscale_and_other_images_do_not_matter(made, tmp_path, store_of):
    """Only headers are read: what cannot be decoded is found by whoever decodes it."""
    source = foreign.write_fkd(made, tmp_path / "fkd")
    with store_of("fkd", source, compression="ms", num_classes=12) as store:
        with Image.open(made.root / made.keys[0]) as image:
            assert image.size == tuple(made.sizes[0][::-1].tolist())
        assert store.images()["height"].tolist() == made.sizes[:, 0].tolist()
