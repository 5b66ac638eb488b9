"""Crops that were mixed before the teacher saw them: the student sees what the teacher saw, to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import labelstore
import trainer
from cli import errors, labelstore_app, trainer_app
from labelstore.calibration import masking
from labelstore.cropping.replay import read_image, replay
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange import Stated, export_labels
from tests.exchange import foreign_files as foreign
from tests.flat_options import CropDataset, CropLoader, StoredPasses, import_labels
from tests.generation.conftest import OPTIONS
from trainer.loader import collate_crops
from trainer.loader.planes import record_dtype
from trainer.loader.recorded_mixes import Partners
from trainer.sampler import PassSchedule

N, M, C, SIDE, BATCH = 8, 2, 4, 32, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return foreign.make(tmp_path_factory.mktemp("images"), num_crops=M, num_classes=C)


@pytest.fixture(scope="module", params=["mixup", "cutmix"])
def imported(request, made, tmp_path_factory):
    """A store of SRe2L's files at 32 pixels; and how they were mixed, with each epoch's order."""
    folder = tmp_path_factory.mktemp(request.param)
    source, orders = foreign.write_batches(made, folder / "b", batch=BATCH, mix=request.param)
    stated = Stated(input_size=SIDE)
    import_labels(
        folder / "s",
        format="sre2l",
        source=source,
        images=made.root,
        stated=stated,
        dtype="float32",
    )
    return folder / "s", request.param, orders


def as_the_release_mixes(made, mix, orders):
    """uint8 (N, M, 3, S, S): whole batches of crops, one set into or blended with another in float."""
    images = [read_image(made.root / key) for key in made.keys]
    crops = torch.stack([
        torch.stack([
            replay(image, made.boxes[row, crop], bool(made.flips[row, crop]), SIDE)
            for crop in range(M)
        ])
        for row, image in enumerate(images)
    ])  # fmt: skip
    rng, mixed = np.random.default_rng(1), crops.clone()
    for epoch, order in enumerate(orders):
        for first in range(0, N, BATCH):
            rows = np.array(order[first : first + BATCH])
            batch = crops[rows, epoch]
            other = batch[torch.from_numpy(rng.permutation(len(rows)))]
            if mix == "cutmix":
                batch = batch.clone()
                batch[:, :, 3:11, 5:17] = other[:, :, 3:11, 5:17]
            else:
                batch = (0.25 * batch.float() + 0.75 * other.float()).round().to(torch.uint8)
            mixed[rows, epoch] = batch
    return mixed


@pytest.mark.sample(1)
def test_the_student_sees_what_the_teacher_saw(made, imported, tmp_path):
    path, mix, orders = imported
    expected = as_the_release_mixes(made, mix, orders)
    schedule = PassSchedule.of(passes=1, crops_per_image=M)
    with labelstore.open(path) as store:
        labels = store.label_set()
        with StoredPasses(labels, schedule=schedule, temperature=20.0, scratch=tmp_path) as source:
            for workers in (1, 2):
                loader = CropLoader(
                    source, made.root, batch_size=3 * M, input_size=SIDE, workers=workers
                )
                seen = 0
                for batch in loader.batches(0):
                    crops = batch.crops.view(-1, M)
                    wanted = expected[batch.images[:, None], crops].flatten(0, 1)
                    assert torch.equal(batch.pixels, wanted)
                    seen += len(batch)
                assert seen == N * M
        dataset = CropDataset(labels, made.root, M, input_size=SIDE, scratch=tmp_path, passes=1)
        items = [dataset[i] for i in range(len(dataset))]
        whole = collate_crops(items)
        wanted = expected[whole["image"][:, None], whole["crops"].view(-1, M)].flatten(0, 1)
        assert torch.equal(whole["pixels"], wanted)
        # the label is the mixture's, as it was stored: nothing is mixed twice
        dense = torch.from_numpy(labels.recover(range(N)))[
            whole["image"][:, None], whole["crops"].view(-1, M)
        ].flatten(0, 1)
        torch.testing.assert_close(whole["probs"], dense)
        dataset.close()


def test_boxes_follow_the_size_that_the_student_sees(made, imported, tmp_path):
    path, mix, _ = imported
    with labelstore.open(path) as store:
        dataset = CropDataset(
            store.label_set(), made.root, M, input_size=2 * SIDE, scratch=tmp_path, passes=1
        )
        changed = []
        for item in (dataset[i] for i in range(N)):
            row = int(item["image"])
            image = read_image(made.root / made.keys[row])
            for crop, pixels in zip(item["crops"].tolist(), item["pixels"], strict=True):
                plain = replay(image, made.boxes[row, crop], bool(made.flips[row, crop]), 2 * SIDE)
                changed.append((pixels != plain).any(0))
        inside = torch.zeros((2 * SIDE, 2 * SIDE), dtype=torch.bool)
        inside[6:22, 10:34] = True
        anywhere = torch.stack(changed).any(0)
        assert torch.equal(anywhere, inside) if mix == "cutmix" else anywhere.all()
        dataset.close()


def test_a_run_learns_from_recorded_mixes(made, imported, tmp_path, capsys):
    path, _, _ = imported
    settings = {
        "data": made.root.parent, "store": path, "labels": "fkd", "temperature": 20.0, "soft_loss": "kl",
        "model": "resnet18", "model_kwargs": OPTIONS, "input_size": SIDE, "crops_per_image": 1,
        "epochs": 2, "batch_size": 4, "workers": 1, "device": "cpu", "optimizer": "adamw", "lr": 1e-3,
    }  # fmt: skip
    run = trainer.run(trainer.TrainConfig(**settings))
    assert run.crops_seen == 2 * N
    assert np.isfinite(run.train_loss)
    for wrong in (["--mixing", "cutmix"], ["--ground-truth-weight", "0.5"]):
        arguments = ["run", "--data", made.root.parent, "--store", path, "--device", "cpu", *wrong]
        assert errors.run(trainer_app.commands, "trainer", [str(a) for a in arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "mixed" in line


def test_a_mask_of_mixed_crops_is_refused(imported, tmp_path, monkeypatch, capsys):
    """Where it would be made, and where an older version has made it: at training."""
    path, _, _ = imported
    for more in ([], ["--dry-run"]):
        arguments = ["calibrate", str(path), "--low", "0", "--middle", "0", "--top", "1", *more]
        assert errors.run(labelstore_app.commands, "labelstore", arguments) == 7
        (line,) = capsys.readouterr().err.splitlines()
        assert "were mixed with other images" in line
    with labelstore.open(path) as store:
        labels = store.label_set()
        assert not store.catalogue.masks.all()
        monkeypatch.setattr(masking, "check_unmixed", lambda labels: None)
        rule = labelstore.RegionThresholds(low=0.0, middle=0.0, top=1.0)
        mask = labelstore.calibrate(labels, rule, name=f"mask-{tmp_path.name}")
        with pytest.raises(UsageError, match="mixed"):
            StoredPasses(labels, schedule=PassSchedule.of(passes=1, crops_per_image=1), mask=mask)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("mix_share", np.nan, "share"),
        ("mix_share", -0.5, "share"),
        ("mix_image", 2**32 - 1, "image 4294967295 of 8"),
        ("mix_box", (0, 0, 65_535, 65_535), "input_size"),
        ("mix_from", (0, 0, 200, 200), "leaves an image"),
    ],
)
def test_records_that_cannot_be_are_refused(made, field, value, match):
    partners = Partners(keys=np.array(made.keys), sizes=np.zeros((N, 2), np.int64), side=SIDE)
    records = np.zeros(1, record_dtype(2, C, mixed=True))
    records["mix_image"], records["mix_from"], records["mix_share"] = 1, (0, 0, 9, 9), 0.5
    records["mix_box"] = (1, 1, 4, 4)
    crops = torch.zeros((1, 3, SIDE, SIDE), dtype=torch.uint8)
    partners.mix_in(crops, records, made.root.joinpath, "bilinear")
    assert crops.any()
    records[field] = value
    with pytest.raises(RejectedInput, match=match):
        partners.mix_in(crops, records, made.root.joinpath, "bilinear")


def test_nothing_pasted_is_nothing_blended(made, tmp_path):
    """A box without height beside a share below one: the two batches' own crops, not a blend of them."""
    box = [np.int64(b) for b in (4, 5, 4, 17)]
    source, _ = foreign.write_batches(made, tmp_path / "b", batch=N, mix="cutmix")
    for epoch in range(M):
        path = source / f"epoch_{epoch}" / "batch_0.tar"
        value = torch.load(path, weights_only=False)
        foreign.save([*value[:4], box, value[5]], path)
    import_labels(
        tmp_path / "s",
        format="sre2l",
        source=source,
        images=made.root,
        stated=Stated(input_size=SIDE),
    )
    with labelstore.open(tmp_path / "s") as store:
        dataset = CropDataset(
            store.label_set(), made.root, M, input_size=SIDE, scratch=tmp_path, passes=1
        )
        item = dataset[0]
        row, crop = int(item["image"]), int(item["crops"][0])
        image = read_image(made.root / made.keys[row])
        plain = replay(image, made.boxes[row, crop], bool(made.flips[row, crop]), SIDE)
        assert torch.equal(item["pixels"][0], plain)
        dataset.close()


def test_a_crop_that_was_blended_and_then_cut_into(made, tmp_path):
    """ml-dr's `mixing`: cutmix(mixup(x, y), y), both with the same crop y."""
    source = foreign.write_ml_dr(made, tmp_path / "dr", mixing=True, blend=0.25, size=SIDE)
    import_labels(
        tmp_path / "s",
        format="ml-dr",
        source=source,
        images=made.root,
        stated=Stated(num_classes=C, order="folder"),
    )
    with labelstore.open(tmp_path / "s") as store:
        assert store.plan().parameters["law"] == "imported/2"
        dataset = CropDataset(
            store.label_set(), made.root, M, input_size=SIDE, scratch=tmp_path, passes=1
        )
        whole = collate_crops([dataset[i] for i in range(len(dataset))])
        dataset.close()
    images = [read_image(made.root / key) for key in made.keys]
    crops = whole["crops"].view(-1, M).tolist()
    seen = whole["pixels"].view(-1, M, 3, SIDE, SIDE)
    for row, numbers, pixels in zip(whole["image"].tolist(), crops, seen, strict=True):
        for crop, found in zip(numbers, pixels, strict=True):
            mine, other = (
                replay(images[r], made.boxes[r, c], bool(made.flips[r, c]), SIDE)
                for r, c in ((row, crop), ((row + 1) % N, 0))
            )
            if crop % 2:
                mine = (0.25 * mine.float() + 0.75 * other.float()).round().to(torch.uint8)
                mine[:, 2:12, 3:23] = other[:, 2:12, 3:23]
            assert torch.equal(found, mine)


def test_blended_crops_go_out_to_ml_dr_as_they_came_in(made, tmp_path):
    source = foreign.write_ml_dr(made, tmp_path / "dr", mixing=True, blend=0.25, size=SIDE)
    import_labels(
        tmp_path / "s",
        format="ml-dr",
        source=source,
        images=made.root,
        stated=Stated(num_classes=C, order="folder"),
        dtype="float32",
    )
    with labelstore.open(tmp_path / "s") as store:
        export_labels(store.label_set(), format="ml-dr", target=tmp_path / "out")
    for row in range(N):
        one, two = (
            torch.load(folder / f"{row}.pth.tar", weights_only=False)
            for folder in (source, tmp_path / "out")
        )
        for was, now in zip(one[1], two[1], strict=True):
            assert was["params"][-2] == now["params"][-2]
            assert list(map(repr, was["params"][:-1])) == list(map(repr, now["params"][:-1]))
            if was["params"][-1] is not None:
                assert list(was["params"][-1][1:]) == list(now["params"][-1][1:])
