"""Every recipe: its card is whole, its command is that of the recipe, its network exists, and it takes a step."""

import dataclasses
import json
import shlex
import shutil

import pytest
import timm
import torch
import torchvision
from PIL import Image

import labelstore
import trainer
from cli import errors, trainer_app
from labelstore.codecs import LabelMap, Logits, MarginalSmoothing
from labelstore.errors import UsageError
from tests.flat_options import label_images
from tests.generation.conftest import OPTIONS, write_teacher
from tests.trainer.small_runs import write_data
from trainer.recipes import RECIPES, card, recipe_named
from trainer.run_outputs import RunRegister

M = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), 2, 1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="module")
def store(data, teacher, tmp_path_factory):
    """One store with every kind of labels that a recipe asks for."""
    path = tmp_path_factory.mktemp("store") / "s"
    codecs = {
        "ms": MarginalSmoothing(k=2),
        "logits": Logits(),
        "map": LabelMap(k=2),
    }
    for name, codec in codecs.items():
        label_images(
            path,
            images=data / "train",
            teacher=str(teacher),
            codec=codec,
            num_crops=M,
            name=name,
            device="cpu",
        )
    labels = labelstore.open(path).label_set("ms")
    rule = labelstore.RegionThresholds(low=0.0, middle=0.0, top=1.0)
    labelstore.calibrate(labels, rule, name="ferkd")
    return path


def run_command(capsys, *arguments):
    code = errors.run(trainer_app.commands, "trainer", [str(a) for a in arguments])
    return code, *capsys.readouterr()


def toy(name, data, store, teacher):
    """Overrides that make any recipe a run on six pictures: each kind of its passes, one step long, but for fewer of
    m crops; what is learnt from stays.
    """
    config = recipe_named(name)(**given(name))
    kind = config.labels
    settings = {
        "data": data,
        "input_size": 32,
        "model": "resnet18",
        "model_kwargs": OPTIONS,
        "pretrained": False,
        "epochs": config.single_crop_first + config.single_crop_last + 1,
        "warmup_epochs": 0.0,
        "batch_size": 24,
        "workers": 1,
        "device": "cpu",
    }
    if name == "s2_bnn_reactnet":
        settings |= {
            "model": "trainer.models.reactnet:reactnet_a",
            "model_kwargs": {"channels": [4, 8]},
        }
    if config.phases:
        phases = [dataclasses.replace(phase, epochs=1) for phase in config.phases]
        settings |= {"phases": phases, "epochs": len(phases)}
    if kind == "teacher":
        return settings | {"teacher": str(teacher)}
    if kind == "ground-truth":
        return settings
    names = {"ensemble": "ms,logits", "ssl": "logits", "labelmap": "map"}
    settings |= {"store": store, "label_set": names.get(kind, "ms")}
    return settings | ({"mask": "ferkd,ferkd"} if "mask" in given(name) else {})


def given(name):
    """What a recipe cannot know."""
    settings = {"store": "in1k.labels", "data": "imagenet"}
    if name in ("vanilla_resnet50", "funmatch_resnet50"):
        settings.pop("store")
    if name == "ferkd_resnet50_ensemble":
        settings |= {"label_set": "a,b", "mask": "a-m,b-m"}
    if name.startswith("meal_v2"):
        settings |= {"label_set": "a,b"}
    return settings


@pytest.mark.parametrize("name", RECIPES)
def test_cards_are_whole_and_their_commands_are_the_recipes(name, capsys):
    shown = card(RECIPES[name])
    program, *arguments = shlex.split(shown.command)
    assert program == "trainer"
    assert arguments[:3] == ["run", "--recipe", name]
    code, out, _ = run_command(capsys, *arguments, "--print-config", "--json")
    assert code == 0
    printed = json.loads(out)
    config = RECIPES[name](**given(name)).to_mapping()
    where = {"data", "store", "train", "val", "output", "label_set", "mask"}
    assert {k: v for k, v in printed.items() if k not in where} == {
        k: v for k, v in config.items() if k not in where
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_for_the_epochs_that_it_says(name):
    """Passes of m crops and single-crop passes add up to the paper's number, without rounding up."""
    config = RECIPES[name](**given(name))
    passes = config.multi_crop_passes
    single = config.single_crop_first + config.single_crop_last
    assert passes * config.crops_per_image + single == config.epochs
    papers = {
        "meal_v2_resnet50": 180,  # FerKD Table 8
        "meal_v2_resnet50_cosine": 270,  # 1.5 times as many, FKD Table 4
        "meal_v2_mobilenetv3_075": 270,
        "meal_v2_mobilenetv3_100": 270,
        "s2_bnn_reactnet": 200,  # FKD Table 9
        "ssl_resnet50": 100,
        "ferkd_finetune_vit_giant": 15,  # FerKD supplement Table 2
        "ferkd_finetune_regnety": 15,
        "ferkd_finetune_resnet50": 150,  # FerKD Table 9
    }
    assert config.epochs == papers.get(name, 300)


@pytest.mark.parametrize(
    ("names", "passes"),
    [
        (("fkd_resnet50", "fkd_resnet50_plain", "fkd_resnet101"), (0, 74, 4)),
        (("fkd_deit_tiny", "fkd_fbnetc", "fkd_efficientnetv2_b0"), (5, 73, 3)),
        (("ferkd_resnet50", "ferkd_vit_small", "curriculum_easy_to_hard"), (5, 73, 3)),
        (("meal_v2_resnet50", "ferkd_finetune_resnet50"), (0, None, 0)),
    ],
)
def test_single_crop_passes_are_those_of_the_release(names, passes):
    for name in names:
        config = RECIPES[name](**given(name))
        found = (config.single_crop_first, config.multi_crop_passes, config.single_crop_last)
        assert found[::2] == passes[::2]
        assert passes[1] in (None, found[1])


WEIGHTS = {
    "meal_v2_resnet50": "resnet50_ram-a26f946b.pth",  # what "resnet50" was up to timm 0.4.12
    "meal_v2_resnet50_cosine": "resnet50_ram-a26f946b.pth",
    "meal_v2_mobilenetv3_075": "tf_mobilenetv3_small_075-da427f52.pth",
    "meal_v2_mobilenetv3_100": "tf_mobilenetv3_small_100-37f49e2b.pth",
    "ferkd_finetune_vit_giant": "timm/eva_giant_patch14_336.m30m_ft_in22k_in1k",
    "ferkd_finetune_regnety": "regnet_y_128gf_lc_swag-cbe8ce12.pth",  # not fine-tuned yet
    "ferkd_finetune_resnet50": "resnet50_a1_0-14fe96d1.pth",
}


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if RECIPES[name](**given(name)).pretrained]
)
def test_pretrained_weights_are_named_and_not_the_default_of_the_day(name):
    config = RECIPES[name](**given(name))
    assert config.model in timm.list_pretrained(config.model)  # with its tag
    cfg = timm.get_pretrained_cfg(config.model)
    assert WEIGHTS[name] in (cfg.url.rpartition("/")[2], cfg.hf_hub_id)
    if "mobilenet" in name:
        # trained by TensorFlow within -1 and 1; MEAL V2's imagenet.py normalises as for every other network
        assert cfg.mean == (0.5, 0.5, 0.5)
        assert config.mean == (0.485, 0.456, 0.406)
    else:
        assert (config.mean, config.std) == (cfg.mean, cfg.std)


@pytest.mark.sample(5)
@pytest.mark.parametrize("model", sorted({RECIPES[name](**given(name)).model for name in RECIPES}))
def test_networks_exist_and_take_their_arguments(model):
    """Built on no memory, with the very arguments of the recipe."""
    if model.startswith("trainer."):
        return  # ours: built by the test below and by its own
    for name, recipe in RECIPES.items():
        config = recipe(**given(name))
        if config.model == model:
            with torch.device("meta"):
                source, _, network = model.rpartition(":")
                create = torchvision.models.get_model if source else timm.create_model
                create(network, num_classes=1000, **config.model_kwargs)
            return


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_a_step(name, data, store, teacher):
    config = RECIPES[name](**toy(name, data, store, teacher))
    run = trainer.run(config)
    assert run.steps >= 1 + config.single_crop_first + config.single_crop_last
    assert -1e-3 <= run.train_loss < 1000


def test_settings_override_a_recipes_and_unknown_ones_are_refused(capsys):
    config = RECIPES["fkd_resnet50"](store="s", data="d", epochs=100, lr=0.2)
    assert (config.epochs, config.lr, config.weight_decay) == (100, 0.2, 1e-4)
    with pytest.raises(UsageError, match="did you mean weight_decay"):
        RECIPES["fkd_resnet50"](store="s", weight_decays=1)
    with pytest.raises(UsageError, match="did you mean fkd_resnet50"):
        recipe_named("fkd_resnet5")
    command = ["run", "--recipe", "fkd-resnet50", "--store", "s", "--data", "d"]
    code, out, _ = run_command(
        capsys, *command, "--epochs", "8", "--set", "lr=0.5", "--print-config", "--json"
    )
    assert code == 0
    assert (json.loads(out)["epochs"], json.loads(out)["lr"]) == (8, 0.5)
    for wrong in (
        [*command, "--set", "epoch=3"],
        [*command, "--set", "lr"],
        [*command, "--batch-size", "1023"],
        [*command, "--config", "x.yaml"],
        ["run", "--recipe", "nothing-like-it"],
    ):
        code, out, err = run_command(capsys, *wrong, "--print-config")
        assert code == 2, wrong
        assert len(err.splitlines()) == 1


def test_recipes_are_listed(capsys):
    code, out, _ = run_command(capsys, "recipes")
    assert code == 0
    assert all(name in out for name in RECIPES)
    code, out, _ = run_command(capsys, "recipes", "--json")
    assert [entry["name"] for entry in json.loads(out)["recipes"]] == list(RECIPES)
    code, out, _ = run_command(capsys, "recipes", "ferkd_resnet50", "--json")
    assert "80.68" in json.loads(out)["expected"]


def test_probe_export_and_evaluate_of_a_run(data, tmp_path, capsys, monkeypatch):
    """The commands on one small run, and one line for what they cannot use."""
    run, with_names, data = tmp_path / "run", data, tmp_path / "data"
    for part in ("train", "val"):
        # the other sets number ImageNet's classes, whose folders are called so
        for number, folder in enumerate(sorted((with_names / part).iterdir())):
            shutil.copytree(folder, data / part / f"n{number:08d}")
    settings = {"labels": "ground-truth", "data": data, "input_size": 32, "model": "resnet18"}
    settings |= {"model_kwargs": OPTIONS, "crops_per_image": 2, "batch_size": 12, "epochs": 2}
    trainer.run(
        trainer.TrainConfig.from_mapping(
            {**settings, "workers": 1, "device": "cpu", "output": run, "ema_decay": 0.9}
        )
    )
    for number in range(3):
        (tmp_path / "v2" / str(number)).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "v2" / str(number) / "a.jpg")
    names = [path.name for path in sorted((data / "val").glob("*/*"))]
    (tmp_path / "real.json").write_text(json.dumps({name: [0, 1, 2] for name in names}))
    more = ["--real", tmp_path / "real.json", "--v2", tmp_path / "v2", "--workers", 1, "--json"]
    code, out, _ = run_command(capsys, "evaluate", run, *more)
    found = json.loads(out)
    assert code == 0
    assert found["real"]["top1"] == 100
    assert [each["images"] for each in found["v2"]] == [3]
    # folders of one name, and of a name of ours; the first one once more, by another path
    others = [tmp_path / name for name in ("a/val", "b/val", "c/top1")]
    for count, other in enumerate(others, 1):
        for number in range(count):
            shutil.copytree(tmp_path / "v2" / str(number), other / str(number))
    listed = {}
    monkeypatch.setattr(RunRegister, "add", lambda self, epoch, figures: listed.update(figures))
    asked = [arg for each in (*others, others[0] / ".." / "val") for arg in ("--v2", each)]
    code, out, _ = run_command(capsys, "evaluate", run, *asked, "--workers", 1, "--json")
    again = json.loads(out)
    assert code == 0
    assert {name: again[name] for name in ("top1", "images")} == {
        name: found[name] for name in ("top1", "images")
    }
    assert [each["images"] for each in again["v2"]] == [1, 2, 3]
    assert [each["folder"] for each in again["v2"]] == [str(each) for each in others]
    assert {name for name in listed if name.startswith("v2/")} == {
        f"v2/{each.resolve()}/{top}" for each in others for top in ("top1", "top5")
    }
    code, out, _ = run_command(capsys, "evaluate", run, *asked, "--workers", 1, "--per-class")
    lines = out.splitlines()
    assert sum(line.startswith("top1 ") for line in lines) == 1
    for name in ("b/val", "top1"):
        assert sum(line.startswith(f"v2 {name} top1 ") for line in lines) == 1
    assert sum(line.startswith("class n0") for line in lines) == 3
    code, out, _ = run_command(capsys, "evaluate", run / "model_ema.safetensors", "--json")
    assert code == 0
    code, out, _ = run_command(capsys, "probe", run, "--data", data, "--workers", 1, "--json")
    assert code == 0
    assert json.loads(out)["images"] == 3
    out_file = tmp_path / "w.safetensors"
    code, out, _ = run_command(capsys, "export", run, "--out", out_file, "--dry-run", "--json")
    assert (code, out_file.exists()) == (0, False)
    code, out, _ = run_command(capsys, "export", run, "--out", out_file, "--json")
    made = json.loads(out)
    timm.create_model(made["model"], checkpoint_path=made["file"], **made["arguments"])
    for wrong, expected in (
        (["export", run, "--out", out_file], 5),
        (["export", run, "--out", tmp_path / "x.onnx"], 2),
        (["export", tmp_path / "none", "--out", tmp_path / "x.pth"], 7),
        (["export", run, "--out", tmp_path / "x.pth", "--format", "torchvision"], 2),
        (["probe", run, "--data", tmp_path], 7),
        (["probe", run, "--data", data, "--solver", "adam"], 2),
        (["evaluate", run, "--real", tmp_path / "none.json"], 7),
        (["evaluate", run, "--v2", data / "val"], 7),
    ):
        code, _, err = run_command(capsys, *wrong)
        lines = [line for line in err.splitlines() if line.startswith("trainer:")]
        assert (code, len(lines)) == (expected, 1), (wrong, err)
