"""Masks against the definition written as loops, and FlexAttention's tiles against the dense form."""

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from flashdraft.ops.attention import attention, attention_reference
from flashdraft.ops.block_mask import PLAIN, TILE, BlockContextMask, BlockRule, CachedMask, DocumentMask

SEQ_LEN, BLOCK_SIZE = 256, 16


def packed_rows(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows of documents of odd lengths, and 16 sorted anchors in each."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.zeros(2, SEQ_LEN, dtype=torch.long)
    for row in starts:
        begin = 0
        while begin < SEQ_LEN:
            length = int(torch.randint(3, 140, (1,), generator=generator))
            row[begin : begin + length] = begin
            begin += length
    anchors = torch.stack([torch.randperm(SEQ_LEN, generator=generator)[:16].sort().values for _ in range(2)])
    return starts, anchors, starts.gather(1, anchors)


@pytest.mark.parametrize("seed", range(3))
def test_document_mask_equals_the_definition(seed: int) -> None:
    starts, _, _ = packed_rows(seed)
    dense = DocumentMask(starts).dense()
    for row in range(2):
        for q in range(0, SEQ_LEN, 7):
            seen = [k for k in range(SEQ_LEN) if starts[row, k] == starts[row, q] and k <= q]
            assert dense[row, q].nonzero().flatten().tolist() == seen


@pytest.mark.parametrize("seed", range(3))
def test_block_mask_equals_the_definition(seed: int) -> None:
    starts, anchors, anchor_starts = packed_rows(seed)
    dense = BlockContextMask(anchors, anchor_starts, SEQ_LEN, BLOCK_SIZE).dense()
    for row in range(2):
        for block in range(16):
            anchor = int(anchors[row, block])
            context = [k for k in range(anchor) if starts[row, k] == starts[row, anchor]]
            own = [SEQ_LEN + block * BLOCK_SIZE + slot for slot in range(BLOCK_SIZE)]
            for slot in (0, 1, BLOCK_SIZE - 1):
                seen = dense[row, block * BLOCK_SIZE + slot].nonzero().flatten().tolist()
                assert seen == context + own


def tiles_as_dense(mask: BlockMask, row: int, q_len: int, kv_len: int) -> torch.Tensor:
    """What FlexAttention computes from a BlockMask: full tiles whole, partial tiles by the predicate."""
    out = torch.zeros(q_len, kv_len, dtype=torch.bool)
    for counts, indices, is_full in (
        (mask.kv_num_blocks, mask.kv_indices, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True),
    ):
        assert counts is not None
        assert indices is not None
        for q_tile in range(-(-q_len // TILE)):
            for kv_tile in indices[row, 0, q_tile, : counts[row, 0, q_tile]].tolist():
                q = torch.arange(q_tile * TILE, min((q_tile + 1) * TILE, q_len)).unsqueeze(1)
                k = torch.arange(kv_tile * TILE, (kv_tile + 1) * TILE).unsqueeze(0)
                zero = torch.tensor(row)
                tile = mask.mask_mod(zero, zero, q, k)
                out[q, k] = torch.ones_like(tile) if is_full else tile
    return out


@pytest.mark.parametrize("seed", range(6))
def test_flex_tiles_equal_dense(seed: int) -> None:
    starts, anchors, anchor_starts = packed_rows(seed)
    documents = DocumentMask(starts)
    blocks = BlockContextMask(anchors, anchor_starts, SEQ_LEN, BLOCK_SIZE)
    num_slots = 16 * BLOCK_SIZE
    for row in range(2):
        assert torch.equal(tiles_as_dense(documents.flex(), row, SEQ_LEN, SEQ_LEN), documents.dense()[row])
        dense = blocks.dense()[row]
        assert torch.equal(tiles_as_dense(blocks.flex(), row, num_slots, SEQ_LEN + num_slots), dense)


RULES = (
    PLAIN,
    BlockRule(is_causal=True),
    BlockRule(window=20),
    BlockRule(window=20, is_causal=True),
    BlockRule(window=20, from_anchor=True),
)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_parts_equal_dense_and_name_every_key_that_is_seen(seed: int, rule: BlockRule) -> None:
    _, anchors, anchor_starts = packed_rows(seed)
    mask = BlockContextMask(anchors, anchor_starts, SEQ_LEN, BLOCK_SIZE, rule)
    dense, apart = mask.dense(), torch.zeros_like(mask.dense())
    made = mask.parts()
    for part in made.parts:
        keys = torch.cat([torch.arange(SEQ_LEN + 16 * BLOCK_SIZE)[one] for one in part.keys])
        apart[part.row, part.queries.start : part.queries.stop, keys] = part.mask[0]
    assert apart.equal(dense)
    assert sum(part.mask.numel() for part in made.parts) < 0.6 * dense.numel()
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, 16 * BLOCK_SIZE, 8, generator=generator).requires_grad_()
    k, v = (
        torch.randn(2, 2, SEQ_LEN + 16 * BLOCK_SIZE, 8, generator=generator).requires_grad_()
        for _ in range(2)
    )
    weight = torch.randn(q.shape, generator=generator)
    outs = attention(q, k, v, made), attention_reference(q, k, v, dense)
    torch.testing.assert_close(*outs)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in outs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("num_tokens", [1, 16])
def test_cached_mask_flex_equals_dense_and_the_definition(num_tokens: int) -> None:
    first = torch.tensor([0, 111, 112, 127, 128, 239, 240, 300])
    mask = CachedMask(first.unsqueeze(1) + torch.arange(num_tokens), kv_len=384)
    dense, flex = mask.dense(), mask.flex()
    for row, start in enumerate(first.tolist()):
        assert dense[row].sum(-1).tolist() == list(range(start + 1, start + 1 + num_tokens))
        assert torch.equal(tiles_as_dense(flex, row, num_tokens, 384), dense[row])
