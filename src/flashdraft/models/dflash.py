"""The DFlash drafter network (arXiv 2602.06036, section 3): one network for training and inference.

It borrows the target's frozen embedding and head, so it maps block embeddings to final hidden states and knows no
vocabulary; a drafter with a draft vocabulary says which tokens it drafts among, and takes their rows of the target's
head or brings a small head of its own. Target features enter as extra keys and values of every layer ("KV injection").
"""

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3Config

from flashdraft.cache.kv_cache import KVCache
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.models.base import LayerSource
from flashdraft.models.llama import split_heads
from flashdraft.models.mlp import GatedMLP
from flashdraft.native.decoder import NativeDrafter, stored_layers
from flashdraft.ops.attention import LastKeys, Mask, attention
from flashdraft.ops.block_mask import BlockRule, ServedBlockMask
from flashdraft.ops.norm import RMSNorm
from flashdraft.ops.rope import Rotary, rotate


def build_target_layer_ids(num_target_layers: int, num_features: int) -> tuple[int, ...]:
    """Feature layers, evenly spaced from the 2nd layer to the third-to-last (paper, section 3; 0-based).

    A target with fewer layers than that spreads them over all it has. Raises UsageError for more features than layers.
    """
    if not 1 <= num_features <= num_target_layers:
        raise UsageError(
            f"num_features is {num_features}; expected 1 to {num_target_layers}, the layers that the target has"
        )
    if num_features == 1:
        return (num_target_layers // 2,)
    first, last = (
        (1, num_target_layers - 3) if num_features <= num_target_layers - 3 else (0, num_target_layers - 1)
    )
    step = (last - first) / (num_features - 1)
    return tuple(round(first + i * step) for i in range(num_features))


@dataclass(frozen=True)
class DFlashConfig:
    """A drafter's shape, with the field names of z-lab's config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    block_size: int  # anchor included
    mask_token_id: int
    target_layer_ids: tuple[
        int, ...
    ]  # 0-based decoder layers of the target whose outputs condition the drafter
    num_target_layers: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    draft_vocab_size: int | None = None  # tokens that it drafts among; None: all that the target knows
    borrows_head: bool = False  # the rows of those tokens are the target's; False: it has a head of its own
    layer_types: tuple[str, ...] | None = None  # full_attention or sliding_attention; None: all full
    sliding_window: int | None = None  # tokens that a sliding layer sees
    is_causal: bool | None = None  # within the block; None: sliding layers are, full ones are not
    window_from_anchor: bool = False  # where the window ends, see BlockRule; speculators' trainer: True
    rope_parameters: dict[str, Any] = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 1e6}
    )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "DFlashConfig":
        """Read a z-lab / SpecForge ``config.json``; ``block_size`` may stand on top or in ``dflash_config``.

        Whether a block is causal is said by ``is_causal``, else by ``dflash_config.causal``, else by the layer type.
        Raises CheckpointError when a needed field is missing or the layer types cannot be.
        """
        inner = config.get("dflash_config") or {}
        merged = {**config, **inner, "rope_parameters": _plain_rope(config)}
        if merged.get("is_causal") is None:
            merged["is_causal"] = inner.get("causal")
        merged["layer_types"] = _layer_types(config)
        if merged["layer_types"] is None:
            merged["sliding_window"] = None
        if merged.get("draft_vocab_size") == merged.get("vocab_size"):
            merged["draft_vocab_size"] = None
        wanted = {f.name for f in fields(cls)}
        needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        missing = sorted(needed - merged.keys())
        if missing:
            raise CheckpointError(
                f"drafter config.json lacks {', '.join(missing)}; expected a DFlashDraftModel config"
            )
        values = {name: merged[name] for name in wanted if name in merged}
        values["target_layer_ids"] = tuple(values["target_layer_ids"])
        return cls(**values)

    def rules(self) -> list[BlockRule]:
        """What each layer's block may see."""
        kinds = self.layer_types or ("full_attention",) * self.num_hidden_layers
        return [self._rule(kind == "sliding_attention") for kind in kinds]

    def with_window(self, window: int) -> "DFlashConfig":
        """Every layer sees the ``window`` tokens before the anchor, and of its block what it saw before.

        Raises UsageError for a drafter with a window of its own, which it was trained for, and one below a block.
        """
        if self.layer_types is not None:
            raise UsageError(
                f"the drafter was trained with a window of {self.sliding_window} tokens: leave draft_window_size out"
            )
        if window < self.block_size:
            raise UsageError(
                f"draft_window_size is {window}; expected at least a block, {self.block_size} tokens"
            )
        kinds = ("sliding_attention",) * self.num_hidden_layers
        return replace(
            self,
            layer_types=kinds,
            sliding_window=window,
            is_causal=bool(self.is_causal),
            window_from_anchor=True,
        )

    def _rule(self, slides: bool) -> BlockRule:
        is_causal = slides if self.is_causal is None else self.is_causal
        return BlockRule(
            self.sliding_window if slides else None, is_causal, self.window_from_anchor and slides
        )

    def to_dict(self) -> dict[str, Any]:
        """The z-lab ``config.json`` of this drafter."""
        plain = asdict(self)
        layer_types = plain.pop("layer_types")
        if plain["is_causal"] is None:
            del plain["is_causal"]
        borrows_head = plain.pop("borrows_head")
        if plain["draft_vocab_size"] is None:
            del plain["draft_vocab_size"]
        rope = plain.pop("rope_parameters")
        inner = {name: plain.pop(name) for name in ("mask_token_id", "target_layer_ids")}
        inner["target_layer_ids"] = list(inner["target_layer_ids"])
        if plain.pop("window_from_anchor"):
            inner["window_from_anchor"] = True
        if borrows_head:
            inner["borrows_head"] = True
        scaling = None if rope.get("rope_type", "default") == "default" else rope
        return {
            "architectures": ["DFlashDraftModel"],
            "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
            "model_type": "qwen3",
            **plain,
            "attention_dropout": 0.0,
            "dflash_config": inner,
            "hidden_act": "silu",
            "layer_types": list(layer_types or ["full_attention"] * self.num_hidden_layers),
            "rope_scaling": scaling,
            "rope_theta": rope["rope_theta"],
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_sliding_window": layer_types is not None,
        }


def _plain_rope(config: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 writes rope_parameters; older checkpoints have rope_theta and rope_scaling.
    names = ("rope_parameters", "rope_theta", "rope_scaling", "max_position_embeddings")
    given = {name: config[name] for name in names if config.get(name) is not None}
    return one_dimensional(dict(Qwen3Config(**given).rope_parameters or {}))


def one_dimensional(rope_parameters: dict[str, Any]) -> dict[str, Any]:
    """Rope parameters for a drafter: whole heads, plain positions, whatever its target does with images.

    Of a target that rotates layer types differently, those of its full layers: a drafter sees all of the context.
    """
    rope_parameters = rope_parameters.get("full_attention", rope_parameters)
    of_targets = ("mrope_section", "mrope_interleaved", "partial_rotary_factor")
    return {name: value for name, value in rope_parameters.items() if name not in of_targets}


def _layer_types(config: dict[str, Any]) -> tuple[str, ...] | None:
    kinds, num_layers = tuple(config.get("layer_types") or ()), config.get("num_hidden_layers")
    if not kinds or set(kinds) == {"full_attention"}:
        return None
    window = config.get("sliding_window")
    is_usable = set(kinds) <= {"full_attention", "sliding_attention"} and len(kinds) == num_layers
    if not is_usable or not isinstance(window, int) or window < 1:
        raise CheckpointError(
            f"drafter layer_types {list(kinds)} with sliding_window {window} do not go together; expected"
            f" {num_layers} of full_attention or sliding_attention, and a window of 1 or more: fetch its config again"
        )
    return kinds


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
        return self.native is not None and all(rule.is_uniform for rule in self.config.rules())

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
            seen = positions.new_full((len(positions),), kv_len) if ends is None else ends
            counts, windows = seen - positions[:, 0], [rule.window or 0 for rule in self.config.rules()]
            seen = seen.unsqueeze(1).expand_as(positions)
            return self.native.forward(block, positions, seen, stored, windows=windows, counts=counts)[0]
        if mask is None:
            masks = self._cut(self.served_masks(positions, kv_len, ends), positions)
        elif isinstance(mask, Sequence):
            masks = list(mask)
        else:
            assert all(rule.is_plain for rule in self.config.rules()), "give one mask for each layer"
            masks = [mask] * self.config.num_hidden_layers
        rope = self.rotary(positions, block.dtype)
        x = block
        for layer, source, its_mask in zip(self._layers(), sources, masks, strict=True):
            x = layer(x, rope, positions, kv_len, source, its_mask)
        out: Tensor = self.norm(x)
        return out

    def served_masks(self, positions: Tensor, kv_len: int, ends: Tensor | None = None) -> list[Tensor | None]:
        """Each layer's mask for one block a row at ``positions``; None where it sees all of ``kv_len`` slots.

        Made without asking the device for a value, so that a recording may make them.
        """
        rules = self.config.rules()
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
        windows = [rule.window for rule in self.config.rules()]
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
