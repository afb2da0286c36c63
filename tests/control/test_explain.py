"""What is told of the chosen lengths, as people read it."""

from flashdraft.control.explain import explain
from flashdraft.spec_decode.metrics import RequestMetrics
from flashdraft.spec_decode.tree import DraftTree


def test_many_rounds_are_counted_to_the_last_one() -> None:
    """A served engine has had more rounds than a column is wide: none is rounded, and no two numbers touch."""
    metrics = RequestMetrics()
    metrics.record_plain_rounds(1_234_567)
    for _ in range(1234):
        metrics.record_round(DraftTree([5, 6], [-1, 0], [0.0, 0.0]), 1)
    lines = [line.split() for line in explain(None, metrics).splitlines()]
    assert lines[1:] == [["tokens", "verified", "1", "3"], ["rounds", "1234567", "1234"]]
