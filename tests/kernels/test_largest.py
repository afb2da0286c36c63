"""The ids of the largest logits of many rows against a sort."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.ops.triton import largest
from flashdraft.ops.triton.largest import largest_tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("vocab_size", "count"), [(16, 16), (100, 4), (1000, 16), (300, 1), (257, 6)])
def test_the_largest(vocab_size, count, dtype, monkeypatch):
    """Several programs a row, the last piece not whole, fewer pieces than ids, rows apart in memory, infinite ones."""
    monkeypatch.setattr(largest, "_TILE", 256)
    torch.manual_seed(vocab_size)
    logits = (torch.randn(5, vocab_size + 3) * 4).to(dtype)[:, 1 : vocab_size + 1].to(DEVICE)
    logits[1] = -2.5
    logits[2, vocab_size // 2 :] = float("-inf")
    logits[3] = torch.arange(vocab_size).to(dtype)  # all in one piece
    ids = largest_tokens(logits, count)
    assert ids.dtype == torch.int64
    assert torch.equal(logits.gather(1, ids), logits.sort(dim=-1, descending=True).values[:, :count])
    assert all(len(set(row)) == count for row in ids.tolist())
    assert ids.min() >= 0
    assert ids.max() < vocab_size
