"""A DFlash drafter for transformers (arXiv 2602.06036): this file and a config.json are all that a folder needs.

    drafter = AutoModel.from_pretrained(folder, trust_remote_code=True)
    ids = drafter.spec_generate(input_ids, target=target, max_new_tokens=256, stop_token_ids=[eos])

It imports torch and transformers (5 or later) only.
"""

# mypy: disable-error-code="no-untyped-call"
import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3MLP,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
    apply_rotary_pos_emb,
)

Context = list[tuple[Tensor, Tensor]]  # keys and values of each layer, [1, kv_heads, num_tokens, head_dim]


class DFlashAttention(nn.Module):
    """Attention of a block on the context and on itself."""

    def __init__(self, config: Any, slides: bool) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_size, kv_size = (
            n * self.head_dim for n in (config.num_attention_heads, config.num_key_value_heads)
        )
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=bias)
        self.q_norm = Qwen3RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = Qwen3RMSNorm(self.head_dim, config.rms_norm_eps)
        inner = config.dflash_config
        is_causal = getattr(config, "is_causal", None)
        is_causal = inner.get("causal") if is_causal is None else is_causal
        self.is_causal = slides if is_causal is None else is_causal
        self.window = config.sliding_window if slides else None
        self.from_anchor = inner.get("window_from_anchor", False)

    def keys_values(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys (normed, rotated) and values of ``x`` [1, num_tokens, hidden_size]."""
        k = self.k_norm(self._heads(self.k_proj(x)))
        return apply_rotary_pos_emb(k, k, *rope)[1], self._heads(self.v_proj(x))

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], context: tuple[Tensor, Tensor]) -> Tensor:
        """[1, num_tokens, hidden_size] -> the same."""
        q = self.q_norm(self._heads(self.q_proj(x)))
        q = apply_rotary_pos_emb(q, q, *rope)[0]
        k, v = (torch.cat(pair, dim=2) for pair in zip(context, self.keys_values(x, rope), strict=True))
        mask = self._mask(context[0].shape[2], x.shape[1], x.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _mask(self, start: int, num_tokens: int, device: torch.device) -> Tensor | None:
        """What each slot of a block at ``start`` sees of context and block; None: everything."""
        keys, slots = torch.arange(start + num_tokens, device=device), torch.arange(num_tokens, device=device)
        slots = slots.unsqueeze(1) + start
        seen = keys <= slots if self.is_causal else torch.ones_like(keys <= slots)
        if self.window is not None and self.from_anchor:
            seen &= keys >= start - self.window
        elif self.window is not None:
            seen &= keys > slots - self.window
        return seen if self.is_causal or self.window is not None else None


class BlockConv(nn.Module):
    """DFlash 2: a causal convolution along a block's slots, on what a sublayer reads (0) and on what it writes (1)."""

    def __init__(self, size: int, taps: int, group_size: int) -> None:
        super().__init__()
        self.shape = 2, taps, size // group_size
        self.base_kernel = nn.Parameter(torch.zeros(2, taps, size))
        self.kernel_projection = nn.Linear(size, 2 * taps * (size // group_size), bias=False)

    def forward(self, y: Tensor, x: Tensor, side: int) -> Tensor:
        """``y`` [1, num_tokens, hidden_size] by the kernels that the sublayer's normed input ``x`` gives."""
        _, taps, groups = self.shape
        own = self.kernel_projection(x).view(*x.shape[:2], *self.shape, 1)[:, :, side]
        slots, base = y.view(*y.shape[:2], groups, -1), self.base_kernel[side].view(taps, groups, -1)
        mixed = torch.zeros_like(slots)
        for tap in range(taps):
            before = F.pad(slots, (0, 0, 0, 0, tap, 0))[:, : slots.shape[1]]
            mixed = mixed + (base[tap] + own[:, :, tap]) * before
        return mixed.view_as(y)


class CandidateSelector(nn.Module):
    """DFlash 2: scores of a slot's likeliest tokens by the token chosen before it."""

    def __init__(self, size: int, vocab_size: int, rank: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.predecessor_codebook = nn.Parameter(torch.zeros(vocab_size, rank))
        self.successor_codebook = nn.Parameter(torch.zeros(vocab_size, rank))
        self.hidden_projection = nn.Linear(size, rank, bias=False)

    def walk(self, hidden: Tensor, logits: Tensor, anchor: int, tokens: Tensor | None) -> list[int]:
        """From ``anchor`` on each slot's best candidate. ``tokens``: of the columns of ``logits`` [slots, columns]."""
        alone, columns = logits.topk(self.top_k)
        ids = columns if tokens is None else tokens[columns]
        asked, drafted = self.hidden_projection(hidden), [anchor]
        for slot in range(len(ids)):
            before = self.predecessor_codebook[drafted[-1]] * asked[slot]
            scores = alone[slot].float() + (self.successor_codebook[ids[slot]] @ before).float()
            drafted.append(int(ids[slot, scores.argmax()]))
        return drafted[1:]


class DFlashLayer(nn.Module):
    """One pre-norm layer of the drafter."""

    def __init__(self, config: Any, slides: bool) -> None:
        super().__init__()
        taps = config.dflash_config.get("conv_kernel_size", 0)
        if taps:
            shape = config.hidden_size, taps, config.dflash_config["conv_group_size"]
            self.attention_conv, self.mlp_conv = BlockConv(*shape), BlockConv(*shape)
        self.has_conv = taps > 0
        self.input_layernorm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DFlashAttention(config, slides)
        self.post_attention_layernorm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Qwen3MLP(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], context: tuple[Tensor, Tensor]) -> Tensor:
        """[1, num_tokens, hidden_size] -> the same."""
        read = self.input_layernorm(x)
        if not self.has_conv:
            x = x + self.self_attn(read, rope, context)
            plain: Tensor = x + self.mlp(self.post_attention_layernorm(x))
            return plain
        found = self.self_attn(self.attention_conv(read, read, 0), rope, context)
        x = x + self.attention_conv(found, read, 1)
        read = self.post_attention_layernorm(x)
        out: Tensor = x + self.mlp_conv(self.mlp(self.mlp_conv(read, read, 0)), read, 1)
        return out


class DFlashDraftModel(PreTrainedModel):
    """The drafter: block embeddings and target features in, final hidden states of the block out."""

    config_class = Qwen3Config
    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        inner = config.dflash_config
        self.layer_ids: list[int] = inner["target_layer_ids"]
        self.mask_token_id: int = inner["mask_token_id"]
        self.block_size: int = inner.get("block_size") or config.block_size
        self.fc = nn.Linear(len(self.layer_ids) * config.hidden_size, config.hidden_size, bias=False)
        self.hidden_norm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)
        kinds = config.layer_types or ["full_attention"] * config.num_hidden_layers
        self.layers: Any = nn.ModuleList(DFlashLayer(config, kind == "sliding_attention") for kind in kinds)
        self.norm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = Qwen3RotaryEmbedding(config)
        self.multiplier: float = inner.get("output_multiplier") or 1.0
        self.cap: float = inner.get("final_logit_softcapping") or 0.0
        self.scale: float = inner.get("input_embedding_scale") or 1.0
        if rank := inner.get("selector_rank", 0):
            shape = config.hidden_size, config.vocab_size, rank, inner["selector_top_k"]
            self.candidate_selector = CandidateSelector(*shape)
        if num_rows := getattr(config, "draft_vocab_size", None):
            self.lm_head = nn.Linear(config.hidden_size, num_rows, bias=False)
            self.d2t: Tensor
            self.register_buffer("d2t", torch.zeros(num_rows, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.post_init()

    def observe(self, features: Tensor, context: Context) -> Context:
        """``context`` and behind it the keys and values of features [1, num_tokens, num_features * hidden_size]."""
        start = context[0][0].shape[2] if context else 0
        fused = self.hidden_norm(self.fc(features))
        rope = self._rope(fused, start)
        pairs = [layer.self_attn.keys_values(fused, rope) for layer in self.layers]
        if not context:
            return pairs
        return [
            (torch.cat((k, a), 2), torch.cat((v, b), 2))
            for (k, v), (a, b) in zip(context, pairs, strict=True)
        ]

    def forward(self, block: Tensor, context: Context) -> Tensor:
        """Final hidden states of block embeddings [1, num_tokens, hidden_size] behind ``context``; slot k is for the
        token at its own position."""
        x, rope = block, self._rope(block, context[0][0].shape[2])
        for layer, pair in zip(self.layers, context, strict=True):
            x = layer(x, rope, pair)
        out: Tensor = self.norm(x)
        return out

    @torch.inference_mode()
    def draft(self, anchor: int, context: Context, target: Any) -> list[int]:
        """The tokens that shall follow ``anchor``: block_size - 1 of them, greedily."""
        ids = torch.full((1, self.block_size), self.mask_token_id, device=target.device)
        ids[0, 0] = anchor
        # The plain rows of the embedding, without the factor that some targets (Gemma) put on them.
        block = F.embedding(ids, target.get_input_embeddings().weight) * self.scale
        hidden, tokens = self(block, context)[0, 1:], None
        if hasattr(self, "lm_head"):
            tokens = torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t
            logits = self.lm_head(hidden)
        else:
            logits = target.get_output_embeddings()(hidden)
        logits = logits * self.multiplier
        if self.cap > 0:
            logits = (logits / self.cap).tanh() * self.cap
        if hasattr(self, "candidate_selector"):
            return self.candidate_selector.walk(hidden, logits, anchor, tokens)
        best = logits.argmax(-1)
        drafted: list[int] = (best if tokens is None else tokens[best]).tolist()
        return drafted

    @torch.inference_mode()
    def spec_generate(
        self,
        input_ids: Tensor,
        target: Any,
        max_new_tokens: int = 2048,
        stop_token_ids: list[int] | None = None,
        temperature: float = 0.0,
    ) -> Tensor:
        """Prompt and answer [1, num_tokens] of one prompt ``input_ids`` [1, num_tokens]: the target's own tokens.

        Drafts are greedy and kept where the target chooses the same token, so a sampled answer (``temperature`` > 0)
        follows the target's distribution too.
        """
        tokens = input_ids[0].tolist()
        length, stops = len(tokens), set(stop_token_ids or ())
        cache = DynamicCache(config=target.config)
        # Full attention alone forgets tokens at no cost; states and windows need a copy that runs over the kept ones.
        kinds = getattr(target.config.get_text_config(), "layer_types", None) or ()
        forgets = set(kinds) <= {"full_attention"}
        options = {"use_cache": True, "output_hidden_states": True}
        output = target(input_ids, past_key_values=cache, logits_to_keep=1, **options)
        [anchor] = self._choose(output.logits[0], temperature)
        context, new = self.observe(self._features(output, length), []), [anchor]
        while len(new) < max_new_tokens and not stops & set(new):
            block = [anchor, *self.draft(anchor, context, target)]
            before = None if forgets else copy.deepcopy(cache)
            ids = torch.tensor([block], device=target.device)
            output = target(ids, past_key_values=cache, **options)
            chosen = self._choose(output.logits[0], temperature)
            kept = next((i for i, token in enumerate(block[1:]) if token != chosen[i]), len(block) - 1)
            if before is None:
                cache.crop(-(len(block) - 1 - kept))
            elif kept < len(block) - 1:
                cache = before
                target(ids[:, : kept + 1], past_key_values=cache, use_cache=True)
            context = self.observe(self._features(output, kept + 1), context)
            anchor = chosen[kept]
            new += chosen[: kept + 1]
        end = next((i + 1 for i, token in enumerate(new) if token in stops), max_new_tokens)
        return torch.tensor([tokens + new[: min(end, max_new_tokens)]], device=input_ids.device)

    def _features(self, output: Any, num_tokens: int) -> Tensor:
        # hidden_states[0] is the embedding, so a layer's output is one place later.
        return torch.cat([output.hidden_states[i + 1][:, :num_tokens] for i in self.layer_ids], dim=-1)

    def _choose(self, logits: Tensor, temperature: float) -> list[int]:
        if temperature < 1e-5:
            return logits.argmax(-1).tolist()
        return torch.multinomial((logits.float() / temperature).softmax(-1), 1)[:, 0].tolist()

    def _rope(self, x: Tensor, start: int) -> Any:
        return self.rotary_emb(x, torch.arange(start, start + x.shape[1], device=x.device).unsqueeze(0))


class DFlash2DraftModel(DFlashDraftModel):
    """The same network with DFlash 2's parts, which the config names: what auto_map of such a folder asks for."""
