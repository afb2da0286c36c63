"""Step costs of a pair on a GPU, from its data sheet and how much of that servers reach.

A forward takes the time to read its bytes and the time of its operations, together or one after the other, plus a time
a layer (launches, synchronisation). Where it verifies, gated delta layers take a block's tokens one after another: each
state follows from the one before, however many requests there are. What share of the data sheet is reached and what a
round of drafting costs beside its forwards are fitted to measurements (bench/efficiency.py), never guessed; with
``IDEAL`` it is the bare roofline with nothing overlapped.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import torch

from flashdraft.gpus import Gpu
from flashdraft.models.base import build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig
from flashdraft.models.drafter_network import DrafterNetwork, part_of

_BYTES = 2  # of a weight and of a cached value in bfloat16
_STATE_BYTES = 4  # states of gated delta layers are float32


NARROW = 32  # tokens up to which kernels for few tokens multiply, where there are such
ALL_REDUCE_S = 1.5e-5  # of a small one over NVLink; assumed, no published row tells of it

Method = Literal["dflash", "mtp"]


@dataclass(frozen=True)
class NetworkShape:
    """What a forward of a network reads and computes."""

    num_layers: int
    hidden_size: int
    weight_bytes: float  # read once a forward: all but the rows of an embedding that is not the head
    operations_per_token: float
    kv_bytes_per_token: float
    state_bytes: float = 0.0  # of one request, read and written in every forward
    num_recurrent_layers: int = 0  # gated delta layers


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
        hidden_size=text.hidden_size,
        weight_bytes=_BYTES * num_weights,
        operations_per_token=2.0 * num_weights,
        kv_bytes_per_token=kv_bytes,
        state_bytes=2.0 * _STATE_BYTES * state * num_linear,
        num_recurrent_layers=num_linear,
    )


def drafter_shape(network: DrafterNetwork, target_config: Any) -> NetworkShape:
    """Of one forward of a drafter with what it drafts through: a head of its own, or rows of the target's."""
    text = getattr(target_config, "text_config", None) or target_config
    num_weights = sum(parameter.numel() for parameter in network.parameters())
    if getattr(network, "lm_head", None) is None:
        num_weights += (network.draft_vocab_size or text.vocab_size) * text.hidden_size
    shapes, size = network.kv_shapes(), network.config.hidden_size
    kv_bytes = _BYTES * sum(shape.size for shape in shapes)
    return NetworkShape(len(shapes), size, _BYTES * num_weights, 2.0 * num_weights, kv_bytes)


def dflash_shape(config: DFlashConfig, target_config: Any) -> NetworkShape:
    """:func:`drafter_shape` of the DFlash drafter that ``config`` describes."""
    with torch.device("meta"):
        return drafter_shape(DFlashModel(config), target_config)


def mtp_shape(target_config: Any) -> NetworkShape:
    """:func:`drafter_shape` of the MTP head that a target of ``target_config`` is published with."""
    return drafter_shape(part_of("mtp", "checkpoint").outline_for(target_config), target_config)


@dataclass(frozen=True)
class Efficiency:
    """What is reached of a data sheet. Each number is positive; shares are at most 1."""

    bandwidth_share: float
    peak_share: float
    layer_s: float  # of each layer of a forward
    round_s: float  # of a round that drafts, beside its forwards
    round_row_s: float = 0.0  # the same of each request
    scan_s: float = 0.0  # of each token of a block but its first in each gated delta layer
    draft_step_s: float = 0.0  # of each token that an MTP head drafts, beside its forward
    draft_row_s: float = 0.0  # the same of each request
    request_s: float = 0.0  # of each request in each gated delta layer, beside what it moves
    overlap: float = 1.0  # of reading and computing: 1, one after the other; the larger, the more at once
    tile: int = 1  # tokens that products of more than NARROW tokens compute at a time, full or not


IDEAL = Efficiency(1.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class RooflineCosts:
    """Costs of a pair on ``tp`` GPUs of one kind. ``context``: mean tokens behind a block."""

    gpu: Gpu
    target: NetworkShape
    drafter: NetworkShape
    context: float
    reached: Efficiency = IDEAL
    method: Method = "dflash"
    tp: int = 1
    scale: float = 1.0  # of every forward, where measured steps are slower or faster than all this says

    @property
    def reading_s(self) -> float:
        """Seconds to read the target's weights once, at the data sheet's bandwidth."""
        return self.target.weight_bytes / self.tp / self.gpu.bandwidth

    def verify_s(self, num_requests: int, block_size: int) -> float:
        """See :class:`flashdraft.bench.cost_model.Costs`."""
        scans_s = self.target.num_recurrent_layers * (block_size - 1) * self.reached.scan_s
        return self._forward_s(self.target, num_requests, num_requests * block_size) + self.scale * scans_s

    def draft_s(self, num_requests: int, block_size: int) -> float:
        """See :class:`flashdraft.bench.cost_model.Costs`."""
        if block_size == 1:
            return 0.0
        reached = self.reached
        beside_s = reached.round_s + num_requests * reached.round_row_s
        if self.method == "dflash":
            return beside_s + self._forward_s(self.drafter, num_requests, num_requests * block_size)
        step_s = self._forward_s(self.drafter, num_requests, num_requests)
        step_s += reached.draft_step_s + num_requests * reached.draft_row_s
        return beside_s + (block_size - 1) * step_s

    def prefill_s(self, num_tokens: int) -> float:
        """See :class:`flashdraft.bench.cost_model.Costs`."""
        return self._forward_s(self.target, 0, num_tokens)

    def host_s(self) -> float:
        """None beside ``layer_s`` and ``round_s``."""
        return 0.0

    def _forward_s(self, network: NetworkShape, num_requests: int, num_tokens: int) -> float:
        cached = num_requests * (self.context * network.kv_bytes_per_token + network.state_bytes)
        reached, computed = self.reached, num_tokens
        if num_tokens > NARROW:
            computed = ceil(num_tokens / reached.tile) * reached.tile
        moved = network.weight_bytes + cached
        memory_s = moved / self.tp / (self.gpu.bandwidth * reached.bandwidth_share)
        compute_s = computed * network.operations_per_token / self.tp / (self.gpu.peak * reached.peak_share)
        layers_s = network.num_layers * (reached.layer_s + self._all_reduces_s(network, num_tokens))
        layers_s += network.num_recurrent_layers * num_requests * reached.request_s
        together_s: float = (memory_s**reached.overlap + compute_s**reached.overlap) ** (1 / reached.overlap)
        return self.scale * (together_s + layers_s)

    def _all_reduces_s(self, network: NetworkShape, num_tokens: int) -> float:
        """The two of a layer, as rings have them."""
        if self.tp == 1:
            return 0.0
        sent = 2 * (self.tp - 1) / self.tp * num_tokens * network.hidden_size * _BYTES
        return 2 * (ALL_REDUCE_S + sent / self.gpu.link)
