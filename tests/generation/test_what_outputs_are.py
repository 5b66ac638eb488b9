"""What a label set's outputs are is recorded, travels with it, and is asked by whoever compares with a ground truth."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import labelstore
import trainer
from cli import errors, labelstore_app
from labelstore import Full, Logits, MarginalSmoothing, RegionThresholds, report
from labelstore.analysis.comparison import compare
from labelstore.analysis.histogram import histogram
from labelstore.analysis.noise import label_noise
from labelstore.analysis.profile import profile
from labelstore.analysis.summary import summary
from labelstore.errors import ConflictError, LabelStoreError, RejectedInput
from labelstore.images import class_names
from labelstore.labelling.lost_mass import MAX_LOST
from labelstore.labelling.stating import class_table, state_classes
from labelstore.sharing.matching import match
from labelstore.store.label_outputs import Outputs
from labelstore.teachers.class_map import class_map, names_from
from labelstore.teachers.teacher import Teacher, load_teacher
from tests.flat_options import generate, grow, label_images
from tests.generation.conftest import CLASSES, OPTIONS, write_teacher
from tests.trainer.small_runs import write_data
from trainer import TrainConfig

WORK = {"device": "cpu", "workers": 1}
OUTPUTS = (6, 0, 3)
"""Of bird, cat and dog, among the eight outputs of the teacher."""
NAMES = [f"thing {output}" for output in range(8)]


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> Teacher:
    """A teacher of eight outputs that does not name them, as a checkpoint does not."""
    folder = tmp_path_factory.mktemp("teachers") / "eight"
    loaded = load_teacher(str(write_teacher(folder, classes=tuple("abcdefgh"))))
    return Teacher(module=loaded.module, row=loaded.row)


@pytest.fixture(scope="module")
def mapping(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("maps") / "map.csv"
    path.write_text("".join(f"{c},{o}\n" for c, o in zip(CLASSES, OUTPUTS, strict=True)))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), 4, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory, data, eight, mapping) -> Path:
    """raw: outputs of a teacher of other classes; all: the same with a map; cut: only the classes' outputs."""
    path = tmp_path_factory.mktemp("store") / "s"
    about = {"teacher": eight, **WORK}
    images = data / "train"
    label_images(
        path, images=images, codec=Logits(), num_crops=4, name="raw", crops_per_shard=2, **about
    )
    with labelstore.open(path) as store:
        labelstore.derive(store.label_set("raw"), Full(dtype="float32"), name="derived")
        generate(
            store, codec=Full(dtype="float32"), class_map=mapping, classes="teacher", name="all",
            class_names=_names_file(path.with_name("names.txt")), **about,
        )  # fmt: skip
        generate(
            store, codec=Full(dtype="float32"), class_map=mapping, classes="data", allow_lost_mass=True,
            name="cut", **about,
        )  # fmt: skip
        labelstore.derive(
            store.label_set("all"), MarginalSmoothing(k=5, dtype="float32"), name="ms"
        )
    return path


@pytest.fixture
def store(made, tmp_path):
    with labelstore.open(shutil.copytree(made, tmp_path / "store")) as store:
        yield store


def _names_file(path: Path) -> Path:
    path.write_text("".join(f"{name}\r\n" for name in NAMES), encoding="utf-8-sig")
    return path


def test_a_derived_label_set_is_no_more_classes_than_its_source(store):
    """Ostriches became tench: ms labels of a 1,000-output teacher were taken for the folders' classes."""
    for name in ("raw", "derived"):
        labels = store.label_set(name)
        assert labels.row.facts["outputs_are"] == "not classes"
        assert not labels.outputs_are_classes
        for asking in (
            lambda labels: labels.true_output,
            lambda labels: labels.ground_truth_probability(0),
            lambda labels: labelstore.calibrate(
                labels, RegionThresholds(low=0.1, middle=0.2, top=0.9), name="m"
            ),
            label_noise,
            lambda labels: labelstore.crops(labels, ["agrees"]),
            lambda labels: labelstore.crops(labels, where="ground_truth_probability > 0.5"),
            lambda labels: histogram(labels, criterion="ground_truth_probability"),
        ):
            with pytest.raises(LabelStoreError, match="say which output is which class") as refused:
                asking(labels)
            assert refused.value.exit_code == 7
        assert store.masks == ()
        # shown without what the ground truth would say
        found = profile(labels)
        assert (found.top1, found.top5) == (None, None)
        assert all(
            row.top1 is None and row.ground_truth_probability is None for row in found.classes
        )
        assert summary(labels).mean_ground_truth_probability is None
        assert "ground_truth_probability" not in labelstore.crops(labels)
        assert "ground truth" not in compare([labels], ground_truth=True).kinds
        page = report.page_data.sections(
            report.page_data.Wanted(labels=labels, mask=None, sample=20, counted=None, seed=0)
        )
        assert page["noise"] is None
        assert "agrees" not in page["sample"]["classes"][0]


@pytest.mark.parametrize("kind", ["fkd", "ferkd", "ensemble"])
def test_no_run_learns_classes_from_outputs_that_are_none(store, data, tmp_path, kind):
    labelstore.calibrate(
        store.label_set("all"), RegionThresholds(low=0.1, middle=0.4, top=0.9), name="m"
    )
    named = {"label_set": "derived,all" if kind == "ensemble" else "derived"}
    if kind == "ferkd":
        named["mask"] = "m"
    with pytest.raises(RejectedInput, match="8 outputs that are none of the 3 classes"):
        trainer.run(config(data, store=store.path, labels=kind, output=tmp_path / "run", **named))
    assert not (tmp_path / "run").exists()


def test_labels_of_images_without_a_ground_truth_keep_all_outputs_and_are_no_classes(
    data, eight, mapping, tmp_path
):
    about = {"images": data / "train", "num_crops": 2, "codec": Full(), "teacher": eight, **WORK}
    label_images(tmp_path / "s", classes="none", class_names=_names_file(tmp_path / "n"), **about)
    # recorded: resumed as it was, whether that is said again or not
    label_images(tmp_path / "s", **about)
    label_images(tmp_path / "s", classes="none", **about)
    with pytest.raises(ConflictError):
        label_images(tmp_path / "s", classes="teacher", class_map=mapping, **about)
    with pytest.raises(LabelStoreError, match="leave one of the two out"):
        label_images(tmp_path / "t", classes="none", class_map=mapping, **about)
    with labelstore.open(tmp_path / "s") as store:
        labels = store.label_set()
        assert (labels.outputs.kind, labels.num_classes) == ("not classes", 8)
        assert list(labels.output_titles) == NAMES
        asked = RegionThresholds(low=0.1, middle=0.1, top=0.9)
        assert labelstore.calibrate(labels, asked, name="m").num_crops == 2
        with pytest.raises(LabelStoreError):
            label_noise(labels)


def test_the_ground_truth_goes_through_the_map(store):
    labels = store.label_set("all")
    assert (labels.num_classes, labels.outputs.kind) == (8, "mapped")
    np.testing.assert_array_equal(labels.true_output, np.array(OUTPUTS)[labels.ground_truth])
    dense = labels.recover(range(store.num_images))
    truth = labels.true_output[:, None, None]
    gives = np.take_along_axis(dense, np.broadcast_to(truth, (*dense.shape[:2], 1)), -1)[..., 0]
    np.testing.assert_array_equal(labels.ground_truth_probability(0), gives)
    frame = labelstore.crops(
        labels, ["class", "top1", "top1_id", "agrees", "ground_truth_probability"]
    )
    np.testing.assert_array_equal(
        frame["agrees"], frame["class"].astype(str) == frame["top1"].astype(str)
    )
    np.testing.assert_array_equal(frame["agrees"], (dense.argmax(-1) == truth[..., 0]).reshape(-1))
    # the same labels in fewer bytes, and what is left of them when the others are dropped
    assert store.label_set("ms").outputs.same_as(labels.outputs)
    cut = dense[..., list(OUTPUTS)]
    cut /= cut.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        store.label_set("cut").recover(range(store.num_images)), cut, atol=2e-6
    )
    mask = labelstore.calibrate(
        labels, RegionThresholds(low=0.0, middle=1.0, top=1.0), name="all_hard"
    )
    hard, _ = labelstore.ensemble([labels], [mask]).labels(0)
    np.testing.assert_array_equal(hard.argmax(-1), np.broadcast_to(truth[..., 0], dense.shape[:2]))
    mean = compare([labels], ground_truth=True).distance("all", "ground truth")
    assert mean == pytest.approx(float(-np.log(gives).mean()), rel=1e-5)


def test_a_mask_of_the_same_teacher_does_not_give_outputs_a_ground_truth(store):
    """Masks serve all label sets of a teacher: not those whose outputs are something else."""
    mask = labelstore.calibrate(
        store.label_set("all"), RegionThresholds(low=0.1, middle=0.4, top=0.9), name="m"
    )
    with pytest.raises(RejectedInput, match="none of the 3 classes"):
        labelstore.ensemble([store.label_set("derived")], [mask])
    with pytest.raises(LabelStoreError, match="whose outputs are the same classes"):
        labelstore.ensemble([store.label_set("all"), store.label_set("derived")])


def test_what_the_map_leaves_out_is_measured_said_and_refused(
    tmp_path, data, eight, mapping, store
):
    said = []
    about = {
        "images": data / "train",
        "teacher": eight,
        "codec": Full(),
        "num_crops": 2,
        "class_map": mapping,
        **WORK,
    }
    with pytest.raises(
        RejectedInput, match=rf"more than {MAX_LOST:.0%}.*classes='teacher'.*allow_lost_mass"
    ):
        label_images(tmp_path / "s", **about)
    assert not (tmp_path / "s").exists()
    with pytest.raises(RejectedInput, match="allow_lost_mass"):
        generate(
            store, teacher=eight, codec=Full(), class_map=mapping, classes="data", name="no", **WORK
        )
    assert "no" not in store.label_sets
    label_images(tmp_path / "s", allow_lost_mass=True, note=said.append, **about)
    with labelstore.open(tmp_path / "s") as made:
        lost = made.label_set_row().facts["class_map"]["lost_mass"]
    assert lost["images"] == 12
    assert lost["worst"] >= lost["mean"] > MAX_LOST
    assert lost["below_half"] > 0
    assert [line for line in said if lost["worst_image"] in line and "less than half" in line]
    # exactly what is in the other outputs of the centre crop
    image = data / "train" / lost["worst_image"]
    probs = torch.softmax(_centre_logits(eight, image), dim=1)[0]
    assert lost["worst"] == pytest.approx(1 - float(probs[list(OUTPUTS)].sum()), abs=1e-5)


def _centre_logits(teacher: Teacher, image: Path) -> torch.Tensor:
    from labelstore.cropping.replay import centre_crops
    from labelstore.teachers.labeller import Labeller

    row = teacher.row
    (pixels,) = centre_crops(
        [image], row.input_size, row.crop_pct, row.interpolation, batch_size=1, workers=1
    )
    return Labeller(teacher, None, device="cpu").logits(pixels)


def test_resume_grow_merge_and_export_keep_what_outputs_are(store, made, eight, mapping, tmp_path):
    known = {name: store.label_set(name).outputs for name in store.label_sets}
    with labelstore.open(made, readonly=True) as other:
        merged = match([store, other], None)
    rows = {row.name: row for row in merged.label_sets}
    assert rows.keys() == known.keys()
    for name, row in rows.items():
        assert Outputs.of(row, len(CLASSES)).same_as(known[name]), name
    assert NAMES in [teacher.facts["output_names"] for teacher in merged.teachers]
    # nobody says it again
    assert (
        generate(store, teacher=eight, codec=Full(dtype="float32"), name="all", **WORK).num_crops
        == 0
    )
    with pytest.raises(ConflictError, match="has classes 8, asked for 3"):
        generate(
            store,
            teacher=eight,
            codec=Full(dtype="float32"),
            name="all",
            classes="data",
            class_map=mapping,
            **WORK,
        )
    generate(
        store, teacher=eight, codec=MarginalSmoothing(k=2), classes="teacher", name="more", **WORK
    )
    assert store.label_set("more").outputs.same_as(known["all"])
    generate(store, teacher=eight, codec=Logits(), name="logits", **WORK)
    assert store.label_set("logits").outputs.same_as(known["all"])
    assert grow(store, num_crops=6, teacher=eight, label_set="all", **WORK).num_crops == 12 * 2
    labelstore.export_labels(
        store.label_set("ms"), format="webdataset", target=tmp_path / "wds", allow_incomplete=True
    )
    about = json.loads((tmp_path / "wds" / "info.json").read_text())
    assert (about["outputs_are"], about["output_of_class"]["outputs"]) == ("mapped", list(OUTPUTS))


def test_older_stores_say_it_where_it_can_be_proved_and_are_asked_otherwise(store, mapping):
    before = {}
    for row in store.catalogue.label_sets.all():
        before[row.name] = store.label_set(row.name).outputs
        facts = {k: v for k, v in row.facts.items() if k not in ("outputs_are", "output_of_class")}
        facts |= {"imported_from": {"format": "fkd"}} if row.name in ("all", "ms") else {}
        with store.catalogue.transaction() as connection:
            store.catalogue.label_sets.change(connection, row.name, facts=facts)
    store.refresh()
    for name in ("raw", "derived", "cut"):
        assert store.label_set(name).outputs.same_as(before[name])
    labels = store.label_set("ms")
    assert labels.outputs.kind == "not recorded"
    with pytest.raises(RejectedInput, match="nothing says which of them are the 3 classes"):
        _ = labels.true_output
    labels = state_classes(labels, class_map=mapping)
    assert labels.outputs.same_as(before["ms"])
    assert class_table(labels)["output"].tolist() == list(OUTPUTS)
    mapping = mapping.with_name("other.csv")
    mapping.write_text("bird,0\ncat,1\ndog,2\n")
    with pytest.raises(ConflictError, match="contradicts"):
        state_classes(labels, class_map=mapping)


def config(data: Path, **changes: object) -> TrainConfig:
    settings: dict[str, object] = {
        "data": data, "model": "resnet18", "model_kwargs": OPTIONS, "input_size": 32, "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25), "batch_size": 8, "crops_per_image": 2, "epochs": 2, "lr": 0.05, "device": "cpu",
        "workers": 1, "labels": "fkd", "label_set": "ms",
    }  # fmt: skip
    return TrainConfig.from_mapping({**settings, **changes})


def test_a_student_of_all_outputs_trains_and_is_evaluated_on_ones_own_folders(
    store, data, tmp_path
):
    done = config(data, store=store.path, output=tmp_path / "run", ground_truth_weight=0.5)
    trainer.run(done)
    written = TrainConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert written.num_classes == 8
    assert [written.class_names[output] for output in OUTPUTS] == list(CLASSES)
    assert len(set(written.class_names)) == 8
    from trainer.evaluation import evaluate, forward_all
    from trainer.models import load_run

    network, loaded = load_run(tmp_path / "run")
    found = evaluate(network, data / "val", loaded)
    assert np.flatnonzero(found.images).tolist() == sorted(OUTPUTS)
    hits = [
        OUTPUTS[CLASSES.index(path.parent.name)] == int(logits.argmax(1))
        for path in sorted((data / "val").glob("*/*.jpg"))
        for _, logits in forward_all(network, [path], loaded)
    ]
    assert found.correct.sum() == sum(hits)
    # and teaches others by the same names
    assert class_map(load_teacher(str(tmp_path / "run")), CLASSES).tolist() == list(OUTPUTS)


def test_names_are_the_teachers_and_shown_everywhere(store):
    labels = store.label_set("all")
    titles = [*NAMES]
    for name, output in zip(CLASSES, OUTPUTS, strict=True):
        titles[output] = name  # a folder's own name says more than the teacher's
    assert list(labels.output_titles) == titles
    assert set(labelstore.crops(labels, ["top1_name"])["top1_name"]) <= set(titles)
    assert set(store.label_set("ms").crop_table(0)["top1_name"]) <= set(titles)
    assert {name for crop in report.shown_crops(labels, 0) for name, _ in crop.classes} <= set(
        titles
    )
    noise = label_noise(labels, confidence=0.0, min_share=0.0)
    assert set(noise.images["suggested_name"]) <= set(titles)
    assert (noise.images["class"] != noise.images["suggested"]).all()


def test_wordnet_ids_have_the_names_that_timm_gives_them():
    from timm.data.imagenet_info import ImageNetInfo

    for variant in class_names.VARIANTS:
        info = ImageNetInfo(variant)
        assert list(class_names.wordnet_ids(variant)) == list(info.label_names())
        assert class_names.variant_of(len(info.label_names())) == variant
        assert [
            class_names.readable(i) for i in class_names.wordnet_ids(variant)
        ] == info.label_descriptions()
    assert class_names.readable("n00000000") == "n00000000"


def test_two_cranes_are_told_apart(tmp_path, data, eight):
    folders = ("n02012849", "n03126707", "n02123045")
    root = shutil.copytree(data / "train", tmp_path / "images")
    for old, new in zip(CLASSES, folders, strict=True):
        (root / old).rename(root / new)
    (tmp_path / "map.csv").write_text("".join(f"{c},{i}\n" for i, c in enumerate(folders)))
    label_images(
        tmp_path / "s", images=root, teacher=eight, codec=Full(), num_crops=1, class_map=tmp_path / "map.csv",
        classes="teacher", **WORK,
    )  # fmt: skip
    with labelstore.open(tmp_path / "s") as store:
        labels = store.label_set()
        assert labels.class_titles == ("crane (n02012849)", "tabby, tabby cat", "crane (n03126707)")
        assert labels.output_titles[3:] == tuple(f"output {i}" for i in range(3, 8))
        assert len(set(labels.output_titles)) == 8


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_files_of_spreadsheets_are_read_alike(tmp_path, eight, end, encoding):
    path = tmp_path / "map.csv"
    lines = end.join(f"{c},{o}" for c, o in zip(CLASSES, OUTPUTS, strict=True))
    path.write_bytes((lines + end).encode(encoding))
    assert class_map(eight, CLASSES, path).tolist() == list(OUTPUTS)
    path.write_bytes(end.join(NAMES).encode(encoding))
    assert names_from(path, 8) == NAMES


@pytest.mark.parametrize(
    ("text", "words"),
    [("bird,1\ncat,1\ndog,2\n", "two classes"), ("bird,1\nbird,2\n", "output 2 here and 1 above"),
     ("bird,1\n", "no line for class 'cat'"), ("bird;1\n", "line 1"), ("bird,1\ncat,-1\ndog,2\n", "output -1"),
     ("bird,1\ncat,8\ndog,2\n", "output 8: it has outputs 0-7")],
)  # fmt: skip
def test_maps_that_do_not_fit_are_refused(tmp_path, eight, text, words):
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(RejectedInput, match=words):
        class_map(eight, CLASSES, tmp_path / "map.csv")


def _command(*arguments: object, capsys, monkeypatch) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["labelstore", *map(str, arguments)])
    try:
        errors.main(labelstore_app.commands, "labelstore")
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_commands_show_names_and_refuse_in_one_line(store, capsys, monkeypatch):
    command = partial(_command, capsys=capsys, monkeypatch=monkeypatch)
    path = store.path
    code, out, _ = command("classes", path, "--label-set", "all", "--json")
    assert code == 0
    assert [row["output"] for row in json.loads(out)["classes"]] == list(OUTPUTS)
    code, out, _ = command("show", path, "0", "--label-set", "all")
    assert code == 0
    assert "thing " in out
    code, out, err = command("noise", path, "--label-set", "derived")
    assert (code, out, err.count("\n")) == (7, "", 1)
    code, out, _ = command("info", path)
    assert "8 outputs of the teacher, 3 of them classes" in out
    assert "left out" in out
    code, _, err = command("classes", path, "--label-set", "derived", "--class-map", "wnid")
    assert (code, err.count("\n")) == (2, 1)


def test_pretrained_weights_of_libraries_name_their_outputs():
    from labelstore.labelling.stating import with_output_names

    network = timm.create_model("resnet18", **OPTIONS)
    row = load_teacher_row(network.num_classes)
    of_timm = with_output_names(Teacher(module=network, row=row))
    assert of_timm.row.facts["output_names"][0] == "n01440764"
    of_torchvision = replace(
        row, source="torchvision:resnet18", architecture="torchvision:resnet18"
    )
    assert (
        with_output_names(Teacher(module=network, row=of_torchvision)).row.facts["output_names"][0]
        == "tench"
    )
    # a file of weights does not say it
    checkpoint = replace(row, source="mine.pth")
    assert (
        "output_names" not in with_output_names(Teacher(module=network, row=checkpoint)).row.facts
    )


def load_teacher_row(outputs: int):
    from labelstore.catalogue.records import TeacherRow

    return TeacherRow(
        name="t", source="timm:resnet18", architecture="timm:resnet18", digest="0" * 64, num_classes=outputs,
        input_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=0.9,
    )  # fmt: skip
