"""The training masks: which keys a token of a packed row may see. Predicate first, then the forms that attention takes.

A packed row holds whole documents one after the other ([num_rows, seq_len]). Its blocks ([num_rows, num_blocks]
anchors, ``block_size`` slots each) stand behind it: keys are [context tokens | block slots]. A block sees its own
document strictly before its anchor (the anchor's features do not exist yet when serving) and itself, both ways.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from flashdraft.ops.attention import Part, Parts

Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
TILE = 128  # FlexAttention's tile: rows and blocks are skipped by whole tiles


def blocks_per_tile(block_size: int) -> int:
    """The fewest blocks whose slots are whole tiles: :meth:`BlockContextMask.flex` wants a multiple of it."""
    return TILE // math.gcd(TILE, block_size)


@dataclass(frozen=True)
class BlockRule:
    """What a drafter layer's block may see: of the context, and of itself.

    Trainers differ at the window's edge. Counted from the slot (z-lab, SpecForge), slot k at position ``anchor + k``
    sees context from ``anchor + k - window + 1``; counted from the anchor (speculators), every slot sees context
    from ``anchor - window``.
    """

    window: int | None = None  # None: the whole context
    is_causal: bool = False  # within the block
    from_anchor: bool = False

    @property
    def is_plain(self) -> bool:
        """All of the context and all of the block."""
        return self.window is None and not self.is_causal

    @property
    def is_uniform(self) -> bool:
        """Every slot sees the same: all of the block, and the context from one position on."""
        return not self.is_causal and (self.window is None or self.from_anchor)

    @property
    def reach(self) -> int | None:
        """How many tokens the anchor sees, itself included; None: all."""
        return None if self.window is None else self.window + self.from_anchor

    def sees_context(self, anchor: Tensor, slot: Tensor, key: Tensor) -> Tensor:
        """Of positions before the anchor; ``slot`` counts from 0, ``key`` is a position as ``anchor`` is."""
        if self.window is None:
            return key < anchor
        first = anchor - self.window if self.from_anchor else anchor + slot - self.window + 1
        return (key < anchor) & (key >= first)

    def sees_block(self, slot: Tensor, key_slot: Tensor) -> Tensor:
        """Of the block's slots, both counted from 0."""
        ahead = 1 if self.is_causal else self._reach()
        seen = key_slot - slot < ahead
        return seen & ((slot - key_slot) < self._reach())

    def _reach(self) -> int:
        return 1 << 30 if self.window is None or self.from_anchor else self.window


PLAIN = BlockRule()


@dataclass(frozen=True)
class DocumentMask:
    """Causal attention within each document of a packed row."""

    doc_start: Tensor  # [num_rows, seq_len], where the token's document starts in its row

    def predicate(self) -> Predicate:
        """FlexAttention's ``mask_mod``: a function of (row, head, query, key) indices that broadcast."""
        # Plain closures over tensors: what torch.compile takes without compiling again for each new mask.
        doc_start = self.doc_start

        def visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (doc_start[row, query] <= key) & (key <= query)

        return visible

    def dense(self) -> Tensor:
        """Bool [num_rows, seq_len, seq_len]."""
        num_rows, seq_len = self.doc_start.shape
        return self.predicate()(*_grid(num_rows, seq_len, seq_len, self.doc_start.device))

    def flex(self) -> BlockMask:
        """The same as a BlockMask, from tile bounds alone. Needs seq_len divisible by 128."""
        num_rows, seq_len = self.doc_start.shape
        tiles = torch.arange(seq_len // TILE, device=self.doc_start.device)
        # doc_start ascends within a row: a tile's first query has the least, its last the greatest.
        starts = self.doc_start.view(num_rows, -1, TILE)
        least, greatest = starts[:, :, :1], starts[:, :, -1:]
        touched = (tiles <= tiles.unsqueeze(1)) & ((tiles + 1) * TILE > least)
        full = (tiles < tiles.unsqueeze(1)) & (tiles * TILE >= greatest)
        return _block_mask(touched & ~full, full, self.predicate(), seq_len, seq_len)


@dataclass(frozen=True)
class BlockContextMask:
    """What the slots of blocks may see of their row and of themselves (DFlash paper, figure 4)."""

    anchors: Tensor  # [num_rows, num_blocks], ascending, index of the anchor in its row
    anchor_doc_start: Tensor  # [num_rows, num_blocks], where the anchor's document starts
    seq_len: int
    block_size: int
    rule: BlockRule = PLAIN

    def predicate(self) -> Predicate:
        """FlexAttention's ``mask_mod``: a function of (row, head, query, key) indices that broadcast."""
        anchors, doc_start = self.anchors, self.anchor_doc_start
        seq_len, block_size, rule = self.seq_len, self.block_size, self.rule

        def visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            block, slot = query // block_size, query % block_size
            in_context = (doc_start[row, block] <= key) & rule.sees_context(anchors[row, block], slot, key)
            in_block = (key >= seq_len) & ((key - seq_len) // block_size == block)
            return in_context | (in_block & rule.sees_block(slot, (key - seq_len) % block_size))

        return visible

    def dense(self) -> Tensor:
        """Bool [num_rows, num_blocks * block_size, seq_len + num_blocks * block_size]."""
        num_rows, num_blocks = self.anchors.shape
        num_slots = num_blocks * self.block_size
        grid = _grid(num_rows, num_slots, self.seq_len + num_slots, self.anchors.device)
        return self.predicate()(*grid)

    def parts(self) -> Parts:
        """The same in runs of blocks, each with keys of its own: the context that one of them sees, and themselves."""
        predicate, per_part, made = self.predicate(), max(TILE // self.block_size, 1), []
        device, window, num_blocks = self.anchors.device, self.rule.window, self.anchors.shape[1]
        for row, (anchors, starts) in enumerate(zip(self.anchors, self.anchor_doc_start, strict=True)):
            for first in range(0, num_blocks, per_part):
                end = min(first + per_part, num_blocks)
                least, greatest = (int(x) for x in anchors[first:end].aminmax())
                begin = int(starts[first:end].min())
                if window is not None:
                    begin = max(begin, least - window)
                slots = slice(first * self.block_size, end * self.block_size)
                keys = (slice(begin, greatest), slice(self.seq_len + slots.start, self.seq_len + slots.stop))
                key = torch.cat([torch.arange(one.start, one.stop, device=device) for one in keys])
                query = torch.arange(slots.start, slots.stop, device=device).unsqueeze(1)
                place = torch.tensor(row, device=device)
                made.append(Part(row, slots, keys, predicate(place, place, query, key).unsqueeze(0)))
        return Parts(tuple(made))

    def flex(self) -> BlockMask:
        """The same as a BlockMask, from tile bounds alone. Needs seq_len and slots divisible by 128."""
        num_rows, num_blocks = self.anchors.shape
        num_slots = num_blocks * self.block_size
        per_tile = TILE // self.block_size
        anchors = self.anchors.view(num_rows, -1, per_tile)
        starts = self.anchor_doc_start.view(num_rows, -1, per_tile)
        tiles = torch.arange(self.seq_len // TILE, device=self.anchors.device)
        # Anchors ascend, and with them their documents' starts.
        touched = (tiles * TILE < anchors[:, :, -1:]) & ((tiles + 1) * TILE > starts[:, :, :1])
        full = ((tiles + 1) * TILE <= anchors[:, :, :1]) & (tiles * TILE >= starts[:, :, -1:])
        if self.rule.window is not None:
            full = torch.zeros_like(full)  # a window may cut any tile: the predicate decides
        own = torch.eye(num_slots // TILE, dtype=torch.bool, device=self.anchors.device)
        own = own.expand(num_rows, -1, -1)
        partial = torch.cat((touched & ~full, own), dim=-1)
        full = torch.cat((full, torch.zeros_like(own)), dim=-1)
        return _block_mask(partial, full, self.predicate(), num_slots, self.seq_len + num_slots)


@dataclass(frozen=True)
class ChainMask:
    """What one step of chains may see, each chain a token a step from its anchor on (MTP heads).

    Keys are [context tokens | entries of step 0 | of step 1 | ...], ``stride`` entries a step, of which the first
    num_blocks are used. A chain sees its document strictly before the anchor, less the document's first token (which
    has no entry), and its own entries of this step and the earlier ones.
    """

    anchors: Tensor  # [num_rows, num_blocks], ascending, index of the anchor in its row
    anchor_doc_start: Tensor  # [num_rows, num_blocks], where the anchor's document starts
    seq_len: int
    num_steps: int
    step: int

    @property
    def stride(self) -> int:
        """Entries of a step: the blocks, in whole tiles."""
        return -(-self.anchors.shape[1] // TILE) * TILE

    def predicate(self) -> Predicate:
        """FlexAttention's ``mask_mod``: a function of (row, head, query, key) indices that broadcast."""
        anchors, doc_start = self.anchors, self.anchor_doc_start
        seq_len, stride = self.seq_len, self.stride
        # A tensor, not a number: one compiled graph serves all steps.
        end = anchors.new_full((len(anchors),), seq_len + (self.step + 1) * stride)

        def visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            in_context = (doc_start[row, query] < key) & (key < anchors[row, query])
            in_chain = (key >= seq_len) & (key < end[row]) & ((key - seq_len) % stride == query)
            return in_context | in_chain

        return visible

    def dense(self) -> Tensor:
        """Bool [num_rows, num_blocks, seq_len + num_steps * stride]."""
        num_rows, num_blocks = self.anchors.shape
        grid = _grid(num_rows, num_blocks, self.seq_len + self.num_steps * self.stride, self.anchors.device)
        return self.predicate()(*grid)

    def flex(self) -> BlockMask:
        """The same as a BlockMask, from tile bounds alone. Needs seq_len divisible by 128."""
        num_rows, num_blocks = self.anchors.shape
        pad = (0, self.stride - num_blocks)
        # Padding repeats the last chain, so that a tile's last anchor is its greatest.
        anchors, starts = (
            torch.nn.functional.pad(x.float(), pad, mode="replicate").long().view(num_rows, -1, TILE)
            for x in (self.anchors, self.anchor_doc_start)
        )
        tiles = torch.arange(self.seq_len // TILE, device=self.anchors.device)
        touched = (tiles * TILE < anchors[:, :, -1:]) & ((tiles + 1) * TILE > starts[:, :, :1])
        full = ((tiles + 1) * TILE <= anchors[:, :, :1]) & (tiles * TILE > starts[:, :, -1:])
        own = torch.eye(self.stride // TILE, dtype=torch.bool, device=self.anchors.device)
        entries = torch.stack(
            [own if at <= self.step else own & False for at in range(self.num_steps)], dim=1
        )
        entries = entries.flatten(1).expand(num_rows, -1, -1)
        partial = torch.cat((touched & ~full, entries), dim=-1)
        full = torch.cat((full, torch.zeros_like(entries)), dim=-1)
        return _block_mask(
            partial, full, self.predicate(), num_blocks, self.seq_len + self.num_steps * self.stride
        )


@dataclass(frozen=True)
class CachedMask:
    """What tokens at ``positions`` see of a cache of ``kv_len`` slots: those up to their own."""

    positions: Tensor  # [num_rows, num_tokens], ascending within a row
    kv_len: int

    def predicate(self) -> Predicate:
        """FlexAttention's ``mask_mod``: a function of (row, head, query, key) indices that broadcast."""
        positions = self.positions

        def visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return key <= positions[row, query]

        return visible

    def dense(self) -> Tensor:
        """Bool [num_rows, num_tokens, kv_len]."""
        slots = torch.arange(self.kv_len, device=self.positions.device)
        return self.positions.unsqueeze(-1) >= slots

    def flex(self) -> BlockMask:
        """The same as a BlockMask: a row's cost grows with its own length. For at most 128 tokens a row."""
        tiles = torch.arange(-(-self.kv_len // TILE), device=self.positions.device)
        least, greatest = self.positions[:, :1, None], self.positions[:, -1:, None]
        full = (tiles + 1) * TILE - 1 <= least
        touched = tiles * TILE <= greatest
        return _block_mask(touched & ~full, full, self.predicate(), self.positions.shape[1], self.kv_len)


@dataclass(frozen=True)
class ServedBlockMask:
    """What one block a row, at ``positions``, sees of a cache of ``kv_len`` slots that holds context and block."""

    positions: Tensor  # [num_rows, num_tokens], from the anchor on
    kv_len: int
    rule: BlockRule

    def dense(self) -> Tensor:
        """Bool [num_rows, num_tokens, kv_len]."""
        anchor = self.positions[:, :1, None]
        slot = self.positions.unsqueeze(-1) - anchor
        key = torch.arange(self.kv_len, device=self.positions.device)
        in_block = (key >= anchor) & (key <= self.positions[:, -1:, None])
        return self.rule.sees_context(anchor, slot, key) | (
            in_block & self.rule.sees_block(slot, key - anchor)
        )


def fast_mask(
    mask: DocumentMask | BlockContextMask | ChainMask | CachedMask, device: torch.device
) -> Tensor | BlockMask | Parts:
    """The form of ``mask`` that is fast on ``device``: FlexAttention on CUDA; elsewhere in parts, or dense."""
    if device.type == "cuda":
        return mask.flex()
    return mask.parts() if isinstance(mask, BlockContextMask) else mask.dense()


def _grid(
    num_rows: int, q_len: int, kv_len: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def axis(size: int, dim: int) -> Tensor:
        shape = [1, 1, 1]
        shape[dim] = size
        return torch.arange(size, device=device).view(shape)

    return axis(num_rows, 0), axis(1, 0), axis(q_len, 1), axis(kv_len, 2)


def _block_mask(partial: Tensor, full: Tensor, mask_mod: Predicate, q_len: int, kv_len: int) -> BlockMask:
    def listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
        # Which tiles, in order, for each query tile; the count says how many of the list are meant.
        indices = tiles.int().argsort(dim=-1, descending=True, stable=True)
        return tiles.sum(-1, dtype=torch.int32).unsqueeze(1), indices.int().unsqueeze(1)

    return BlockMask.from_kv_blocks(
        *listed(partial),
        *listed(full),
        BLOCK_SIZE=TILE,
        mask_mod=mask_mod,
        seq_lengths=(q_len, kv_len),
    )
