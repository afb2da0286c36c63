"""The DFlash drafter network (arXiv 2602.06036, section 3): one network for training and inference.

It borrows the target's frozen embedding and head, so it maps block embeddings to final hidden states and knows no
vocabulary; a drafter with a draft vocabulary says which tokens it drafts among, and takes their rows of the target's
head or brings a small head of its own. Target features enter as extra keys and values of every layer ("KV injection").
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Qwen3Config

from flashdraft.cache.dense_source import BlockContext
from flashdraft.cache.kv_cache import KVShape
from flashdraft.models.base import LayerSource
from flashdraft.models.dflash2 import BlockConv, CandidateSelector
from flashdraft.models.dflash_config import DFlashConfig
from flashdraft.models.drafter_network import DrafterNetwork
from flashdraft.models.llama import LlamaLayer
from flashdraft.models.qwen3 import Qwen3Attention
from flashdraft.ops.norm import RMSNorm
from flashdraft.ops.rope import Rotary


class DFlashLayer(LlamaLayer):
    """One Qwen3 layer; its attention is on context and block (paper, section 3: K = [W_K H_t ; W_K H_d])."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__(config, Qwen3Attention)
        self.has_conv = config.conv_kernel_size > 0
        if self.has_conv:
            shape = config.hidden_size, config.conv_kernel_size, config.conv_group_size
            self.attention_conv, self.mlp_conv = BlockConv(*shape), BlockConv(*shape)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], source: LayerSource, block_size: int | None = None
    ) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same. ``block_size``: see :meth:`DFlashModel.forward`."""
        if not self.has_conv:
            return super().forward(x, rope, source)
        read = self.input_layernorm(x)
        kernels = self.attention_conv.kernels(read, block_size)
        found = self.self_attn(self.attention_conv(read, kernels, 0), rope, source)
        x = x + self.attention_conv(found, kernels, 1)
        read = self.post_attention_layernorm(x)
        kernels = self.mlp_conv.kernels(read, block_size)
        out: Tensor = x + self.mlp_conv(self.mlp(self.mlp_conv(read, kernels, 0)), kernels, 1)
        return out


class DFlashModel(DrafterNetwork):
    """The drafter network. Its parameters carry z-lab's tensor names."""

    method = "dflash"

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.config = config
        num_features = len(config.target_layer_ids)
        self.fc = nn.Linear(num_features * config.hidden_size, config.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(DFlashLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.selector_rank:
            sizes = config.hidden_size, config.vocab_size, config.selector_rank
            self.candidate_selector = CandidateSelector(*sizes, config.selector_projects_head)
        self.lm_head: nn.Linear | None = None
        self._borrowed: Tensor | None = None
        if (num_rows := config.draft_vocab_size) is not None:
            if not config.borrows_head:
                self.lm_head = nn.Linear(config.hidden_size, num_rows, bias=False)
            # speculators' tables: row i is token i + d2t[i]; t2d marks those tokens among all.
            self.d2t: Tensor
            self.t2d: Tensor
            self.register_buffer("d2t", torch.zeros(num_rows, dtype=torch.int64))
            self.register_buffer("t2d", torch.arange(config.vocab_size) < num_rows)
        rope_config = Qwen3Config(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=dict(config.rope_parameters),
        )
        self.rotary = Rotary(rope_config)

    def context(self, features: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer for verified tokens: ``hidden_norm(fc(features))`` projected.

        ``features`` [batch, num_tokens, num_features * hidden_size], ``positions`` [batch, num_tokens]; each pair
        is [batch, kv_heads, num_tokens, head_dim].
        """
        fused = self.hidden_norm(self.fc(features))
        rope = self.rotary(positions, fused.dtype)
        return [layer.self_attn.keys_values(fused, rope) for layer in self._layers()]

    def forward(
        self,
        block: Tensor,
        positions: Tensor,
        sources: Sequence[LayerSource],
        block_size: int | None = None,
    ) -> Tensor:
        """Final hidden states [batch, num_tokens, hidden_size] of block embeddings of the same shape.

        Slot k of a block (k >= 1) predicts the token that stands AT its own position, [batch, num_tokens]. What it
        sees of context and block is in ``sources``, one for each layer. ``block_size``: slots of each of a row's
        blocks; None: a row is one.
        """
        rope = self.rotary(positions, block.dtype)
        x = self.scaled_inputs(block)
        for layer, source in zip(self._layers(), sources, strict=True):
            x = layer(x, rope, source, block_size)
        out: Tensor = self.norm(x)
        return out

    def served(
        self,
        block: Tensor,
        positions: Tensor,
        kv_len: int,
        context: BlockContext,
        ends: Tensor | None = None,
        is_recorded: bool = False,
    ) -> Tensor:
        """:meth:`forward` for one block a row behind ``context``, as each layer's rule says; see there for the rest."""
        sources = context.open_blocks(positions, kv_len, self.config.rules, ends, is_recorded)
        out: Tensor = self(block, positions, sources)
        return out

    def scaled_inputs(self, block: Tensor) -> Tensor:
        """Block embeddings as the first layer takes them: multiplied, as the config says."""
        scale = self.config.input_embedding_scale
        return block if scale == 1 else block * scale

    @property
    def draft_vocab_size(self) -> int | None:
        """See :class:`DrafterNetwork`."""
        size: int | None = self.config.draft_vocab_size
        return size

    def scaled(self, logits: Tensor) -> Tensor:
        """What the head's outputs mean: multiplied and capped, as the config says."""
        if not self.config.scales_logits:
            return logits
        logits, cap = logits * self.config.output_multiplier, self.config.final_logit_softcapping
        return (logits / cap).tanh() * cap if cap > 0 else logits

    def head_rows(self, head: Tensor) -> Tensor:
        """What it drafts through, [num_rows, hidden_size]: a head of its own, or rows of the target's ``head`` or all.

        ``head`` is frozen: its rows are taken once and kept.
        """
        if self.lm_head is not None:
            return self.lm_head.weight
        if self.config.draft_vocab_size is None:
            return head
        if self._borrowed is None:
            self._borrowed = head[self.draft_tokens()]
        return self._borrowed

    def head_tokens(self, rows: Tensor) -> Tensor:
        """The target's token ids of rows [...] of what it drafts through."""
        return rows if self.config.draft_vocab_size is None else rows + self.d2t[rows]

    def draft_tokens(self) -> Tensor:
        """The draft vocabulary as token ids, by rows. Only for a drafter that has one."""
        return self.head_tokens(torch.arange(len(self.d2t), device=self.d2t.device))

    def kv_shapes(self) -> list[KVShape]:
        """What each of its layers keeps of a token."""
        heads = self.config.num_key_value_heads, self.config.head_dim
        return [KVShape(*heads, rule.reach) for rule in self.config.rules]

    def init_weights(self, generator: torch.Generator | None = None, std: float = 0.02) -> None:
        """Random weights as Qwen3 starts: normal(0, ``std``) matrices, unit norms; DFlash 2's parts change nothing.

        But for a selector with codebooks of its own, which is random.
        """
        for module in self.modules():
            if isinstance(module, BlockConv):
                module.init_weights()
        for name, parameter in self.named_parameters():
            if "_conv." in name:
                continue
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith("successor_projection"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=std, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def _layers(self) -> Sequence[DFlashLayer]:
        return self.layers  # type: ignore[return-value]
