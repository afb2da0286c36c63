"""Rows of pages equal one cache a sequence, through joins, leaves, padding and rejected drafts."""

import pytest
import torch

from flashdraft.batch import ForwardBatch
from flashdraft.cache.paged_kv_cache import CacheRow, GatheredRows, PagedKVCache
from flashdraft.cache.paged_rows import new_rows
from flashdraft.errors import EngineError
from toys import toy_target


@torch.inference_mode()
@pytest.mark.parametrize("reads_pages", [False, True])
def test_ragged_rows_give_what_each_sequence_gives_alone(reads_pages: bool) -> None:
    target = toy_target()
    generator = torch.Generator().manual_seed(0)
    lengths = [21, 9, 14]
    sequences = [torch.randint(97, (n,), generator=generator).tolist() for n in lengths]
    cache = PagedKVCache(6, 30, 4, 2, 12, torch.float32, "cpu", 12 * reads_pages)
    cache.slots.zero_()  # spare pages too: masks multiply by 0
    rows, pages = new_rows(cache, reads_pages), [list(range(i, 30, 3)) for i in range(3)]
    done = [0, 0, 0]
    # (sequences in the step, tokens staged of each, tokens committed of each)
    steps = [
        ([0, 1], [5, 3], [5, 3]),
        ([0], [6], [2]),
        ([2, 1, 0], [4, 4, 1], [4, 1, 1]),
        ([1, 2], [2, 5], [0, 5]),
    ]
    for members, staged, committed in steps:
        order = rows.seat(members)
        members, staged, committed = ([x[i] for i in order] for x in (members, staged, committed))
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
    fresh = new_rows(cache, reads_pages)
    positions, kv_len = fresh.arrange([CacheRow(s, pages[s], done[s]) for s in range(3)], [1] * 3)
    ids = torch.tensor([[sequences[s][done[s]]] for s in range(3)])
    out = target(ForwardBatch(ids, positions, kv_len), fresh)
    for s in range(3):
        alone = sequences[s][: done[s] + 1]
        expected = target(ForwardBatch.of_row(alone, 0), target.new_cache(1, len(alone)))
        torch.testing.assert_close(out.hidden[s, 0], expected.hidden[0, -1], atol=2e-5, rtol=1e-4)


def test_a_sequence_that_stays_is_not_copied_again() -> None:
    cache = PagedKVCache(1, 8, 4, 1, 2, torch.float32, "cpu")
    cache.slots.zero_()
    rows = GatheredRows(cache)
    for keys, expected in (("ab", 8), ("ab", 0), ("abc", 4), ("ca", 4), ("cb", 4)):
        before = rows.num_gathered_tokens
        order = rows.seat(keys)
        rows.arrange([CacheRow(keys[i], [i], 4) for i in order], [1] * len(order))
        assert rows.num_gathered_tokens - before == expected, keys


def test_more_than_the_spare_pages_hold_is_refused() -> None:
    cache = PagedKVCache(1, 4, 4, 1, 2, torch.float32, "cpu", num_spare=8)
    rows = new_rows(cache, reads_pages=True)
    rows.arrange([CacheRow("a", [0], 3), CacheRow("b", [1], 4)], [5, 4])
    with pytest.raises(EngineError, match="13 tokens in 2 rows stages more than 2 spare pages of 4 tokens"):
        rows.arrange([CacheRow("a", [0], 3), CacheRow("b", [1], 4)], [8, 5])


def test_bytes_per_token() -> None:
    cache = PagedKVCache(30, 2, 16, 3, 64, torch.bfloat16, "cpu")
    assert cache.bytes_per_token == 30 * 2 * 3 * 64 * 2
    assert cache.slots.numel() * 2 == 32 * cache.bytes_per_token
