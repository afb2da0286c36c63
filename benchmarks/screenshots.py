"""Pictures from a real server in a real Chromium and from a real terminal: docs/images, and others to look at.

    python benchmarks/screenshots.py --look /tmp/pictures

Needs Debian's chromium and tmux; nothing else should run: race and terminal show speeds. In docs/images: chat, race in
dark, phone, terminal. To look at: the chat in dark, the page's errors, the documentation.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from time import sleep

from playwright.sync_api import Browser, Page, expect, sync_playwright
from rich.console import Console
from rich.text import Text
from served_process import start_server

REPO = Path(__file__).parents[1]
IMAGES = REPO / "docs" / "images"
# The embedded target answers it rightly, with code and prose that fit on a screen.
PROMPT = "Write a short Python function that tells if a word is a palindrome."
COLUMNS, LINES = 120, 34  # of the terminal
TMUX = ["tmux", "-L", "flashdraft-pictures"]  # a server of its own: its environment is ours


def ask(page: Page, prompt: str) -> None:
    """Send it and wait until the answer is whole."""
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_be_enabled()


def pages(browser: Browser, url: str, look: Path) -> Page:
    """Chat, race and phone; the page, left open in light."""
    page = browser.new_page(viewport={"width": 1180, "height": 640})
    page.goto(url)
    page.fill("#max-tokens", "200")
    ask(page, PROMPT)
    page.screenshot(path=IMAGES / "playground-chat.png")
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=look / "chat-dark.png")
    page.set_viewport_size({"width": 1180, "height": 760})  # two lanes with their figures
    page.focus("#tab-chat")
    page.keyboard.press("ArrowRight")
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    expect(page.locator("#verdict b")).to_have_text(re.compile(r"\d"))
    page.screenshot(path=IMAGES / "playground-race-dark.png")
    page.emulate_media(color_scheme="light")
    page.click("#tab-chat")
    phone = browser.new_page(viewport={"width": 390, "height": 780})
    phone.goto(url)
    phone.click("#open-controls")
    phone.fill("#max-tokens", "200")
    phone.click("#open-controls")
    ask(phone, PROMPT)
    phone.screenshot(path=IMAGES / "playground-phone.png")
    return page


def refused(page: Page, look: Path) -> None:
    """A prompt that is too long."""
    page.fill("#prompt", "word " * 9000)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    page.screenshot(path=look / "error-too-long.png")


def gone(page: Page, look: Path) -> None:
    """A server that has ended."""
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    page.screenshot(path=look / "error-no-server.png")


def keyless(browser: Browser, look: Path) -> None:
    """A server that asks for a key."""
    with start_server(["--api-key", "secret"]) as server:
        page = browser.new_page(viewport={"width": 1180, "height": 760})
        page.goto(server.url)
        page.fill("#prompt", PROMPT)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("API key")
        page.screenshot(path=look / "error-key.png")


def terminal(browser: Browser, look: Path) -> None:
    """The end of `flashdraft demo` as a terminal has it."""
    command = f"{sys.executable} -m flashdraft demo; sleep 600"
    subprocess.run([*TMUX, "new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), command], check=True)
    try:
        screen = ""
        while "All: acceptance" not in screen:
            sleep(1)
            capture = [*TMUX, "capture-pane", "-e", "-p"]
            screen = subprocess.run(capture, capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run([*TMUX, "kill-server"], check=True)
    console = Console(record=True, width=COLUMNS, file=(look / "terminal.txt").open("w"), force_terminal=True)
    console.print(Text.from_ansi(screen))
    console.save_svg(str(look / "terminal.svg"), title="flashdraft demo")
    page = browser.new_page(viewport={"width": 1180, "height": 760})
    page.goto((look / "terminal.svg").as_uri())
    page.locator("svg").screenshot(path=IMAGES / "terminal-demo.png")


def documentation(browser: Browser, look: Path) -> None:
    """The first page of the built documents, and the page of results."""
    subprocess.run([sys.executable, "-m", "sphinx", "-q", REPO / "docs", look / "site"], check=True)
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    for name in ("index", "results"):
        page.goto((look / "site" / f"{name}.html").as_uri())
        page.screenshot(path=look / f"docs-{name}.png")


def main() -> None:
    """All of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--look", type=Path, default=Path("runs/pictures"), help="folder of those not in documents"
    )
    look = parser.parse_args().look.absolute()
    look.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=180_000)  # a race takes its time
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        with start_server([]) as server:
            page = pages(browser, server.url, look)
            refused(page, look)
        gone(page, look)
        keyless(browser, look)
        terminal(browser, look)
        documentation(browser, look)
        browser.close()


if __name__ == "__main__":
    main()
