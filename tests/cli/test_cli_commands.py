"""Every command on real files: what it prints, its exit code, and one line for every bad input."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from cli import errors, labelstore_app, trainer_app
from tests.generation.conftest import write_photographs, write_teacher

CLASSES = ("bird", "cat", "dog")
CHOICES = ["--num_crops", "6", "--k", "2", "--device", "cpu", "--workers", "2"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("data") / "photographs", per_class=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    run = write_teacher(tmp_path_factory.mktemp("runs") / "teacher", classes=CLASSES)
    with (run / "config.yaml").open("a") as config:
        config.write("labels: ground-truth\n")
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, photographs, teacher) -> Path:
    store = tmp_path_factory.mktemp("stores") / "finished"
    arguments = ["create", store, "--images", photographs, "--teacher", teacher, *CHOICES]
    assert errors.run(labelstore_app.commands, "labelstore", [str(a) for a in arguments]) == 0
    return store


@pytest.fixture
def store(tmp_path, finished) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "store"))


@pytest.fixture
def labelstore(capsys):
    """Run `labelstore ...`: exit code, stdout, stderr."""

    def run(*arguments):
        code = errors.run(labelstore_app.commands, "labelstore", [str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def trainer(capsys):
    """Run `trainer ...`: exit code, stdout, stderr."""

    def run(*arguments):
        code = errors.run(trainer_app.commands, "trainer", [str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


def one_object(out):
    assert out.count("\n") == 1
    return json.loads(out)


def create(store, photographs, teacher, *more):
    return ["create", store, "--images", photographs, "--teacher", teacher, *CHOICES, *more]


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_create_reports_and_says_when_all_is_there(labelstore, tmp_path, photographs, teacher):
    command = create(tmp_path / "s", photographs, teacher, "--json")
    code, out, _ = labelstore(*command)
    assert code == 0
    report = one_object(out)
    assert report["num_crops"] == 9 * 6
    assert report["bad"] == {}
    code, out, _ = labelstore(*command)
    assert code == 0
    assert one_object(out)["num_crops"] == 0
    code, out, _ = labelstore(*command[:-1])
    assert code == 0
    assert "complete" in out


def test_create_dry_run_writes_nothing(labelstore, tmp_path, photographs, teacher):
    code, out, _ = labelstore(*create(tmp_path / "s", photographs, teacher, "--dry-run", "--json"))
    assert code == 0
    assert one_object(out)["crops"] == 54
    assert list(tmp_path.iterdir()) == []


def test_create_stops_in_time_and_goes_on_later(
    labelstore, tmp_path, photographs, teacher, monkeypatch
):
    """A batch queue's limit is on the whole process: what the command did before the first label counts."""
    command = create(tmp_path / "s", photographs, teacher)
    from cli import teacher_options

    def long_ago(of=teacher_options.started):
        return of() - 3600

    monkeypatch.setattr(teacher_options, "started", long_ago)
    code, _, err = labelstore(*command, "--max-time", "1h", "--batch-size", "1")
    assert code == 8
    assert err.splitlines()[-1].startswith("labelstore: ")
    assert labelstore(*command)[0] == 0


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "arguments", [["info"], ["stats"], ["calibrate", "--dry-run"], ["calibrate"]]
)
def test_json_is_one_object_and_text_is_not_empty(labelstore, store, arguments):
    name, *options = arguments
    code, out, err = labelstore(name, store, *options, "--json")
    assert (code, err) == (0, "") or name == "calibrate"
    assert isinstance(one_object(out), dict)
    code, out, _ = labelstore(name, store, *options)
    assert code == 0
    assert "teacher" in out


@pytest.mark.sample(1)
@pytest.mark.parametrize("arguments", [["info"], ["stats"], ["calibrate", "--dry-run"]])
def test_commands_that_read_write_nothing(labelstore, store, arguments):
    before = files_of(store)
    assert labelstore(arguments[0], store, *arguments[1:])[0] == 0
    assert files_of(store) == before


def test_info_tells_what_is_there(labelstore, finished):
    record = one_object(labelstore("info", finished, "--json")[1])
    assert (record["images"], record["classes"], record["bad_images"]) == (9, 3, 0)
    (labels,) = record["label_sets"]
    assert labels["codec"]["k"] == 2
    assert labels["shards"] == labels["of"] > 0
    assert labels["bytes"] > 0


def test_calibrate_makes_the_mask_that_it_was_asked_for(labelstore, store):
    code, out, _ = labelstore("calibrate", store, "--quantiles", "0.1,0.3,0.8", "--json")
    assert code == 0
    assert one_object(out)["mask"] == "ferkd"
    (mask,) = one_object(labelstore("info", store, "--json")[1])["masks"]
    assert mask["rule"]["quantiles"] == {"low": 0.1, "middle": 0.3, "top": 0.8}
    assert mask["shards"] == mask["of"]


def test_demo_images_dry_run(labelstore, tmp_path):
    code, out, _ = labelstore("demo-images", tmp_path / "d", "--train", "20", "--dry-run", "--json")
    assert code == 0
    assert one_object(out)["train"] == 20
    assert list(tmp_path.iterdir()) == []


def truncated(photographs: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(photographs, tmp_path / "copy"))
    file = copy / "dog" / "1.jpg"
    file.write_bytes(file.read_bytes()[:200])
    return copy


def test_a_truncated_image_is_named_and_skip_bad_leaves_it_out(
    labelstore, tmp_path, photographs, teacher
):
    command = create(tmp_path / "s", truncated(photographs, tmp_path), teacher)
    code, _, err = labelstore(*command)
    assert code == 7
    last = err.splitlines()[-1]
    assert "dog/1.jpg" in last
    assert "--skip-bad" in last
    code, out, _ = labelstore(*command, "--skip-bad", "--json")
    assert code == 0
    assert list(one_object(out)["bad"]) == ["dog/1.jpg"]
    assert one_object(labelstore("info", tmp_path / "s", "--json")[1])["bad_images"] == 1


def test_an_image_that_changed_is_refused(labelstore, tmp_path, photographs, teacher, store):
    copy = Path(shutil.copytree(photographs, tmp_path / "copy"))
    (copy / "dog" / "1.jpg").write_bytes((copy / "cat" / "1.jpg").read_bytes())
    code, _, err = labelstore(*create(store, copy, teacher))
    assert code == 7
    assert "dog/1.jpg" in err


def a_newer_format(store: Path) -> None:
    with sqlite3.connect(store / "catalogue.db") as connection:
        connection.execute("UPDATE store SET format_version = 99")
    connection.close()


@pytest.mark.parametrize("command", ["info", "stats", "calibrate"])
def test_no_store_and_newer_store_are_four(labelstore, tmp_path, store, command):
    code, out, err = labelstore(command, tmp_path / "none")
    assert (code, out, err.count("\n")) == (4, "", 1)
    (tmp_path / "empty").mkdir()
    assert labelstore(command, tmp_path / "empty")[0] == 4
    a_newer_format(store)
    code, out, err = labelstore(command, store)
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert "99" in err


@pytest.mark.sample(8)
@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (["--images", "{tmp}/none"], 7, "none is not a folder"),
        (["--images", "{tmp}"], 7, "{tmp}"),
        (["--num-crops", "0"], 2, "num-crops 0"),
        (["--k", "4"], 2, "3"),
        (["--compression", "best"], 2, "best"),
        (["--dtype", "int4"], 2, "int4"),
        (["--scale", "0.5,0.1"], 2, "0.5"),
        (["--scale", "0.5"], 2, "LOW,HIGH"),
        (["--flip-prob", "2"], 2, "2"),
        (["--crops", "maybe"], 2, "maybe"),
        (["--batch-size", "0"], 2, "batch-size"),
        (["--teacher", "timm:no_such_network"], 2, "no_such_network"),
        (["--teacher", "{tmp}/none.pth"], 2, "--teacher-model"),
        (["--teacher", "{tmp}/none.pth", "--teacher-model", "timm:resnet18"], 7, "none.pth"),
        (["--teacher-model", "timm:resnet18"], 2, "this teacher says its own; leave it out"),
        (["--crops-per-shard", "4"], 2, "crops-per-shard 4"),
        (["--backend", "zip"], 2, "zip"),
        (["--device", "cuda:77"], 2, "cuda:77"),
        (["--class-map", "{tmp}/none.csv"], 7, "none.csv"),
        (["--amp", "fp8"], 2, "fp8"),
        (["--max-time", "soon"], 2, "soon"),
    ],
)
def test_bad_input_to_create_is_one_line(
    labelstore, tmp_path, photographs, teacher, change, code, says
):
    change = [part.format(tmp=tmp_path) for part in change]
    found, out, err = labelstore(*create(tmp_path / "s", photographs, teacher), *change)
    assert (found, out) == (code, ""), err
    assert err.count("\n") == 1
    assert err.startswith("labelstore: ")
    assert says.format(tmp=tmp_path) in err
    assert not (tmp_path / "s").exists() or "--amp" in change or "--device" in change


@pytest.mark.parametrize(
    "change",
    [
        ["--num-crops", "12"],
        ["--seed", "1"],
        ["--k", "3"],
        ["--dtype", "float32"],
        ["--crops", "seeded"],
    ],
)
def test_a_store_with_something_else_is_five(labelstore, photographs, teacher, store, change):
    before = files_of(store)
    code, out, err = labelstore(*create(store, photographs, teacher), *change)
    assert (code, out, err.count("\n")) == (5, "", 1), err
    assert files_of(store) == before


def test_another_teacher_is_five(labelstore, tmp_path, photographs, store):
    other = write_teacher(tmp_path / "teacher", seed=1)
    code, _, err = labelstore(*create(store, photographs, other))
    assert code == 5
    assert "weights" in err


def test_teacher_of_other_classes_needs_a_class_map(labelstore, tmp_path, photographs):
    other = write_teacher(tmp_path / "four", classes=("a", "b", "c", "d"))
    code, _, err = labelstore(*create(tmp_path / "s", photographs, other))
    assert code == 2
    assert "class map" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["calibrate", "--low", "0.5", "--middle", "0.2"], 2, "low <= middle <= top"),
        (["calibrate", "--low", "0.1", "--quantiles", "0.1,0.2,0.9"], 2, "--quantiles and --low"),
        (["calibrate", "--criterion", "luck"], 2, "luck"),
        (["calibrate", "--label-set", "nope"], 2, "nope"),
        (["stats", "--label-set", "nope"], 2, "nope"),
        (["stats", "--scale", "many"], 2, "many"),
        (["stats", "--criterion", "luck"], 2, "luck"),
        (["audit", "--teacher", "nope"], 2, "no file or folder nope is there"),
    ],
)
def test_bad_input_on_a_store_is_one_line(labelstore, finished, arguments, code, says):
    found, out, err = labelstore(arguments[0], finished, *arguments[1:])
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert says in err


def test_damage_is_three_and_names_the_shard(labelstore, store):
    shards = (store / "arrays.zarr" / "labels").rglob("probability/c*")
    shard = max((path for path in shards if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(bytes(data))
    code, out, err = labelstore("stats", store)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "repair" in err


# trainer


def test_print_config_can_be_read_back(trainer, tmp_path):
    fields = ["--labels", "ground-truth", "--lr", "0.2", "--betas", "0.8,0.9", "--temp", "1"]
    more = ["--crops_per_image", "2", "--no-serrated", "--model-kwargs", "{a: 1}"]
    code, out, _ = trainer("run", *fields, *more, "--set", "clip-grad=1.5", "--print-config")
    assert code == 0
    config = tmp_path / "config.yaml"
    config.write_text(out)
    code, out, _ = trainer(
        "run", "-c", config, "--set", "clip_grad=none", "--print-config", "--json"
    )
    assert code == 0
    record = one_object(out)
    wanted = {
        "lr": 0.2,
        "betas": [0.8, 0.9],
        "crops_per_image": 2,
        "serrated": False,
        "model_kwargs": {"a": 1},
        "clip_grad": None,
    }
    assert {name: record[name] for name in wanted} == wanted


def test_settings_override_options_override_the_file(trainer, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("labels: ground-truth\nlr: 1\nepochs: 8\nseed: 7\n")
    arguments = ["-c", config, "--lr", "2", "--epochs", "12", "--set", "lr=3", "--print-config"]
    record = one_object(trainer("run", *arguments, "--json")[1])
    assert (record["lr"], record["epochs"], record["seed"]) == (3.0, 12, 7)


def test_a_file_of_some_settings_needs_the_others_from_options(trainer, tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text("lr: 1\nmodel: resnet18\n")  # no store, which soft labels need
    arguments = ["run", "-c", config, "--print-config", "--json"]
    record = one_object(trainer(*arguments, "--store", "a.labels")[1])
    assert (record["lr"], record["store"], record["labels"]) == (1.0, "a.labels", "fkd")
    code, _, err = trainer(*arguments)
    assert code == 2
    assert "store" in err


def test_resume_starts_from_the_run_folders_config(trainer, tmp_path):
    (tmp_path / "config.yaml").write_text("labels: ground-truth\nlr: 0.7\n")
    code, out, _ = trainer("run", "--resume", "--output", tmp_path, "--print-config", "--json")
    assert code == 0
    assert (one_object(out)["lr"], one_object(out)["resume"]) == (0.7, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run"], 2, "store"),
        (["run", "--lr", "fast"], 2, "lr='fast'"),
        (["run", "--set", "lr"], 2, "key=value"),
        (["run", "--set", "lrr=1"], 2, "did you mean lr"),
        (["run", "--labels", "none"], 2, "ground-truth"),
        (["run", "--betas", "0.9"], 2, "betas"),
        (["run", "--model-kwargs", "{a"], 2, "model_kwargs"),
        (["run", "-c", "/no/such.yaml"], 7, "/no/such.yaml"),
        (["evaluate", "timm:resnet18"], 2, "--val"),
        (["evaluate", "no/such.safetensors", "--val", "/"], 2, "no/such.safetensors"),
    ],
)
def test_bad_input_to_the_trainer_is_one_line(trainer, arguments, code, says):
    found, out, err = trainer(*arguments)
    assert (found, out, err.count("\n")) == (code, "", 1), err
    assert says in err


def test_a_run_and_its_evaluation_agree(trainer, tmp_path, photographs):
    data = tmp_path / "data"
    for part in ("train", "val"):
        shutil.copytree(photographs, data / part)
    run = tmp_path / "run"
    small = "{layers: [1, 1, 1, 1], channels: [8, 8, 8, 8], stem_width: 8}"
    command = ["run", "--data", data, "--labels", "ground-truth", "--model", "resnet18"]
    command += ["--model-kwargs", small, "--input-size", "32", "--batch-size", "12"]
    command += ["--crops-per-image", "2", "--epochs", "2", "--lr", "0.01", "--device", "cpu"]
    command += ["--workers", "2", "--output", run]
    code, out, err = trainer(*command, "--json")
    assert code == 0, err
    trained = one_object(out)
    assert trained["crops_seen"] == 2 * 9
    code, out, err = trainer("evaluate", run / "last.pth.tar", "--device", "cpu", "--json")
    assert code == 0, err
    evaluated = one_object(out)
    assert evaluated["images"] == 9
    assert evaluated["top1"] == pytest.approx(trained["top1"])
    code, out, err = trainer("run", "--resume", "--output", run)
    assert code == 0, err
    assert "top1" in out


def test_evaluate_a_run_folder(trainer, teacher, photographs):
    code, out, _ = trainer("evaluate", teacher, "--val", photographs, "--per-class", "--json")
    assert code == 0
    record = one_object(out)
    assert record["images"] == 9
    assert list(record["top1_per_class"]) == list(CLASSES)
    mean = sum(record["top1_per_class"].values()) / 3
    assert mean == pytest.approx(record["top1"])
    assert record["top5"] == 100
    code, out, _ = trainer("evaluate", teacher, "--val", photographs)
    assert code == 0
    assert "top1" in out
