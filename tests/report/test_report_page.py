"""The HTML report in a real headless Chromium: what it shows is what the library counts, and names stay text."""

from __future__ import annotations

import base64
import http.server
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore import PlanOptions
from labelstore.calibration import RegionThresholds, preview
from labelstore.codecs import Hard, MarginalSmoothing
from labelstore.errors import RejectedInput, UsageError
from labelstore.images import ImageFolder, digest
from labelstore.report import write_page
from labelstore.report.page import thumbnail
from labelstore.report.shell import render
from labelstore.report.shown_image import ShownCrop, draw_image
from labelstore.store import create
from labelstore.testing.filled_store import IMAGE_SIZE, add_label_set, fill_blocks, filled_store

EVIL_CLASS = "<img src=x onerror=alert(1)>"
EVIL_IMAGE = "<script>alert(2)&lt;\"'.jpg"
CLASSES = ("class a", EVIL_CLASS, "class c", "]]>&amp;-->")
IMAGES, CROPS = 24, 10


def soft_labels(seed):
    rng = np.random.default_rng(seed)
    drawn = rng.gamma(rng.uniform(0.05, 2, (IMAGES, CROPS, 1)) * np.ones(len(CLASSES))) + 1e-4
    # some crops lie just at a step of the sliders, and one image is surely something else
    drawn[0, :4] = [0.5, 0.25, 0.125, 0.125]
    drawn[5] = [0.01, 0.01, 0.97, 0.01]
    return (drawn / drawn.sum(-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def store_path(tmp_path_factory, pictures):
    """Two teachers' labels for images whose names are markup."""
    path = tmp_path_factory.mktemp("report") / "evil<b>.labels"
    truth = np.arange(IMAGES) % len(CLASSES)
    names = [f"{i:03}.jpg" if i != 1 else EVIL_IMAGE for i in range(IMAGES)]
    folder = ImageFolder(
        root=path,
        classes=CLASSES,
        keys=tuple(f"{CLASSES[c]}/{name}" for c, name in zip(truth, names, strict=True)),
        class_ids=truth.astype(np.int64),
        sizes=np.full(IMAGES, 1000, np.int64),
        mtimes_ns=np.zeros(IMAGES, np.int64),
    )
    codec = MarginalSmoothing(k=3, dtype="float32")
    with create(
        path, images=folder, plan=PlanOptions(num_crops=CROPS, images_per_shard=10)
    ) as store:
        for seed, name in enumerate(("first", "second")):
            add_label_set(store, codec, len(CLASSES), name=name)
            digests = {0: digest((pictures / CLASSES[0] / "000.jpg").read_bytes())}
            fill_blocks(store, soft_labels(seed), name=name, bad={3}, digests=digests)
        labelstore.calibrate(
            store.label_set("first"), RegionThresholds(low=0.4, middle=0.6, top=0.9), name="m"
        )
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with a picture of one of the images."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    (folder / CLASSES[0]).mkdir()
    Image.new("RGB", IMAGE_SIZE[::-1], (200, 30, 30)).save(folder / CLASSES[0] / "000.jpg")
    return folder


@pytest.fixture(scope="module")
def page(store_path, pictures, tmp_path_factory):
    """The report as the command writes it, and what the command printed is in `page.json`."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    arguments = ["report", str(store_path), "--out", str(out), "--images", str(pictures)]
    code = errors.run(labelstore_app.commands, "labelstore", [*arguments, "--label-set", "first"])
    assert code == 0
    return out


def text_of(driver, selector):
    return driver.execute_script(
        "return document.querySelector(arguments[0]).textContent", selector
    )


def slide(driver, name, step):
    driver.execute_script(
        "const s = document.getElementById('slider-' + arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('input'))",
        name,
        step,
    )


def counts(driver):
    names = ("too_hard", "hard", "important", "too_easy", "usable")
    return {name: int(text_of(driver, f"#count-{name}").replace(",", "")) for name in names}


def choose(driver, select, value):
    driver.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('change'))",
        select,
        str(value),
    )


def data_of(page):
    text = page.read_text()
    start = text.index('<script type="application/json" id="data">')
    return json.loads(text[text.index(">", start) + 1 : text.index("</script>", start)])


@pytest.mark.slow
def test_it_loads_without_errors_and_asks_for_nothing_else(opened, page):
    assert opened.get_log("browser") == []
    requests = [
        message["params"]["request"]["url"]
        for entry in opened.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert requests
    assert all(url == page.as_uri() or url.startswith("data:image/jpeg;") for url in requests)
    assert page.stat().st_size < 1_000_000
    sections = opened.execute_script(
        "return [...document.querySelectorAll('section')].map((s) => s.id)"
    )
    assert sections == [
        "summary", "provenance", "table1", "sizes", "calibration", "classes", "crops", "explorer", "noise", "teachers",
    ]  # fmt: skip


def test_its_policy_lets_no_script_call_out(opened):
    """Even code that got into the page could not say anything to anyone."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            refused = opened.execute_async_script(
                "const [url, done] = arguments; const p = new Image(); p.src = url + 'image';"
                "fetch(url + 'fetch', {mode: 'no-cors'}).then(() => done(false), () => done(true))",
                f"http://127.0.0.1:{server.server_port}/",
            )
            injected = opened.execute_script(
                "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
                "document.body.append(s); return window.ran === undefined"
            )
        finally:
            server.shutdown()
            thread.join()
    assert refused
    assert injected
    assert asked == []


# 0.25 and 0.5 are probabilities that some crops have to the last bit
@pytest.mark.parametrize("steps", [(30, 60, 190), (50, 100, 100), (0, 0, 200), (77, 131, 173)])
def test_sliders_count_what_calibrate_counts(opened, store_path, steps):
    for name, step in zip(("low", "middle", "top"), steps, strict=True):
        slide(opened, name, step)
    low, middle, top = (step / 200 for step in steps)
    with labelstore.open(store_path, readonly=True) as store:
        rule = RegionThresholds(low=low, middle=middle, top=top)
        (choice,) = preview(store.label_set("first"), {"this": rule}).choices
    found = counts(opened)
    assert found == {name: getattr(choice.counts, name) for name in found}
    assert sum(found.values()) - found["usable"] == (IMAGES - 1) * CROPS


def test_the_command_it_names_prints_its_counts(opened, store_path, capsys):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    for name in ("low", "middle", "top"):
        key = Keys.ARROW_LEFT if name == "top" else Keys.ARROW_RIGHT
        opened.find_element(By.ID, f"slider-{name}").send_keys(*[key] * 31)
    command = text_of(opened, "#command").split()
    assert command[command.index("--low") + 1 :: 2] == ["0.305", "0.46", "0.795"]
    command[command.index("STORE")] = str(store_path)
    assert errors.run(labelstore_app.commands, "labelstore", [*command[1:], "--json"]) == 0
    (choice, *_) = json.loads(capsys.readouterr().out)["choices"]
    found = counts(opened)
    assert found == {name: choice["counts"][name] for name in found}


def test_shares_by_class_follow_the_sliders(opened, store_path):
    for name, step in (("low", 80), ("middle", 120), ("top", 180)):
        slide(opened, name, step)
    opened.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    rows = opened.execute_script(
        "return [...document.querySelectorAll('#class-table tbody tr')].map((r) => [...r.cells].map((c) => "
        "c.textContent))"
    )
    with labelstore.open(store_path, readonly=True) as store:
        frame = labelstore.crops(
            store.label_set("first"), ["class", "region", "max_probability"], mask="m"
        )
    assert {row[0] for row in rows} == set(CLASSES)
    for name, number, mean, *_, discarded, calibrated in rows:
        own = frame[frame["class"] == name]
        assert int(number) == len(own)
        assert float(mean) == pytest.approx(own["max_probability"].mean(), abs=6e-4)
        assert discarded == f"{100 * own['region'].isin(['TOO_HARD', 'TOO_EASY']).mean():.2f} %"
        assert calibrated == f"{100 * (own['region'] == 'HARD').mean():.2f} %"


def test_thresholds_stay_in_order(opened):
    slide(opened, "low", 150)
    assert [text_of(opened, f"#value-{name}") for name in ("low", "middle", "top")] == ["0.75", "0.75", "0.95"]  # fmt: skip
    slide(opened, "top", 20)
    assert {text_of(opened, f"#value-{name}") for name in ("low", "middle", "top")} == {"0.1"}


def test_explorer_shows_the_right_boxes_and_labels(opened, store_path, page):
    entries = data_of(page)["explorer"]["images"]
    with labelstore.open(store_path, readonly=True) as store:
        labels = store.label_set("first")
        assert [entry["image"] for entry in entries] == np.flatnonzero(labels.present).tolist()
        for at in (0, 1, len(entries) - 1):
            row = entries[at]["image"]
            choose(opened, "explore-image", at)
            drawn = opened.execute_script(
                "return [...document.querySelectorAll('#stage rect.box')].map((r) => "
                "['data-crop', 'y', 'x', 'height', 'width'].map((a) => Number(r.getAttribute(a))))"
            )
            assert dict((crop, box) for crop, *box in drawn) == dict(  # noqa: C402
                enumerate(labels.boxes([row])[0].tolist())
            )
            assert text_of(opened, "#image-caption").startswith(store.image_columns["key"][row])
            # the first that is shown is the hardest
            probs = labels.recover([row])[0]
            hardest = int(probs.max(axis=1).argmin())
            assert text_of(opened, "#crop-label h3") == f"Crop {hardest}"
            shown = opened.execute_script(
                "return [...document.querySelectorAll('.label-row .number')].map((s) => Number(s.textContent))"
            )
            assert shown == pytest.approx(np.sort(probs[hardest])[::-1][: len(shown)], abs=6e-5)


def test_explorer_by_keyboard(opened, store_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    choose(opened, "explore-image", 0)
    opened.find_element(By.ID, "stage").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    with labelstore.open(store_path, readonly=True) as store:
        largest = store.label_set("first").recover([0])[0].max(axis=1)
    order = np.argsort(largest, kind="stable")
    assert text_of(opened, "#crop-label h3") == f"Crop {order[2]}"
    assert text_of(opened, "rect.chosen") == ""
    chosen = "return document.querySelector('rect.chosen').dataset.crop"
    assert int(opened.execute_script(chosen)) == order[2]


def test_names_with_markup_are_text(opened):
    assert opened.execute_script("return document.querySelectorAll('img, b > b, iframe').length") == 0  # fmt: skip
    assert opened.execute_script("return document.scripts.length") == 2
    text = opened.execute_script("return document.body.innerText")
    assert EVIL_CLASS in text
    options = opened.execute_script(
        "return [...document.querySelectorAll('#explore-image option')].map((o) => o.text)"
    )
    assert f"{EVIL_CLASS}/{EVIL_IMAGE}" in options
    choose(opened, "explore-image", options.index(f"{EVIL_CLASS}/{EVIL_IMAGE}"))
    choose(opened, "explore-class", 1)
    assert EVIL_CLASS in text_of(opened, "#image-caption")
    # an alert would make this raise
    assert opened.title == "Labels of evil<b>.labels"
    assert opened.get_log("browser") == []


def test_gallery_holds_the_suspect_and_opens_it(opened, store_path, page):
    with labelstore.open(store_path, readonly=True) as store:
        key = store.image_columns["key"][5]
    assert [row["image"] for row in data_of(page)["noise"]["images"]][:1] == [5]
    opened.execute_script("document.querySelector('.gallery button').click()")
    assert text_of(opened, "#image-caption").startswith(f"{key}:")


def test_light_and_dark(opened):
    background = "return getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        opened.refresh()
        seen[scheme] = opened.execute_script(background)
    assert len(set(seen.values())) == 2
    opened.execute_script("document.getElementById('theme').click()")
    assert opened.execute_script(background) == seen["light"]


def test_thumbnails_are_of_the_image_itself(page, pictures, tmp_path):
    shown = {entry["image"]: entry["picture"] for entry in data_of(page)["explorer"]["images"]}
    assert base64.b64decode(shown[0].partition(",")[2]).startswith(b"\xff\xd8\xff")
    assert [image for image, picture in shown.items() if picture] == [0]
    height, width = IMAGE_SIZE
    key = f"{CLASSES[0]}/000.jpg"
    assert thumbnail(pictures.joinpath, key, (width, height)) is not None
    assert thumbnail(pictures.joinpath, key, (width + 1, height)) is None, (
        "another image of that name"
    )
    inner = pictures / CLASSES[0]
    assert thumbnail(inner.joinpath, f"../{key}", (width, height)) is None
    assert thumbnail(inner.joinpath, str(pictures / key), (width, height)) is None
    same = digest((pictures / key).read_bytes())
    assert thumbnail(pictures.joinpath, key, (width, height), same) is not None
    assert thumbnail(pictures.joinpath, key, (width, height), bytes(16)) is None, (
        "another of that size"
    )
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff" + bytes(99))
    assert thumbnail(tmp_path.joinpath, "a.jpg", (width, height)) is None


@pytest.mark.slow
def test_another_image_of_the_same_name_and_size_is_not_shown(
    store_path, pictures, tmp_path, capsys
):
    """Boxes and labels belong to the image that was labelled: another one is a wrong picture of them."""
    from PIL import Image

    key = f"{CLASSES[0]}/000.jpg"
    (tmp_path / "other" / CLASSES[0]).mkdir(parents=True)
    Image.new("RGB", IMAGE_SIZE[::-1], (30, 30, 200)).save(tmp_path / "other" / key)
    with labelstore.open(store_path, readonly=True) as store:
        write_page(store, tmp_path / "r.html", label_set="first", images=tmp_path / "other")
    shown = data_of(tmp_path / "r.html")["explorer"]
    assert shown["without_picture"] == len(shown["images"])

    def show(images):
        words = ["show", str(store_path), "0", "--label-set", "first", "--images", str(images)]
        words += ["--out", str(tmp_path / "p.png")]
        return errors.run(labelstore_app.commands, "labelstore", words)

    assert show(tmp_path / "other") == 7
    assert "is not the image that was labelled" in capsys.readouterr().err
    assert not (tmp_path / "p.png").exists()
    assert show(pictures) == 0
    assert (tmp_path / "p.png").is_file()


@pytest.mark.parametrize("top", [1, 7, 30])
def test_as_many_bars_are_seen_as_asked_for(pictures, top):
    classes = tuple((f"class {at}", 1 / top) for at in range(top))
    edges = {"top": 2, "left": 3, "height": 20, "width": 20, "flip": False}
    shown = [
        ShownCrop(crop=0, kind=kind, max_probability=1 / top, classes=classes, **edges)
        for kind in ("hardest", "easiest")
    ]
    figure = draw_image(pictures / CLASSES[0] / "000.jpg", shown, title="one")
    charts = [axes for axes in figure.axes if axes.patches and axes.get_xlim() == (0, 1)]
    assert len(charts) == 2
    for axes in charts:
        low, high = sorted(axes.get_ylim())
        assert len(axes.patches) == top
        for bar in axes.patches:
            assert low <= bar.get_y() < bar.get_y() + bar.get_height() <= high


def test_the_page_speaks_in_words(opened):
    """No code between backticks, no records as key=value, no heading that says a word twice."""
    for part in ("#summary", "#provenance", "#calibration"):
        shown = text_of(opened, part)
        assert shown
        assert "`" not in shown
        assert re.findall(r"\w+=\S*", shown) == []
    headings = opened.execute_script(
        "return [...document.querySelectorAll('h2, h3')].map((h) => h.textContent)"
    )
    for heading in headings:
        words = heading.lower().split()
        assert len(words) == len(set(words)), heading


def test_data_cannot_leave_its_element():
    text = render(
        {"name": "</script><script>alert(1)</script><!--", "other": "@@SCRIPT@@"},
        Path(labelstore.__file__).parent / "report" / "page.js",
    )
    assert text.count("<script") == 2
    assert text.count("</script") == 2
    assert "@@SCRIPT@@" in text


def test_hard_labels_say_what_they_cannot_show(chromium, tmp_path):
    labels = soft_labels(0)
    with filled_store(tmp_path / "hard.labels", labels, Hard(), images_per_shard=10) as store:
        written = write_page(store, tmp_path / "hard.html", sample=50)
    assert written.sampled_crops == 50 < written.crops
    assert "thresholds" in written.unavailable
    chromium.get_log("browser")
    chromium.get((tmp_path / "hard.html").as_uri())
    assert chromium.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert chromium.get_log("browser") == []
    assert written.unavailable["thresholds"] in text_of(chromium, "#calibration")
    assert "sample of 50 of 240 crops" in text_of(chromium, "#summary")


def test_a_store_without_labels_has_a_page(chromium, tmp_path):
    codec = MarginalSmoothing(k=3, dtype="float16")
    with filled_store(tmp_path / "new.labels", soft_labels(0), codec, blocks=()) as store:
        written = write_page(store, tmp_path / "new.html")
    assert written.images_shown == written.crops == 0
    chromium.get((tmp_path / "new.html").as_uri())
    assert chromium.execute_script("return document.documentElement.dataset.ready") == "yes"


def test_refused_arguments(store_path, tmp_path):
    out = tmp_path / "report.html"
    with labelstore.open(store_path, readonly=True) as store:
        for options in (
            {"sample": 0},
            {"images": tmp_path / "none"},
            {"label_set": "none"},
            {"mask": "none"},
            {"mask": "m", "label_set": "second"},
        ):
            with pytest.raises((UsageError, RejectedInput)):
                write_page(store, out, **options)
        mask = write_page(store, out, mask="m")
    assert mask.label_set == "first"
    assert list(tmp_path.iterdir()) == [out], "no temporary file is left"
    code = errors.run(
        labelstore_app.commands, "labelstore", ["report", str(store_path), "--out", "a.pdf"]
    )
    assert code == 2
