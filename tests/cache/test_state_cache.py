"""Committing part of a block gives the very bits of stepping through its tokens one by one."""

import random

import pytest
import torch

from flashdraft.batch import ForwardBatch
from flashdraft.cache.state_cache import LayerState
from flashdraft.ops.gated_delta import DeltaInputs, unit_length

HEADS, KEY, VALUE, WIDTH, CHANNELS = 3, 10, 14, 4, 6


def new_state(rows: int = 1) -> LayerState:
    return LayerState.zeros(rows, HEADS, (KEY, VALUE), (WIDTH, CHANNELS), like=torch.zeros(1))


def stage(state: LayerState, inputs: DeltaInputs, x: torch.Tensor, weight: torch.Tensor, start: int) -> None:
    positions = torch.arange(start, start + x.shape[1]).expand(len(x), -1)
    state.stage_conv(x, weight, positions)
    state.stage_delta(inputs)


def made(num_tokens: int, seed: int, rows: int = 1) -> tuple[DeltaInputs, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (unit_length(torch.randn(rows, num_tokens, HEADS, KEY, generator=generator)) for _ in range(2))
    v = torch.randn(rows, num_tokens, HEADS, VALUE, generator=generator)
    decay, beta = (torch.rand(rows, num_tokens, HEADS, generator=generator) for _ in range(2))
    return DeltaInputs(q, k, v, -decay, beta), torch.randn(rows, num_tokens, CHANNELS, generator=generator)


@pytest.mark.parametrize("seed", range(4))
def test_rollback_gives_the_bits_of_stepping(seed):
    rng = random.Random(seed)
    weight = torch.randn(CHANNELS, WIDTH)
    drafted, stepped, start = new_state(), new_state(), 0
    for round_idx in range(12):
        size = rng.randint(1, 16)
        kept = rng.randint(1, size)
        inputs, x = made(size, 100 * seed + round_idx)
        stage(drafted, inputs, x, weight, start)
        drafted.commit([kept])
        for t in range(kept):
            one = slice(t, t + 1)
            stage(stepped, inputs.part(slice(None), one), x[:, one], weight, start + t)
            stepped.commit([1])
        start += kept
        assert torch.equal(drafted.recurrent, stepped.recurrent)
        assert torch.equal(drafted.conv, stepped.conv)


@pytest.mark.parametrize("seed", range(3))
def test_rows_in_any_slots_roll_back_to_the_bits_of_stepping(seed):
    """Each with its own number of accepted tokens, in slots of a larger store, also in two parts."""
    rng = random.Random(seed)
    weight = torch.randn(CHANNELS, WIDTH)
    store, stepped = new_state(7), [new_state() for _ in range(7)]
    lengths = [0] * 7
    for round_idx in range(10):
        slots = rng.sample(range(7), rng.randint(1, 5))
        size = rng.randint(1, 16)
        inputs, x = made(size, 100 * seed + round_idx, len(slots))
        starts = torch.tensor([lengths[slot] for slot in slots]).unsqueeze(1)
        store.use(torch.tensor(slots))
        store.stage_conv(x, weight, starts + torch.arange(size))
        store.stage_delta(inputs)
        kept = [rng.randint(0, size) for _ in slots]
        first = [rng.randint(0, count) for count in kept]
        store.commit(first)
        store.commit([count - part for count, part in zip(kept, first, strict=True)])
        for row, (slot, count) in enumerate(zip(slots, kept, strict=True)):
            for t in range(count):
                one = slice(row, row + 1), slice(t, t + 1)
                stage(stepped[slot], inputs.part(*one), x[one], weight, lengths[slot] + t)
                stepped[slot].commit([1])
            lengths[slot] += count
        for slot, alone in enumerate(stepped):
            assert torch.equal(store.recurrent[slot], alone.recurrent[0])
            assert torch.equal(store.conv[slot], alone.conv[0])


@pytest.mark.parametrize("seed", range(3))
def test_tokens_of_trees_have_the_bits_of_their_paths(seed):
    """Outputs, and the states behind a path that is committed, also in two parts; a chain and padding beside them."""
    rng, weight = random.Random(seed), torch.randn(CHANNELS, WIDTH)
    size, start = 90 if seed == 2 else 13, 5  # a tree may be longer than what runs by chunks
    parents = [[rng.randrange(max(0, at - 3), at + 1) for at in range(size - 1)] for _ in range(2)]
    parents += [[*range(size - 1)], [0, 0, 1]]
    inputs, x = made(size, 7 + seed, 4)
    store = new_state(6)
    store.recurrent.normal_()
    store.conv.normal_()
    slots = torch.tensor([4, 0, 5, 2])
    batch = ForwardBatch(torch.zeros(4, size).long(), torch.arange(start, start + size).expand(4, -1), 100)
    batch = batch.as_trees(parents)
    store.use(slots)
    store.follow(batch.tree)
    convolved = store.stage_conv(x, weight, batch.positions)
    outputs = store.stage_delta(inputs)
    paths, behind = [], []
    for row, own in enumerate(parents):
        path = [rng.randrange(1, len(own) + 1)]
        while path[0]:
            path.insert(0, own[path[0] - 1])
        paths.append(path)
        alone = LayerState(store.recurrent[slots[row : row + 1]], store.conv[slots[row : row + 1]])
        for number, place in enumerate(path):
            one = slice(row, row + 1), slice(place, place + 1)
            found = alone.stage_conv(x[one], weight, torch.tensor([[start + number]]))
            assert torch.equal(found[0, 0], convolved[row, place])
            assert torch.equal(alone.stage_delta(inputs.part(*one))[0, 0], outputs[row, place])
            alone.commit([1])
        behind.append(alone)
    store.gather_paths(paths)
    first = [rng.randint(0, len(path)) for path in paths]
    store.commit(first)
    store.commit([len(path) - part for path, part in zip(paths, first, strict=True)])
    for slot, alone in zip(slots, behind, strict=True):
        assert torch.equal(store.recurrent[slot], alone.recurrent[0])
        assert torch.equal(store.conv[slot], alone.conv[0])


def test_a_long_forward_is_committed_up_to_any_border():
    weight = torch.randn(CHANNELS, WIDTH)
    inputs, x = made(150, 3, 2)
    parts, exact = new_state(2), [new_state(), new_state()]
    stage(parts, inputs, x, weight, 0)
    parts.commit([64, 10])
    parts.commit([86, 60])
    for row, count in enumerate((150, 70)):
        for start in range(0, count, 10):
            one = slice(row, row + 1), slice(start, start + 10)
            stage(exact[row], inputs.part(*one), x[one], weight, start)
            exact[row].commit([10])
        torch.testing.assert_close(parts.recurrent[row], exact[row].recurrent[0], atol=2e-5, rtol=1e-4)
        assert torch.equal(parts.conv[row], exact[row].conv[0])


def test_commit_in_parts_nothing_and_too_much():
    weight = torch.randn(CHANNELS, WIDTH)
    parts, whole = new_state(), new_state()
    inputs, x = made(9, 7)
    for state in (parts, whole):
        stage(state, inputs, x, weight, 0)
    parts.commit([0])
    assert not parts.recurrent.any()
    for num_tokens in (2, 4, 3):
        parts.commit([num_tokens])
    whole.commit([9])
    assert torch.equal(parts.recurrent, whole.recurrent)
    assert torch.equal(parts.conv, whole.conv)
    with pytest.raises(AssertionError, match="more is committed than was staged"):
        parts.commit([1])
