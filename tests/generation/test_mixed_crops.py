"""Recorded mixing: a crop and its partner's, the same pixels for teacher and student at any batch size."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import labelstore
from cli import errors, labelstore_app, trainer_app
from labelstore import CropAugmentation, CropMixing, CropPlan, Full, LabelMap
from labelstore.care.auditing import audit
from labelstore.care.repairing import repair
from labelstore.cropping.crop_augmentation import planned_augmentation
from labelstore.cropping.crop_mixing import PlannedMixing, plan_record, planned_mixing
from labelstore.cropping.replay import mix_pixels, read_image, replay
from labelstore.errors import (
    ConflictError,
    FormatVersionError,
    IncompleteError,
    RejectedInput,
    UsageError,
)
from labelstore.images import open_images
from labelstore.labelling.mixed_crops import mixed_crops
from labelstore.store.layout import MIX_FIELDS
from tests.flat_options import CropDataset, CropLoader, StoredPasses, generate, grow, label_images
from tests.generation.conftest import OPTIONS, made_crops, write_photographs, write_teacher
from trainer.sampler import PassSchedule

JITTER = CropAugmentation(color_jitter=(0.4, 0.4, 0.4, 0.1))
CUTMIX = CropMixing(method="cutmix", crops_per_partner=2)
SIZE = 32
M = 4


def label(store: Path, place: Path, **options: object) -> None:
    settings = {
        "images": place / "images",
        "teacher": str(place / "teacher"),
        "codec": Full(dtype="float32"),
        "num_crops": M,
        "images_per_shard": 4,
        "crops_per_shard": 2,
        "batch_size": 7,
        "device": "cpu",
        "workers": 2,
        **options,
    }
    label_images(store, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    write_photographs(root / "images", per_class=3)
    write_teacher(root / "teacher")
    label(root / "cutmix", root, mixing=CUTMIX, augmentation=JITTER)
    label(root / "mixup", root, mixing=CropMixing(method="mixup", alpha=0.4, prob=0.7))
    return root


def stored(store: labelstore.Store) -> dict[str, np.ndarray]:
    """(images, M, ...) of every field of a plan."""
    group = store.group(f"crops/{store.plan().name}")
    names = [*(field.name for field in MIX_FIELDS), "box", "flip"]
    return {
        name: np.concatenate([group.read(b, None, name) for b in sorted(group.blocks)])
        for name in names
    }


def plain_pixels(store: labelstore.Store, images: Path) -> torch.Tensor:
    """(images, M, 3, S, S) of what is stored, one crop at a time."""
    keys = store.image_columns["key"].tolist()
    found, parameters = stored(store), store.plan().parameters
    pixels = [read_image(images / key) for key in keys]
    augmentation = planned_augmentation(parameters)

    def crop(row: int, number: int, box: np.ndarray, flip: int) -> torch.Tensor:
        todo = () if augmentation is None else augmentation.operations(keys[row], [number])[0]
        return replay(pixels[row], box, bool(flip), SIZE, operations=todo)

    made = []
    for row in range(len(keys)):
        for number in range(found["box"].shape[1]):
            one = {name: values[row, number] for name, values in found.items()}
            mixed = crop(row, number, one["box"], one["flip"])
            if one["mix_share"] < 1:
                partner = crop(int(one["mix_image"]), number, one["mix_from"], one["mix_flip"])
                top, left, height, width = one["mix_box"].tolist()
                if height:
                    mixed[:, top : top + height, left : left + width] = partner[
                        :, top : top + height, left : left + width
                    ]
                else:
                    share = float(one["mix_share"])
                    blend = share * mixed.double() + (1 - share) * partner.double()
                    # one float32 rounding apart from lerp: at a tie either neighbour is right
                    ours = torch.lerp(partner.float(), mixed.float(), share).round()
                    assert (ours - blend).abs().max() <= 0.5 + 1e-4
                    mixed = ours.to(torch.uint8)
            made.append(mixed.contiguous())
    return torch.stack(made).unflatten(0, (len(keys), -1))


@pytest.mark.parametrize("method", ["cutmix", "mixup"])
def test_teacher_and_student_see_the_same_pixels(place, method):
    with labelstore.open(place / method) as store:
        expected = plain_pixels(store, place / "images")
        parameters = store.plan().parameters
        for batch_size, workers in ((5, 1), (64, 3)):
            made = made_crops(
                store,
                place / "images",
                num_crops=M,
                side=SIZE,
                batch_size=batch_size,
                workers=workers,
                augmentation=planned_augmentation(parameters),
                mixed=mixed_crops(store, store.plan(), open_images(place / "images")),
            )
            assert torch.equal(made, expected.flatten(0, 1))
        labels = store.label_set()
        for m, batch_size in ((1, 3), (2, 6), (4, 36)):
            schedule = PassSchedule.of(passes=1, crops_per_image=m)
            with StoredPasses(labels, schedule=schedule, seed=1) as source:
                loader = CropLoader(
                    source, place / "images", batch_size=batch_size, input_size=SIZE
                )
                for batch in loader.batches(0):
                    rows = batch.images.repeat_interleave(m)
                    assert torch.equal(batch.pixels, expected[rows, batch.crops])
        data = CropDataset(labels, place / "images", crops_per_image=2, input_size=SIZE, passes=1)
        item = data[3]
        assert torch.equal(item["pixels"], expected[3][item["crops"]])
        data.close()


@pytest.mark.parametrize("method", ["cutmix", "mixup"])
def test_labels_are_the_teachers_of_these_pixels(place, method):
    from labelstore.teachers.teacher import load_teacher

    teacher = load_teacher(str(place / "teacher"))
    with labelstore.open(place / method) as store:
        pixels = plain_pixels(store, place / "images")
        with torch.inference_mode():
            logits = teacher.module((pixels.flatten(0, 1).float() / 255 - 0.5) / 0.25)
        expected = torch.softmax(logits, 1).unflatten(0, (9, M)).numpy()
        np.testing.assert_allclose(store.label_set().recover(range(9)), expected, atol=3e-6)
        assert audit(store, sample=36, device="cpu", workers=2).largest < 1e-5


def test_what_is_drawn_is_what_is_promised(place):
    with labelstore.open(place / "cutmix") as store:
        found = stored(store)
        assert (found["mix_image"] != np.arange(9)[:, None]).all()
        # two crops share a partner's image, with boxes of their own
        assert (found["mix_image"][:, 0] == found["mix_image"][:, 1]).all()
        assert (found["mix_from"][:, 0] != found["mix_from"][:, 1]).any(1).all()
        area = found["mix_box"][..., 2].astype(int) * found["mix_box"][..., 3]
        np.testing.assert_allclose(found["mix_share"], 1 - area / SIZE**2, atol=1e-6)
        for row in range(9):
            for crop in range(M):
                partner = int(found["mix_image"][row, crop])
                assert (found["mix_from"][row, crop] == found["box"][partner, crop]).all()
                assert found["mix_flip"][row, crop] == found["flip"][partner, crop]
    with labelstore.open(place / "mixup") as store:
        found = stored(store)
        alone = found["mix_share"] == 1
        assert 0 < alone.sum() < 30
        assert (found["mix_image"][alone] == np.nonzero(alone)[0]).all()
        assert not found["mix_box"].any()


@given(st.integers(0, 2**64 - 1), st.integers(2, 50), st.sampled_from(["cutmix", "mixup"]))
def test_it_depends_on_nothing_but_seed_key_and_crop(seed, rows, method):
    settings = CropMixing(method=method, crops_per_partner=3, prob=0.8, side=64)
    law = PlannedMixing(plan=CropPlan(seed=seed), settings=settings, rows=rows)
    boxes, flips = law.plan.crops("a", 70, 80, range(12))

    def fields(crops):
        crops = np.array(crops)
        return law.fields(1, "a", crops, boxes[crops], flips[crops], lambda r: (f"k{r}", 60, 90))

    whole, part = fields(range(12)), fields([2, 3, 9])
    for name, values in whole.items():
        np.testing.assert_array_equal(part[name], values[[2, 3, 9]])
    assert ((whole["mix_image"] < rows) & (whole["mix_share"] <= 1)).all()
    assert (whole["mix_share"] >= 0).all()
    edges = whole["mix_box"][:, :2].astype(int) + whole["mix_box"][:, 2:]
    assert (edges <= 64).all()
    # nobody to be mixed with
    alone = PlannedMixing(plan=law.plan, settings=settings, rows=1)
    own = alone.fields(0, "a", np.arange(4), boxes[:4], flips[:4], lambda r: None)
    assert (own["mix_share"] == 1).all()


@pytest.mark.slow
def test_growth_further_teachers_and_damage(place, tmp_path):
    shutil.copytree(place / "cutmix", tmp_path / "s")
    shutil.copytree(place / "images", tmp_path / "images")
    teacher = {"teacher": str(place / "teacher"), "device": "cpu", "workers": 2}
    with labelstore.open(tmp_path / "s") as store:
        before = stored(store)
        grow(store, num_crops=M + 2, images=tmp_path / "images", **teacher)
        label(tmp_path / "whole", place, num_crops=M + 2, mixing=CUTMIX, augmentation=JITTER)
        with labelstore.open(tmp_path / "whole") as whole:
            for name, values in stored(whole).items():
                np.testing.assert_array_equal(stored(store)[name], values)
            np.testing.assert_allclose(
                store.label_set().recover([4]), whole.label_set().recover([4]), atol=3e-6
            )
        # images that join have partners among the first ones, and change nobody's
        shutil.copy(tmp_path / "images" / "cat" / "1.jpg", tmp_path / "images" / "cat" / "9.jpg")
        grow(store, images=tmp_path / "images", **teacher)
        grown = stored(store)
        (new,) = np.flatnonzero(store.image_columns["key"] == "cat/9.jpg")
        assert (grown["mix_image"][new] < 9).all()
        assert (grown["mix_image"][:9, :M] == before["mix_image"]).all()
        # another teacher sees the same mixtures, also of a law that would draw others now
        generate(
            store, codec=Full(dtype="float32"), name="more", images=tmp_path / "images", **teacher
        )
        rows = [*range(9), int(new)]
        np.testing.assert_allclose(
            store.label_set("teacher").recover(rows),
            store.label_set("more").recover(rows),
            atol=3e-6,
        )
        damaged = []
        for group in ("labels/teacher", "crops/plan"):
            row = next(iter(store.catalogue.ledger.shards(group)))
            file = next(f for f in row.files if group[0] == "l" or "mix_box" in f.key)
            path = store.arrays.root / file.key
            damaged.append((path, path.read_bytes()))
            path.write_bytes(damaged[-1][1][:-1] + bytes([damaged[-1][1][-1] ^ 1]))
    with labelstore.open(tmp_path / "s", checked=False) as store:
        repair(store, device="cpu", workers=1, batch_size=7, whole_shards=True,
               images=tmp_path / "images")  # fmt: skip
    # boxes to the bit; labels up to what another batch rounds
    assert damaged[1][0].read_bytes() == damaged[1][1]
    with labelstore.open(tmp_path / "s") as store:
        np.testing.assert_allclose(
            store.label_set("teacher").recover(rows),
            store.label_set("more").recover(rows),
            atol=3e-6,
        )


def test_a_stop_in_the_middle_changes_nothing(place, tmp_path):
    """What the spool kept has its mixtures with it."""
    again = {"mixing": CUTMIX, "augmentation": JITTER, "images_per_shard": 9, "batch_size": 4}
    with pytest.raises(IncompleteError):
        label(tmp_path / "s", place, **again, max_seconds=0)
    label(tmp_path / "s", place, **again)
    with labelstore.open(tmp_path / "s") as store, labelstore.open(place / "cutmix") as whole:
        for name, values in stored(whole).items():
            np.testing.assert_array_equal(stored(store)[name], values)
        rows = range(9)
        np.testing.assert_allclose(
            store.label_set().recover(rows), whole.label_set().recover(rows), atol=3e-6
        )


def test_a_partner_that_cannot_be_decoded_leaves_crops_alone(place, tmp_path):
    shutil.copytree(place / "images", tmp_path / "images")
    (tmp_path / "images" / "dog" / "1.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    shutil.copytree(place / "teacher", tmp_path / "teacher")
    with pytest.raises(RejectedInput, match=r"dog/1.jpg cannot be decoded"):
        label(tmp_path / "s", tmp_path, mixing=CUTMIX)
    label(tmp_path / "s", tmp_path, mixing=CUTMIX, skip_bad=True)
    with labelstore.open(tmp_path / "s") as store, labelstore.open(place / "cutmix") as sound:
        bad = int(np.flatnonzero(store.bad)[0])
        found, others = stored(store), stored(sound)
        good = [row for row in range(9) if row != bad]
        meant = others["mix_image"][good] == bad
        assert (found["mix_share"][good][meant] == 1).all()
        assert (found["mix_image"][good][~meant] == others["mix_image"][good][~meant]).all()
        schedule = PassSchedule.of(passes=1, crops_per_image=4)
        with StoredPasses(store.label_set(), schedule=schedule, allow_empty_images=True) as source:
            loader = CropLoader(source, tmp_path / "images", batch_size=32, input_size=SIZE)
            assert sum(len(batch) for batch in loader.batches(0)) == 32


def test_a_student_of_another_size_sees_the_box_scaled():
    crop, partner = torch.zeros((3, 64, 64), dtype=torch.uint8), torch.full((3, 64, 64), 9)
    mix_pixels(crop, partner.to(torch.uint8), 0.75, (8, 0, 8, 32), 32)
    assert crop[:, 16:32].eq(9).all()
    assert crop.sum() == 9 * 3 * 16 * 64


def test_what_cannot_be_is_refused(place, tmp_path):
    refused = pytest.raises(ConflictError, match="exists with mix")
    for other in (None, CropMixing(method="mixup"), CropMixing(method="cutmix", alpha=0.5)):
        with refused:
            label(place / "cutmix", place, mixing=other, augmentation=JITTER)
    label(place / "cutmix", place, mixing=CUTMIX, augmentation=JITTER)  # the same: complete
    for options, why in (
        ({"plan_of": place / "cutmix", "num_crops": None}, "partners are images of one store"),
        ({"mixing": CUTMIX, "codec": LabelMap(k=2)}, "label maps are of whole images"),
        ({"mixing": CUTMIX, "crop_device": "cuda"}, "run on the CPU"),
        ({"mixing": CUTMIX, "stored_crops": False}, "`stored_crops=False`"),
    ):
        with pytest.raises(UsageError, match=why):
            label(tmp_path / "x", place, **options)
    assert not (tmp_path / "x").exists()
    record = plan_record(CropPlan(), None, CUTMIX, rows=9)
    assert planned_mixing(record) == PlannedMixing(plan=CropPlan(), settings=CUTMIX, rows=9)
    with pytest.raises(FormatVersionError, match="newer labelstore"):
        planned_mixing({**record, "mixing": {**record["mixing"], "law": "x"}})
    for wrong in (
        {**record, "mixing": 3},
        {**record, "mixing": {**record["mixing"], "rows": 0}},
        {**record, "mixing": {**record["mixing"], "more": 0}},
        {**record, "mixing": {**record["mixing"], "alpha": "x"}},
        {**record, "mixed": False},
    ):
        with pytest.raises(UsageError):
            planned_mixing(wrong)
    for wrong in (
        {"method": "fmix"},
        {"method": "mixup", "alpha": 0},
        {"method": "mixup", "alpha": float("nan")},
        {"method": "mixup", "prob": 1.5},
        {"method": "mixup", "crops_per_partner": 0},
        {"method": "mixup", "side": 0},
    ):
        with pytest.raises(UsageError):
            CropMixing(**wrong)


def test_on_the_command_line(place, tmp_path, capsys):
    def run(app: object, *arguments: object) -> tuple[int, str, str]:
        name = "trainer" if app is trainer_app else "labelstore"
        code = errors.run(app.commands, name, [str(a) for a in arguments])
        return code, *capsys.readouterr()

    create = (
        "create", tmp_path / "s", "--images", place / "images", "--teacher", place / "teacher",
        "--num-crops", 2, "--k", 2, "--device", "cpu",
    )  # fmt: skip
    for wrong, why in (
        (("--mix", "fmix"), "choose one of cutmix, mixup"),
        (("--mix-prob", "0.5"), "need --mix"),
        (("--mix", "cutmix", "--crops", "seeded"), "leave one out"),
        (("--mix", "cutmix", "--mix-alpha", "-1"), "above 0"),
    ):
        code, _, err = run(labelstore_app, *create, *wrong)
        assert code == 2, err
        assert why in err
    code, _, err = run(labelstore_app, *create, "--mix", "mixup", "--mix-alpha", "0.8")
    assert code == 0, err
    assert (
        "mixed: mixup, alpha 0.8, 100 % of crops" in run(labelstore_app, "info", tmp_path / "s")[1]
    )
    train = (
        "run", "--store", tmp_path / "s", "--images", place / "images", "--model", "timm:resnet18",
        "--set", f"model_kwargs={OPTIONS}", "--epochs", 2, "--crops-per-image", 2, "--batch-size", 6,
        "--input-size", 32, "--device", "cpu", "--mixing", "cutmix",
    )  # fmt: skip
    code, _, err = run(trainer_app, *train, "--output", tmp_path / "no")
    assert code == 2
    assert "mixed before the teacher saw them" in err
    code, _, err = run(trainer_app, *train, "--mix-again", "--output", tmp_path / "yes")
    assert code == 0, err
    assert (tmp_path / "yes" / "model.safetensors").exists()
