"""Why the blocks were as long as they were: step costs, acceptance by position and lengths chosen, as plain text."""

from collections.abc import Iterable

from flashdraft.control.controller import Controller
from flashdraft.spec_decode.metrics import RequestMetrics

_SHOWN = 1, 2, 4, 8, 16, 32, 64, 128, 256


def explain(controller: Controller | None, metrics: RequestMetrics) -> str:
    """What ``controller`` (None: block sizes were fixed) knows by now, and what it chose over ``metrics``."""
    rounds = {length: count for length, count in enumerate(metrics.verified_histogram) if count}
    accepted = f"acceptance length {metrics.acceptance_length:.2f}"
    lines = [
        f"Rounds: {metrics.num_rounds}, {metrics.num_plain_rounds} of them plain; {accepted}.",
        _line("tokens verified", rounds),
        _line("rounds", rounds.values()),
    ]
    if controller:
        costs, model = controller.costs, controller.acceptance
        blocks, (offset, slope) = sorted(model.blocks), model.weights
        lines = [
            "Step costs in milliseconds, measured or, for many tokens, foretold at the start, and corrected since:",
            _line("requests, plain", _SHOWN),
            _line("target", _ms(costs.forward_seconds(_SHOWN, _SHOWN))),
            _line("one request, tokens", (1, *blocks)),
            _line("target", _ms(costs.forward_seconds(1, (1, *blocks)))),
            _line("drafter", _ms([0.0, *(float(costs.draft_seconds(1, block)) for block in blocks)])),
            f"The last steps took {costs.pace:.2f} times as long.",
            "Chance that a draft token and all before it are accepted, over all requests:",
            _line("draft token", range(1, model.max_block)),
            _line("percent", [f"{100 * chance:.0f}" for chance in model.usual[0]]),
            f"Of a draft that is there, log odds of a token are {offset:.2f} + {slope:.2f} times the drafter's.",
            *lines,
        ]
    return "\n".join(lines)


def _line(name: str, values: Iterable[object]) -> str:
    return f"  {name:<24}" + "".join(f"{value!s:>6}" for value in values)


def _ms(seconds: Iterable[float]) -> list[str]:
    return [f"{1e3 * one:.1f}" for one in seconds]
