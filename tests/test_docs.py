"""README and docs/: links that lead somewhere, and tables that are what the result files say."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

from flashdraft.cli.main import COMMANDS
from scripts import scripts

REPO = Path(__file__).parent.parent
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md"), *(REPO / "benchmarks").glob("*.md")])


@pytest.fixture(scope="module")
def tables() -> Any:
    """benchmarks/tables.py as a module."""
    with scripts("benchmarks", "tables") as (module,):
        return module


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def links_and_anchors(page: Path) -> tuple[list[str], set[str]]:
    """Where a page leads to, and what can be linked to on it."""
    tokens = MarkdownIt().enable("table").parse(page.read_text())
    inline = [child for token in tokens for child in token.children or ()]
    links = [str(child.attrs["href"]) for child in inline if child.type == "link_open"]
    links += [str(child.attrs["src"]) for child in inline if child.type == "image"]
    headings = [after for token, after in pairwise(tokens) if token.type == "heading_open"]
    return links, {slug(heading.content) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links_and_anchors(page)[0]:
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = unquote(link).partition("#")
        aim = (page.parent / path).resolve() if path else page
        if not aim.exists() or (anchor and anchor not in links_and_anchors(aim)[1]):
            broken.append(link)
    assert not broken, f"{page.relative_to(REPO)} links to what is not there: {broken}"


def test_every_guide_is_reached_from_the_index() -> None:
    index = REPO / "docs/index.md"
    reached = {(index.parent / link.partition("#")[0]).resolve() for link in links_and_anchors(index)[0]}
    docs = {page for page in PAGES if page.is_relative_to(REPO / "docs") and page != index}
    missing = {str(page.relative_to(REPO)) for page in docs - reached if page.parent.name != "log"}
    assert not missing, f"docs/index.md does not name {sorted(missing)}"


def test_every_entry_of_the_log_has_a_line_in_its_list() -> None:
    led_to = set(links_and_anchors(REPO / "docs" / "log.md")[0])
    for month in (REPO / "docs" / "log").glob("*.md"):
        entries = re.findall(r"^## (.*)$", month.read_text(), re.MULTILINE)
        missing = [one for one in entries if f"log/{month.name}#{slug(one)}" not in led_to]
        assert (bool(entries), missing) == (True, [])


def test_every_benchmark_is_in_the_list() -> None:
    told = (REPO / "benchmarks/README.md").read_text()
    scripts = {file.name for file in (REPO / "benchmarks").glob("*.py")}
    missing = {name for name in scripts if f"`{name}`" not in told}
    assert not missing, (
        f"benchmarks/README.md does not name {sorted(missing)}: question, command, result, date"
    )


def test_the_readme_names_every_command() -> None:
    table = (REPO / "README.md").read_text().partition("## Commands")[2].partition("## More")[0]
    names = {command.__name__ for commands in COMMANDS.values() for command in commands}
    assert set(re.findall(r"`(\w+)`", table)) == names


def test_tables_are_what_the_result_files_say(tables: Any) -> None:
    stale = [str(page.relative_to(REPO)) for page in tables.stale_pages()]
    assert not stale, f"run benchmarks/tables.py: {stale}"


def test_a_changed_figure_is_found(tables: Any) -> None:
    text = (REPO / "README.md").read_text()
    assert tables.filled(text) == text
    changed = re.sub(r"\d\.\d\dx", "9.99x", text, count=1)
    assert changed != text
    assert tables.filled(changed) == text


def test_an_unknown_table_is_an_error(tables: Any) -> None:
    with pytest.raises(KeyError, match="no-such"):
        tables.filled("<!-- table: no-such -->\n<!-- /table -->")


def test_the_site_is_built_without_a_warning_and_has_the_api(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "-q", REPO / "docs", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "reference/api.html").read_text()
    for name in (
        "flashdraft.llm.LLM.generate",
        "flashdraft.sampling_params.SamplingParams.top_p",
        "Drafts.propose",
    ):
        assert f'{name}"' in api, name
    assert "class LastTime" in re.sub("<[^>]*>", "", (tmp_path / "how-to/own-drafter.html").read_text())
