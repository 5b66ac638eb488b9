"""Settings of the papers' tables, one function per row: `ferkd_resnet50(store=..., data=..., epochs=100)`.

Every function takes settings of `TrainConfig` by name, which override its own, and returns the config. Its docstring
is an experiment card: paper, expected figure, hardware, labels, command. Its `sources` say where each setting is
printed. None of the figures was repeated here: they are the papers'.
"""

from __future__ import annotations

from trainer.recipes.card import Card, Recipe, card
from trainer.recipes.ferkd import (
    curriculum_easy_to_hard,
    curriculum_hard_to_easy,
    curriculum_random,
    ferkd_finetune_regnety,
    ferkd_finetune_resnet50,
    ferkd_finetune_vit_giant,
    ferkd_resnet50,
    ferkd_resnet50_ensemble,
    ferkd_vit_small,
)
from trainer.recipes.fkd import (
    fkd_deit_tiny,
    fkd_efficientnetv2_b0,
    fkd_fbnetc,
    fkd_resnet50,
    fkd_resnet50_adamw,
    fkd_resnet50_adamw_cutmix,
    fkd_resnet50_plain,
    fkd_resnet101,
    fkd_resnet101_plain,
    meal_v2_mobilenetv3_075,
    meal_v2_mobilenetv3_100,
    meal_v2_resnet50,
    meal_v2_resnet50_cosine,
    s2_bnn_reactnet,
    ssl_resnet50,
    vanilla_resnet50,
)
from trainer.recipes.others import (
    funmatch_resnet50,
    hald_resnet18,
    lpld_resnet18,
    relabel_resnet50,
    relabel_resnet50_cutmix,
    sre2l_resnet18,
    sre2l_resnet18_recorded,
)
from trainer.recipes.sources import RELEASES, Said

_ALL: tuple[Recipe, ...] = (
    vanilla_resnet50,
    fkd_resnet50,
    fkd_resnet50_plain,
    fkd_resnet101,
    fkd_resnet101_plain,
    fkd_resnet50_adamw,
    fkd_resnet50_adamw_cutmix,
    fkd_deit_tiny,
    fkd_fbnetc,
    fkd_efficientnetv2_b0,
    meal_v2_resnet50,
    meal_v2_resnet50_cosine,
    meal_v2_mobilenetv3_075,
    meal_v2_mobilenetv3_100,
    s2_bnn_reactnet,
    ssl_resnet50,
    ferkd_resnet50,
    ferkd_resnet50_ensemble,
    ferkd_vit_small,
    ferkd_finetune_vit_giant,
    ferkd_finetune_regnety,
    ferkd_finetune_resnet50,
    curriculum_random,
    curriculum_easy_to_hard,
    curriculum_hard_to_easy,
    relabel_resnet50,
    relabel_resnet50_cutmix,
    funmatch_resnet50,
    sre2l_resnet18,
    sre2l_resnet18_recorded,
    lpld_resnet18,
    hald_resnet18,
)

RECIPES: dict[str, Recipe] = {recipe.__name__: recipe for recipe in _ALL}
"""Every recipe by name, in the order of the papers."""

__all__ = [
    "RECIPES",
    "RELEASES",
    "Card",
    "Recipe",
    "Said",
    "card",
    "curriculum_easy_to_hard",
    "curriculum_hard_to_easy",
    "curriculum_random",
    "ferkd_finetune_regnety",
    "ferkd_finetune_resnet50",
    "ferkd_finetune_vit_giant",
    "ferkd_resnet50",
    "ferkd_resnet50_ensemble",
    "ferkd_vit_small",
    "fkd_deit_tiny",
    "fkd_efficientnetv2_b0",
    "fkd_fbnetc",
    "fkd_resnet50",
    "fkd_resnet50_adamw",
    "fkd_resnet50_adamw_cutmix",
    "fkd_resnet50_plain",
    "fkd_resnet101",
    "fkd_resnet101_plain",
    "funmatch_resnet50",
    "hald_resnet18",
    "lpld_resnet18",
    "meal_v2_mobilenetv3_075",
    "meal_v2_mobilenetv3_100",
    "meal_v2_resnet50",
    "meal_v2_resnet50_cosine",
    "relabel_resnet50",
    "relabel_resnet50_cutmix",
    "s2_bnn_reactnet",
    "sre2l_resnet18",
    "sre2l_resnet18_recorded",
    "ssl_resnet50",
    "vanilla_resnet50",
]
