"""Committing part of a block gives the very bits of stepping through its tokens one by one."""

import random

import pytest
import torch

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
        drafted.commit(kept, 0)
        for t in range(kept):
            one = slice(t, t + 1)
            stage(stepped, inputs.part(slice(None), one), x[:, one], weight, start + t)
            stepped.commit(1, 0)
        start += kept
        assert torch.equal(drafted.recurrent, stepped.recurrent)
        assert torch.equal(drafted.conv, stepped.conv)


def test_commit_in_parts_nothing_and_too_much():
    weight = torch.randn(CHANNELS, WIDTH)
    parts, whole = new_state(), new_state()
    inputs, x = made(9, 7)
    for state in (parts, whole):
        stage(state, inputs, x, weight, 0)
    parts.commit(0, 0)
    assert not parts.recurrent.any()
    for num_tokens in (2, 4, 3):
        parts.commit(num_tokens, 0)
    whole.commit(9, 0)
    assert torch.equal(parts.recurrent, whole.recurrent)
    assert torch.equal(parts.conv, whole.conv)
    with pytest.raises(AssertionError, match="more is committed than was staged"):
        parts.commit(1, 0)
