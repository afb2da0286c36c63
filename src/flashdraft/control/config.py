"""The controller's constants: what each means, its unit, and what it was measured to bring (docs/controller.md)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ControllerConfig:
    """Shares and chances lie in 0 .. 1. benchmarks/controller_ablation.py switches each off."""

    prices: tuple[float, ...] = (0.03, 0.1, 0.25, 0.5)
    """Chances above which a planned token is verified; the plan takes the best of them."""

    block_shares: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Blocks that may be drafted, as shares of the drafter's largest."""

    kept_draft: float = 0.7
    """Weight that what a request's drafts were keeps when it drafts again: drafts come in streaks."""

    kept_usual: float = 0.98
    """Weight that what all requests' drafts were keeps at each draft: new requests start from it."""

    prior_rate: float = 0.7
    """Chance of a draft token before anything is known."""

    probe_share: float = 0.003
    """Share of the time that may go into finding out whether drafting has come to pay."""

    plan_steps: int = 4
    """Steps that one plan serves: planning takes the host's time."""

    recorded_plan_steps: int = 12
    """The same of recorded steps, which are over sooner."""


DEFAULTS = ControllerConfig()
