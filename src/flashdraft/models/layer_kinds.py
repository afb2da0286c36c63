"""Layers of two kinds in one model, sliding and full, each kind with a rotation of its own."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from flashdraft.batch import ForwardBatch
from flashdraft.models.base import KVSource, TargetOutput
from flashdraft.ops.rope import Rotary

SLIDING = "sliding_attention"


def windows_of(config: Any) -> list[int | None]:
    """The window of each layer in tokens; None: it sees all."""
    return [config.sliding_window if kind == SLIDING else None for kind in config.layer_types]


def rotary_of_kind(config: Any, kind: str, head_dim: int) -> Rotary:
    """The rotation of layers of ``kind``, whose heads have ``head_dim`` dimensions."""
    # The scaled rope types are functions of a config with one set of parameters.
    return Rotary(
        LlamaConfig(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            head_dim=head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=dict(config.rope_parameters[kind]),
        )
    )


def run_by_kind(
    model: Any, x: Tensor, batch: ForwardBatch, cache: KVSource, feature_layers: Sequence[int]
) -> TargetOutput:
    """:meth:`TargetModel.forward` of ``x`` [batch, num_tokens, hidden_size], what its first layer takes.

    ``model.rotary`` holds a rotation for each kind.
    """
    ropes = {kind: rotary(batch.positions, x.dtype) for kind, rotary in model.rotary.items()}
    sources = cache.open(batch, model.specs)
    features: dict[int, Tensor] = {}
    kinds = model.config.layer_types
    for layer_idx, (layer, source) in enumerate(zip(model.model.layers, sources, strict=True)):
        x = layer(x, ropes[kinds[layer_idx]], source)
        if layer_idx in feature_layers:
            features[layer_idx] = x
    return TargetOutput.of(model.model.norm(x), features, feature_layers)
