"""Mistral and Ministral 3, also beside a vision tower: Llamas, whose queries Ministral multiplies by their position."""

from typing import Any

import torch
from torch import Tensor

from flashdraft.errors import CheckpointError
from flashdraft.models.base import LayerSource
from flashdraft.models.llama import LlamaAttention, LlamaDecoder, LlamaLayer, LlamaModel, split_heads
from flashdraft.ops.rope import Rotary, rotate

_SCALED = "ministral3"


class ScalingRotary:
    """Positions as cos and sin, and as what multiplies their queries: 1 + beta * log(1 + floor(position / trained)).

    ``trained``: the longest text before positions were scaled (Llama 4's temperature; transformers'
    ``get_llama_4_attn_scale``). Raises CheckpointError for a config that does not say it.
    """

    def __init__(self, config: Any) -> None:
        self._rotary = Rotary(config)
        names = "llama_4_scaling_beta", "original_max_position_embeddings"
        told = [config.rope_parameters.get(name) for name in names]
        if None in told:
            raise CheckpointError(
                f"the target's rope_parameters have {', '.join(map(str, config.rope_parameters))}; expected"
                f" {' and '.join(names)} too: fetch its config.json again"
            )
        self._beta, self._trained = told

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """cos and sin of :class:`Rotary` for positions [batch, num_tokens]; the factors [batch, 1, num_tokens, 1]."""
        steps = torch.floor(positions / self._trained)
        factors = (1 + self._beta * torch.log(1 + steps)).to(dtype)
        return *self._rotary(positions, dtype), factors[:, None, :, None]


class Ministral3Attention(LlamaAttention):
    """Grouped-query attention with RoPE; queries are multiplied by a factor of their position."""

    def forward(self, x: Tensor, rope: tuple[Tensor, ...], source: LayerSource) -> Tensor:
        """See :class:`LlamaAttention`; ``rope`` is ScalingRotary's."""
        *turns, factors = rope
        q = rotate(split_heads(self.q_proj(x), self.head_dim), *turns) * factors
        found = source.attend(q, *self.keys_values(x, (turns[0], turns[1])))
        out: Tensor = self.o_proj(found.transpose(1, 2).flatten(2))
        return out


class Ministral3Layer(LlamaLayer):
    """A class of its own, since the fast forms of Llama's layers know no such factors."""


class MistralDecoder(LlamaDecoder):
    """Embedding, layers and final norm."""

    def __init__(self, config: Any, attention_class: type[LlamaAttention]) -> None:
        if config.model_type == _SCALED:
            self.layer_class, attention_class = Ministral3Layer, Ministral3Attention
        super().__init__(config, attention_class)


class MistralModel(LlamaModel):
    """A Mistral or Ministral 3 target. Raises CheckpointError for one whose layers see a sliding window."""

    decoder_class = MistralDecoder
    is_named_alone = True
    skipped_tensors = tuple(
        f"{prefix}{part}." for prefix in ("", "model.") for part in ("vision_tower", "multi_modal_projector")
    )

    def __init__(self, config: Any) -> None:
        config = config.get_text_config()  # of a checkpoint with a vision tower
        if config.model_type not in ("mistral", _SCALED):
            raise CheckpointError(
                f"the target's language model is of model_type {config.model_type!r}; expected 'mistral' or"
                f" {_SCALED!r}: no other is supported beside this vision tower"
            )
        if config.sliding_window is not None:
            raise CheckpointError(
                f"the target's layers see a sliding window of {config.sliding_window} tokens; expected none, as"
                " every Mistral since v0.2: for texts that are shorter set sliding_window to null"
            )
        super().__init__(config)

    def rotary_of(self, config: Any) -> Any:
        """With factors for queries where the config has them."""
        return ScalingRotary(config) if config.model_type == _SCALED else Rotary(config)
