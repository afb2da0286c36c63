"""Why the blocks were as long as they were: step costs, acceptance by position and lengths chosen, as plain text."""

from collections.abc import Iterable

from flashdraft.control.controller import Controller
from flashdraft.spec_decode.metrics import RequestMetrics


def explain(controller: Controller | None, metrics: RequestMetrics) -> str:
    """What ``controller`` (None: block sizes were fixed) knows by now, and what it chose over ``metrics``."""
    rounds = {length: count for length, count in enumerate(metrics.verified_histogram) if count}
    plain, length = metrics.num_plain_rounds, metrics.acceptance_length
    lines = [
        f"Rounds: {metrics.num_rounds}, {plain} of them plain; acceptance length {length:.2f}.",
        _line("tokens verified", rounds),
        _line("rounds", rounds.values()),
    ]
    if controller:
        costs, model = controller.costs, controller.acceptance
        widths, (offset, slope) = (1, *sorted(model.blocks)), model.weights
        lines = [
            "Step costs in milliseconds, measured or, for many tokens, foretold at the start, and corrected since:",
            _line("one request, tokens", widths),
            _line("target", 1e3 * costs.verify(1, widths)),
            _line("drafter", 1e3 * costs.draft_seconds([int(width > 1) for width in widths], widths)),
            f"The last steps took {costs.pace:.2f} times as long.",
            "Chance that a draft token and all before it are accepted, over all requests:",
            _line("draft token", range(1, model.max_block)),
            _line("percent", 100 * model.usual[0]),
            f"Of a draft that is there, log odds of a token are {offset:.2f} + {slope:.2f} times the drafter's.",
            *lines,
        ]
    return "\n".join(lines)


def _line(name: str, values: Iterable[float]) -> str:
    told = (str(value) if isinstance(value, int) else f"{value:.3g}" for value in values)
    return f"  {name:<24}" + "".join(f" {one:>5}" for one in told)
