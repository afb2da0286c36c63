"""The paged attention kernel against attention written out, under Triton's interpreter or on a GPU."""

import pytest
import torch

from flashdraft.ops.attention import FULL_ATTENTION, AttentionSpec, attention_reference

pytest.importorskip("triton")
from flashdraft.ops.triton import paged_attention as attention_kernels
from flashdraft.ops.triton.paged_attention import PART, Visible, paged_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAGE = 16


@pytest.fixture(params=[attention_kernels._WIDE, 8], ids=["parts", "shorter parts"])
def parts(request, monkeypatch):
    """How the first keys are split: as those of wide heads, too."""
    monkeypatch.setattr(attention_kernels, "_WIDE", request.param)


def _made(rows, width, heads, kv_heads, head_dim, starts, dtype=torch.float32):
    """Queries, pages in shuffled order, and each row's keys and values in one piece."""
    torch.manual_seed(rows * width + head_dim)
    num_keys = max(starts) + width
    most = -(-num_keys // PAGE)
    pages = torch.randperm(rows * most).view(rows, most)
    storage = torch.randn(rows * most * PAGE, 2, kv_heads, head_dim).to(dtype)
    every = (pages.unsqueeze(-1) * PAGE + torch.arange(PAGE)).flatten(1)[:, :num_keys]
    q = torch.randn(rows, width, heads, head_dim).to(dtype)
    positions = torch.tensor(starts).unsqueeze(1) + torch.arange(width)
    return q, storage, pages.int(), every, positions, num_keys


def _run(q, storage, table, visible, num_keys, sinks=None):
    moved = Visible(*(None if x is None else x.to(DEVICE) for x in vars(visible).values()))
    storage = storage.to(DEVICE)
    found = paged_attention(
        q.to(DEVICE), storage[:, 0], storage[:, 1], table.to(DEVICE), moved, PAGE, num_keys,
        sinks=None if sinks is None else sinks.to(DEVICE),
    )  # fmt: skip
    return found.cpu()


def _expected(q, storage, every, mask, spec=FULL_ATTENTION):
    k, v = (storage[every, which].transpose(1, 2) for which in (0, 1))
    return attention_reference(q.transpose(1, 2), k, v, mask, spec).transpose(1, 2)


@pytest.mark.parametrize(
    ("rows", "width", "heads", "kv_heads", "head_dim", "starts"),
    [
        (1, 1, 3, 1, 16, [0]),
        (3, 1, 6, 2, 64, [0, 37, 300]),
        (2, 7, 9, 3, 32, [5, 530]),
        (1, 16, 6, 1, 256, [70]),
        (2, 5, 4, 4, 80, [1, 255]),
        (2, 2, 2, 1, 136, [127, 1300]),  # wide heads: shorter parts of the first 1,024 keys
    ],
)
def test_blocks_see_what_came_before(rows, width, heads, kv_heads, head_dim, starts):
    q, storage, table, every, positions, num_keys = _made(rows, width, heads, kv_heads, head_dim, starts)
    visible = Visible(torch.zeros_like(positions).int(), (positions + 1).int())
    found = _run(q, storage, table, visible, num_keys)
    mask = torch.arange(num_keys) <= positions.unsqueeze(-1)
    torch.testing.assert_close(found, _expected(q, storage, every, mask), rtol=1e-5, atol=1e-5)


def test_windows_and_whole_blocks():
    """A drafter's block sees itself both ways, and a window of the context."""
    q, storage, table, every, _, num_keys = _made(2, 4, 4, 2, 32, [400, 30])
    last = torch.tensor([[404] * 4, [34] * 4]).int()
    first = torch.tensor([[350, 351, 352, 353], [0] * 4]).int()
    found = _run(q, storage, table, Visible(first, last), num_keys)
    key = torch.arange(num_keys)
    mask = (key >= first.unsqueeze(-1)) & (key < last.unsqueeze(-1))
    torch.testing.assert_close(found, _expected(q, storage, every, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("starts", [[70, 3], [PART + 9, 600]])
def test_a_sink_takes_weight_and_gives_nothing(starts):
    """In one part of keys and in several, within a window; sinks above all scores and below them."""
    q, storage, table, every, positions, num_keys = _made(2, 3, 6, 2, 32, starts)
    visible = Visible(torch.zeros_like(positions).int(), (positions + 1).int()).within(40)
    sinks = torch.tensor([-50.0, -1.0, 0.0, 1.0, 3.0, 50.0])
    found = _run(q, storage, table, visible, num_keys, sinks)
    key = torch.arange(num_keys)
    mask = (key <= positions.unsqueeze(-1)) & (key > positions.unsqueeze(-1) - 40)
    expected = _expected(q, storage, every, mask, AttentionSpec(sinks=sinks))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found[:, :, 5].abs().max() < 1e-6, "a sink far above all scores leaves nothing"
    one = Visible(visible.first[:1, :1], visible.last[:1, :1])
    alone = _run(q[:1, :1], storage, table[:1], one, starts[0] + 1, sinks)
    assert torch.equal(alone[0, 0], found[0, 0])


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (36, 2)])
def test_a_tree_sees_its_own_path(heads, kv_heads):
    starts = [3, PART + 1]
    q, storage, table, every, _, num_keys = _made(2, 5, heads, kv_heads, 32, starts)
    own = [[[0], [0, 1], [0, 2], [0, 3], [0, 2, 4]], [[0], [0, 1], [0, 2], [0, 1, 3], [0, 4]]]
    start = torch.tensor(starts).int()
    paths = torch.tensor([[path + [0] * (5 - len(path)) for path in row] for row in own]).int()
    last = torch.tensor([[at + len(path) for path in row] for at, row in zip(starts, own, strict=True)]).int()
    visible = Visible(torch.zeros_like(last), last, start, paths)
    found = _run(q, storage, table, visible, num_keys)
    mask = torch.zeros(2, 5, num_keys, dtype=torch.bool)
    for row, at in enumerate(starts):
        mask[row, :, :at] = True
        for token, path in enumerate(own[row]):
            mask[row, token, [at + place for place in path]] = True
    torch.testing.assert_close(found, _expected(q, storage, every, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("start", [3, PART - 1])
def test_a_path_has_the_bits_of_a_chain(start):
    """Tokens 0, 2 and 4 of a tree, and the same three alone in their order."""
    q, storage, table, every, _, num_keys = _made(1, 5, 6, 2, 32, [start])
    path = [0, 2, 4]
    paths = torch.zeros(1, 5, 5).int()
    for depth, token in enumerate(path):
        paths[0, token, : depth + 1] = torch.tensor(path[: depth + 1])
    last = torch.full((1, 5), start + 1).int()
    last[0, path] = torch.tensor([start + 1, start + 2, start + 3]).int()
    first = torch.zeros_like(last)
    tree = _run(q, storage, table, Visible(first, last, torch.tensor([start]).int(), paths), num_keys)
    slots = every[0, start : start + 5]
    moved = storage.clone()
    moved[slots[:3]] = storage[slots[path]]
    chain = Visible(first[:, :3], last[:, path].contiguous())
    found = _run(q[:, path], moved, table, chain, num_keys)
    assert torch.equal(tree[0, path], found[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("start", "head_dim"), [(40, 32), (PART - 3, 32), (2 * PART + 17, 32), (1021, 144)])
def test_bits_are_the_same_whatever_stands_beside(dtype, start, head_dim):
    """A token of a block, of a wider one, alone, beside other rows, and with a larger bound of keys."""
    q, storage, table, _, positions, num_keys = _made(3, 7, 6, 2, head_dim, [start, 11, 600], dtype)
    visible = Visible(torch.zeros_like(positions).int(), (positions + 1).int())
    whole = _run(q, storage, table, visible, num_keys)
    for token in range(7):
        one = Visible(visible.first[:1, token : token + 1], visible.last[:1, token : token + 1])
        alone = _run(q[:1, token : token + 1], storage, table[:1], one, start + token + 1)
        assert torch.equal(alone[0, 0], whole[0, token])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("width", "head_dim", "window"),
    [(1, 64, None), (1, 64, 40), (7, 32, None), (1, 144, None), (2, 144, 300)],
)
def test_thousands_of_rows_have_the_bits_of_few(width, head_dim, window, dtype, monkeypatch):
    """A program of many rows has all parts of a row: one, up to its last key, with the next one's first, and more."""
    starts = [0, 70, 127, 128, PART - 2, PART - 1, PART, 2 * PART + 17, 1021]
    q, storage, table, every, positions, num_keys = _made(9, width, 6, 2, head_dim, starts, dtype)
    visible = Visible(torch.zeros_like(positions).int(), (positions + 1).int()).within(window)
    few = _run(q, storage, table, visible, num_keys)
    monkeypatch.setattr(attention_kernels, "_MANY_ROWS", 1)
    many = _run(q, storage, table, visible, num_keys)
    assert torch.equal(many, few)
    if dtype == torch.float32:
        key = torch.arange(num_keys)
        mask = (key >= visible.first.unsqueeze(-1)) & (key <= positions.unsqueeze(-1))
        torch.testing.assert_close(many, _expected(q, storage, every, mask), rtol=1e-5, atol=1e-5)


def test_thousands_of_rows_within_one_part_are_not_joined(monkeypatch):
    monkeypatch.setattr(attention_kernels, "_MANY_ROWS", 1)
    monkeypatch.setattr(attention_kernels, "_join", None)
    q, storage, table, every, positions, num_keys = _made(2, 1, 6, 2, 64, [0, PART - 1])
    found = _run(
        q, storage, table, Visible(torch.zeros_like(positions).int(), (positions + 1).int()), num_keys
    )
    mask = torch.arange(num_keys) <= positions.unsqueeze(-1)
    torch.testing.assert_close(found, _expected(q, storage, every, mask), rtol=1e-5, atol=1e-5)
