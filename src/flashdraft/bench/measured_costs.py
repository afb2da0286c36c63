"""Step costs of a pair on this machine, measured in a few seconds by the engine's own calibration."""

from time import perf_counter

import torch

from flashdraft.bench.closed_loop import answer_all
from flashdraft.control.step_costs import StepCosts
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.engine.step_timing import measure_costs
from flashdraft.llm import LLM
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams

_HOST_TOKENS = 16


class MeasuredCosts:
    """Costs as measured; see :class:`flashdraft.bench.cost_model.Costs`."""

    def __init__(self, costs: StepCosts, logits_s: float, host_s: float) -> None:
        self.costs, self.logits_s, self._host_s = costs, logits_s, host_s

    def verify_s(self, num_requests: int, block_size: int) -> float:
        """See :class:`flashdraft.bench.cost_model.Costs`."""
        return float(self.costs.verify(num_requests, num_requests * block_size))

    def draft_s(self, num_requests: int, block_size: int) -> float:
        """See :class:`flashdraft.bench.cost_model.Costs`."""
        return float(self.costs.draft_seconds(num_requests, block_size)) if block_size > 1 else 0.0

    def prefill_s(self, num_tokens: int) -> float:
        """A forward over as many tokens of blocks, less the logits that a prompt does not need."""
        return float(self.costs.verify(1, num_tokens)) - self.logits_s * (num_tokens - 1)

    def host_s(self) -> float:
        """See :class:`flashdraft.bench.cost_model.Costs`."""
        return self._host_s


def measure_pair(llm: LLM, concurrency: int) -> MeasuredCosts:
    """Time the target and the drafter of ``llm`` for up to ``concurrency`` requests in a step."""
    assert llm.drafter is not None
    config = EngineConfig(max_running=concurrency, prefix_caching=False)
    engine = Engine(llm.target, llm.drafter, config, ())
    costs = measure_costs(engine.runner, llm.drafter.max_block_size, concurrency, is_thorough=True)
    params = SamplingParams(temperature=0.0, max_tokens=_HOST_TOKENS, ignore_eos=True)
    [answer] = answer_all(engine, [[1, 2, 3, 4]], params, llm.drafter.max_block_size, 1)
    spent, wall_s = answer.metrics, answer.wall_s
    host_s = wall_s - spent.prefill_s - spent.draft_s - spent.verify_s
    return MeasuredCosts(costs, _logits_s(llm.target), max(host_s, 0.0) / max(spent.num_rounds, 1))


@torch.inference_mode()
def _logits_s(target: TargetModel) -> float:
    """Seconds of one more token's logits."""
    seconds = []
    for num_tokens in (1, _HOST_TOKENS):
        hidden = torch.zeros(num_tokens, target.config.hidden_size, dtype=target.dtype, device=target.device)
        target.argmax(hidden).tolist()  # pays for memory
        started = perf_counter()
        target.argmax(hidden).tolist()
        seconds.append(perf_counter() - started)
    return max(seconds[1] - seconds[0], 0.0) / (_HOST_TOKENS - 1)
