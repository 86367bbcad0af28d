"""The page as a browser shows it, in headless Chromium; skipped where there is none."""

import gzip
import json
import re
import struct
from base64 import b64decode
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

import cutedge
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
def small():
    return cutedge.trace("edge-10m", seq=128)


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


def held(path):
    """(the data of a page, what is packed of the policy that comes up first)"""
    text = path.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    packed = re.search(rf'id="sheet-{data["shown"]}">(.*?)</script>', text, re.DOTALL)[1]
    return data, json.loads(gzip.decompress(b64decode(packed)))


DRAWN = """() => [...document.querySelectorAll('.drawing')].map(drawing => {
    const why = drawing.querySelector('.why');
    const marks = drawing.querySelectorAll('.mark, td.how');
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
        assert one["marks"] > 1, one
        assert one["high"] > 100, one
        assert one["wide"] > 600, one
    assert ("draw-cycles-1" in drawn) == (name == "host-chip")
    assert ("draw-roofline-0" in drawn) == (name != "plain")  # what no policy has is left out


@pytest.mark.slow
def test_what_is_drawn_is_the_data(opened, pages):
    data, packed = held(pages["tee-gpu"])
    sheet = data["sheets"][data["shown"]]
    with opened(pages["tee-gpu"]) as page:

        def drawn(selector, name="value"):
            return [
                json.loads(one)
                for one in page.evaluate(
                    f"[...document.querySelectorAll('{selector}')].map(one => one.dataset.{name})"
                )
            ]

        flows = [one["payload_bytes"] for one in sheet["flows"]["links"]]
        assert drawn("#draw-flows .flow") == flows
        bars = [one["values"] for one in sheet["layers"]["series"]]
        wanted = [value for layer in zip(*bars, strict=True) for value in layer if value]
        assert drawn("#draw-layers .point") == wanted
        lines = [line["values"] for line in data["growth"]["lines"]]
        assert sorted(drawn("#draw-growth .curve", "values")) == sorted(lines)
        blocks = packed["block"]
        drawing = blocks["drawings"][blocks["layers"][blocks["shown"]]["drawing"]]
        assert page.locator("svg.block .box").count() == len(drawing["boxes"])
        assert page.locator("svg.block path").count() == len(drawing["wires"])
        assert page.locator("#scores .score").count() == 5
        assert page.text_content("#command") == sheet["verdict"]["command"]


@pytest.mark.slow
def test_hovering_tells_the_figures(opened, pages):
    with opened(pages["tee-gpu"]) as page:
        tip = page.locator("#tip")
        page.locator("#draw-layers .point").nth(2).hover(force=True)
        assert re.search(r"layer 0.*KiB|layer 0.*MiB", tip.text_content(), re.DOTALL)
        page.locator("#draw-flows .flow").first.hover(force=True)
        assert "of the traffic" in tip.text_content()
        page.locator("#draw-growth .curve.mine circle").nth(3).hover(force=True)
        assert "seq 128" in tip.text_content()
        page.locator("svg.block .transfer").first.hover()
        assert re.search(r"tee-tdx → rtx-4090\n[\d,]+ bytes as float32 = ", tip.text_content())
        page.locator("svg.block .op", has_text="q_proj").last.hover()
        assert "aten.linear.default" in tip.text_content()
        assert ".layers.2.self_attn.q_proj (Linear)" in tip.text_content()
        assert "[batch, seq, " in tip.text_content()
        assert "FLOPs = " in tip.text_content()
        page.mouse.move(0, 0)
        assert tip.is_hidden()


@pytest.mark.slow
def test_marks_are_reached_by_the_keyboard(opened, pages):
    with opened(pages["tee-gpu"]) as page:
        page.locator("#draw-layers .mark").first.focus()
        first = page.text_content("#tip")
        page.keyboard.press("ArrowRight")
        assert page.text_content("#tip") != first
        assert page.locator("#draw-layers [tabindex='0']").count() == 1
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()


def test_a_block_zooms_and_comes_back(opened, pages):
    with opened(pages["tee-gpu"]) as page:
        block = page.locator("svg.block")
        whole = block.get_attribute("viewBox")
        page.locator("#draw-block").get_by_text("+", exact=True).click()
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


SLOTS = """() => [...document.querySelectorAll(
    'svg.time .slot:is(.dense, :not(.aside))')].map(one => (
    one.dataset.count !== undefined ? { count: Number(one.dataset.count) } : {
        lane: one.dataset.lane, start: Number(one.dataset.start),
        seconds: Number(one.dataset.seconds), critical: one.dataset.critical === 'true' }))"""


def test_what_is_drawn_in_time_is_the_schedule_of_the_library(opened, pages, small):
    made = small.partition("offload-linear", machine="tee-tdx+rtx-4090@pcie5-x16-cc")
    laid = made.schedule("overlap").table.to_pylist()
    rows = [row for row in laid if row["seconds"] > 0]
    with opened(pages["tee-gpu"]) as page:
        drawn = page.locator("svg.time")
        page.locator("#draw-time").get_by_role("button", name="+", exact=True).focus()
        for look in ("Whole run", "+", "Layer"):
            page.locator("#draw-time").get_by_role("button", name=look, exact=True).click()
            low, high = (float(drawn.get_attribute(f"data-{end}")) for end in ("from", "to"))
            there = [r for r in rows if r["end_seconds"] >= low and r["start_seconds"] <= high]
            found = page.evaluate(SLOTS)
            assert sum(one.get("count", 1) for one in found) == pytest.approx(len(there), abs=2)
            apart = [one for one in found if "count" not in one]
            assert len(apart) > 20
            for one in apart:
                row = min(
                    (row for row in rows if row["resource"] == one["lane"]),
                    key=lambda row, one=one: abs(row["start_seconds"] - one["start"]),
                )
                assert one["start"] == pytest.approx(row["start_seconds"], abs=1e-10)
                assert one["seconds"] == row["seconds"]
                assert one["critical"] == row["critical"]
    packed = held(pages["tee-gpu"])[1]["time"]
    path = [
        packed["durations"][n]
        for n, on in zip(packed["length"], packed["critical"], strict=True)
        if on
    ]
    assert sum(path) == pytest.approx(
        made.schedule("overlap").summary["makespan_seconds"], rel=1e-9
    )


@pytest.mark.slow
def test_time_zooms_finds_and_tells_of_calls(opened, pages):
    with opened(pages["tee-gpu"], changed=True) as page:
        drawn, tip = page.locator("svg.time"), page.locator("#tip")

        def span():
            return [float(drawn.get_attribute(f"data-{end}")) for end in ("from", "to")]

        first = span()
        drawn.scroll_into_view_if_needed()
        drawn.locator(".slot[data-slot]").first.focus()
        page.keyboard.press("+")
        near = span()
        assert near[1] - near[0] < first[1] - first[0]
        page.keyboard.press("0")
        assert span() == pytest.approx(first, rel=1e-9)
        box = drawn.bounding_box()
        page.mouse.move(box["x"] + 300, box["y"] + 40)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -100)
        page.keyboard.up("Control")
        page.wait_for_function(
            f"Number(document.querySelector('svg.time').dataset.to) < {first[1]}"
        )
        page.locator("#draw-time").get_by_role("button", name="Layer", exact=True).click()
        # What belongs to a call stands out while one of it has the focus.
        drawn.locator(".slot[data-call]:not([data-call=''])").first.focus()
        assert re.search(r"call \d+: .*\n  tee-tdx sends \w+, [\d.]+ KiB", tip.text_content())
        assert (
            page.evaluate("getComputedStyle(document.querySelector('.slot:not(.with)')).opacity")
            == "0.3"
        )
        page.fill("#find", "attention_probs")
        page.locator("#find").press("Enter")
        said = page.locator("#draw-time .found").text_content()
        assert re.match(r"\d of 4: attention_probs, layer \d", said)
        assert drawn.locator(".hit").count() == 1
        page.locator("#find").press("Enter")
        assert page.locator("#draw-time .found").text_content() != said
        page.fill("#find", "no such thing")
        assert page.locator("#draw-time .found").text_content() == "not found"


@pytest.mark.slow
def test_a_layer_is_opened_from_the_strip_and_by_the_address(opened, pages):
    with opened(pages["tee-gpu"], changed=True) as page:
        cells = page.locator("#draw-model .cell")
        assert page.locator("#draw-model .picked").get_attribute("data-layer") == "2"
        cells.nth(1).click()
        assert "layer=0" in page.evaluate("location.hash")
        assert "Layer 0 under offload-linear" in page.text_content("#draw-block")
        assert "since layer 0 begins" in page.text_content("#draw-time")
        page.keyboard.press("ArrowRight")
        assert "Layer 1 under offload-linear" in page.text_content("#draw-block")
        assert cells.nth(2).get_attribute("aria-pressed") == "true"
        page.select_option("#hue", "growth")
        assert "quadratic" in page.text_content("#draw-model .keys")
        page.evaluate("scrollTo(0, 0)")
        page.evaluate("location.hash = '#layer=3'")
        page.wait_for_function("scrollY > 500")
        assert "Layer 3 under offload-linear" in page.text_content("#draw-block")
        assert page.locator("#model").bounding_box()["y"] == pytest.approx(64, abs=40)


@pytest.mark.slow
def test_another_policy_is_shown_when_it_is_chosen(opened, pages):
    with opened(pages["tee-gpu"], changed=True) as page:
        page.select_option("#policy", label="all-home")
        page.wait_for_function("document.documentElement.dataset.drawn")
        assert "all-home" in page.text_content("#headline")
        assert "Nothing crosses" in page.text_content("#draw-flows .why")
        assert page.text_content("tr.shown td") == "all-home"
        page.get_by_role("button", name="flash-attention", exact=True).click()
        assert "flash-attention" in page.text_content("#headline")
        page.wait_for_function("document.documentElement.dataset.drawn")
        assert page.locator("#draw-flows .flow").count() > 2
        assert "Layer 2 under flash-attention" in page.text_content("#draw-block")


def test_the_table_sorts_and_filters(opened, pages):
    with opened(pages["tee-gpu"], changed=True) as page:

        def names():
            return page.evaluate(
                "[...document.querySelectorAll('#policies tbody tr')].filter(one => !one.hidden)"
                ".map(one => one.cells[0].textContent)"
            )

        def calls():
            return page.evaluate(
                "[...document.querySelectorAll('#policies td[data-name=calls]')]"
                ".map(one => Number(one.textContent.replace(',', '')))"
            )

        page.get_by_role("button", name="calls", exact=True).click()
        assert calls() == sorted(calls())
        page.get_by_role("button", name="calls", exact=True).click()
        assert calls() == sorted(calls(), reverse=True)
        assert page.get_attribute("#policies th[aria-sort=descending] button", "title") is not None
        page.fill("#filter", "min-cut-n")
        assert set(names()) == {"min-cut-nonlinear-home", "min-cut-norm-home"}
        assert page.text_content("#filtered").startswith("2 of ")


@pytest.mark.slow
def test_a_point_is_picked_and_the_address_keeps_it(opened, pages):
    with opened(pages["tee-gpu"], changed=True) as page:
        point = page.locator("#draw-choose [data-policies*=flash-attention]")
        point.click(force=True)
        page.wait_for_function("document.documentElement.dataset.drawn")
        assert page.text_content("#policies tr.shown td") in point.get_attribute("data-policies")
        page.select_option("#axis-x", "bytes")
        page.select_option("#axis-y", "seen")
        page.locator("#draw-layers .bars[data-category='3'] .point").first.click(force=True)
        said = page.evaluate("location.hash")
        assert "layer=3" in said
        assert "x=bytes" in said
        shown = page.text_content("#headline")
        page.evaluate("location.hash = ''")
        page.wait_for_function("document.documentElement.dataset.drawn")
        assert page.text_content("#headline") != shown
        page.evaluate("said => { location.hash = said; }", said)
        page.wait_for_function(
            "shown => document.querySelector('#headline').textContent === shown", arg=shown
        )
        page.wait_for_function("document.documentElement.dataset.drawn")
        assert page.locator("#draw-layers .bars.picked").get_attribute("data-category") == "3"
        assert page.locator("#draw-model .picked").get_attribute("data-layer") == "3"
        assert page.input_value("#axis-y") == "seen"


@pytest.mark.slow
def test_a_roof_has_the_slope_of_the_bandwidth(opened, pages):
    """Both axes are logarithmic: ten times the FLOPs a byte are ten times the FLOPs a second."""
    read = """() => [...document.querySelectorAll('[id^=draw-roofline] svg')].map(drawn => ({
        at: Object.fromEntries(['x', 'y'].map(axis => [axis,
            [...drawn.querySelectorAll(`.tick-${axis}`)].map(one => Number(one.getAttribute(axis)))])),
        roof: drawn.querySelector('.roof').getAttribute('d') }))"""
    with opened(pages["tee-gpu"]) as page:
        drawn = page.evaluate(read)
    for one in drawn:
        (x0, y0), (x1, y1), _ = (map(float, p.split(",")) for p in one["roof"][1:].split("L"))
        x, y = (abs(ticks[1] - ticks[0]) for ticks in (one["at"]["x"], one["at"]["y"]))
        assert (y0 - y1) / y == pytest.approx((x1 - x0) / x, rel=1e-3)


def test_the_pareto_line_is_that_of_the_points(opened, pages):
    """Tried against every pair of policies."""
    data, _ = held(pages["tee-gpu"])
    axes = data["choose"]["axes"]
    points = set(zip(axes["seconds"]["values"], axes["calls"]["values"], strict=True))
    best = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
    with opened(pages["tee-gpu"]) as page:
        line = page.get_attribute("#draw-choose .pareto", "d")
    assert line.count("V") == len(best) - 1


def test_what_is_saved_is_read_back(opened, pages, tmp_path):
    with opened(pages["tee-gpu"]) as page:
        for file in ("transfers.parquet", "transfers.csv", "seen.parquet", "summary.csv"):
            with page.expect_download() as saved:
                page.locator(f"button[data-file='{file}']").click()
            saved.value.save_as(tmp_path / file)
    data, _ = held(pages["tee-gpu"])
    sizes = dict(
        zip(data["choose"]["policies"], data["choose"]["axes"]["bytes"]["values"], strict=True)
    )
    for file in ("transfers.parquet", "transfers.csv"):
        found = duckdb.sql(
            f"SELECT policy, sum(payload_bytes) FROM '{tmp_path / file}' GROUP BY policy"
        ).fetchall()
        assert {name: int(size) for name, size in found} == {n: s for n, s in sizes.items() if s}
    ((policies,),) = duckdb.sql(f"SELECT count(*) FROM '{tmp_path / 'summary.csv'}'").fetchall()
    assert policies == len(sizes)
    ((found,),) = duckdb.sql(
        f"SELECT count(*) FROM '{tmp_path / 'seen.parquet'}' "
        "WHERE policy = 'offload-linear' AND seen IN ('plain', 'recoverable') "
        "AND tensors NOT IN ('weights', 'other activations')"
    ).fetchall()
    n = data["choose"]["policies"].index("offload-linear")
    assert found == data["choose"]["axes"]["seen"]["values"][n]


@pytest.mark.slow
def test_the_command_is_copied(opened, pages):
    with opened(pages["tee-gpu"], changed=True) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("#copy").click()
        page.wait_for_function("document.querySelector('#copy').textContent === 'Copied'")
        assert page.evaluate("navigator.clipboard.readText()") == page.text_content("#command")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, pages, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with opened(pages["tee-gpu"], color_scheme=scheme, changed=True) as page:
        found = axe.Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


def luminance(colour):
    """Of ``rgb(...)``, as WCAG 2 has it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


COLOURS = """() => {
    const style = selector => getComputedStyle(document.querySelector(selector));
    return { paper: style('body').backgroundColor, ink: style('h1').color,
             soft: style('.caption').color, tick: style('#draw-layers .tick-x').fill,
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
            const widths = [...document.querySelectorAll('svg.plot')].map(
                one => one.getBoundingClientRect().width);
            printed.push([getComputedStyle(document.body).backgroundColor, Math.max(...widths),
                document.querySelectorAll('svg.plot').length]);
        }); }""")
        assert seen is None
        pdf = page.pdf(format="A4", print_background=True)
        ((paper, widest, plots),) = page.evaluate("printed")
        assert luminance(paper) == pytest.approx(1)
        assert widest <= 705  # A4 less two margins of 12 mm, in CSS pixels
        assert plots >= 7
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
        page.wait_for_function("!document.documentElement.classList.contains('print')")
        assert luminance(page.evaluate(COLOURS)["paper"]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [360, 768, 1280, 1920, 2560])
def test_a_page_is_as_wide_as_the_screen_and_cuts_no_figure(opened, pages, name, width):
    with opened(pages[name], width=width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        cut = page.evaluate(CUT)
        assert cut == []


CUT = """() => {
    const cut = [], wide = innerWidth + 1;
    for (const cell of document.querySelectorAll('#policies td, #scores p, #scores span, #seen td')) {
        const box = cell.getBoundingClientRect();
        if (box.width && (box.right > wide || cell.scrollWidth > cell.clientWidth + 1 &&
            getComputedStyle(cell).display !== 'inline')) cut.push(cell.textContent);
    }
    for (const wide of document.querySelectorAll('#policies .wide'))
        if (wide.scrollWidth > wide.clientWidth + 1) cut.push(`${wide.scrollWidth} px of columns`);
    for (const text of document.querySelectorAll('svg.plot text')) {
        const box = text.getBoundingClientRect();
        if (box.width && (box.right > wide || box.left < -1)) cut.push(text.textContent);
    }
    return cut;
}"""


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
@pytest.mark.parametrize("width", [360, 1280])
def test_labels_do_not_lie_on_each_other(opened, pages, width):
    with opened(pages["tee-gpu"], width=width) as page:
        for selector in (
            "#draw-layers .tick-x",
            "#draw-calls .tick-y",
            "#draw-growth .tick-x",
            "#draw-growth .tick-y",
            "#draw-model .tick-x",
            "#draw-time .tick-x",
            "#draw-time .slot-name",
            "#draw-growth .end-label",
            "svg.block .box text",
            "#draw-flows .node-label",
            "#draw-roofline-0 text.halo",
            "#draw-roofline-1 text.halo",
            "#draw-choose text.halo",
        ):
            count, overlapping = page.evaluate(OVERLAPS, selector)
            assert count > 1, selector
            assert overlapping == [], selector


@pytest.mark.slow
def test_all_126_layers_are_drawn_and_another_policy_too(browser, tmp_path):
    """In how many seconds is in bench/report.py; here that it is not many times more."""
    deep = trace_to(tmp_path / "deep", "edge-10m", "--seq", "128", "--set", "num_hidden_layers=126")
    policies = ["offload-linear", "flash-attention", "min-cut-norm-home", "host-chip"]
    words = [word for name in policies for word in ("--policy", name)]
    path = tmp_path / "deep.html"
    ran = invoke("cutedge", "report", deep.folder, *TEE_GPU, "--out", path, *words)
    assert ran.returncode == 0, ran.stderr
    assert path.stat().st_size < 5e6
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(path.as_uri())
    page.wait_for_function("document.documentElement.dataset.drawn")
    assert int(page.evaluate("document.documentElement.dataset.drawn")) < 10_000
    assert page.locator("#draw-layers .bars").count() >= 126
    page.select_option("#policy", label="host-chip")
    page.wait_for_function(
        "document.querySelector('#draw-block').textContent.includes('host-chip')"
    )
    page.context.close()


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
    names = ["policies", "seen", "model", "block", "flows", "layers", "calls", "growth"]
    assert taken[1] == [f"{tmp_path}/b-{name}.png" for name in names]
    for first, second in zip(*taken, strict=True):
        picture = Path(first).read_bytes()
        assert picture == Path(second).read_bytes(), first
        assert picture.startswith(b"\x89PNG")
        wide, high = struct.unpack(">II", picture[16:24])
        assert wide == 2240
        assert high > 200
        assert len(picture) > wide * high / 100  # nothing drawn is a twentieth of that
