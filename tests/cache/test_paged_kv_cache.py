"""Rows of pages equal one cache a sequence, through joins, leaves, padding and rejected drafts."""

import pytest
import torch

from flashdraft.batch import ForwardBatch
from flashdraft.cache.kv_cache import KVShape
from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.errors import EngineError
from toys import toy_target


@torch.inference_mode()
@pytest.mark.parametrize("by_layer", [False, True])
def test_ragged_rows_give_what_each_sequence_gives_alone(by_layer: bool) -> None:
    target = toy_target()
    generator = torch.Generator().manual_seed(0)
    lengths = [21, 9, 14]
    sequences = [torch.randint(97, (n,), generator=generator).tolist() for n in lengths]
    cache = PagedKVCache([KVShape(2, 12)] * 6, 30, 4, torch.float32, "cpu", 12, by_layer)
    rows, pages = PagedRows(cache), [list(range(i, 30, 3)) for i in range(3)]
    done = [0, 0, 0]
    # (sequences in the step, tokens staged of each, tokens committed of each)
    steps = [
        ([0, 1], [5, 3], [5, 3]),
        ([0], [6], [2]),
        ([2, 1, 0], [4, 4, 1], [4, 1, 1]),
        ([1, 2], [2, 5], [0, 5]),
    ]
    for members, staged, committed in steps:
        width = max(staged)
        # Pages for what will be committed, and for no more.
        lasts = [-(-(done[s] + n) // 4) for s, n in zip(members, committed, strict=True)]
        step_rows = [CacheRow(s, pages[s][:last], done[s]) for s, last in zip(members, lasts, strict=True)]
        positions, kv_len = rows.arrange(step_rows, staged)
        ids = [
            sequences[s][done[s] : done[s] + n] + [0] * (width - n)
            for s, n in zip(members, staged, strict=True)
        ]
        out = target(ForwardBatch(torch.tensor(ids), positions, kv_len), rows)
        for i, (s, n) in enumerate(zip(members, staged, strict=True)):
            alone = sequences[s][: done[s] + n]
            expected = target(ForwardBatch.of_row(alone, 0), target.new_cache(1, len(alone)))
            torch.testing.assert_close(out.hidden[i, :n], expected.hidden[0, -n:], atol=2e-5, rtol=1e-4)
        rows.commit(step_rows, committed)
        for s, n in zip(members, committed, strict=True):
            done[s] += n
    # The pages alone carry everything: fresh rows give the same.
    assert done == [8, 4, 9]
    fresh = PagedRows(cache)
    positions, kv_len = fresh.arrange([CacheRow(s, pages[s], done[s]) for s in range(3)], [1] * 3)
    ids = torch.tensor([[sequences[s][done[s]]] for s in range(3)])
    out = target(ForwardBatch(ids, positions, kv_len), fresh)
    for s in range(3):
        alone = sequences[s][: done[s] + 1]
        expected = target(ForwardBatch.of_row(alone, 0), target.new_cache(1, len(alone)))
        torch.testing.assert_close(out.hidden[s, 0], expected.hidden[0, -1], atol=2e-5, rtol=1e-4)


def test_more_than_the_spare_pages_hold_is_refused() -> None:
    cache = PagedKVCache([KVShape(1, 2)], 4, 4, torch.float32, "cpu", num_spare=8)
    rows = PagedRows(cache)
    rows.arrange([CacheRow("a", [0], 3), CacheRow("b", [1], 4)], [5, 4])
    with pytest.raises(EngineError, match="13 tokens in 2 rows stages more than 2 spare pages of 4 tokens"):
        rows.arrange([CacheRow("a", [0], 3), CacheRow("b", [1], 4)], [8, 5])


def test_bytes_per_token() -> None:
    cache = PagedKVCache([KVShape(3, 64)] * 30, 2, 16, torch.bfloat16, "cpu")
    assert cache.bytes_per_token == 30 * 2 * 3 * 64 * 2
    assert cache.slots.numel() * 2 == 32 * cache.bytes_per_token
