"""The controller's constants: what each means, its unit, and what it was measured to bring (docs/controller.md)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ControllerConfig:
    """Shares and chances lie in 0 .. 1. benchmarks/controller_ablation.py moves each."""

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

    prior_weight: float = 5.0
    """How much it weighs at first that a drafter is as right as it says: as 50 fairly sure tokens do."""

    kept_calibration: float = 0.9995
    """Share of what is known of a drafter's confidence that is still known a step later."""

    probe_plans: int = 16
    """In one of so many plans a request that would not draft does: whether it has come to pay."""

    probe_rate: float = 0.5
    """Share of the best plan's tokens a second that it must bring, or it is too dear."""

    plan_steps: int = 4
    """Steps that one plan serves: planning takes the host's time."""

    recorded_plan_steps: int = 12
    """The same of recorded steps, which are over sooner."""

    cost_steps: int = 4
    """In one of so many steps seconds are learned, which takes time too."""


DEFAULTS = ControllerConfig()
