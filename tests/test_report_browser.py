"""The report in a real browser: it opens without an error or a request, and its parts work."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from report_runs import hostile_run, many_layers, small_run
from torch import nn

import zanalysis as za
from hooks import RankTracker, every
from zanalysis.runfile import RunWriter, Series

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next(filter(None, map(shutil.which, BROWSERS)), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = pytest.mark.skipif(
    FOUND is None, reason=f"none of these browsers is installed: {', '.join(BROWSERS)}"
)

# Whatever these find when the page is left is a failure of any test.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=FOUND)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Open pages from the disk; at the end none may have asked for anything, complained or been acted upon."""
    contexts, faults, pages = [], [], []

    def opened(path, width=1280, height=900, drawn=True, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.add_init_script(WATCH)
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request", lambda request: None if request.url == path.as_uri() else faults.append(request.url)
        )
        page.goto(path.as_uri())
        if drawn:
            page.wait_for_selector("html[data-ready]", state="attached")
        pages.append(page)
        return page

    yield opened
    for page in pages:
        faults += page.evaluate("window.violations")
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Make each page once, when it is first asked for."""
    folder = tmp_path_factory.mktemp("pages")
    makers = {"cnn": small_run, "hostile": hostile_run, "many": many_layers}
    made = {}

    def page(name):
        if name not in made:
            made[name] = za.report(makers[name](folder / f"{name}.h5"), folder / f"{name}.html")
        return made[name]

    return page


DRAW_ALL = """async (within) => {
  const plots = [...document.querySelectorAll(within + " .plot")];
  for (const plot of plots) {
    plot.scrollIntoView({ behavior: "instant" });
    const drawn = () => plot.querySelector(".main-svg");
    for (let wait = 0; wait < 3000 && !drawn(); wait++) await new Promise((then) => setTimeout(then, 20));
  }
  return plots.map((plot) => plot.data.map((trace) => [trace.type ?? "scatter", trace.name ?? ""]));
}"""


def traces(page, within):
    """Return type and name of what each chart draws, having scrolled past all of them."""
    return page.evaluate(DRAW_ALL, within)


def column(page, index):
    return page.eval_on_selector_all(
        f"#values tbody tr:not([hidden]) > :nth-child({index + 1})",
        "cells => cells.map(c => c.dataset.key ?? c.textContent)",
    )


def test_the_charts_are_there(visit, pages):
    page = visit(pages("cnn"))
    panels = traces(page, "#panels")
    names = ["no reference, τ default", "minus init, τ default"]
    assert len(panels) == 3  # one for each layer
    for panel in panels:
        assert [name for _, name in panel if name in names] == names
    assert page.locator("#panels .scatterlayer path.js-line").count() == 6
    assert [[kind for kind, _ in chart] for chart in traces(page, "#overview")] == [["heatmap"]]
    assert [chart[0][1] for chart in traces(page, "#logged-panels")] == ["loss", "accuracy"]
    spectra = traces(page, "#spectrum-panels")
    assert [kind for chart in spectra for kind, _ in chart] == ["heatmap"] * 3
    images = page.eval_on_selector_all(
        "#spectrum-panels .heatmaplayer image", "all => all.map(i => i.getAttribute('href').length)"
    )
    assert len(images) == 3
    assert min(images) > 100
    assert (
        page.locator("#spectrum-panels .plot")
        .first.get_attribute("aria-label")
        .startswith("Heat map of the 4 largest")
    )
    # Steps chosen in one place hold in every chart.
    page.fill("#from", "4")
    page.fill("#to", "10")
    page.press("#to", "Enter")
    page.evaluate("document.querySelector('#panels .plot').scrollIntoView({behavior: 'instant'})")
    # A chart out of sight follows when it comes into sight.
    page.wait_for_function(
        "() => [...document.querySelectorAll('#panels .plot')].every(plot => plot.layout.xaxis.range.join() === '4,10')"
    )
    page.click("#all-steps")
    # A line of the legend is hidden and shown again.
    page.click("#legend button >> nth=0")
    assert page.locator("#legend button").first.get_attribute("aria-pressed") == "false"
    assert [[name for _, name in panel if name in names] for panel in traces(page, "#panels")] == [
        names[1:]
    ] * 3
    page.select_option("#kind", label="stable_rank")
    assert "‖W‖_F²" in page.inner_text("#says")


def test_the_table_sorts_and_filters_by_keyboard_too(visit, pages):
    page = visit(pages("cnn"))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    header = page.locator("#values th", has_text="latest")
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    numbers = [float(key) for key in column(page, 5)]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 5
    page.keyboard.press("Space")
    assert header.get_attribute("aria-sort") == "descending"
    assert [float(key) for key in column(page, 5)] == sorted(numbers, reverse=True)
    page.locator("#values th button", has_text="metric").click()
    assert header.get_attribute("aria-sort") == "none"
    page.fill("#row-filter", "init")
    page.select_option("#row-metric", "stable_rank")
    assert page.inner_text("#row-count") == f"3 of {len(numbers)} rows"
    assert set(column(page, 3)) == {"init"}
    page.check("#row-odd")
    assert page.inner_text("#row-count") == f"0 of {len(numbers)} rows"


def test_names_from_a_file_do_nothing(visit, pages):
    page = visit(pages("hostile"))
    traces(page, "#panels")
    traces(page, "#overview")
    traces(page, "#logged-panels")
    # Plotly would read this as bold type, and an entity.
    assert page.locator("#logged-panels .ytitle").all_text_contents()[-1] == "<b>loss</b>&amp;"
    traces(page, "#spectrum-panels")
    page.select_option("#kind", "all")
    assert len(traces(page, "#panels")) == 12
    for plot in page.locator("#panels .nsewdrag").all()[:2]:
        plot.hover()
    # Four scripts: the two islands, the page's own, and the drawing library.
    assert page.evaluate("document.scripts.length") == 4
    assert page.locator("img, iframe, object, embed, a:not([href^='#'])").count() == 0
    assert (
        page.evaluate(
            "[...document.querySelectorAll('*')].some(e => [...e.attributes].some(a => a.name.startsWith('on')))"
        )
        is False
    )
    titles = page.locator("#panels h3").all_inner_texts()
    assert titles[0].startswith("<script>alert(1)</script> · rank")
    assert r"a\u202egnp.exe · rank" in titles
    assert page.title() == "hostile.h5 · zanalysis report"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def contrasts(page):
    """Return the least contrast (WCAG 2) of texts and of lines with what is behind them."""
    return page.evaluate((Path(__file__).parent / "report_contrast.js").read_text())


@pytest.mark.slow
def test_dark_mode_by_preference_and_by_button(visit, pages):
    page = visit(pages("cnn"), color_scheme="dark")
    traces(page, "#panels")
    dark = contrasts(page)
    assert dark["back"] < 40
    assert dark["charts"] > 10
    assert dark["text"][0] >= 4.5, dark
    assert dark["line"] >= 3
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: light"
    page.wait_for_function("document.querySelector('#panels .plot').layout.font.color === '#1b1f24'")
    light = contrasts(page)
    assert light["back"] > 240
    assert light["text"][0] >= 4.5, light
    assert light["line"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "hostile"])
def test_a_phone_scrolls_in_one_direction(visit, pages, name):
    page = visit(pages(name), width=390, height=844, has_touch=True, is_mobile=True, device_scale_factor=2)
    traces(page, "#panels")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        "[...document.querySelectorAll('.plot .main-svg')].filter(s => s.getBoundingClientRect().right > 390).length"
    )
    assert wide == 0
    assert page.evaluate("document.querySelector('#panels .plot').layout.dragmode") is False


@pytest.mark.slow
def test_an_empty_run_says_so(visit, tmp_path):
    RunWriter(tmp_path / "a.h5", [Series("a", "weight", "none", "default", "rank")]).close()
    page = visit(za.report(tmp_path / "a.h5", tmp_path / "a.html"), drawn=False)
    assert "Nothing is recorded yet" in page.inner_text("#warnings")
    assert page.locator(".plot").count() == 0


@pytest.mark.slow
def test_many_layers_are_shown_a_few_at_a_time(visit, pages):
    page = visit(pages("many"))
    assert len(traces(page, "#panels")) == 12
    assert page.inner_text("#panel-count") == "12 of 130 panels."
    page.click("#more")
    assert page.locator("#panels figure").count() == 24
    page.fill("#layer", "layers.12")
    assert page.locator("#panels h3").all_inner_texts() == [
        f"model.layers.{i}.attention.query" for i in (12, *range(120, 130))
    ]
    page.fill("#layer", "")
    page.click("#every")
    assert page.locator("#panels figure").count() == 130
    # Only what is near the window is drawn.
    assert page.locator("#panels .plot:has(.main-svg)").count() < 60


@pytest.mark.slow
def test_gaps_are_drawn_with_their_reason(visit, tmp_path):
    model = nn.Linear(6, 5)
    with RankTracker(model, path=tmp_path / "a.h5", schedule=every(1)) as tracker:
        for step in range(10):
            if step == 3:
                kept = model.weight.detach().clone()
                model.weight.data.fill_(torch.nan)
            if step == 6:
                model.weight.data.copy_(kept)
            tracker.step()
    page = visit(za.report(tmp_path / "a.h5", tmp_path / "a.html"))
    (panel, _) = traces(page, "#panels")
    assert ["scatter", "no number"] in panel
    said = page.evaluate(
        "document.querySelector('#panels .plot').data.find(t => t.name === 'no number').text[0]"
    )
    assert said == "steps 4 to 6: nonfinite, 3 records"
    assert "Gaps: nonfinite." in page.inner_text("#panels figcaption >> nth=0")
    # The line is drawn in two parts.
    line = page.locator("#panels .plot").first.locator(".scatterlayer .trace").first
    assert line.locator("path.js-line").count() == 2


@pytest.mark.slow
def test_logarithmic_axes(visit, pages):
    page = visit(pages("cnn"))
    page.check("#log-steps")
    page.check("#log-values")
    traces(page, "#panels")
    kinds = page.evaluate(
        "[...document.querySelectorAll('#panels .plot')].map(p => [p.layout.xaxis.type, p.layout.yaxis.type])"
    )
    assert kinds == [["log", "log"]] * 3
    traces(page, "#spectrum-panels")
    assert page.evaluate("Math.min(...document.querySelector('#spectrum-panels .plot').data[0].x)") > 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["cnn", "hostile"])
def test_axe_finds_no_fault(visit, pages, name, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    page = visit(pages(name), color_scheme=scheme)
    for part in ("#panels", "#overview", "#logged-panels", "#spectrum-panels"):
        traces(page, part)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    report = axe.Axe().run(page)
    faults = [
        (one["id"], [node["html"][:120] for node in one["nodes"]][:3])
        for one in report.response["violations"]
    ]
    assert faults == []


def test_every_column_that_can_be_sorted_is_a_button(visit, pages):
    page = visit(pages("cnn"), drawn=False)
    sortable = page.locator("#values th[aria-sort]")
    assert sortable.count() == page.locator("#values th[aria-sort] button").count() == 10
    assert re.fullmatch(r"(none )*none", " ".join(h.get_attribute("aria-sort") for h in sortable.all()))
