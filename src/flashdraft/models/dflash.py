"""The DFlash drafter network (arXiv 2602.06036, section 3): one network for training and inference.

It borrows the target's frozen embedding and head, so it maps block embeddings to final hidden states and knows no
vocabulary; a drafter with a draft vocabulary says which tokens it drafts among, and takes their rows of the target's
head or brings a small head of its own. Target features enter as extra keys and values of every layer ("KV injection").
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Qwen3Config

from flashdraft.cache.kv_cache import KVCache
from flashdraft.models.base import LayerSource
from flashdraft.models.dflash_config import DFlashConfig
from flashdraft.models.llama import split_heads
from flashdraft.models.mlp import GatedMLP
from flashdraft.native.decoder import NativeDrafter, stored_layers
from flashdraft.ops.attention import LastKeys, Mask, attention
from flashdraft.ops.block_mask import BlockRule, ServedBlockMask
from flashdraft.ops.norm import RMSNorm
from flashdraft.ops.rope import Rotary, rotate


class DFlashAttention(nn.Module):
    """Attention of the block on context and block (paper, section 3: K = [W_K H_t ; W_K H_d])."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def keys_values(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys (normed, rotated) and values of ``x``, each [batch, kv_heads, num_tokens, head_dim]."""
        k = rotate(self.k_norm(split_heads(self.k_proj(x), self.head_dim)), *rope)
        return k, split_heads(self.v_proj(x), self.head_dim)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        positions: Tensor,
        kv_len: int,
        source: LayerSource,
        mask: Mask,
    ) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same."""
        q = rotate(self.q_norm(split_heads(self.q_proj(x), self.head_dim)), *rope)
        k, v = source.stage(*self.keys_values(x, rope), positions, kv_len)
        out: Tensor = self.o_proj(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return out


class DFlashLayer(nn.Module):
    """One Qwen3-style pre-norm layer of the drafter."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DFlashAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        positions: Tensor,
        kv_len: int,
        source: LayerSource,
        mask: Mask,
    ) -> Tensor:
        """[batch, num_tokens, hidden_size] -> the same."""
        x = x + self.self_attn(self.input_layernorm(x), rope, positions, kv_len, source, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class DFlashModel(nn.Module):
    """The drafter network. Its parameters carry z-lab's tensor names."""

    native: NativeDrafter | None = None  # the same layers as one call, for serving: see models/accelerate.py

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.config = config
        num_features = len(config.target_layer_ids)
        self.fc = nn.Linear(num_features * config.hidden_size, config.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(DFlashLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head: nn.Linear | None = None
        self._borrowed: Tensor | None = None
        self._tokens: Tensor | None = None  # the draft vocabulary, once it was asked for
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

    @property
    def reads_pages(self) -> bool:
        """Whether a served block takes keys and values where they lie: see cache/paged_rows.py."""
        return self.native is not None and all(rule.is_uniform for rule in self.config.rules)

    def context(self, features: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer for verified tokens: ``hidden_norm(fc(features))`` projected.

        ``features`` [batch, num_tokens, num_features * hidden_size], ``positions`` [batch, num_tokens]; each pair
        is [batch, kv_heads, num_tokens, head_dim].
        """
        if self.native:
            return self.native.context(features, positions)
        fused = self.hidden_norm(self.fc(features))
        rope = self.rotary(positions, fused.dtype)
        return [layer.self_attn.keys_values(fused, rope) for layer in self._layers()]

    def forward(
        self,
        block: Tensor,
        positions: Tensor,
        kv_len: int,
        sources: Sequence[LayerSource],
        mask: Mask | Sequence[Mask] = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [batch, num_tokens, hidden_size] of block embeddings of the same shape.

        Slot k of a block (k >= 1) predicts the token that stands AT its own position. ``mask`` None: every slot
        sees what its layer's rule says of context and block, as when served: of the first ``ends`` [batch] slots,
        left out of all ``kv_len``. One mask for each layer where layers differ.
        """
        stored = stored_layers(sources)
        if self.native and stored and mask is None and self.reads_pages:
            return self.native.forward(
                block, positions, kv_len, stored, windows=self._windows, ends=ends, is_causal=False
            )[0]
        if mask is None:
            masks = self._cut(self.served_masks(positions, kv_len, ends), positions)
        elif isinstance(mask, Sequence):
            masks = list(mask)
        else:
            assert all(rule.is_plain for rule in self.config.rules), "give one mask for each layer"
            masks = [mask] * self.config.num_hidden_layers
        rope = self.rotary(positions, block.dtype)
        x = block
        for layer, source, its_mask in zip(self._layers(), sources, masks, strict=True):
            x = layer(x, rope, positions, kv_len, source, its_mask)
        out: Tensor = self.norm(x)
        return out

    def draft(
        self,
        block: Tensor,
        positions: Tensor,
        kv_len: int,
        sources: Sequence[LayerSource],
        ends: Tensor | None,
        count: int,
    ) -> tuple[Tensor, Tensor] | None:
        """The ``count`` likeliest tokens and their log-probabilities, [batch, num_tokens - 1, count] both.

        For the slots of blocks behind their anchors, which see what they see when served, best first; None where
        the C++ part does not do it in one call.
        """
        stored = stored_layers(sources)
        if not (self.native and stored and self.reads_pages):
            return None
        if self._tokens is None and self.config.draft_vocab_size is not None:
            self._tokens = self.draft_tokens()
        return self.native.draft(block, positions, kv_len, stored, self._windows, ends, self._tokens, count)

    @property
    def _windows(self) -> list[int]:
        return [rule.window or 0 for rule in self.config.rules]

    def served_masks(self, positions: Tensor, kv_len: int, ends: Tensor | None = None) -> list[Tensor | None]:
        """Each layer's mask for one block a row at ``positions``; None where it sees all of ``kv_len`` slots.

        Made without asking the device for a value, so that a recording may make them.
        """
        rules = self.config.rules
        made: dict[BlockRule, Tensor | None] = {
            rule: None if rule.is_plain else ServedBlockMask(positions, kv_len, rule).dense()
            for rule in set(rules)
        }
        if ends is not None:
            visible = torch.arange(kv_len, device=positions.device) < ends[:, None, None]
            own = visible.expand(-1, positions.shape[1], -1)  # [rows, num_tokens, kv_len]
            made = {rule: own if mask is None else own & mask for rule, mask in made.items()}
        return [made[rule] for rule in rules]

    def _cut(self, masks: list[Tensor | None], positions: Tensor) -> list[Mask]:
        """``masks`` over the keys within the window of some row, and no others."""
        windows = [rule.window for rule in self.config.rules]
        nearest = int(positions[:, 0].min()) if any(windows) else 0
        cut: list[Mask] = list(masks)
        for i, (mask, window) in enumerate(zip(masks, windows, strict=True)):
            if window is not None and mask is not None and (first := nearest - window) > 0:
                cut[i] = LastKeys(mask[..., first:], first)
        return cut

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

    def new_cache(self, batch_size: int, max_len: int) -> KVCache:
        """An empty cache for the context (and the staged block) of ``batch_size`` requests."""
        config, weight = self.config, self.fc.weight
        return KVCache(
            config.num_hidden_layers,
            batch_size,
            config.num_key_value_heads,
            max_len,
            config.head_dim,
            weight.dtype,
            weight.device,
        )

    def init_weights(self, generator: torch.Generator | None = None, std: float = 0.02) -> None:
        """Random weights as Qwen3 starts: normal(0, ``std``) matrices, unit norms."""
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=std, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def _layers(self) -> Sequence[DFlashLayer]:
        return self.layers  # type: ignore[return-value]
