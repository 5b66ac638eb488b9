"""The page of some runs in a real headless Chromium: figures, curves, keyboard, names that are markup, paper."""

from __future__ import annotations

import json

import pytest

from cli import errors, trainer_app
from trainer import TrainConfig

EVIL = "<img src=x onerror=alert(1)>"
CLASSES = (EVIL, "]]>&amp;-->", "plain")
TOP1 = {"fkd": [60.0, 64.0, 62.0], "truth<b>": [50.0, 59.0, 54.0]}


def write_run(folder, name, seed, top1, **changes):
    path = folder / f"{name}-seed{seed}"
    path.mkdir()
    settings = {
        "labels": "ground-truth",
        "model": "resnet18",
        "class_names": CLASSES,
        "num_classes": 3,
    }
    config = TrainConfig(
        **settings, crops_per_image=2, batch_size=4, epochs=6, seed=seed, **changes
    )
    (path / "config.yaml").write_text(config.to_yaml())
    rows = [
        f"{e},{e * 10},{e * 5},{0.1 / e},{3 / e},{2 / e},{top1 - 6 + e},95.5,{e}.25"
        for e in (2, 4, 6)
    ]
    head = "epoch,crops_seen,step,lr,train_loss,eval_loss,eval_top1,eval_top5,seconds"
    (path / "summary.csv").write_text("\n".join([head, *rows]) + "\n")
    counts = [f'"{c}",20,{(i + 1) * 4 + seed},20' for i, c in enumerate(CLASSES)]
    (path / "classes.csv").write_text("\n".join(["class,images,correct,correct5", *counts]) + "\n")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, values in TOP1.items():
        for seed, top1 in enumerate(values):
            write_run(folder, name, seed, top1, lr=0.1 if name == "fkd" else 0.2)
    (write_run(folder, "torn", 0, 1.0) / "summary.csv").write_text("epoch")
    out = tmp_path_factory.mktemp("page") / "runs.html"
    assert (
        errors.run(trainer_app.commands, "trainer", ["report", str(folder), "--out", str(out)]) == 0
    )
    return out


def cells(driver, selector):
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map((r) => [...r.cells].map((c) => "
        "c.textContent))",
        selector,
    )


def choose(driver, select, value):
    driver.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
        select,
        value,
    )


def test_it_loads_without_errors_or_requests(opened, page):
    assert opened.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = {
        m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"
    }
    assert asked <= {page.as_uri()}
    assert page.stat().st_size < 200_000


def test_runs_are_listed_best_first(opened):
    rows = cells(opened, "#run-table")
    assert [row[0] for row in rows[:2]] == ["fkd-seed1", "fkd-seed2"]
    assert rows[0][3:11] == ["2", "1", "finished", "0.5000", "64.00 %", "64.00 %", "6", "95.50 %"]
    assert rows[-1][5] == "damaged"
    assert "torn-seed0 is left out" in opened.execute_script("return document.body.innerText")


def test_comparison_by_seed_and_its_reverse(opened):
    # 10, 5 and 8 points: 7.67 with t = 4.303 over three seeds
    (row,) = cells(opened, "#comparison .two > div:nth-child(2)")
    assert row == ["truth<b>", "3", "\u22127.67", "± 6.25", "lower"]
    choose(opened, "reference", "1")
    (row,) = cells(opened, "#comparison .two > div:nth-child(2)")
    assert row == ["fkd", "3", "+7.67", "± 6.25", "higher"]
    choose(opened, "metric", "best")
    assert cells(opened, "#comparison .two > div:nth-child(1)")[0] == ["fkd", "3", "62.00 ± 4.97 %"]
    assert (
        opened.execute_script("return document.querySelectorAll('.intervals .whisker').length") == 1
    )


def test_curves_show_every_point_and_hide_settings(opened):
    lines = "return [...document.querySelectorAll('[data-curve=eval_top1] [data-run]')].map((l) => [l.dataset.run, l.getAttribute('points').split(' ').length])"
    assert dict(opened.execute_script(lines)) == {
        f"{name}-seed{seed}": 3 for name in TOP1 for seed in range(3)
    }
    opened.execute_script("document.getElementById('show-0').click()")
    assert {name for name, _ in opened.execute_script(lines)} == {
        f"truth<b>-seed{s}" for s in range(3)
    }
    choose(opened, "axis", "step")
    label = opened.execute_script(
        "return document.querySelector('[data-curve=lr]').getAttribute('aria-label')"
    )
    assert label.startswith("Learning rate by optimiser step, 3 runs")


def test_curves_by_keyboard(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    figure = opened.find_element(By.CSS_SELECTOR, "[data-curve=eval_top1]")
    tip = "return document.getElementById('tip').textContent"
    figure.send_keys(Keys.ARROW_RIGHT)
    assert opened.execute_script(tip) == "fkd-seed0\nTop-1 56.00 % after epoch 2"
    figure.send_keys(Keys.END)
    figure.send_keys(Keys.ARROW_DOWN)
    assert opened.execute_script(tip) == "fkd-seed1\nTop-1 64.00 % after epoch 6"
    figure.send_keys(Keys.ESCAPE)
    assert opened.execute_script("return document.getElementById('tip').hidden")


def test_classes_are_means_over_seeds_and_their_names_are_text(opened):
    rows = cells(opened, "#class-table")
    assert {row[0] for row in rows} == set(CLASSES)
    # (4 + 5 + 6) of 60 images
    assert next(row for row in rows if row[0] == EVIL)[1:4] == ["20", "25.0 %", "25.0 %"]
    assert opened.execute_script("return document.querySelectorAll('img, td b').length") == 0
    assert opened.title == "7 runs"


@pytest.mark.slow
def test_light_dark_narrow_and_paper(opened):
    background = "return getComputedStyle(document.body).backgroundColor"
    seen = set()
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        opened.refresh()
        seen.add(opened.execute_script(background))
    assert len(seen) == 2
    # nothing is wider than a telephone or a sheet of paper
    for width, media in ((400, ""), (718, "print")):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": []})
        opened.refresh()
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    assert opened.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"  # fmt: skip
    assert opened.execute_script(background) == "rgb(255, 255, 255)"
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
