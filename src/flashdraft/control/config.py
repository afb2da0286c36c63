"""The controller's constants: what each means, its unit, and what it was measured to bring (docs/controller.md)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ControllerConfig:
    """Shares and chances lie in 0 .. 1; log odds are natural. benchmarks/controller_ablation.py switches each off."""

    prices: tuple[float, ...] = (0.0, 0.03, 0.07, 0.14, 0.25, 0.4, 0.6, 0.8)
    """Chances above which a planned token is verified; the plan takes the best of them."""

    block_shares: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Blocks that may be drafted, as shares of the drafter's largest."""

    kept_draft: float = 0.7
    """Weight that a request's earlier drafts keep when it drafts again: drafts come in streaks."""

    kept_plain: float = 0.97
    """Weight that they keep in a plain round."""

    kept_first: float = 0.9
    """Weight that the first drafts of other requests keep when another request drafts first."""

    first_weight: float = 0.45
    """Weight of those first drafts beside a request's only draft; half as much beside two."""

    prior_rate: float = 0.7
    """Chance of a draft token before anything is known."""

    prior_slope: float = 0.8
    """Log odds that a token is accepted, for each of the drafter's own, before anything is learned."""

    offset_variance: float = 0.1
    """What is not known of the offset of those log odds at first, as a variance."""

    slope_variance: float = 0.02
    """The same of the slope."""

    remembered: float = 0.9995
    """Share of what is known of both that is still known a step later."""

    probe_share: float = 0.003
    """Share of the time that may go into finding out whether drafting has come to pay."""

    patience: int = 8
    """Plain rounds before a request's first probe; doubled by each probe that brings nothing."""

    most_patience: int = 256
    """The longest wait between two probes, in rounds."""

    plan_steps: int = 12
    """Steps that one plan serves: planning takes the host's time."""

    uneven_plan_steps: int = 3
    """Steps that a plan serves in which not all requests draft: a draft is like the last one, not like the tenth."""

    most_in_vain: int = 2
    """Steps in a row of which no draft token is accepted, behind which a plan ends."""

    observed_rounds: int = 8
    """Rounds over which the price of handing the drafter a committed token is spread: it serves them all."""


DEFAULTS = ControllerConfig()
