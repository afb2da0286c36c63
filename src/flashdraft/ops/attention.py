"""Grouped-query attention: one entrance, and the form that suits the mask."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

# cuDNN's attention plans every new shape for longer than it then takes, and a cache is longer at every step.
torch.backends.cuda.enable_cudnn_sdp(False)


class Causal:
    """The mask of a whole sequence seen from its start: token i sees tokens 0..i."""


CAUSAL = Causal()


@dataclass(frozen=True)
class LastKeys:
    """A mask over the keys from ``first`` on: nobody sees those before, and so nobody reads them."""

    mask: Tensor  # bool [rows, num_tokens, kv_len - first]
    first: int

    def dense(self) -> Tensor:
        """Bool [rows, num_tokens, kv_len]."""
        return F.pad(self.mask, (self.first, 0))


@dataclass(frozen=True)
class Part:
    """Some queries of one row, and the keys that any of them may see."""

    row: int
    queries: slice
    keys: tuple[slice, ...]
    mask: Tensor  # bool [1, num_queries, num_keys], over these queries and keys alone


@dataclass(frozen=True)
class Parts:
    """A sparse mask taken apart, row by row and in the queries' order: keys that a part does not name cost nothing."""

    parts: tuple[Part, ...]


Mask = Tensor | BlockMask | Causal | LastKeys | Parts | None


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """What one layer's attention is beside its mask. Made with the layer, the same in every forward."""

    window: int | None = None  # how many tokens a token sees, itself included; None: all before it
    scale: float | None = None  # of the scores; None: head_dim ** -0.5
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap) (Gemma 2)
    sinks: Tensor | None = (
        None  # [heads]: one more score a head, which takes weight and gives nothing (gpt-oss)
    )
    shares: int | None = (
        None  # the earlier layer whose keys and values it attends to, bringing none of its own
    )


FULL_ATTENTION = AttentionSpec()


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, spec: AttentionSpec = FULL_ATTENTION
) -> Tensor:
    """Softmax attention written out, in float32; shapes as in :func:`attention`. ``mask`` knows the window."""
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, dim=1).float() for x in (k, v))
    scores = q.float() @ k.transpose(-1, -2) * (spec.scale or q.shape[-1] ** -0.5)
    if spec.softcap is not None:
        scores = spec.softcap * (scores / spec.softcap).tanh()
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
    if spec.sinks is not None:
        sinks = spec.sinks.float().view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, sinks), dim=-1)
    weighted: Tensor = scores.softmax(-1)[..., : k.shape[2]] @ v
    return weighted.to(q.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask, spec: AttentionSpec = FULL_ATTENTION) -> Tensor:
    """Attention of ``q`` [batch, heads, num_tokens, head_dim] on ``k``, ``v`` [batch, kv_heads, kv_len, head_dim].

    ``mask``: bool [batch or 1, num_tokens, kv_len] (True = may see), a flex BlockMask (training on CUDA),
    CAUSAL, LastKeys, Parts (training on CPUs), or None (all see all); it has the spec's window in it. Returns
    [batch, heads, num_tokens, head_dim].
    """
    if spec.softcap is not None or (spec.sinks is not None and not isinstance(mask, BlockMask)):
        return attention_reference(q, k, v, dense_mask(mask, q.shape[2], k.shape[2]), spec)
    if isinstance(mask, BlockMask):
        # Within a compiled layer it is part of that graph; alone it has to be compiled to be fast.
        flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        out: Tensor
        if spec.sinks is None:
            out = flex(q, k, v, block_mask=mask, scale=spec.scale, enable_gqa=True)
            return out
        # A sink takes its share of the softmax: exp(lse) / (exp(lse) + exp(sink)) of the weight is left.
        more = AuxRequest(lse=True)
        out, found = flex(q, k, v, block_mask=mask, scale=spec.scale, enable_gqa=True, return_aux=more)
        left: Tensor = (found.lse - spec.sinks.float().view(-1, 1)).sigmoid()
        return out * left.unsqueeze(-1).to(out.dtype)
    if isinstance(mask, Causal):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=spec.scale, enable_gqa=True)
    if isinstance(mask, Parts):
        return _by_parts(q, k, v, mask, spec)
    if isinstance(mask, LastKeys):
        k, v, mask = k[:, :, mask.first :], v[:, :, mask.first :], mask.mask
    # The query heads of one group become more query rows of their K/V head: no copy of K and V is made.
    batch, heads, num_tokens, head_dim = q.shape
    groups = heads // k.shape[1]
    folded = q.reshape(batch, k.shape[1], groups * num_tokens, head_dim)
    if mask is not None:
        mask = mask.unsqueeze(1).repeat(1, 1, groups, 1)
    out = F.scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=spec.scale)
    return out.reshape(batch, heads, num_tokens, head_dim)


def dense_mask(mask: Mask, num_tokens: int, kv_len: int) -> Tensor | None:
    """``mask`` as bool [rows, num_tokens, kv_len]; None: all see all."""
    if isinstance(mask, Causal):
        return torch.ones(1, num_tokens, kv_len, dtype=torch.bool).tril()
    if isinstance(mask, LastKeys):
        return mask.dense()
    assert mask is None or isinstance(mask, Tensor), f"{type(mask).__name__} is for training without caps"
    return mask


def _by_parts(q: Tensor, k: Tensor, v: Tensor, mask: Parts, spec: AttentionSpec) -> Tensor:
    rows: list[list[Tensor]] = [[] for _ in range(len(q))]
    for part in mask.parts:
        row = slice(part.row, part.row + 1)
        its_k, its_v = (torch.cat([x[row, :, keys] for keys in part.keys], dim=2) for x in (k, v))
        rows[part.row].append(attention(q[row, :, part.queries], its_k, its_v, part.mask, spec))
    return torch.cat([torch.cat(outs, dim=2) for outs in rows])


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)
