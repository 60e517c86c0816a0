"""The page in a real browser: opened from disk, no network, laptop and phone, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from refusalscope.report import write_report
from report.fake_cliff import fake_cliff_tables, write_fake_cliff
from report.fake_features import write_fake_features
from report.fake_routing import write_fake_routing
from report.fake_writes import fake_writes
from report.test_page import evil_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.browser

OUTPUT = Path(__file__).resolve().parents[2] / "test-output" / "report"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENS = {"laptop": (1280, 800), "phone": (390, 844)}
N_PLOTS = 10
N_ROUTING_PLOTS = 13
N_FEATURES_PLOTS = 11
N_CLIFF_PLOTS = 5
N_REPAIR_PLOTS = 8
N_GUARD_PLOTS = 9
N_BELIEF_PLOTS = 17


@pytest.fixture(scope="module")
def browser() -> Iterator:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("no chromium on this machine: install Debian's chromium to run browser tests")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """An open page, and what went wrong or was asked for while it was open."""

    def __init__(self, browser, path: Path, screen: str, scheme: str) -> None:
        width, height = SCREENS[screen]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.drawn(scheme)

    def drawn(self, scheme: str) -> None:
        # Not wait_for_function: it evaluates text, which the page's own policy forbids.
        self.page.wait_for_selector(f"html[data-drawn={scheme}]", state="attached")

    def ask(self, expression: str):
        return self.page.evaluate(expression)


@pytest.fixture
def visit(browser) -> Iterator:
    visits: list[Visit] = []

    def open_page(*arguments) -> Visit:
        visits.append(Visit(browser, *arguments))
        return visits[-1]

    yield open_page
    for each in visits:
        each.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_draws_and_fits_without_a_network(visit, report: Path, screen: str, scheme: str):
    seen = visit(report, screen, scheme)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    seen.page.screenshot(path=OUTPUT / f"{screen}-{scheme}.png", full_page=True)
    assert seen.troubles == []
    assert {url for url in seen.requests if url != "data:,"} == {report.as_uri()}
    plots = "[...document.querySelectorAll('.plot')]"
    marks = "'.scatterlayer .trace path, .heatmaplayer image'"
    assert seen.ask(f"{plots}.filter(p => p.querySelector('.main-svg')).length") == N_PLOTS
    assert seen.ask(f"{plots}.filter(p => p.querySelector({marks})).length") == N_PLOTS
    assert seen.ask("document.documentElement.scrollWidth <= innerWidth")
    wider = f"{plots}.filter(p => p.querySelector('.main-svg').clientWidth > p.clientWidth + 1)"
    assert seen.ask(f"{wider}.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_of_a_routing_run_draws_and_fits(
    visit, routing_report: Path, screen: str, scheme: str
):
    seen = visit(routing_report, screen, scheme)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    seen.page.screenshot(path=OUTPUT / f"routing-{screen}-{scheme}.png", full_page=True)
    assert seen.troubles == []
    assert {url for url in seen.requests if url != "data:,"} == {routing_report.as_uri()}
    plots = "[...document.querySelectorAll('.plot')]"
    marks = "'.scatterlayer .trace path, .heatmaplayer image'"
    assert seen.ask(f"{plots}.filter(p => p.querySelector({marks})).length") == N_ROUTING_PLOTS
    seen.ask("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert seen.ask("document.documentElement.scrollWidth <= innerWidth")
    wider = f"{plots}.filter(p => p.querySelector('.main-svg').clientWidth > p.clientWidth + 1)"
    assert seen.ask(f"{wider}.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_of_a_features_run_draws_and_fits(
    visit, features_report: Path, screen: str, scheme: str
):
    seen = visit(features_report, screen, scheme)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    seen.page.screenshot(path=OUTPUT / f"features-{screen}-{scheme}.png", full_page=True)
    assert seen.troubles == []
    assert {url for url in seen.requests if url != "data:,"} == {features_report.as_uri()}
    plots = "[...document.querySelectorAll('.plot')]"
    marks = "'.scatterlayer .trace path, .heatmaplayer image'"
    assert seen.ask(f"{plots}.filter(p => p.querySelector({marks})).length") == N_FEATURES_PLOTS
    seen.ask("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert seen.ask("document.documentElement.scrollWidth <= innerWidth")
    wider = f"{plots}.filter(p => p.querySelector('.main-svg').clientWidth > p.clientWidth + 1)"
    assert seen.ask(f"{wider}.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("cliff", N_CLIFF_PLOTS),
        ("repair", N_REPAIR_PLOTS),
        ("guard", N_GUARD_PLOTS),
        ("belief", N_BELIEF_PLOTS),
    ],
)
def test_the_pages_of_cliff_repair_guard_and_belief_draw_and_fit(
    visit, request: pytest.FixtureRequest, name: str, n: int, screen: str, scheme: str
):
    page = request.getfixturevalue(f"{name}_report")
    seen = visit(page, screen, scheme)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    seen.page.screenshot(path=OUTPUT / f"{name}-{screen}-{scheme}.png", full_page=True)
    assert seen.troubles == []
    assert {url for url in seen.requests if url != "data:,"} == {page.as_uri()}
    plots = "[...document.querySelectorAll('.plot')]"
    marks = "'.scatterlayer .trace path, .heatmaplayer image'"
    assert seen.ask(f"{plots}.filter(p => p.querySelector({marks})).length") == n
    seen.ask("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert seen.ask("document.documentElement.scrollWidth <= innerWidth")
    wider = f"{plots}.filter(p => p.querySelector('.main-svg').clientWidth > p.clientWidth + 1)"
    assert seen.ask(f"{wider}.length") == 0


@pytest.mark.parametrize("screen", SCREENS)
def test_a_single_trace_opens_without_a_script_and_fills_its_width(
    visit, cliff_report: Path, screen: str
):
    seen = visit(cliff_report, screen, "light")
    trail = seen.page.locator(".trail").first
    assert not trail.locator("svg").is_visible()
    trail.locator("summary").click()
    line, frame = trail.locator("polyline").bounding_box(), trail.locator("svg").bounding_box()
    assert line["width"] > 0.8 * frame["width"]
    # It falls from high to low where the thinking ends.
    assert line["height"] > 0.6 * frame["height"]
    assert trail.locator(".point").count() == 3
    assert seen.troubles == []


@pytest.mark.parametrize("screen", SCREENS)
def test_long_traces_of_a_deep_model_draw_every_figure(visit, tmp_path: Path, screen: str):
    run = write_fake_cliff(tmp_path / "run", tables=fake_cliff_tables((64, 40), 1_500))
    seen = visit(write_report(run), screen, "light")
    assert seen.troubles == []
    assert seen.page.locator("#figure-cliff-curve .plot").count() == 2
    seen.ask("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert seen.ask("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("screen", SCREENS)
def test_the_rows_of_a_set_of_writes_stand_level_and_fit(visit, tmp_path: Path, screen: str):
    run = write_fake_features(tmp_path / "run", tables=fake_writes())
    seen = visit(write_report(run), screen, "light")
    assert seen.troubles == []
    assert seen.ask("document.documentElement.scrollWidth <= innerWidth")
    plots = seen.page.locator("#figure-features-set .plot")
    assert plots.count() == 2
    ticks = [plots.nth(i).locator(".yaxislayer-above .ytick text") for i in range(2)]
    names = [each.all_text_contents() for each in ticks]
    assert names[0] == names[1]
    assert len(names[0]) == 7
    first, second = (each.first.bounding_box() for each in ticks)
    if screen == "laptop":
        assert abs(first["y"] - second["y"]) < 4
    else:
        assert second["y"] > first["y"] + 100


def test_the_table_of_arms_shows_all_its_columns_on_a_laptop(visit, features_report: Path):
    seen = visit(features_report, "laptop", "light")
    table = "document.querySelector('#table-features-baselines .scroll')"
    assert seen.ask(f"{table}.scrollWidth <= {table}.clientWidth + 1")


@pytest.mark.parametrize("screen", SCREENS)
def test_an_arm_tells_its_numbers_within_its_panel(visit, features_report: Path, screen: str):
    seen = visit(features_report, screen, "light")
    plot = seen.page.locator("#figure-features-baselines .plot")
    # The marks at full strength come after the line of their arm; the first is the set's.
    mark = plot.locator(".scatterlayer .trace").nth(1).locator(".point")
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = plot.locator(".hovertext")
    label.wait_for()
    text = label.text_content()
    assert "the set (pool/0)strength 1.00" in text
    assert "flips 85" in text
    inner, outer = label.bounding_box(), plot.bounding_box()
    for start, size in (("x", "width"), ("y", "height")):
        assert inner[start] >= outer[start] - 1
        assert inner[start] + inner[size] <= outer[start] + outer[size] + 1


def test_the_features_of_a_deep_model_draw_every_figure(visit, tmp_path: Path):
    run = write_fake_features(tmp_path / "run", size=(80, 1_000))
    seen = visit(write_report(run), "phone", "light")
    assert seen.troubles == []
    assert seen.ask("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("screen", SCREENS)
def test_a_head_of_the_map_tells_its_numbers_within_its_panel(
    visit, routing_report: Path, screen: str
):
    seen = visit(routing_report, screen, "light")
    plot = seen.page.locator("#figure-routing-map .plot").first
    layer = plot.locator(".nsewdrag")
    layer.scroll_into_view_if_needed()
    box = layer.bounding_box()
    # The gate: layer 2 of 8 from below, head 4 of 6 from the left.
    seen.page.mouse.move(box["x"] + box["width"] * 4.5 / 6, box["y"] + box["height"] * 5.5 / 8)
    label = plot.locator(".hovertext")
    label.wait_for()
    text = label.text_content()
    assert "L2.H4, gate" in text
    assert "sufficiency" in text
    assert "drives 3, driven by 0" in text
    inner, outer = label.bounding_box(), plot.bounding_box()
    for start, size in (("x", "width"), ("y", "height")):
        assert inner[start] >= outer[start] - 1
        assert inner[start] + inner[size] <= outer[start] + outer[size] + 1


def test_a_large_models_routing_draws_every_figure(visit, tmp_path: Path):
    run = write_fake_routing(tmp_path / "run", size=(80, 64))
    seen = visit(write_report(run), "phone", "light")
    assert seen.troubles == []
    assert seen.ask("document.documentElement.scrollWidth <= innerWidth")
    drawn = "document.querySelectorAll('#figure-routing-map .heatmaplayer image').length"
    assert seen.ask(drawn) == 3


def test_printing_a_routing_run_keeps_to_the_paper(visit, routing_report: Path):
    seen = visit(routing_report, "laptop", "dark")
    seen.ask("dispatchEvent(new Event('beforeprint'))")
    seen.drawn("light")
    seen.page.emulate_media(media="print")
    widest = (
        "Math.max(...[...document.querySelectorAll('.main-svg, table')].map(s => s.clientWidth))"
    )
    assert seen.ask(widest) <= 690
    assert seen.troubles == []


def test_folded_numbers_open_without_widening_the_page(visit, report: Path):
    seen = visit(report, "phone", "light")
    seen.ask("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert seen.ask("document.documentElement.scrollWidth <= innerWidth")
    assert seen.ask(
        "[...document.querySelectorAll('.scroll')].some(b => b.scrollWidth > b.clientWidth)"
    )


def test_the_toggle_recolours_page_and_figures(visit, report: Path):
    seen = visit(report, "laptop", "light")
    ground = "getComputedStyle(document.body).backgroundColor"
    paper = "document.querySelector('.plot .main-svg').style.background"
    before = seen.ask(f"[{ground}, {paper}]")
    seen.page.get_by_role("button", name="Dark theme").click()
    seen.drawn("dark")
    after = seen.ask(f"[{ground}, {paper}]")
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert seen.page.get_by_role("button", name="Light theme").is_visible()
    seen.page.reload()
    seen.drawn("dark")
    assert seen.troubles == []


def test_a_change_of_the_systems_theme_is_followed(visit, report: Path):
    seen = visit(report, "laptop", "light")
    seen.page.emulate_media(color_scheme="dark")
    seen.drawn("dark")


def test_printing_is_light_and_keeps_to_the_paper(visit, report: Path):
    seen = visit(report, "laptop", "dark")
    seen.ask("dispatchEvent(new Event('beforeprint'))")
    seen.drawn("light")
    widest = "Math.max(...[...document.querySelectorAll('.main-svg')].map(s => s.clientWidth))"
    assert seen.ask(widest) <= 690
    seen.ask("dispatchEvent(new Event('afterprint'))")
    seen.drawn("dark")
    assert seen.troubles == []


def test_scripts_that_came_with_the_data_do_not_run(visit, tmp_path: Path):
    seen = visit(write_report(evil_run(tmp_path / "run")), "laptop", "light")
    assert seen.ask("window.hacked") is None
    assert seen.troubles == []
