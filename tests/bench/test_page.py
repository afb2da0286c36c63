"""Charts and the page: everything drawn, nothing fetched, themes by variables, files that are what they say."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flashdraft.bench.page import html_page
from flashdraft.bench.plots import ROLES, charts_of, figure_file, panel_svg
from flashdraft.bench.report import markdown
from flashdraft.bench.results import BenchRow, Measurement, aggregate
from flashdraft.bench.rows_file import Results, RowsFile, merged
from flashdraft.errors import UsageError
from flashdraft.spec_decode.metrics import RequestMetrics

RUN = {"settings": {"model": "<b>x</b>"}, "provenance": {"git_sha": "abc"}}


def measurement(
    method: str, block_size: int, task: str, prompt: str, concurrency: int, wall_s: float
) -> Measurement:
    is_plain = method == "AR"
    metrics = RequestMetrics(
        num_rounds=30 if is_plain else 10,
        num_output_tokens=31,
        accepted_histogram=[30] if is_plain else [2, 2, 2, 4],
        prefill_s=0.1 * wall_s,
        decode_s=0.9 * wall_s,
        draft_s=0.0 if is_plain else 0.2 * wall_s,
        verify_s=0.6 * wall_s,
    )
    return Measurement(task, prompt, 0, 0, method, block_size, concurrency, 0, 9, "length", wall_s, 0.1 * wall_s,
                       wall_s, {3: 10}, metrics, 0.0, None, None)  # fmt: skip


def measurements(task: str = "gsm8k") -> list[Measurement]:
    return [
        measurement(method, size, task, prompt, concurrency, wall_s * (1 + number) / concurrency)
        for concurrency in (1, 8)
        for number, prompt in enumerate(("a", "b", "c"))
        for method, size, wall_s in (("AR", 1, 2.0), ("DFlash", 16, 0.8), ("DFlash", 8, 1.0))
    ]


def rows() -> list[BenchRow]:
    return aggregate([*measurements(), *measurements("mbpp")])


def test_every_chart_has_its_panels_and_lines() -> None:
    charts = {chart.name: chart for chart in charts_of(rows())}
    assert {name: list(chart.panels) for name, chart in charts.items()} == {
        "speedup": ["gsm8k", "mbpp"],
        "frontier": ["gsm8k", "mbpp"],
        "acceptance": ["gsm8k", "mbpp"],
        "time": ["concurrency 1", "concurrency 8"],
    }
    for chart in charts.values():
        for panel in chart.panels:
            svg = panel_svg(chart, panel)
            ElementTree.fromstring(svg)
            assert f"{chart.title}: {panel}" in svg
            assert "DFlash B16" in svg
            assert "var(--ink)" in svg
            assert not re.search(r"#0000[01]\d", svg), "a role was left without its variable"
    for part in ("draft", "verify", "host"):
        assert f"var(--{part})" in panel_svg(charts["time"], "concurrency 8")


def test_plain_decoding_alone_is_drawn_as_far_as_it_goes() -> None:
    alone = aggregate([m for m in measurements() if m.method == "AR"])
    assert [chart.name for chart in charts_of(alone)] == ["frontier", "time"]
    results = Results([RUN])
    assert "<svg" in html_page(alone, markdown(alone, results))


def test_the_page_needs_nothing_else_and_escapes_what_it_is_told() -> None:
    page = html_page(rows(), markdown(rows(), Results([RUN])), "A <title>")
    assert {url.split("/")[2] for url in re.findall(r"https?://[^\"'<> ]+", page)} == {"www.w3.org"}
    assert not re.search(r"(?:src|href)=\"(?!#)|@import|<script", page)
    assert "<b>x</b>" not in page
    assert "A &lt;title&gt;" in page
    assert "2.50x" in page
    for role, (light, dark) in ROLES.items():
        assert page.count(f"--{role}: {light};") == page.count(f"--{role}: {dark};") == 1
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_figures_are_files_of_their_form_and_the_same_twice() -> None:
    chart = charts_of(rows())[0]
    assert figure_file(chart, "png").startswith(b"\x89PNG")
    svg = figure_file(chart, "svg")
    assert svg == figure_file(chart, "svg")
    assert ROLES["dflash"][0].encode() in svg
    assert b"var(" not in svg


def test_files_are_merged_but_no_answer_counts_twice(tmp_path: Path) -> None:
    parts = [Results([RUN], measurements()), Results([RUN], measurements("mbpp"))]
    both = merged(parts)
    assert (len(both.runs), both.measurements) == (2, parts[0].measurements + parts[1].measurements)
    with pytest.raises(UsageError, match="two files measured AR 1 on a at concurrency 1"):
        merged([parts[0], parts[0]])
    merged([parts[0], Results([RUN], [replace(m, repeat=1) for m in measurements()])])
    RowsFile(tmp_path / "rows.jsonl", {}, {}).start([])
    with pytest.raises(UsageError, match="run bench first"):
        merged([Results()])
