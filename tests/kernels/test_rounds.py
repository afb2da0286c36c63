"""Rows at the beginning and at the end of a round, by one kernel each: what PyTorch's operations make of them."""

import pytest
import torch

pytest.importorskip("triton")
from flashdraft.cuda.round_drafts import ChainDraft
from flashdraft.ops.rope import Rotary
from flashdraft.ops.triton.fused import rope_of
from flashdraft.ops.triton.rounds import (
    ACCEPTED,
    ANCHOR,
    BLOCK,
    LENGTH,
    MAX_LEN,
    NUM_COLUMNS,
    SOURCE,
    START,
    begun,
    placed,
)
from toys import toy_target

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def told(num_rows, num_pages=3):
    """Rows that go on from one of the round before, that begin, and that are padding (the last one)."""
    torch.manual_seed(num_rows)
    numbers = torch.randint(1, 50, (num_rows, NUM_COLUMNS + num_pages), dtype=torch.int32)
    numbers[:, SOURCE] = torch.arange(num_rows).roll(1).int()
    numbers[::3, SOURCE] = -1
    numbers[:, MAX_LEN] = numbers[:, START] + torch.randint(-1, 9, (num_rows,)).int()
    numbers[:, ACCEPTED] = torch.where(torch.arange(num_rows) % 2 == 0, -1, numbers[:, ACCEPTED] % 7).int()
    numbers[-1, [SOURCE, MAX_LEN]] = torch.tensor([-1, 0], dtype=torch.int32)
    kept = torch.randint(1, 99, (2, num_rows + 4)).to(DEVICE)
    return numbers.to(DEVICE), *kept


@pytest.mark.parametrize("num_rows", [1, 40])
def test_rows_begin_where_the_round_before_left_them(num_rows):
    numbers, starts, anchors = told(num_rows)
    found = begun(numbers, starts, anchors)
    columns = numbers[:, :NUM_COLUMNS].t().long()
    source = columns[SOURCE]
    expected = [
        torch.where(source < 0, columns[own], kept[source.clamp(min=0)])
        for own, kept in ((START, starts), (ANCHOR, anchors))
    ]
    assert torch.equal(found.columns, columns)
    assert torch.equal(torch.stack((found.starts, found.anchors)), torch.stack(expected))
    left = torch.minimum(columns[LENGTH], columns[MAX_LEN] - found.starts - 1)
    assert torch.equal(found.most, (left - 1).clamp(min=0))
    assert torch.equal(found.begins, found.starts.int())
    assert torch.equal(found.ends, (found.starts + columns[BLOCK]).int())


@pytest.mark.parametrize(("num_rows", "width"), [(3, 1), (50, 4)])
def test_tokens_lie_behind_those_of_their_row(num_rows, width):
    torch.manual_seed(num_rows)
    numbers = torch.randint(0, 60, (num_rows, 20), dtype=torch.int32).to(DEVICE)
    begins, pages = numbers[:, 0], numbers[:, 4:]  # rows of a wider table
    places, slots, first, last = placed(begins, pages, width, 4)
    expected = begins.long()[:, None] + torch.arange(width, device=DEVICE)
    assert torch.equal(places, expected)
    page = pages.long().gather(1, expected // 4)
    assert torch.equal(slots, (page * 4 + expected % 4).flatten())
    assert torch.equal(first, torch.zeros_like(first))
    assert torch.equal(last, (expected + 1).int())


@pytest.mark.parametrize("width", [1, 2, 8])
def test_chains_are_true_as_far_as_the_target_wants_them(width):
    num_rows = 40
    numbers, kept_starts, kept_anchors = told(num_rows)
    numbers[:, ACCEPTED] = torch.where(numbers[:, ACCEPTED] >= width, -1, numbers[:, ACCEPTED])
    rows = begun(numbers, kept_starts, kept_anchors)
    rows.most.clamp_(max=width - 1)
    wanted = torch.randint(0, 2, (num_rows, width), device=DEVICE)
    wanted[5] = -1  # logits that are no numbers
    ids = torch.randint(0, 2, (num_rows, width), device=DEVICE)
    log_probs = torch.randn(num_rows, width - 1, device=DEVICE)
    untouched = kept_starts[num_rows:].clone()
    counts, told_there, path = ChainDraft(ids, log_probs).ended(wanted, rows, kept_starts, kept_anchors)
    same = (ids[:, 1:] == wanted[:, :-1]).long().cumprod(1).sum(1)
    given = rows.columns[ACCEPTED]
    accepted = torch.minimum(torch.where(given < 0, same, given), rows.most)
    following = wanted.gather(1, accepted[:, None])[:, 0]
    expected = torch.where(rows.columns[MAX_LEN] > 0, accepted + 1, 0)
    assert path is None
    assert torch.equal(counts, expected)
    assert counts[-1] == 0
    assert torch.equal(kept_starts[:num_rows], rows.starts + expected)
    assert torch.equal(kept_starts[num_rows:], untouched)
    assert torch.equal(kept_anchors[:num_rows], following.clamp(min=0))
    bits = log_probs.view(torch.int32)
    ended = torch.stack((expected, following), 1).int()
    assert torch.equal(told_there, torch.cat((ended, ids[:, 1:].int(), bits), 1))


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_cos_and_sin_are_those_of_the_model(factor):
    rotary = Rotary(toy_target(num_hidden_layers=1).config)
    rotary.factor = factor
    positions = torch.cat((torch.arange(40), torch.tensor([4095, 131071, 262143]))).to(DEVICE)
    found = rope_of(positions, rotary.speeds_on(positions.device), factor, torch.float32)
    for one, other in zip(found, rotary(positions[None], torch.float32), strict=True):
        torch.testing.assert_close(one, other[0, 0], atol=1e-6, rtol=0.0)
