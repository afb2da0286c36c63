"""Step costs of a pair on a named GPU, from its data sheet and how much of that servers reach.

A forward takes the time to read its bytes, plus the time of its operations, plus a time a layer (launches,
synchronisation). What share of the data sheet is reached, that time, and what a round of drafting costs beside its
forwards are fitted to published measurements (bench/published.py), never guessed; with ``IDEAL`` it is the bare
roofline with nothing overlapped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import inf, log
from typing import Any

import torch

from flashdraft.models.base import build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig

_BYTES = 2  # of a weight and of a cached value in bfloat16
_STATE_BYTES = 4  # states of gated delta layers are float32


@dataclass(frozen=True)
class Gpu:
    """One GPU's data sheet: NVIDIA's, SXM variants, dense bfloat16 (without sparsity)."""

    bandwidth: float  # bytes a second
    peak: float  # operations a second


GPUS = {
    "H100": Gpu(3.35e12, 989e12),
    "H200": Gpu(4.8e12, 989e12),
    "B200": Gpu(8.0e12, 2250e12),
}


@dataclass(frozen=True)
class NetworkShape:
    """What a forward of a network reads and computes."""

    num_layers: int
    weight_bytes: float  # read once a forward: all but the rows of an embedding that is not the head
    operations_per_token: float
    kv_bytes_per_token: float
    state_bytes: float  # of one request, read and written in every forward


def target_shape(config: Any) -> NetworkShape:
    """Of the target that a transformers ``config`` describes; its weights are never made."""
    with torch.device("meta"):
        model = build_target(config)
    text = getattr(config, "text_config", None) or config
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    if not (config.tie_word_embeddings or text.tie_word_embeddings):
        num_weights -= text.vocab_size * text.hidden_size
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    num_linear = sum(kind == "linear_attention" for kind in kinds)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv_bytes = 2 * _BYTES * text.num_key_value_heads * head_dim * (len(kinds) - num_linear)
    state = 0
    if num_linear:
        state = text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim
    return NetworkShape(
        num_layers=text.num_hidden_layers,
        weight_bytes=_BYTES * num_weights,
        operations_per_token=2.0 * num_weights,
        kv_bytes_per_token=kv_bytes,
        state_bytes=2.0 * _STATE_BYTES * state * num_linear,
    )


def drafter_shape(config: DFlashConfig, target_config: Any) -> NetworkShape:
    """Of a DFlash drafter with what it drafts through: a head of its own, or rows of the target's."""
    with torch.device("meta"):
        model = DFlashModel(config)
    text = getattr(target_config, "text_config", None) or target_config
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    if model.lm_head is None:
        num_weights += (config.draft_vocab_size or text.vocab_size) * text.hidden_size
    kv_bytes = 2 * _BYTES * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    return NetworkShape(config.num_hidden_layers, _BYTES * num_weights, 2.0 * num_weights, kv_bytes, 0.0)


@dataclass(frozen=True)
class Efficiency:
    """What is reached of a data sheet."""

    bandwidth_share: float
    peak_share: float
    layer_s: float  # of each layer of a forward
    round_s: float  # of a round that drafts, beside its forwards


IDEAL = Efficiency(1.0, 1.0, 0.0, 0.0)
_FIRST_GUESS = Efficiency(0.7, 0.5, 2e-5, 1e-3)


@dataclass(frozen=True)
class RooflineCosts:
    """Costs of a pair on ``gpu``. ``context``: mean tokens behind a block."""

    gpu: Gpu
    target: NetworkShape
    drafter: NetworkShape
    context: float
    reached: Efficiency = IDEAL

    def verify_s(self, num_requests: int, block_size: int) -> float:
        """See :class:`flashdraft.bench.cost_model.Costs`."""
        return self._forward_s(self.target, num_requests, num_requests * block_size)

    def draft_s(self, num_requests: int, block_size: int) -> float:
        """See :class:`flashdraft.bench.cost_model.Costs`."""
        if block_size == 1:
            return 0.0
        return self._forward_s(self.drafter, num_requests, num_requests * block_size) + self.reached.round_s

    def prefill_s(self, num_tokens: int) -> float:
        """See :class:`flashdraft.bench.cost_model.Costs`."""
        return self._forward_s(self.target, 0, num_tokens)

    def host_s(self) -> float:
        """None beside ``layer_s`` and ``round_s``."""
        return 0.0

    def _forward_s(self, network: NetworkShape, num_requests: int, num_tokens: int) -> float:
        cached = num_requests * (self.context * network.kv_bytes_per_token + network.state_bytes)
        memory_s = (network.weight_bytes + cached) / (self.gpu.bandwidth * self.reached.bandwidth_share)
        compute_s = num_tokens * network.operations_per_token / (self.gpu.peak * self.reached.peak_share)
        return memory_s + compute_s + network.num_layers * self.reached.layer_s


@dataclass(frozen=True)
class Cell:
    """One published measurement of a pair, to fit to; None: not told."""

    costs: RooflineCosts
    concurrency: int
    block_size: int
    acceptance_length: float
    speedup: float | None
    plain_tokens_per_s: float | None

    def log_errors(self, reached: Efficiency) -> list[float]:
        """Of the steady state, prefill left out."""
        costs = replace(self.costs, reached=reached)
        plain_s = costs.verify_s(self.concurrency, 1)
        step_s = costs.verify_s(self.concurrency, self.block_size)
        step_s += costs.draft_s(self.concurrency, self.block_size)
        errors = []
        if self.plain_tokens_per_s:
            errors.append(log(self.concurrency / plain_s / self.plain_tokens_per_s))
        if self.speedup:
            errors.append(log(self.acceptance_length * plain_s / step_s / self.speedup))
        return errors


def fit_efficiency(cells: Sequence[Cell]) -> Efficiency:
    """Least squares of logarithms over ``cells``, by pattern search: each number up or down by a shrinking factor."""

    def loss(reached: Efficiency) -> float:
        if max(reached.bandwidth_share, reached.peak_share) > 1:
            return inf
        return sum(error * error for cell in cells for error in cell.log_errors(reached))

    best, factor = _FIRST_GUESS, 2.0
    while factor > 1.001:
        names = [one.name for one in fields(Efficiency)]
        tries = [
            replace(best, **{name: getattr(best, name) * step})
            for name in names
            for step in (factor, 1 / factor)
        ]
        found = min(tries, key=loss)
        if loss(found) < loss(best):
            best = found
        else:
            factor = factor**0.5
    return best
