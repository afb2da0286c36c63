"""The comparison with other engines (benchmarks/peers): what is asked of whom, and what its table says."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("compare", FOLDER / "compare.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules.pop("systems", None)
    return module


def test_every_group_is_full_and_no_prompt_is_asked_twice(compare: ModuleType) -> None:
    wanted = {1: 5, 8: 2, 16: 1, 32: 2}
    groups = list(compare.groups(wanted))
    ids = [prompt.id for _, _, prompts in groups for prompt in prompts]
    assert len(ids) == len(set(ids))
    assert all(len(prompts) == concurrency for concurrency, _, prompts in groups)
    assert Counter(concurrency for concurrency, _, _ in groups) == wanted


def test_every_system_has_a_port_and_a_label_of_its_own(compare: ModuleType) -> None:
    systems = compare.all_systems()
    assert (
        len({compare.port_of(s) for s in systems}) == len({compare.label(s) for s in systems}) == len(systems)
    )


def test_the_table_gives_rates_as_ratios_of_sums(compare: ModuleType, tmp_path: Path) -> None:
    def row(system: str, idx: int, seconds: float, length: float | None) -> dict[str, object]:
        told = {"system": system, "round": idx, "concurrency": 8, "num_requests": 8, "num_output_tokens": 808}
        return told | {"wall_s": seconds, "acceptance_length": length, "ttft_p50_s": 0.1}

    rows = [row("flashdraft AR (bf16)", 0, 8.0, None), row("flashdraft AR (bf16)", 1, 8.0, None)]
    rows += [row("vLLM AR (bf16)", 0, 8.0, 2.0), row("vLLM AR (bf16)", 1, 24.0, 4.0)]
    run = {
        "run": {
            "settings": {"max_tokens": 101, "rounds": {"8": 2}},
            "provenance": {"num_threads": 2, "git_sha": "abc"},
        }
    }
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [run, *rows])))
    told = compare.report(tmp_path / "rows.jsonl")
    assert "| vLLM AR (bf16) | 50.5 (0.50x, 0.33 to 1.00) | 2.67 | 100 |" in told
    assert "| flashdraft AR (bf16) | 101.0 (1.00x) |" in told
    assert "101 tokens an answer" in told
    assert "Rounds: 2 of 8 prompts." in told
    assert "git_sha: abc" in told
