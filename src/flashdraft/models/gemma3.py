"""Gemma 3, the language model (gemma3_text): sliding layers with a full one after every fifth, four norms a layer.

Its embeddings are scaled as they enter; :meth:`Gemma3Model.embed` gives the plain rows, which is what drafters for
such targets are trained on (z-lab, vLLM).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashdraft.batch import ForwardBatch
from flashdraft.errors import CheckpointError
from flashdraft.models.base import KVSource, LayerSource, TargetOutput
from flashdraft.models.layer_kinds import rotary_of_kind, run_by_kind, windows_of
from flashdraft.models.llama import LlamaAttention, LlamaModel
from flashdraft.models.mlp import GatedMLP
from flashdraft.ops.attention import AttentionSpec
from flashdraft.ops.norm import ZeroCenteredRMSNorm
from flashdraft.ops.rope import Rotary


class Gemma3Attention(LlamaAttention):
    """Grouped-query attention; queries and keys are normed before RoPE."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.q_norm = ZeroCenteredRMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = ZeroCenteredRMSNorm(config.head_dim, config.rms_norm_eps)


class Gemma3Layer(nn.Module):
    """One decoder layer, normed before and behind both of its halves."""

    def __init__(self, config: Any, attention_class: type[LlamaAttention]) -> None:
        super().__init__()
        self.self_attn = attention_class(config)
        gelu = partial(F.gelu, approximate="tanh")
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, activation=gelu)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = ZeroCenteredRMSNorm(size, eps)
        self.post_attention_layernorm = ZeroCenteredRMSNorm(size, eps)
        self.pre_feedforward_layernorm = ZeroCenteredRMSNorm(size, eps)
        self.post_feedforward_layernorm = ZeroCenteredRMSNorm(size, eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], source: LayerSource) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rope, source))
        mixed = self.mlp(self.pre_feedforward_layernorm(x))
        out: Tensor = x + self.post_feedforward_layernorm(mixed)
        return out


class Gemma3Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: Any, attention_class: type[LlamaAttention]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Gemma3Layer(config, attention_class) for _ in range(config.num_hidden_layers)
        )
        self.norm = ZeroCenteredRMSNorm(config.hidden_size, config.rms_norm_eps)


class Gemma3Model(LlamaModel):
    """A Gemma 3 target. Raises CheckpointError for what other Gemmas do: capped logits, sight in both directions."""

    attention_class = Gemma3Attention
    decoder_class: Any = Gemma3Decoder
    is_named_alone = True
    supported: Mapping[
        str, tuple[Any, ...]
    ] = {  # of the fields that change the network, the values that are known
        "final_logit_softcapping": (None,),
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": (None, False),
        "hidden_activation": ("gelu_pytorch_tanh",),
    }
    skipped_tensors = tuple(
        f"{prefix}{part}." for prefix in ("", "model.") for part in ("vision_tower", "multi_modal_projector")
    )

    def __init__(self, config: Any) -> None:
        config = config.get_text_config()  # of a checkpoint with a vision tower
        told = {name: getattr(config, name, None) for name in self.supported}
        if found := [
            f"{name} {value!r}" for name, value in told.items() if value not in self.supported[name]
        ]:
            raise CheckpointError(
                f"the target has {', '.join(found)}; expected a {config.model_type} without it: not supported"
            )
        super().__init__(config)

    def rotary_of(self, config: Any) -> dict[str, Rotary]:
        """One for sliding layers, one for full ones."""
        return {
            kind: rotary_of_kind(config, kind, config.head_dim) for kind in sorted(set(config.layer_types))
        }

    def specs_of(self, config: Any) -> list[AttentionSpec]:
        """Sliding layers have a window; scores are scaled by a number of the config's own."""
        scale = config.query_pre_attn_scalar**-0.5
        return [AttentionSpec(window, scale) for window in windows_of(config)]

    def forward(
        self, batch: ForwardBatch, cache: KVSource, feature_layers: Sequence[int] = ()
    ) -> TargetOutput:
        """See :meth:`TargetModel.forward`."""
        x = self.embed(batch.token_ids)
        x = x * torch.tensor(
            self.config.hidden_size**0.5, dtype=x.dtype
        )  # rounded to the type, as in training
        return run_by_kind(self, x, batch, cache, feature_layers)
