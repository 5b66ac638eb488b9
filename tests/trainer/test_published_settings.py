"""Recipes against what papers and releases print: a table written by hand from them, and not from the recipes."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import yaml

from cli import errors, labelstore_app, trainer_app
from cli.trainer_options import parsed
from tests.trainer.test_recipes import given
from trainer.config import TrainConfig
from trainer.phases import Phase
from trainer.recipes import RECIPES, RELEASES, card, differences, source_rows

PUBLISHED = yaml.safe_load(Path(__file__).with_name("published_settings.yaml").read_text())
FIGURES = {
    # FKD Tables 3 to 9 and the release's README
    "vanilla_resnet50": "78.14",
    "fkd_resnet50": "80.1",
    "fkd_resnet50_plain": "79.8",
    "fkd_resnet101": "81.9",
    "fkd_resnet101_plain": "81.7",
    "fkd_resnet50_adamw": "80.5",
    "fkd_resnet50_adamw_cutmix": "80.9",
    "fkd_deit_tiny": "75.2",
    "fkd_fbnetc": "77.13",
    "fkd_efficientnetv2_b0": "79.94",
    "meal_v2_resnet50": "80.70",
    "meal_v2_resnet50_cosine": "80.91",
    "meal_v2_mobilenetv3_075": "67.83",
    "meal_v2_mobilenetv3_100": "69.94",
    "s2_bnn_reactnet": "61.7",
    "ssl_resnet50": "68.8",
    # FerKD Tables 5, 7, 8, 9
    "ferkd_resnet50": "80.68",
    "ferkd_resnet50_ensemble": "81.2",
    "ferkd_vit_small": "81.16",
    "ferkd_finetune_vit_giant": "89.86",
    "ferkd_finetune_regnety": "87.76",
    "ferkd_finetune_resnet50": "81.06",
    "curriculum_random": "80.2",
    "curriculum_easy_to_hard": "79.9",
    "curriculum_hard_to_easy": "79.7",
    # the releases' READMEs
    "relabel_resnet50": "78.9",
    "relabel_resnet50_cutmix": "80.2",
    "funmatch_resnet50": "80.5",
    "sre2l_resnet18": "46.8",
    "sre2l_resnet18_recorded": "46.8",
    "lpld_resnet18": "46.7",
    "hald_resnet18": "41.8",
}


def plain(value):
    if isinstance(value, tuple):
        return [str(each) if isinstance(each, Phase) else each for each in value]
    return value


def program(app, name, capsys, *arguments):
    code = errors.run(app.commands, name, [str(a) for a in arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_what_its_sources_print(name):
    """Every published setting with its value and its source, no more and no fewer."""
    rows = source_rows(RECIPES[name])
    found = {
        row.setting: [plain(row.value), row.source]
        for row in rows
        if not row.source.startswith("ours: ")
    }
    assert found == PUBLISHED["recipes"][name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_where_every_setting_of_its_run_comes_from(name):
    """What is not at its default is in the sources; a config is made of nothing else."""
    recipe = RECIPES[name]
    config = recipe(**given(name))
    for field, usual in {f.name: f.default for f in dataclasses.fields(TrainConfig)}.items():
        if field in given(name):
            continue
        value = getattr(config, field)
        if field in recipe.sources:
            assert plain(value) == plain(recipe.sources[field].value), field
        elif field not in ("model_kwargs", "provenance"):
            assert value == usual, field
        else:
            assert not value
    assert "labels" in recipe.sources
    assert "model" in recipe.sources


@pytest.mark.parametrize("name", RECIPES)
def test_the_figure_is_the_papers(name):
    assert FIGURES[name] in card(RECIPES[name]).expected


@pytest.mark.parametrize("name", PUBLISHED["others"])
def test_what_another_source_says_is_named(name):
    rows = {row.setting: row for row in source_rows(RECIPES[name])}
    for setting, (value, source) in PUBLISHED["others"][name].items():
        assert [plain(rows[setting].other), rows[setting].other_source] == [value, source]


@pytest.mark.sample(9)
@pytest.mark.parametrize("name", RECIPES)
def test_what_another_source_says_is_one_set_away(name, capsys):
    """As text on the command line, as `--sources` shows it."""
    _, out, _ = program(trainer_app, "trainer", capsys, "recipes", name, "--sources")
    lines = out.partition("\n\n")[0].splitlines()
    assert len(lines) == 1 + len(source_rows(RECIPES[name])), "a row is too wide for its line"
    shown = {line.split()[0]: line for line in lines}
    _, *command = shlex.split(card(RECIPES[name]).command)
    for row in source_rows(RECIPES[name]):
        if not row.other_source or row.setting.startswith("create "):
            continue
        text, _, _ = shown[row.setting].rpartition(f": {row.other_source}")
        text = text[text.index(row.source) + len(row.source) :].strip()
        assert parsed(row.setting, text) is not None
        code, out, err = program(
            trainer_app, "trainer", capsys, *command, "--set", f"{row.setting}={text}",
            "--print-config", "--json",
        )  # fmt: skip
        assert code == 0, err
        assert json.loads(out)[row.setting] == plain(row.other)


@pytest.mark.parametrize("name", [name for name in RECIPES if card(RECIPES[name]).create], ids=str)
def test_labels_are_made_by_a_command_that_create_takes(name, capsys, tmp_path):
    """Only the images are missing: every option is one of create's, and so is its value."""
    command = shlex.split(card(RECIPES[name]).create)
    assert command[:4] == ["labelstore", "create", "in1k.labels", "--images"]
    command[2], command[4] = str(tmp_path / "s"), str(tmp_path / "none")
    code, _, err = program(labelstore_app, "labelstore", capsys, *command[1:], "--dry-run")
    assert (code, "none" in err) == (7, True), err


def test_networks_of_train_fkd_begin_with_all_their_branches_open():
    """torchvision leaves the last batch norm of a branch at 1, timm's ResNet at 0: the network is part of a recipe."""
    from trainer.models import create_model

    last = {}
    for name in ("fkd_resnet50", "fkd_resnet50_adamw"):
        config = RECIPES[name](**given(name), num_classes=10, input_size=32)
        last[name] = create_model(config).layer1[0].bn3.weight.abs().max().item()
    assert last == {"fkd_resnet50": 1.0, "fkd_resnet50_adamw": 0.0}


def test_differences_of_two_recipes_are_symmetric_and_complete(capsys):
    first, second = RECIPES["fkd_resnet50_plain"], RECIPES["fkd_resnet50"]
    there, back = differences(first, second), differences(second, first)
    assert {(r.setting, str(r.first), str(r.second)) for r in there} == {
        (r.setting, str(r.second), str(r.first)) for r in back
    }
    one = first(store="s", data="d").to_mapping()
    other = second(store="s", data="d").to_mapping()
    assert {r.setting for r in there} == {name for name in one if one[name] != other[name]}
    assert differences(first, first) == []
    code, out, _ = program(
        trainer_app, "trainer", capsys, "recipes", "--diff", "fkd-resnet50-plain", "fkd_resnet50",
        "--json",
    )  # fmt: skip
    assert code == 0
    printed = json.loads(out)
    assert [printed["first"], printed["second"]] == ["fkd_resnet50_plain", "fkd_resnet50"]
    assert {"setting": "lr", "first": 0.1, "second": 0.2} in printed["differences"]


def test_sources_name_releases_that_are_listed(capsys):
    code, out, _ = program(
        trainer_app, "trainer", capsys, "recipes", "relabel_resnet50", "--sources", "--json"
    )
    assert code == 0
    printed = json.loads(out)
    assert {each["name"] for each in printed["releases"]} == {"FKD", "ReLabel"}
    by_name = {row["setting"]: row for row in printed["settings"]}
    assert by_name["lighting"]["value"] == 0.1
    for recipe in RECIPES.values():
        for row in source_rows(recipe):
            if ".py" in row.source or ".yaml" in row.source or ".sh" in row.source:
                assert any(f"{release} " in row.source for release in RELEASES), row.source


@pytest.mark.parametrize(
    "arguments",
    [["--sources"], ["fkd_resnet50", "--diff", "a", "b"], ["--diff", "fkd_resnet50", "x"]],
)
def test_wrong_questions_are_told_in_one_line(arguments, capsys):
    code, _, err = program(trainer_app, "trainer", capsys, "recipes", *arguments)
    assert (code, len(err.splitlines())) == (2, 1)
