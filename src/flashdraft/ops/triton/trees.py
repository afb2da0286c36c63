"""Trees of drafts on the device: grown, followed down the target's own choices, accepted paths brought together.

spec_decode/tree.py says what a tree is and has the same on the host: best_first, DraftTree.walk; PagedRows.commit_paths
moves the tokens of a path. One program has one row: a tree is grown token by token, of few tokens.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_NONE = 1 << 30  # behind every place
_MOST_COPIED = 4096  # elements of a token in one layer that a program moves together


@dataclass(frozen=True)
class Branches:
    """What trees are grown of: candidates of each slot of blocks, and how they follow one another."""

    token_ids: Tensor  # int64 [rows, slots, count]
    # float32 [rows, slots, num_before, ranks]: log-probabilities behind each candidate before (num_before 1: whichever
    # it is), best first.
    log_probs: Tensor
    places: Tensor | None  # int64, of that shape: which candidates those are; None: the first ones


@dataclass(frozen=True)
class Trees:
    """Trees of ``width`` places a row, place 0 the anchor's; places that a row has no token for are padding."""

    token_ids: Tensor  # int64 [rows, width]
    parents: Tensor  # int32 [rows, width]: -1 of anchors and padding
    log_probs: Tensor  # float32 [rows, width]: of the token behind its parent
    depths: Tensor  # int64 [rows, width]: from the anchor; of padding 0
    paths: Tensor  # int32 [rows, width, width]: places from the anchor down to each token


@triton.jit
def _of(numbers, place, at):  # type: ignore[no-untyped-def]
    """What ``numbers`` has at ``at``."""
    return tl.sum(tl.where(place == at, numbers, 0), 0)


@triton.jit  # type: ignore[untyped-decorator]
def _store_paths(depths, parents, paths, own_depths, slots, width: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each place's path, from its end up; ``depths`` and ``parents`` of the row are in memory."""
    place = tl.arange(0, width)
    node = tl.where(own_depths > 0, place, 0)
    for _ in range(slots + 1):
        tl.store(paths + tl.load(depths + node), node)
        node = tl.maximum(tl.load(parents + node), 0)


@triton.jit  # type: ignore[untyped-decorator]
def _grow_kernel(  # type: ignore[no-untyped-def]
    candidates, log_probs, places, anchors, sizes, most_ranks, most_depths,
    tree_ids, parents, tree_log_probs, depths, paths,
    slots, count, num_before, ranks, none: tl.constexpr, has_places: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, width)
    candidates += row * slots * count
    log_probs += row * slots * num_before * ranks
    places += row * slots * num_before * ranks
    size, last_rank, most_depth = (
        tl.load(sizes + row),
        tl.load(most_ranks + row) - 1,
        tl.load(most_depths + row),
    )
    # What may come next: the likeliest continuation first. An entry's token has a slot, a candidate before and a rank.
    first = tl.where(most_depth > 0, tl.load(log_probs), float("-inf"))
    scores = tl.where(place == 0, first, float("-inf"))
    above = tl.zeros([width], tl.float32)
    slot, before = tl.zeros([width], tl.int32), tl.zeros([width], tl.int32)
    rank, behind = tl.zeros([width], tl.int32), tl.zeros([width], tl.int32)
    tokens = tl.where(place == 0, tl.load(anchors + row), 0)
    own_parents, own_depths = tl.full([width], -1, tl.int32), tl.zeros([width], tl.int32)
    own_log_probs = tl.zeros([width], tl.float32)
    for number in range(1, width):
        best = tl.max(scores, 0)
        if (best > float("-inf")) & (number < size):
            at = tl.min(tl.where(scores == best, place, none), 0)
            at_slot, at_before, at_rank = _of(slot, place, at), _of(before, place, at), _of(rank, place, at)
            parent, score_above = _of(behind, place, at), _of(above, place, at)
            where = (at_slot * num_before + at_before) * ranks + at_rank
            chosen = at_rank
            if has_places:
                chosen = tl.load(places + where).to(tl.int32)
            is_own = place == number
            tokens = tl.where(is_own, tl.load(candidates + at_slot * count + chosen), tokens)
            own_parents = tl.where(is_own, parent, own_parents)
            own_depths = tl.where(is_own, at_slot + 1, own_depths)
            own_log_probs = tl.where(is_own, tl.load(log_probs + where), own_log_probs)
            # In its stead the next one of its slot, and beside it the best behind it.
            goes_on = at_rank < last_rank
            sibling = tl.where(
                goes_on, score_above + tl.load(log_probs + where + 1, goes_on, 0.0), float("-inf")
            )
            next_before = chosen if has_places else 0
            goes_down = at_slot + 1 < most_depth
            next_at = ((at_slot + 1) * num_before + next_before) * ranks
            child = tl.where(goes_down, best + tl.load(log_probs + next_at, goes_down, 0.0), float("-inf"))
            scores = tl.where(is_own, child, tl.where(place == at, sibling, scores))
            rank = tl.where(is_own, 0, tl.where(place == at, at_rank + 1, rank))
            slot, before = tl.where(is_own, at_slot + 1, slot), tl.where(is_own, next_before, before)
            above, behind = tl.where(is_own, best, above), tl.where(is_own, number, behind)
    at_row = row * width + place
    tl.store(tree_ids + at_row, tokens)
    tl.store(parents + at_row, own_parents)
    tl.store(tree_log_probs + at_row, own_log_probs)
    tl.store(depths + at_row, own_depths.to(tl.int64))
    tl.debug_barrier()
    _store_paths(
        depths + row * width, parents + row * width, paths + at_row * width, own_depths, slots, width
    )


def grown(
    branches: Branches, anchors: Tensor, sizes: Tensor, ranks: Tensor, depths: Tensor, width: int
) -> Trees:
    """Each row's tree of the likeliest continuations behind its anchor: spec_decode.tree.best_first.

    Of row i at most ``sizes[i]`` tokens, anchor included, ``depths[i]`` deep, of the first ``ranks[i]`` of each slot:
    with one it is a chain. All [rows], int64. ``width``: a power of two, no size is above it.
    """
    rows, slots, count = branches.token_ids.shape
    num_before, num_ranks = branches.log_probs.shape[2:]
    ids, log_probs = branches.token_ids.contiguous(), branches.log_probs.contiguous()
    places = ids if branches.places is None else branches.places.contiguous()
    trees = Trees(
        torch.empty(rows, width, dtype=torch.int64, device=ids.device),
        torch.empty(rows, width, dtype=torch.int32, device=ids.device),
        torch.empty(rows, width, dtype=torch.float32, device=ids.device),
        torch.empty(rows, width, dtype=torch.int64, device=ids.device),
        torch.empty(rows, width, width, dtype=torch.int32, device=ids.device),
    )
    _grow_kernel[(rows,)](
        ids, log_probs, places, anchors, sizes, ranks, depths,
        trees.token_ids, trees.parents, trees.log_probs, trees.depths, trees.paths,
        slots, count, num_before, num_ranks,
        none=_NONE, has_places=branches.places is not None, width=width, num_warps=1,
    )  # fmt: skip
    return trees


@triton.jit  # type: ignore[untyped-decorator]
def _follow_kernel(  # type: ignore[no-untyped-def]
    tree_ids, parents, wanted, most, path, counts, following, path_len, none: tl.constexpr, width: tl.constexpr
):  # fmt: skip
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, width)
    tokens, own_parents = tl.load(tree_ids + row * width + place), tl.load(parents + row * width + place)
    most_accepted = tl.load(most + row)
    at, accepted = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for depth in range(path_len):
        goes_on = accepted == depth - 1
        if goes_on & (depth <= most_accepted):
            want = tl.load(wanted + row * width + at)
            child = tl.min(tl.where((own_parents == at) & (tokens == want), place, none), 0)
            accepted = tl.where(child < none, depth, accepted)
            at = tl.where(child < none, child, at)
        tl.store(path + row * path_len + depth, tl.where(accepted == depth, at, depth).to(tl.int64))
    tl.store(counts + row, accepted.to(tl.int64))
    tl.store(following + row, tl.load(wanted + row * width + at))


def followed(trees: Trees, wanted: Tensor, most: Tensor, path_len: int) -> tuple[Tensor, Tensor, Tensor]:
    """How far the target's own choices ``wanted`` [rows, width] lead down each tree: DraftTree.walk.

    At most ``most[i]`` tokens below the anchor. Int64: places of the path from the anchor on [rows, path_len], behind
    its end place i at i; tokens accepted [rows]; the target's own token behind them [rows].
    """
    rows, width = wanted.shape
    path = torch.empty(rows, path_len, dtype=torch.int64, device=wanted.device)
    accepted, following = torch.empty(2, rows, dtype=torch.int64, device=wanted.device)
    _follow_kernel[(rows,)](
        trees.token_ids, trees.parents, wanted.contiguous(), most, path, accepted, following, path_len,
        none=_NONE, width=width, num_warps=1,
    )  # fmt: skip
    return path, accepted, following


@triton.jit  # type: ignore[untyped-decorator]
def _move_kernel(  # type: ignore[no-untyped-def]
    stored, table, starts, path, counts, table_row, path_len, slot_stride, layer_stride, side_stride,
    size: tl.constexpr, page_size: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    row, layer, side = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    element = tl.arange(0, tile)
    stored += layer * layer_stride + side * side_stride + element
    start, count = tl.load(starts + row), tl.load(counts + row)
    # A path rises: what one token is written over was read, if it is of the path.
    for number in range(1, count):
        place = tl.load(path + row * path_len + number)
        if place != number:
            taken, left = start + place, start + number
            from_page = tl.load(table + row * table_row + taken // page_size).to(tl.int64)
            to_page = tl.load(table + row * table_row + left // page_size).to(tl.int64)
            moved = tl.load(
                stored + (from_page * page_size + taken % page_size) * slot_stride, element < size
            )
            tl.store(stored + (to_page * page_size + left % page_size) * slot_stride, moved, element < size)


def move_path(
    stored: Tensor, table: Tensor, starts: Tensor, path: Tensor, counts: Tensor, page_size: int
) -> None:
    """Bring the first ``counts`` [rows] tokens of each ``path`` [rows, path_len] together, in all layers.

    ``stored`` [num_slots, num_layers, 2, kv_heads, head_dim] in pages of ``page_size``, heads side by side; ``table``
    int32 [rows, num_pages]; staged token ``path[i, k]`` lies at ``starts[i] + path[i, k]`` and goes to
    ``starts[i] + k``. Paths rise. All but the table int64.
    """
    _, num_layers, sides, heads, head_dim = stored.shape
    assert stored.stride()[3:] == (head_dim, 1), "a token's heads lie side by side"
    size = heads * head_dim
    assert size <= _MOST_COPIED, "a token's keys in a layer are moved by one program"
    _move_kernel[(len(path), num_layers, sides)](
        stored, table, starts, path, counts, table.stride(0), path.shape[1], *stored.stride()[:3],
        size=size, page_size=page_size, tile=triton.next_power_of_2(size), num_warps=1,
    )  # fmt: skip
