"""The playground in a real browser, on a laptop and a phone, light and dark."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from guard.serving import LOOSE, fitted, offline_reply, running, text_that_is
from refusalscope.guard.serve.settings import KEY_VARIABLE
from refusalscope.prompts import Prompt

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.browser

OUTPUT = Path(__file__).resolve().parents[2] / "test-output" / "playground"
SCREENS = {"laptop": (1280, 800), "phone": (390, 844)}
KEY = "open-sesame"


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("no chromium on this machine: install Debian's chromium to run browser tests")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        with running() as server:
            yield server


@pytest.fixture
def visit(browser, server):
    opened = []

    def open_page(screen: str = "laptop", scheme: str = "light"):
        width, height = SCREENS[screen]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        opened.append(context)
        page = context.new_page()
        page.troubles, page.asked = [], []
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on("console", lambda message: page.troubles.append(message.text))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(f"{server.url}/playground")
        page.get_by_text("builtin:chat, blocking: flag").wait_for()
        return page

    yield open_page
    for context in opened:
        context.close()


def ask(page, text: str, key: str = KEY) -> None:
    page.get_by_label("Request").fill(text)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Ask").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("flagged", [False, True])
def test_a_request_shows_belief_refusal_and_the_whole_reply(visit, server, screen, scheme, flagged):
    page = visit(screen, scheme)
    text = text_that_is(flagged)
    ask(page, text)
    page.wait_for_selector("html[data-done=stop]", state="attached")
    belief = fitted().beliefs([Prompt("x", text)], LOOSE)[0]
    assert page.locator("#reply").text_content() == offline_reply(text)
    assert page.locator("#flag").text_content() == ("Flagged" if flagged else "Not flagged")
    assert page.locator("#quadrant").text_content().startswith(belief.quadrant)
    for place, value in (("harm", belief.delta_harmful), ("refuse", belief.delta_refuse)):
        shown = page.locator(f"#{place}-number").text_content().replace("−", "-")
        assert float(shown) == pytest.approx(value, abs=6e-4)
    # Bar and threshold lie on one axis: the bar's end is past the line if and only if the prompt is flagged.
    fill = page.locator("#harm .fill").bounding_box()
    end = fill["x"] + (fill["width"] if belief.delta_harmful >= 0 else 0)
    assert (end > page.locator("#harm .tau").bounding_box()["x"]) == flagged
    assert page.locator("#rows > div").count() == len(belief.per_layer)
    tall = [box["height"] for box in (one.bounding_box() for one in page.locator("#rows i").all())]
    assert tall.index(max(tall)) == max(
        range(len(belief.per_layer)), key=lambda i: abs(belief.per_layer[i])
    )
    page.locator("summary").click()
    assert page.locator("#categories tr").count() == 13 + len(belief.per_category) - 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.troubles == []
    assert all(url.startswith((server.url, "data:,")) for url in page.asked)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=OUTPUT / f"{screen}-{scheme}-{flagged}.png", full_page=True)


def test_blocking_withholds_the_reply_and_says_why(visit):
    page = visit()
    page.get_by_label("Block when flagged").check()
    ask(page, text_that_is(True))
    page.wait_for_selector("html[data-done=content_filter]", state="attached")
    assert page.locator("#reply").text_content() == ""
    assert "above the threshold" in page.locator("#end").text_content()
    assert page.troubles == []


def test_the_page_opens_without_the_key_and_a_call_needs_it(visit):
    page = visit()
    ask(page, "How do I bake bread?", key="wrong")
    page.get_by_role("alert").wait_for()
    assert "API key is missing or wrong" in page.get_by_role("alert").text_content()
    assert page.locator("#seen").is_hidden()
    ask(page, "How do I bake bread?")
    page.wait_for_selector("html[data-done]", state="attached")
    assert page.get_by_role("alert").is_hidden()


def test_what_is_typed_is_text_and_never_markup(visit):
    page = visit()
    ask(page, "<img src=x onerror=alert(1)> What is <b>bread</b>?")
    page.wait_for_selector("html[data-done]", state="attached")
    assert page.locator("main img, main b").count() == 0
    assert page.troubles == []
