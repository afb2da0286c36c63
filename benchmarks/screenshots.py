"""The playground's pictures in docs/images, from a real server in a real Chromium: chat, race in dark, phone.

python benchmarks/screenshots.py        # needs Debian's chromium; nothing else should run: the race shows speeds
"""

import re
import shutil
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright
from served_process import start_server

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PROMPT = "Natalia sold clips to 48 of her friends in April, and half as many in May. How many did she sell altogether?"


def ask(page: Page, prompt: str) -> None:
    """Send it and wait until the answer is whole."""
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_be_enabled(timeout=60_000)


def main() -> None:
    with start_server([]) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1180, "height": 760})
        page.goto(server.url)
        page.fill("#max-tokens", "160")
        ask(page, PROMPT)
        page.screenshot(path=IMAGES / "playground-chat.png")
        page.emulate_media(color_scheme="dark")
        page.focus("#tab-chat")
        page.keyboard.press("ArrowRight")
        page.fill("#prompt", PROMPT)
        page.keyboard.press("Enter")
        expect(page.locator("#verdict b")).to_have_text(re.compile(r"\d"), timeout=60_000)
        page.screenshot(path=IMAGES / "playground-race-dark.png")
        phone = browser.new_page(viewport={"width": 390, "height": 780})
        phone.goto(server.url)
        phone.click("#open-controls")
        phone.fill("#max-tokens", "120")
        phone.click("#open-controls")
        ask(phone, PROMPT)
        phone.screenshot(path=IMAGES / "playground-phone.png")
        browser.close()


if __name__ == "__main__":
    main()
