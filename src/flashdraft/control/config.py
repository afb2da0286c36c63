"""The controller's constants: what each means and its unit. What each is worth: docs/controller.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ControllerConfig:
    """Shares and chances lie in 0 .. 1. benchmarks/controller_constants.py moves each."""

    prices: tuple[float, ...] = (0.03, 0.1, 0.25, 0.5)  # chances above which a planned token is verified
    block_shares: tuple[float, ...] = (1.0, 0.5, 0.25)  # blocks, as shares of the drafter's largest
    kept_draft: float = 0.7  # weight that what a request's drafts were keeps at each: they come in streaks
    kept_usual: float = 0.98  # the same of all requests' drafts: new requests start from it
    prior_rate: float = 0.7  # chance of a draft token before anything is known
    prior_weight: float = 5.0  # that a drafter is as right as it says: as of 50 fairly sure tokens
    prior_offset: float = 1.0  # the same that it is so on the whole
    kept_calibration: float = 0.998  # share of what is known of confidence that is still known a step later
    most_confidence: float = 7.0  # log odds that a drafter's token has at most
    most_taught: int = 8  # drafts of one recorded step that teach: it is over soon
    probe_share: float = 0.003  # of the time that may go into finding out whether drafting has come to pay
    plan_steps: int = 4  # that one plan serves: planning takes the host's time
    recorded_plan_steps: int = 12  # the same of recorded steps, which are over sooner
    recorded_probe_steps: int = 2  # of a probe; the first waits for what plain ones left to the drafter
    learn_steps: int = 16  # in one of so many seconds are learned, unless recorded; each of the first so many


DEFAULTS = ControllerConfig()
