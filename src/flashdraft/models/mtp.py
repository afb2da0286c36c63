"""A multi-token-prediction head: one decoder layer that goes on from the target's last hidden state.

The layer of DeepSeek-V3 (arXiv 2412.19437, section 2.2) as Qwen3-Next and Qwen3.5 ship it, with their tensor names.
The input of a token is ``fc([pre_fc_norm_embedding(embed(token)) | pre_fc_norm_hidden(hidden before it)])``. The
hidden state is the target's after its final norm; where the target has not been yet, the head's own output, after
``norm``: so do vLLM's ``qwen3_5_mtp`` and its draft loop, and transformers' ``MtpModel``. Embedding and output head
are the target's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flashdraft.cache.kv_cache import KVShape
from flashdraft.errors import CheckpointError
from flashdraft.models.base import FINAL_HIDDEN, LayerSource
from flashdraft.models.drafter_network import DrafterNetwork
from flashdraft.models.llama import LlamaAttention, LlamaLayer
from flashdraft.models.qwen3 import Qwen3Attention
from flashdraft.models.qwen3_5 import Qwen3_5Layer
from flashdraft.ops.rope import Rotary

Layer = LlamaLayer | Qwen3_5Layer

# The target's model_type -> a layer of its kind, with full attention.
_LAYERS: Mapping[str, Callable[[Any], Layer]] = {
    "llama": lambda config: LlamaLayer(config, LlamaAttention),
    "qwen3": lambda config: LlamaLayer(config, Qwen3Attention),
    "qwen3_5_text": lambda config: Qwen3_5Layer(config, "full_attention"),
    "qwen3_5_moe_text": lambda config: Qwen3_5Layer(config, "full_attention"),
    "qwen3_next": lambda config: Qwen3_5Layer(config, "full_attention"),
}


@dataclass(frozen=True)
class MTPConfig:
    """A head's shape: its layer is one of the target's, so it is the target's config."""

    layer: Any  # transformers config of the target's language model
    block_size: int  # the largest block, anchor included
    target_layer_ids: ClassVar[tuple[int, ...]] = (FINAL_HIDDEN,)

    def __post_init__(self) -> None:
        """Raises CheckpointError where there is no layer of the target's kind."""
        if self.layer.model_type not in _LAYERS:
            raise CheckpointError(
                f"there is no MTP head for model_type {self.layer.model_type!r}; expected one of:"
                f" {', '.join(sorted(_LAYERS))}"
            )

    @property
    def hidden_size(self) -> int:
        """The target's."""
        return int(self.layer.hidden_size)

    @property
    def vocab_size(self) -> int:
        """The target's."""
        return int(self.layer.vocab_size)

    @property
    def num_target_layers(self) -> int:
        """Layers of the target."""
        return int(self.layer.num_hidden_layers)

    def to_dict(self) -> dict[str, Any]:
        """The head's ``config.json``: the target's, and how far the head drafts."""
        named = {"architectures": ["MTPDraftModel"], "mtp_num_hidden_layers": 1}
        return {**self.layer.to_dict(), **named, "block_size": self.block_size}


class MTPModel(DrafterNetwork):
    """The head. Its parameters carry Qwen3.5's tensor names, less their ``mtp.``."""

    method = "mtp"
    is_chained = True

    def __init__(self, config: MTPConfig) -> None:
        super().__init__()
        self.config = config
        size, eps = config.layer.hidden_size, config.layer.rms_norm_eps
        layer = _LAYERS[config.layer.model_type](config.layer)
        norm = type(layer.input_layernorm)
        self.pre_fc_norm_embedding = norm(size, eps)
        self.pre_fc_norm_hidden = norm(size, eps)
        self.fc = nn.Linear(2 * size, size, bias=False)
        self.layers = nn.ModuleList([layer])
        self.norm = norm(size, eps)
        self.rotary = Rotary(config.layer)

    def context(self, embeddings: Tensor, hidden: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of verified tokens, for the one layer: of them nothing else is needed.

        ``embeddings`` [batch, num_tokens, hidden_size] are theirs, ``hidden`` the target's one token earlier,
        ``positions`` [batch, num_tokens]; keys and values are [batch, kv_heads, num_tokens, head_dim].
        """
        x = self._joined(embeddings, hidden)
        layer = self._layer()
        return [layer.self_attn.keys_values(layer.input_layernorm(x), self.rotary(positions, x.dtype))]

    def forward(
        self,
        embeddings: Tensor,
        hidden: Tensor,
        positions: Tensor,
        source: LayerSource,
    ) -> Tensor:
        """Final hidden states: that of the token at position i predicts the one at i + 1.

        ``embeddings`` [batch, num_tokens, hidden_size] of the tokens at ``positions``, ``hidden`` of the ones before
        them. Returns [batch, num_tokens, hidden_size], for the target's head and as the next token's ``hidden``.
        """
        x = self._joined(embeddings, hidden)
        out: Tensor = self.norm(self._layer()(x, self.rotary(positions, x.dtype), source))
        return out

    def kv_shapes(self) -> list[KVShape]:
        """What its layer keeps of a token."""
        return [KVShape(self.config.layer.num_key_value_heads, self.config.layer.head_dim)]

    def init_weights(self, generator: torch.Generator | None = None, std: float = 0.02) -> None:
        """Random matrices, normal(0, ``std``); norms stay as they are made, without effect."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=std, generator=generator)

    def _joined(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        pair = (self.pre_fc_norm_embedding(embeddings), self.pre_fc_norm_hidden(hidden))
        joined: Tensor = self.fc(torch.cat(pair, dim=-1))
        return joined

    def _layer(self) -> Layer:
        return self.layers[0]  # type: ignore[return-value]
