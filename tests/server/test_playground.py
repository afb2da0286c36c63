"""The page: its files ask for nothing elsewhere, speak of what the API has, and work in a real Chromium."""

import asyncio
import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

import flashdraft.server
import patient
from flashdraft.engine.types import StepOutput
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
# Of lib/marked.esm.js in marked 18.2.1 of npm, without its last line.
MARKED_SHA256 = "c622dc6824a1c92c2d10ea9ede2fc872e46128afcc34b298e6ddee6f387ace8e"
expect.set_options(timeout=1000 * patient.PATIENCE_S)
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
        if not file.name.startswith("marked."):  # not ours: its comments name its home
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|innerHTML", served.text)
    ids = set(re.findall(r'\bid="([\w-]+)"', page.text))
    for script in ("playground.js", "race.js"):
        assert set(re.findall(r'\$\("([\w-]+)"\)', (FOLDER / script).read_text())) <= ids


def test_the_vendored_renderer_is_the_released_one_with_its_licence() -> None:
    text = (FOLDER / "marked.js").read_bytes()
    assert hashlib.sha256(text).hexdigest() == MARKED_SHA256
    assert b"marked v18.2.1" in text
    assert (
        "MIT" in (FOLDER / "marked.LICENSE").read_text()
        or "Permission is hereby granted" in (FOLDER / "marked.LICENSE").read_text()
    )


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
    assert not [fault for fault in faults if "status of 400" not in fault and "net::ERR_FAILED" not in fault]


# By the page itself: a short race may end before a hand would be there.
SKIP_AT_ONCE = """() => {
  const skip = document.querySelector("#skip");
  new MutationObserver((_, observer) => {
    if (skip.hidden) return;
    observer.disconnect();
    window.isSkipped = true;
    skip.click();
  }).observe(skip, { attributes: true });
}"""


@in_chromium
def test_a_prompt_streams_in_colour_and_a_race_is_run(page: Page) -> None:
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_be_enabled()
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
    page.evaluate(SKIP_AT_ONCE)
    page.keyboard.type(PROMPT)
    page.keyboard.press("Enter")
    expect(page.locator("#verdict b")).to_have_text(re.compile(r"\d+\.\d\d×"))
    expect(page.locator("#race-title")).to_have_text(f"{PROMPT} tiny")
    assert page.evaluate("window.isSkipped")
    expect(page.locator("#skip")).to_be_hidden()
    expect(page.locator("#verdict")).to_contain_text("The same text, token for token.")
    assert page.locator("#lane-plain .accepted").count() == 0 < page.locator("#lane-dflash .accepted").count()
    assert page.locator("#lane-plain .figures dd").last.inner_text() == "none"


@pytest.fixture
def endless(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers begin, and go on until nobody waits for them."""
    generate = running.service.engine.generate

    async def held(*args: Any) -> AsyncGenerator[StepOutput, None]:
        async with contextlib.aclosing(generate(*args)) as steps:
            said = ""
            async for step in steps:
                yield step
                said += step.text
                if len(said) > 20:
                    await asyncio.Event().wait()

    monkeypatch.setattr(running.service.engine, "generate", held)


@in_chromium
@pytest.mark.usefixtures("endless")
def test_an_answer_is_stopped_by_escape_and_a_bad_wish_is_told(page: Page) -> None:
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    expect(page.locator("#chat .text span").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#chat .note")).to_have_text("Stopped.")
    cards = page.locator("#chat article").count()
    page.fill("#prompt", "x" * 5000)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("shorten it")
    expect(page.get_by_role("alert")).to_be_in_viewport()
    assert page.input_value("#prompt") == "x" * 5000
    assert page.locator("#chat article").count() == cards


MARKDOWN = """Some **bold** text, `code` and a [link](https://example.com) to <b>see</b>.

1. one
2. two with ![a picture](http://elsewhere.example/p.png)

```python
def f(x):
    return "<script>" + x
```

| a | b |
| --- | ---: |
| 1 | 2 |

> [bad](javascript:alert(1)) <img src=x onerror=alert(2)>
"""


def answer_with(page: Page, text: str, reason: str = "stop") -> None:
    """The server's next answers are ``text``, two letters a token, drafted and not in turns."""
    tokens = [text[i : i + 2] for i in range(0, len(text), 2)]
    origins = [("accepted", "bonus")[i % 2] for i in range(len(tokens))]
    chunks = [
        {"delta": {"content": token}, "token_texts": [token], "token_origins": [origin], "num_drafted": 1}
        for token, origin in zip(tokens, origins, strict=True)
    ]
    chunks[-1]["finish_reason"] = reason
    events = [f"data: {json.dumps({'choices': [chunk]})}\n\n" for chunk in chunks]
    body = "".join([*events, "data: [DONE]\n\n"])
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body)
    )


def ask(page: Page, prompt: str) -> None:
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_be_enabled()


@in_chromium
def test_markdown_is_drawn_in_the_tokens_colours_and_nothing_in_it_is_run(page: Page) -> None:
    answer_with(page, MARKDOWN)
    ask(page, "hello")
    text = page.locator("#chat .text")
    assert text.locator("strong").inner_text() == "bold"
    assert text.locator("ol li > div:first-child").all_inner_texts() == ["1.", "2."]
    assert text.locator("ol li > div:first-child > span").count() >= 2  # in their tokens' colours
    assert text.locator("table td").all_inner_texts() == ["1", "2"]
    assert text.locator("pre").inner_text() == 'def f(x):\n    return "<script>" + x'
    assert text.locator("a").evaluate_all("all => all.map(one => one.href)") == [
        "https://example.com/",
        "http://elsewhere.example/p.png",
    ]
    assert text.locator("img, script, b").count() == 0
    assert "<img src=x onerror=alert(2)>" in text.inner_text()
    assert "<b>see</b>" in text.inner_text()
    drawn = text.locator("span")
    kinds = set(drawn.evaluate_all("all => all.map(one => one.className)"))
    assert kinds == {"accepted", "bonus"}
    widths = drawn.evaluate_all("all => all.map(one => one.textContent.length)")
    assert max(widths) <= 2, "a span holds what several tokens said"


@in_chromium
def test_code_and_answers_are_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer_with(page, MARKDOWN)
    ask(page, "hello")
    for button, expected in (
        (".code button", 'def f(x):\n    return "<script>" + x'),
        (".tools button", MARKDOWN),
    ):
        page.locator(button).first.click()
        expect(page.locator(button).first).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == expected


@in_chromium
def test_a_conversation_its_settings_and_its_marks_survive_a_reload(page: Page) -> None:
    page.fill("#system", "Be brief.")
    ask(page, PROMPT)
    expect(page.locator("#chat .note")).to_have_text("Cut at 60 tokens: Max tokens, under Settings.")
    before = page.locator("#chat").inner_text()
    coloured = page.locator("#chat .text .accepted").count()
    rounds = page.locator("#chat .round").count()
    assert coloured
    page.reload()
    assert page.locator("#chat").inner_text() == before
    assert page.locator("#chat .text .accepted").count() == coloured
    assert page.locator("#chat .round").count() == rounds
    assert (page.input_value("#system"), page.input_value("#max-tokens")) == ("Be brief.", "60")
    page.click("#clear")
    assert page.locator("#chat article").count() == 0
    page.locator("#talks button").first.click()
    assert page.locator("#chat").inner_text() == before
    page.locator("#talks button").nth(1).click()
    expect(page.locator("#talks li")).to_have_count(0)


@in_chromium
def test_a_cut_answer_tells_its_own_limit_whatever_the_settings_are_later(page: Page) -> None:
    ask(page, PROMPT)
    answer_with(page, "yes", "length")
    ask(page, "and now?")
    notes = [
        "Cut at 60 tokens: Max tokens, under Settings.",
        "Cut at 2 tokens: the model’s context ends here",
    ]
    expect(page.locator("#chat .note")).to_contain_text(notes)
    page.fill("#max-tokens", "200")
    page.reload()
    expect(page.locator("#chat .note")).to_contain_text(notes)


@in_chromium
def test_a_question_is_edited_and_an_answer_made_again(page: Page) -> None:
    asked: list[list[dict[str, str]]] = []
    answer_with(page, "yes")
    page.on(
        "request",
        lambda request: request.post_data and asked.append(json.loads(request.post_data)["messages"]),
    )
    page.fill("#system", "Be brief.")
    ask(page, "one")
    ask(page, "two")
    page.locator("#chat article").first.get_by_text("Edit").click()
    assert page.input_value("#prompt") == "one"
    expect(page.locator(".replaced")).to_have_count(4)
    page.keyboard.press("Escape")
    expect(page.locator(".replaced")).to_have_count(0)
    page.keyboard.press("ArrowUp")
    assert page.input_value("#prompt") == "two"
    ask(page, "three")
    page.locator("#chat article").first.get_by_text("Again").click()
    expect(page.locator("#send")).to_be_enabled()
    said = [[message["content"] for message in messages] for messages in asked]
    assert said == [
        ["Be brief.", "one"],
        ["Be brief.", "one", "yes", "two"],
        ["Be brief.", "one", "yes", "three"],
        ["Be brief.", "one"],
    ]
    assert page.locator("#chat .user").all_inner_texts() == ["one"]


@in_chromium
def test_a_server_that_is_gone_is_told_and_nothing_is_lost(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.fill("#prompt", "a long question")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The server does not answer. Is it still running?")
    assert page.input_value("#prompt") == "a long question"
    assert page.locator("#chat .turn").count() == 0
    page.unroute("**/v1/chat/completions")
    ask(page, PROMPT)
    expect(page.get_by_role("alert")).to_have_count(0)


@in_chromium
def test_a_key_is_asked_for_and_the_question_kept(llm: LLM) -> None:
    with serving(llm, api_keys=("secret",)) as locked, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = browser.new_page()
        page.goto(locked.url)
        page.fill("#max-tokens", "20")
        for key in ("", "wrong"):
            page.fill("#key", key)
            page.fill("#prompt", PROMPT)
            page.keyboard.press("Enter")
            alert = page.get_by_role("alert")
            expect(alert).to_have_text("This server asks for an API key: put it under Settings.")
            expect(alert).to_be_in_viewport()
            assert page.input_value("#prompt") == PROMPT
            expect(page.locator("#key")).to_be_focused()
            assert page.locator("#chat .turn").count() == 0
        page.fill("#key", "secret")
        page.focus("#prompt")
        page.keyboard.press("Enter")
        expect(page.locator("#send")).to_be_enabled()
        expect(page.locator("#chat article .text")).not_to_be_empty()
        assert "secret" not in page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})")
        browser.close()


@in_chromium
def test_an_answer_is_saved_as_an_image(page: Page) -> None:
    answer_with(page, MARKDOWN)
    ask(page, "hello")
    with page.expect_download() as download:
        page.get_by_text("Image", exact=True).click()
    png = Path(download.value.path()).read_bytes()
    assert download.value.suggested_filename == "flashdraft.png"
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == 1920


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
    expect(page.locator("#send")).to_be_enabled()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    ink, card = page.evaluate(
        "['color', 'backgroundColor'].map(name => getComputedStyle(document.querySelector('article'))[name])"
    )
    assert (brightness(ink) > brightness(card)) == (scheme == "dark")


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))
