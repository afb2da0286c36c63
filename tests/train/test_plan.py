"""The plan for many GPUs that the guide names is what its script computes from today's networks."""

import runpy
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_the_committed_plan_is_the_computed_one() -> None:
    script = runpy.run_path(str(REPO / "benchmarks" / "train_plan.py"))
    computed = script["document"]("qwen3.5-27b", script["PLANS"])
    assert computed == (REPO / "benchmarks" / "results" / "train_plan.md").read_text()


def test_the_plan_counts_what_a_process_holds() -> None:
    script = runpy.run_path(str(REPO / "benchmarks" / "train_plan.py"))
    pair = script["Pair"]("qwen3-4b")
    assert pair.layers + pair.whole == 4_022_468_096  # as its checkpoint on the hub
    one = script["Plan"](1, 1, False, num_gpus=1, gpus_per_host=1)
    assert script["memory"](pair, one)["target's layers, this GPU's part"] == 2 * pair.layers
    assert pair.largest_share(1) == pair.draft
    assert pair.draft / 64 < pair.largest_share(64) < pair.draft / 10
