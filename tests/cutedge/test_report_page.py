"""The page as a browser shows it, in headless Chromium; skipped where there is none."""

import json
import re
import struct
from contextlib import contextmanager
from pathlib import Path

import pytest

from cutedge.report.pictures import find_browser
from tests.support.inprocess import invoke
from tests.support.reports import trace_to
from tracer.errors import InputError

try:
    BROWSER = find_browser()
except InputError as error:
    pytest.skip(f"nothing to open the page in: {error}", allow_module_level=True)

from playwright.sync_api import sync_playwright

TEE_GPU = ("--home", "tee-tdx", "--accel", "rtx-4090", "--link", "pcie5-x16-cc")
HOST_CHIP = ("--home", "ryzen-7950x", "--accel", "chip-8x8", "--link", "axi-lite")
PAGES = {"tee-gpu": TEE_GPU, "host-chip": (*HOST_CHIP, "--baseline", "host-chip"), "plain": ()}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> the page of a small model."""
    folder = tmp_path_factory.mktemp("pages")
    small = trace_to(folder / "small", "edge-10m", "--seq", "128")
    for name, options in PAGES.items():
        ran = invoke("cutedge", "report", small.folder, *options, "--out", folder / f"{name}.html")
        assert ran.returncode == 0, ran.stderr
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def opened(browser):
    """``with opened(path, ...) as page``: a drawn page that says and asks for nothing.

    To draw one takes seconds: it stays open for the next test of the same, unless it is ``changed``.
    """
    drawn = {}

    def draw(path, width, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn")
        return page, said, asked

    @contextmanager
    def open_page(path, width=1280, color_scheme="light", changed=False):
        key = (path, width, color_scheme)
        if key not in drawn:
            drawn[key] = draw(path, width, color_scheme=color_scheme)
        page, said, asked = drawn[key]
        try:
            yield page
        except BaseException:
            changed = True
            raise
        finally:
            if changed:
                del drawn[key]
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        if changed:
            page.context.close()

    return open_page


DRAWN = """() => [...document.querySelectorAll('.drawing')].map(drawing => {
    const why = drawing.querySelector('.why'), plot = drawing.querySelector('.plot');
    const marks = drawing.querySelectorAll(
        '.sankey-link, .bars .point, .scatterlayer .point, .box');
    const box = drawing.getBoundingClientRect();
    return { id: drawing.id, why: why && why.textContent, marks: marks.length,
             wide: box.width, high: box.height };
})"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheme"), [*((name, "light") for name in PAGES), (next(iter(PAGES)), "dark")]
)
@pytest.mark.few(1)
def test_every_drawing_is_drawn_or_says_why(opened, pages, name, scheme):
    with opened(pages[name], color_scheme=scheme) as page:
        drawn = {one["id"]: one for one in page.evaluate(DRAWN)}
    for one in drawn.values():
        assert one["why"] or (one["marks"] > 1 and one["high"] > 150 and one["wide"] > 600), one
    missing = {key for key, one in drawn.items() if one["why"]}
    assert (
        missing
        == {"tee-gpu": set(), "host-chip": set(), "plain": {"draw-roofline-0", "draw-roofline-1"}}[
            name
        ]
    )
    assert ("draw-cycles-1" in drawn) == (name == "host-chip")


@pytest.mark.slow
def test_what_is_drawn_is_the_data(opened, pages):
    text = pages["tee-gpu"].read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    sheet = data["sheets"][data["shown"]]
    with opened(pages["tee-gpu"]) as page:
        values = page.evaluate("document.querySelector('#draw-flows .plot').data[0].link.value")
        assert values == [one["payload_bytes"] for one in sheet["flows"]["links"]]
        bars = page.evaluate("document.querySelector('#draw-layers .plot').data.map(one => one.y)")
        assert bars == [one["values"] for one in sheet["layers"]["series"]]
        lines = page.evaluate("document.querySelector('#draw-growth .plot').data.map(one => one.y)")
        wanted = [line["values"] for line in data["growth"]["lines"]]
        assert lines[: len(wanted)] == wanted
        assert page.locator("svg.block .box").count() == len(sheet["block"]["boxes"])
        assert page.locator("svg.block path").count() == len(sheet["block"]["wires"])


def test_hovering_tells_the_figures(opened, pages):
    with opened(pages["tee-gpu"]) as page:
        page.locator("#draw-layers .bars .point").nth(2).hover(force=True)
        said = page.locator("#draw-layers .hoverlayer").text_content()
        assert re.search(r"layer 1.*KiB|layer 1.*MiB", said), said
        page.locator("#draw-flows .sankey-link").first.hover(force=True)
        assert "of the traffic" in page.locator("#draw-flows .hoverlayer").text_content()
        page.locator("#draw-growth .scatterlayer .point").nth(3).hover(force=True)
        page.wait_for_selector("#draw-growth .hoverlayer .hovertext")
        assert "seq 128" in page.locator("#draw-growth .hoverlayer").text_content()
        page.locator("svg.block .transfer").first.hover()
        tip = page.locator("#tip")
        assert re.search(r"tee-tdx → rtx-4090\n[\d,]+ bytes as float32 = ", tip.text_content())
        page.locator("svg.block .op", has_text="q_proj").last.hover()
        assert "aten.linear.default" in tip.text_content()
        assert ".layers.2.self_attn.q_proj (Linear)" in tip.text_content()
        assert "[batch, seq, " in tip.text_content()
        assert "FLOPs = " in tip.text_content()
        page.mouse.move(0, 0)
        assert tip.is_hidden()


def test_a_block_zooms_and_comes_back(opened, pages):
    with opened(pages["tee-gpu"]) as page:
        block = page.locator("svg.block")
        whole = block.get_attribute("viewBox")
        page.get_by_text("+", exact=True).click()
        near = [float(part) for part in block.get_attribute("viewBox").split()]
        assert near[2] < float(whole.split()[2])
        block.scroll_into_view_if_needed()
        box = block.bounding_box()
        page.mouse.move(box["x"] + 30, max(box["y"], 0) + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 130, max(box["y"], 0) + 200)
        page.mouse.up()
        assert float(block.get_attribute("viewBox").split()[0]) < near[0]
        page.get_by_text("Reset").click()
        assert block.get_attribute("viewBox") == whole


@pytest.mark.slow
def test_another_policy_is_shown_when_it_is_chosen(opened, pages):
    with opened(pages["tee-gpu"], changed=True) as page:
        page.select_option("#policy", label="all-home")
        assert "all-home" in page.text_content("#headline")
        assert "Nothing crosses" in page.text_content("#draw-flows .why")
        assert page.text_content("tr.shown td") == "all-home"
        page.get_by_role("button", name="flash-attention").click()
        assert "flash-attention" in page.text_content("#headline")
        assert page.locator("#draw-flows .sankey-link").count() > 2
        assert "Layer 2 under flash-attention" in page.text_content("#draw-block")


def luminance(colour):
    """Of ``rgb(...)``, as WCAG 2 has it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


COLOURS = """() => {
    const style = selector => getComputedStyle(document.querySelector(selector));
    return { paper: style('body').backgroundColor, ink: style('h1').color,
             soft: style('.caption').color, tick: style('#draw-layers .xtick text').fill,
             label: style('svg.block .box text').fill,
             node: style('#draw-flows .node-label').fill };
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.few(1)
def test_both_themes_can_be_read(opened, pages, scheme):
    with opened(pages["tee-gpu"], color_scheme=scheme, changed=True) as page:
        found = page.evaluate(COLOURS)
        # The same when the system changes while the page is open.
        page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("document.querySelector('#draw-layers .xtick text')")
        assert page.evaluate(COLOURS) == found
    paper = luminance(found.pop("paper"))
    assert (paper > 0.5) == (scheme == "light")
    for name, colour in found.items():
        bright, dark = sorted((luminance(colour), paper), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, name


@pytest.mark.slow
def test_a_dark_page_is_printed_light_and_whole(opened, pages):
    with opened(pages["host-chip"], color_scheme="dark", changed=True) as page:
        seen = page.evaluate("""() => { window.printed = []; addEventListener('beforeprint', () => {
            const widths = [...document.querySelectorAll('.plot svg.main-svg')].map(
                one => one.getBoundingClientRect().width);
            printed.push([getComputedStyle(document.body).backgroundColor, Math.max(...widths),
                [...document.querySelectorAll('.sankey-link')].map(
                    one => getComputedStyle(one).opacity)]);
        }); }""")
        assert seen is None
        pdf = page.pdf(format="A4", print_background=True)
        ((paper, widest, links),) = page.evaluate("printed")
        assert luminance(paper) == pytest.approx(1)
        assert widest <= 705  # A4 less two margins of 12 mm, in CSS pixels
        assert set(links) == {"1"}
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 9
        page.wait_for_function("!document.documentElement.classList.contains('print')")
        assert luminance(page.evaluate(COLOURS)["paper"]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_narrow_page_is_not_wider_than_the_screen(opened, pages, name):
    with opened(pages[name], width=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390


OVERLAPS = """selector => {
    const boxes = [...document.querySelectorAll(selector)].filter(one => one.textContent)
        .map(one => [one.textContent, one.getBoundingClientRect()]);
    const found = [];
    boxes.forEach(([a, p], n) => boxes.slice(n + 1).forEach(([b, q]) => {
        if (p.left < q.right - 1 && q.left < p.right - 1
            && p.top < q.bottom - 3 && q.top < p.bottom - 3)
            found.push([a, b]);
    }));
    return [boxes.length, found];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_labels_do_not_lie_on_each_other(opened, pages, width):
    with opened(pages["tee-gpu"], width=width) as page:
        for selector in (
            "#draw-layers .xtick text",
            "#draw-calls .ytick text",
            "#draw-growth .xtick text",
            "#draw-growth .ytick text",
            "#draw-growth .legendtext",
            "svg.block .box text",
            "#draw-flows .node-label",
            "#draw-roofline-0 .annotation-text",
            "#draw-roofline-1 .annotation-text",
        ):
            count, overlapping = page.evaluate(OVERLAPS, selector)
            assert count > 1, selector
            assert overlapping == [], selector


@pytest.mark.slow
def test_all_126_layers_are_drawn_and_another_policy_too(browser, tmp_path):
    """How fast is in bench/report.py."""
    deep = trace_to(tmp_path / "deep", "edge-10m", "--seq", "128", "--set", "num_hidden_layers=126")
    policies = ["offload-linear", "flash-attention", "min-cut-norm-home", "host-chip"]
    ran = invoke(
        "cutedge",
        "report",
        deep.folder,
        *TEE_GPU,
        "--out",
        tmp_path / "deep.html",
        *(word for name in policies for word in ("--policy", name)),
    )
    assert ran.returncode == 0, ran.stderr
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto((tmp_path / "deep.html").as_uri())
    page.wait_for_function("document.documentElement.dataset.drawn")
    assert page.evaluate("document.querySelector('#draw-layers .plot').data[0].x.length") >= 126
    page.select_option("#policy", label="host-chip")
    page.wait_for_function(
        "document.querySelector('#draw-block').textContent.includes('host-chip')"
    )


@pytest.mark.slow
def test_pictures_are_of_all_parts_and_always_the_same(run, tmp_path):
    one = trace_to(tmp_path / "trace", "edge-10m", "--seq", "16")
    taken = []
    for name in ("a", "b"):
        ran = run(
            "cutedge",
            "report",
            one.folder,
            "--policy",
            "offload-linear",
            "--png",
            "--json",
            "--out",
            tmp_path / f"{name}.html",
        )
        assert ran.returncode == 0, ran.stderr
        taken.append(json.loads(ran.stdout)["pictures"])
    # Nothing has rooflines here.
    names = ["policies", "flows", "layers", "calls", "block", "growth"]
    assert taken[1] == [f"{tmp_path}/b-{name}.png" for name in names]
    for first, second in zip(*taken, strict=True):
        picture = Path(first).read_bytes()
        assert picture == Path(second).read_bytes(), first
        assert picture.startswith(b"\x89PNG")
        wide, high = struct.unpack(">II", picture[16:24])
        assert wide == 2240
        assert high > 200
        assert len(picture) > wide * high / 100  # nothing drawn is a twentieth of that
