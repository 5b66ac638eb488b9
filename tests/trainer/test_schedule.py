import dataclasses
import itertools
import math

import pytest
import torch
from timm.optim import AdamP
from torch import nn

from labelstore.errors import UsageError
from trainer.config import TrainConfig
from trainer.schedule import LearningRate, create_optimizer


def rates(steps_per_pass, steps=None, **changes):
    config = TrainConfig(
        labels="ground-truth", **{"epochs": 40, "crops_per_image": 4, "lr": 1.0, **changes}
    )
    optimizer = create_optimizer(config, nn.Linear(2, 2))
    learning_rate = LearningRate(
        config, optimizer, [(config.crops_per_image, steps_per_pass)] * config.multi_crop_passes
    )
    steps = range(config.multi_crop_passes * steps_per_pass) if steps is None else steps
    return [learning_rate.set(step) for step in steps]


def test_serrated_cosine_is_constant_within_a_pass_and_cosine_at_its_start():
    got = rates(7)
    for step, rate in enumerate(got):
        epoch = step // 7 * 4
        assert rate == pytest.approx(0.5 * (1 + math.cos(math.pi * epoch / 40)))


@pytest.mark.parametrize("eta", [1, 2, 3])
def test_a_cosine_of_eta_is_cut_off_where_the_run_ends(eta):
    """0.5 (1 + cos(pi t / (epochs eta))), as HALD's train_fkd.py has it."""
    got = rates(7, cosine_eta=eta, min_lr=0.0)
    for step, rate in enumerate(got):
        epoch = step // 7 * 4
        assert rate == pytest.approx(0.5 * (1 + math.cos(math.pi * epoch / (40 * eta))))


def test_unserrated_cosine_falls_with_every_step_to_the_minimum():
    got = rates(7, serrated=False, min_lr=0.01)
    assert all(a > b for a, b in itertools.pairwise(got))
    assert got[0] == 1.0
    assert 0.01 < got[-1] < 0.012


def test_step_and_multistep_are_not_changed_by_serration():
    # FKD 3.3: multi-crop passes have no effect on milestone schedules
    step = rates(8, scheduler="step", decay_epochs=12)
    assert step == pytest.approx([0.1 ** (i // 24) for i in range(80)])
    multi = rates(8, scheduler="multistep", milestones=(12, 32))
    assert multi == pytest.approx([0.1 ** ((i >= 24) + (i >= 64)) for i in range(80)])
    assert step == rates(8, scheduler="step", decay_epochs=12, serrated=False)
    assert multi == rates(8, scheduler="multistep", milestones=(12, 32), serrated=False)
    assert set(rates(3, scheduler="constant")) == {1.0}


@pytest.mark.parametrize("scheduler", ["cosine", "constant"])
def test_warm_up_rises_with_every_step_also_when_serrated(scheduler):
    got = rates(8, scheduler=scheduler, warmup_epochs=5.0, warmup_lr=0.1)
    rise = got[:11]
    assert rise[0] == pytest.approx(0.1)
    assert [b - a for a, b in itertools.pairwise(rise[:10])] == pytest.approx([0.9 / 10] * 9)
    # the pass that warm-up ends in stays where it ended
    assert got[10:16] == pytest.approx([got[10]] * 6)
    assert got[10] > 0.9


def test_a_schedule_begins_after_warm_up_where_it_is_asked_to():
    """ReLabel's release: from 0 up over w epochs, then a cosine over the E - w that are left, step by step."""
    got = rates(8, serrated=False, warmup_epochs=5.0, warmup_lr=0.0, warmup_prefix=True, min_lr=0.1)
    for step, rate in enumerate(got):
        epoch = step / 2
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (epoch - 5) / 35))
        assert rate == pytest.approx(epoch / 5 if epoch < 5 else cosine)
    straight = rates(8, scheduler="linear", warmup_epochs=5.0, warmup_prefix=True, serrated=False)
    assert straight[10:] == pytest.approx([1 - (step / 2 - 5) / 35 for step in range(10, 80)])


def test_a_serrated_warm_up_is_a_stair_per_pass():
    """FKD's train_ViT_FKD.py: timm's schedule, set once per epoch, from 1e-5 on, in single-crop passes."""
    config = TrainConfig(
        labels="ground-truth",
        epochs=13,
        crops_per_image=4,
        lr=1.0,
        single_crop_first=5,
        warmup_epochs=5.0,
        warmup_lr=0.1,
        warmup_serrated=True,
    )
    passes = [(1, 3)] * 5 + [(4, 12)] * 2
    learning_rate = LearningRate(config, create_optimizer(config, nn.Linear(2, 2)), passes)
    got = [learning_rate.set(step) for step in range(15)]
    assert got == pytest.approx([0.1 + 0.9 * (step // 3) / 5 for step in range(15)])
    with pytest.raises(UsageError, match="warmup_serrated"):
        dataclasses.replace(config, serrated=False)


@pytest.mark.parametrize(
    "changes", [{}, {"scheduler": "step", "warmup_epochs": 3.0}, {"serrated": False}]
)
def test_the_rate_is_a_function_of_the_step_alone(changes):
    forward = rates(5, **changes)
    steps = torch.randperm(50, generator=torch.Generator().manual_seed(0)).tolist()
    assert [forward[step] for step in steps] == rates(5, steps, **changes)


def test_optimisers_are_what_their_names_say():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def made(name):
        config = TrainConfig(
            labels="ground-truth", optimizer=name, weight_decay=0.05, betas=(0.8, 0.9)
        )
        return create_optimizer(config, model)

    sgd = made("sgd")
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["nesterov"] is False
    assert {group["weight_decay"] for group in sgd.param_groups} == {0.05}
    assert made("nesterov").defaults["nesterov"] is True
    adamw = made("adamw")
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.9)
    adamp = made("adamp")
    assert isinstance(adamp, AdamP)
    # as ReLabel's release makes it: Nesterov's momentum, decay of biases and norms too
    assert adamp.defaults["nesterov"] is True
    assert adamp.defaults["betas"] == (0.8, 0.9)
    assert {group["weight_decay"] for group in adamp.param_groups} == {0.05}
    decay = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert decay[id(model[0].weight)] == 0.05
    assert decay[id(model[0].bias)] == decay[id(model[1].weight)] == 0


def test_layer_groups_keep_their_proportions():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2)
    config = TrainConfig(
        labels="ground-truth", optimizer="adamw", layer_decay=0.5, epochs=8, lr=1.0
    )
    optimizer = create_optimizer(config, model)
    learning_rate = LearningRate(config, optimizer, [(4, 3)] * 2)
    for step in (0, 3):
        assert learning_rate.set(step) == learning_rate_of(step)
        found = {round(group["lr"] / learning_rate_of(step), 9) for group in optimizer.param_groups}
        assert found == {1.0, 0.5, 0.25, 0.125}


def test_linear_falls_evenly_to_the_minimum():
    got = rates(1, scheduler="linear", min_lr=0.2)
    assert got == pytest.approx([1 - 0.8 * 4 * p / 40 for p in range(10)])


def test_single_crop_passes_move_the_rate_by_one_epoch_each():
    """Passes of one crop have m times the images per step, and last one epoch each."""
    config = TrainConfig(
        labels="ground-truth",
        epochs=12,
        crops_per_image=4,
        lr=1.0,
        single_crop_first=2,
        single_crop_last=2,
    )
    assert (config.multi_crop_passes, config.whole_epochs) == (2, 12)
    passes = [(1, 3), (1, 3), (4, 10), (4, 10), (1, 3), (1, 3)]
    optimizer = create_optimizer(config, nn.Linear(2, 2))
    learning_rate = LearningRate(config, optimizer, passes)
    starts = [0, 1, 2, 6, 10, 11]
    expected = [
        0.5 * (1 + math.cos(math.pi * start / 12))
        for start, (_, steps) in zip(starts, passes, strict=True)
        for _ in range(steps)
    ]
    assert [learning_rate.set(step) for step in range(32)] == pytest.approx(expected)


def learning_rate_of(step):
    return 0.5 * (1 + math.cos(math.pi * (step // 3 * 4) / 8))
