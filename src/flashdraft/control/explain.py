"""Why the blocks were as long as they were: step costs, acceptance by position and lengths chosen, as plain text."""

from collections.abc import Iterable

from flashdraft.control.controller import Controller
from flashdraft.control.step_costs import StepCosts
from flashdraft.spec_decode.metrics import RequestMetrics


def explain(controller: Controller | None, metrics: RequestMetrics) -> str:
    """What ``controller`` (None: block sizes were fixed) knows by now, and what it chose over ``metrics``."""
    if controller is None:
        return _rounds(metrics)
    return f"{_costs(controller.costs)}\n{_acceptance(controller)}\n{_rounds(metrics)}"


def _costs(costs: StepCosts) -> str:
    tokens = [round(count) for count in costs.verify.num_tokens]
    lines = [
        "Step costs in milliseconds, measured or, for many tokens, foretold at the start, and corrected since:",
        _line("tokens in the forward", tokens),
        _line("target, with its logits", _ms(costs.verify(tokens))),
        _line("drafter", _ms(costs.draft(tokens))),
        f"Each further request adds {1e3 * costs.verify_row_s:.1f} to the target's and"
        f" {1e3 * costs.draft_row_s:.1f} to the drafter's; logits of one token are {1e3 * costs.logits_s:.2f} of it."
        f" The host takes {1e3 * costs.host_s:.1f} a step. The last steps took {costs.pace:.2f} times as long.",
    ]
    return "\n".join(lines)


def _acceptance(controller: Controller) -> str:
    model = controller.acceptance
    lines = [
        "Chance that a draft token is accepted once it is reached, over all requests:",
        _line("draft token", range(1, model.max_block)),
        _line("percent", [f"{100 * rate:.0f}" for rate in model.rates]),
    ]
    if model.foresees:
        lines.append(
            f"Of a draft that is there, log odds of a token are {model.offset:.2f} + {model.slope:.2f} times those"
            " that the drafter gives it."
        )
    return "\n".join(lines)


def _rounds(metrics: RequestMetrics) -> str:
    counts = metrics.verified_histogram
    lengths = [length for length, count in enumerate(counts) if count]
    lines = [
        f"Rounds: {metrics.num_rounds}, {metrics.num_plain_rounds} of them plain; acceptance length"
        f" {metrics.acceptance_length:.2f}.",
        _line("tokens verified", lengths),
        _line("rounds", [counts[length] for length in lengths]),
    ]
    return "\n".join(lines)


def _line(name: str, values: Iterable[object]) -> str:
    return f"  {name:<24}" + "".join(f"{value!s:>6}" for value in values)


def _ms(seconds: Iterable[float]) -> list[str]:
    return [f"{1e3 * one:.1f}" for one in seconds]
