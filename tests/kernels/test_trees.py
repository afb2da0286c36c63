"""Trees on the device under Triton's interpreter, against spec_decode/tree.py and PagedRows.commit_paths."""

import random

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.cache.kv_cache import KVShape
from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.ops.triton.trees import Branches, followed, grown, move_path
from flashdraft.spec_decode.tree import DraftTree, best_first

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS, COUNT, RANKS = 5, 6, 4


def _branches(num_rows, has_places, seed=0):
    """Log-probabilities in eighths: sums are exact, and no two continuations are as likely in these seeds."""
    torch.manual_seed(seed)
    ids = torch.stack([torch.randperm(50)[:COUNT] for _ in range(num_rows * SLOTS)]).view(
        num_rows, SLOTS, COUNT
    )
    shape = (num_rows, SLOTS, COUNT if has_places else 1, COUNT)
    ranked, order = (-torch.rand(shape) * 3).sort(-1, descending=True)
    places = order[..., :RANKS] if has_places else None
    return Branches(ids, ranked[..., :RANKS], places)


def _on_device(branches):
    places = None if branches.places is None else branches.places.to(DEVICE)
    return Branches(branches.token_ids.to(DEVICE), branches.log_probs.to(DEVICE), places)


def _told(numbers):
    return torch.tensor(numbers, device=DEVICE)


@pytest.mark.parametrize("has_places", [False, True])
def test_the_trees_that_the_host_grows(has_places):
    """Whole trees, one cut to two slots, one of three tokens, a chain, a row without a draft."""
    sizes, ranks, depths = [16, 16, 3, 5, 1], [RANKS, RANKS, RANKS, 1, RANKS], [5, 2, 5, 4, 0]
    branches = _branches(len(sizes), has_places)
    anchors = [7, 8, 9, 10, 11]
    trees = grown(_on_device(branches), *map(_told, (anchors, sizes, ranks, depths)), 16)
    for row, (size, rank, depth) in enumerate(zip(sizes, ranks, depths, strict=True)):
        places = None if branches.places is None else branches.places[row, :depth].tolist()
        log_probs = branches.log_probs[row, :depth, :, :rank].tolist()
        expected = best_first(branches.token_ids[row, :depth].tolist(), log_probs, size - 1, places)
        num = len(expected)
        assert trees.token_ids[row, : num + 1].tolist() == [anchors[row], *expected.token_ids]
        assert trees.parents[row].tolist() == [-1, *expected.parents, *[-1] * (15 - num)]
        assert trees.depths[row].tolist() == [0, *expected.depths, *[0] * (15 - num)]
        assert trees.log_probs[row, 1 : num + 1].tolist() == pytest.approx(expected.log_probs)
        if rank == 1:
            assert expected.is_chain
        for place in range(num + 1):
            path = [place]
            while path[0]:
                path.insert(0, expected.parents[path[0] - 1])
            assert trees.paths[row, place, : len(path)].tolist() == path
        assert not trees.paths[row, num + 1 :, 0].any()


def test_the_path_that_the_target_takes():
    """Its own choices are children every other time; one row may take one token alone, one none."""
    sizes, most = [16, 12, 16, 16], [5, 5, 1, 0]
    branches = _on_device(_branches(4, True, seed=1))
    trees = grown(branches, *map(_told, ([1, 2, 3, 4], sizes, [RANKS] * 4, [5] * 4)), 16)
    rng, wanted = random.Random(2), torch.zeros(4, 16, dtype=torch.int64)
    hosts = []
    for row, size in enumerate(sizes):
        host = DraftTree(trees.token_ids[row, 1:size].tolist(), trees.parents[row, 1:size].tolist())
        hosts.append(host)
        for place in range(16):
            children = [token for token, at in zip(host.token_ids, host.parents, strict=True) if at == place]
            wanted[row, place] = rng.choice(children) if children and rng.random() < 0.9 else 99
    found = followed(trees, wanted.to(DEVICE), _told(most), 6)
    path, accepted, following = (one.tolist() for one in found)
    lengths = []
    for row, (host, limit) in enumerate(zip(hosts, most, strict=True)):
        expected, _ = host.walk(lambda place, _, row=row: int(wanted[row, place]))
        expected = expected[: limit + 1]
        assert path[row] == [*expected, *range(len(expected), 6)]
        assert accepted[row] == len(expected) - 1
        assert following[row] == wanted[row, expected[-1]]
        lengths.append(len(expected))
    assert max(lengths) > 2, "choose another seed: no path goes far"


def test_padding_is_nobodys_child():
    trees = grown(_on_device(_branches(1, False)), *map(_told, ([0], [3], [RANKS], [5])), 8)
    wanted = torch.zeros(1, 8, dtype=torch.int64, device=DEVICE)
    assert trees.token_ids[0, 3:].tolist() == [0] * 5
    assert followed(trees, wanted, _told([5]), 6)[1].item() == 0


def test_a_path_is_brought_together_as_the_host_does_it():
    paths, starts, size = [[0, 2, 3, 6], [0, 1, 4], [0]], [3, 6, 5], 4
    rows = [CacheRow(idx, [3 * idx, 3 * idx + 1, 3 * idx + 2], start) for idx, start in enumerate(starts)]
    caches = [
        PagedKVCache([KVShape(2, 6)] * 3, 9, size, torch.float32, "cpu", 16, by_layer=True) for _ in range(2)
    ]
    torch.manual_seed(0)
    for cache in caches:
        cache.slots.copy_(torch.randn(cache.slots.shape, generator=torch.Generator().manual_seed(3)))
    host = PagedRows(caches[0])
    host.arrange(rows, [6, 6, 6])
    host.commit_paths(rows, paths)
    padded = [[*path, *range(len(path), 5)] for path in paths]
    stored = caches[1].slots.to(DEVICE)
    table = _told([list(row.pages) for row in rows]).int()
    move_path(stored, table, _told(starts), _told(padded), _told([len(path) for path in paths]), size)
    assert torch.equal(stored.cpu(), caches[0].slots)
