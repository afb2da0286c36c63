"""Where one forward's layers find keys, values and states: of a recorded step, or of a prompt's chunk."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache
from flashdraft.cuda.prefill_delta import DeltaWeights, PromptSegments, RecordedPrompt, prefill_delta
from flashdraft.cuda.products import product
from flashdraft.cuda.rows import RowTables, page_array
from flashdraft.cuda.states import DeviceStates
from flashdraft.cuda.weights import Product, apart
from flashdraft.ops.attention import AttentionSpec
from flashdraft.ops.host_copy import told
from flashdraft.ops.triton.delta_inputs import gated_delta_prepare
from flashdraft.ops.triton.gated_delta import gated_delta_block, gated_delta_step
from flashdraft.ops.triton.paged_attention import Visible, paged_attention, parts_of


class Storage(Protocol):
    """Where a forward's keys and values go; tokens are [num_tokens, ...], row after row."""

    @property
    def rope(self) -> tuple[Tensor, Tensor]:
        """cos, sin [num_tokens, rotary_dim]."""
        ...

    @property
    def slots(self) -> Tensor:
        """Int64 [num_tokens]: a token's place in the cache."""
        ...

    def pages(self, layer: int) -> Tensor:
        """A layer's keys and values, [num_slots, 2, kv_heads, head_dim]."""
        ...


class Inputs(Storage, Protocol):
    """What a layer asks for until its tokens are mixed."""

    def project(self, layer: int, x: Tensor, by: Product) -> Tensor:
        """The inputs [qkv | z | b | a] of a gated delta layer, kept where rollback finds them."""
        ...


class Source(Inputs, Protocol):
    """What a layer's whole forward asks for."""

    @property
    def width(self) -> int:
        """Tokens of each row; of prompts, whose rows differ, 0."""
        ...

    def attend(self, layer: int, q: Tensor, sinks: Tensor | None) -> Tensor:
        """Attention of ``q`` [num_tokens, heads, head_dim]; the tokens' keys and values are stored.

        ``sinks`` [heads]: see AttentionSpec.
        """
        ...

    def delta(self, layer: int, projected: Tensor, weights: DeltaWeights) -> Tensor:
        """Outputs [num_tokens, heads, value_dim] of its recurrence."""
        ...


_MOST_IN_ROWS = 512  # keys; above, prompts attend one after the other by PyTorch's kernels for long ones
_MOST_SUMS = 1 << 26  # numbers that parts of keys are summed in, in float32, before they are joined


class StoreSource:
    """Where keys and values of tokens go that are true: nothing is rolled back."""

    def __init__(self, cache: PagedKVCache, slots: Tensor, rope: tuple[Tensor, Tensor]) -> None:
        self.cache, self.slots, self.rope = cache, slots, rope

    def pages(self, layer: int) -> Tensor:
        """See :class:`Storage`."""
        return self.cache.slots[:, layer]

    def project(self, layer: int, x: Tensor, by: Product) -> Tensor:  # noqa: ARG002 - all layers alike
        """See :class:`Inputs`."""
        return product(x, by)


class StepSource:
    """A plain step, a block or a tree: static shapes, nothing asked of the device. Recordings are made of it."""

    def __init__(
        self,
        cache: PagedKVCache,
        tables: RowTables,
        visible: Sequence[Visible],
        num_keys: int,
        rope: tuple[Tensor, Tensor],
        states: DeviceStates | None = None,
        tree: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """``tree``: depths and paths of trees, see ops/triton/trees.Trees."""
        self.cache, self.tables, self.visible, self.num_keys = cache, tables, visible, num_keys
        self.rope, self.states, self.tree = rope, states, tree
        self.slots, self.width = tables.slots, tables.width
        self._state_slots = tables.state_slots

    def pages(self, layer: int) -> Tensor:
        """See :class:`Source`."""
        return self.cache.slots[:, layer]

    def attend(self, layer: int, q: Tensor, sinks: Tensor | None) -> Tensor:
        """See :class:`Source`."""
        keys, values = self.pages(layer).unbind(1)
        rows, table, size = apart(q, 0, (-1, self.tables.width)), self.tables.pages, self.cache.page_size
        out = paged_attention(
            rows, keys, values, table, self.visible[layer], size, self.num_keys, sinks=sinks
        )
        return out.flatten(0, 1)

    def project(self, layer: int, x: Tensor, by: Product) -> Tensor:
        """See :class:`Source`."""
        assert self.states is not None
        return product(x, by, out=self.states.staged[layer, : len(x)])

    def delta(self, layer: int, projected: Tensor, weights: DeltaWeights) -> Tensor:
        """See :class:`Source`."""
        states, width = self.states, self.tables.width
        assert states is not None
        qkv, _, b, a = states.parts(apart(projected, 0, (-1, width)))
        shape = (*qkv.shape[:2], states.heads, states.recurrent.shape[-1])
        out = torch.empty(shape, dtype=projected.dtype, device=projected.device)
        state, slots = states.recurrent[layer], self._state_slots
        inputs = (
            qkv, a, b, weights.conv, weights.a_log, weights.dt_bias, states.conv[layer], state, slots
        )  # fmt: skip
        if width == 1:
            gated_delta_step(*inputs, out)
        else:
            prepared = states.prepared(layer, len(qkv), width)
            gated_delta_prepare(*inputs, *prepared, self.tree)
            gated_delta_block(*prepared, state, slots, out, self.tree)
        return out.flatten(0, 1)


class _SideBySide:
    """Prompts as rows of one width, padded: few launches for all of them, by the kernel of the steps."""

    def __init__(self, cache: PagedKVCache, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        device, self.page_size = cache.slots.device, cache.page_size
        starts, lengths = np.array([row.start for row in rows]), np.array(counts)
        width = max(counts)
        self.num_keys = int(starts.max()) + width
        most = -(-self.num_keys // self.page_size)
        table = page_array([row.pages[:most] for row in rows], (len(rows), most), 0)
        self.shape, self.table = (len(rows), width), told(table, device).int()
        is_own = np.arange(width) < lengths[:, None]
        # Padding is a row's last token once more.
        places = np.minimum(np.arange(width), lengths[:, None] - 1)
        firsts = lengths.cumsum() - lengths
        self.padded = told((firsts[:, None] + places).ravel(), device)
        self.own = told(np.flatnonzero(is_own), device)
        last = told(starts[:, None] + places + 1, device).int()
        self.visible = Visible(torch.zeros_like(last), last)

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, window: int | None, sinks: Tensor | None
    ) -> Tensor:
        """Attention of ``q`` [num_tokens, heads, head_dim], the same shape."""
        rows, visible = apart(q[self.padded], 0, self.shape), self.visible.within(window)
        parts = parts_of(self.num_keys, q.shape[-1])
        sums = len(rows) * q.shape[1:].numel() * parts  # of a place of all rows
        most, found = max(_MOST_SUMS // sums, 1), []
        for at in range(0, self.shape[1], most):
            part = slice(at, at + most)
            first, last = (one[:, part].contiguous() for one in (visible.first, visible.last))
            own = rows[:, part].contiguous(), keys, values, self.table, Visible(first, last)
            found.append(paged_attention(*own, self.page_size, self.num_keys, sinks=sinks))
        every = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        return every.flatten(0, 1)[self.own]


class PrefillSource(StoreSource):
    """Chunks of prompts, end to end without padding. Their tokens are true at once: states are written.

    ``specs``: of the layers that attend; with windows or sinks prompts of any length take the steps' kernel.
    """

    width = 0

    def __init__(
        self,
        cache: PagedKVCache,
        slots: Tensor,
        rope: tuple[Tensor, Tensor],
        rows: Sequence[CacheRow],
        counts: Sequence[int],
        specs: Sequence[AttentionSpec],
        states: DeviceStates | None = None,
        recorded: RecordedPrompt | None = None,
    ) -> None:
        super().__init__(cache, slots, rope)
        self.counts, self.states, self._recorded = list(counts), states, recorded
        self._windows = [spec.window for spec in specs]
        device = slots.device
        ends = [row.start + count for row, count in zip(rows, counts, strict=True)]
        is_plain = all(spec.window is None and spec.sinks is None for spec in specs)
        by_steps = max(ends) <= _MOST_IN_ROWS or not is_plain
        self._side_by_side = _SideBySide(cache, rows, counts) if by_steps else None
        self._seen: list[Tensor] = []
        if self._side_by_side is None:
            seen = zip(rows, ends, strict=True)
            self._seen = [told(cache.slot_mapping(row.pages, 0, end), device) for row, end in seen]
        self._prompts = PromptSegments(rows, counts, device) if states else None

    def attend(self, layer: int, q: Tensor, sinks: Tensor | None) -> Tensor:
        """See :class:`Source`."""
        keys, values = self.pages(layer).unbind(1)
        if self._side_by_side is not None:
            return self._side_by_side.attend(q, keys, values, self._windows[layer], sinks)
        outs = []
        for row_q, seen in zip(torch.split(q, self.counts), self._seen, strict=True):
            k, v = (stored.index_select(0, seen).transpose(0, 1).unsqueeze(0) for stored in (keys, values))
            outs.append(_causal(row_q.transpose(0, 1).unsqueeze(0), k, v))
        return torch.cat(outs, dim=2)[0].transpose(0, 1)

    def delta(self, layer: int, projected: Tensor, weights: DeltaWeights) -> Tensor:
        """See :class:`Source`."""
        assert self.states is not None
        assert self._prompts is not None
        if self._recorded and self._prompts.is_recorded:
            return self._recorded(layer, projected, self._prompts, weights)
        return prefill_delta(self.states, layer, projected, self._prompts, weights)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the last tokens of a sequence on all of it, [1, heads, num_tokens, head_dim]."""
    num_tokens, num_keys = q.shape[2], k.shape[2]
    if num_tokens == num_keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    mask: Any = causal_lower_right(num_tokens, num_keys)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
