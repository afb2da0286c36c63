"""The page: its files ask for nothing elsewhere, speak of what the API has, and work in a real Chromium."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

import flashdraft.server
from flashdraft.llm import LLM
from server_case import Running, serving

FOLDER = Path(flashdraft.server.__file__).parent / "playground"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
)
PROMPT = "a a a a"  # its answer repeats itself, so that some drafts are accepted
in_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium on the path (Debian: apt-get install chromium)"
)


def test_the_page_and_its_assets_ask_for_nothing_elsewhere(running: Running) -> None:
    page = running.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    wanted = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page.text)
    assert sorted(wanted) == ["assets/playground.css", "assets/playground.js"]
    for file in FOLDER.iterdir():
        served = running.get(f"/assets/{file.name}")
        assert served.text == file.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import", served.text)
    ids = set(re.findall(r'\bid="([\w-]+)"', page.text))
    assert set(re.findall(r'\$\("([\w-]+)"\)', (FOLDER / "playground.js").read_text())) <= ids


def test_the_page_is_open_where_keys_are_asked(llm: LLM) -> None:
    with serving(llm, api_keys=("key",)) as locked:
        for path in ("/", "/assets/playground.js"):
            assert locked.get(path).status_code == 200
        assert locked.get("/assets/../../config.py").status_code in (401, 404)


@pytest.fixture
def page(running: Running) -> Iterator[Page]:
    """The page in a real browser; an error of its scripts is one of the test."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        one = browser.new_page()
        faults: list[str] = []
        one.on("pageerror", lambda error: faults.append(str(error)))
        one.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        one.goto(running.url)
        one.fill("#max-tokens", "60")
        one.fill("#block", "8")  # auto would first measure this machine
        yield one
        browser.close()
    assert not [fault for fault in faults if "status of 400" not in fault]


@in_chromium
def test_a_prompt_streams_in_colour_and_a_race_is_run(page: Page) -> None:
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_be_enabled(timeout=20_000)
    answer = page.locator("#chat article")
    for origin in ("accepted", "bonus", "plain"):
        assert answer.locator(f".text .{origin}").count() > 0
    colours = answer.locator(".text span").evaluate_all(
        "all => all.map(one => getComputedStyle(one).backgroundColor)"
    )
    assert len(set(colours)) == 3
    rounds = answer.locator(".round")
    accepted = rounds.evaluate_all("all => all.reduce((sum, one) => sum + (parseInt(one.title) || 0), 0)")
    figures = answer.locator(".figures div").all_inner_texts()
    told = dict(figure.split("\n") for figure in figures)
    assert told["drafts accepted"].startswith(f"{accepted} of ")
    assert int(told["tokens"]) == accepted + rounds.count() + 1
    length = (int(told["tokens"]) - 1) / rounds.count()
    assert float(told["acceptance length"]) == pytest.approx(length, abs=0.006)
    assert re.fullmatch(r"\d+ ms", told["TTFT"])

    page.focus("#tab-chat")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("/")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Enter")
    expect(page.locator("#verdict b")).to_have_text(re.compile(r"\d+\.\d\d×"), timeout=40_000)
    expect(page.locator("#verdict")).to_contain_text("The same text, token for token.")
    assert page.locator("#lane-plain .accepted").count() == 0 < page.locator("#lane-dflash .accepted").count()


@in_chromium
def test_an_answer_is_stopped_by_escape_and_a_bad_wish_is_told(page: Page) -> None:
    page.fill("#max-tokens", "900")
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    expect(page.locator("#chat .text span").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_enabled()
    page.fill("#max-tokens", "60")
    page.fill("#prompt", "x" * 5000)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("shorten it")


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(page: Page, scheme: str) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.click("#open-controls")
    expect(page.locator("#block")).to_be_in_viewport()
    page.click("#open-controls")
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_be_enabled(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    ink, card = page.evaluate(
        "['color', 'backgroundColor'].map(name => getComputedStyle(document.querySelector('article'))[name])"
    )
    assert (brightness(ink) > brightness(card)) == (scheme == "dark")


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))
