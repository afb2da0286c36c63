"""Prompts' chunks recorded layer by layer against the same target without recordings: every token has the same bits.

On a CPU they run as if they were recorded; tests/gpu/test_recorded_chunk.py replays them.
"""

import pytest
import torch
import torch.nn.functional as F

from toys import toy_hybrid, toy_target

pytest.importorskip("triton")
from flashdraft.cuda import products
from flashdraft.ops.recorded import Recorded
from served_prompts import PAGE, ServedPrompts, check_same


@pytest.fixture(autouse=True)
def products_alone(monkeypatch):
    """On a GPU a product depends on no token beside its own (tests/gpu/test_products.py); on a CPU it does."""

    def product(x, weight, bias, out):
        made = torch.cat([F.linear(token, weight, bias) for token in x.split(1)])
        return made if out is None else out.copy_(made)

    monkeypatch.setattr(products, "_product", product)


@pytest.fixture(autouse=True)
def works_kept(monkeypatch):
    """A key's first work runs each time, as a graph does: nothing of a later call may reach it but inputs."""

    def call(recorded, key, work, inputs):
        return recorded._found.setdefault(key, work)(*inputs)

    monkeypatch.setattr(Recorded, "__call__", call)


def _hybrid():
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    heads |= {"linear_num_key_heads": 1, "linear_num_value_heads": 2}
    return toy_hybrid(num_hidden_layers=2, full_attention_interval=2, **heads)


def _llama():
    return toy_target(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


@pytest.mark.parametrize(("make", "lengths"), [(_hybrid, [65, 63, 1, 128, 300]), (_llama, [127, 64, 1])])
def test_chunks_behind_each_other(make, lengths):
    """Chunks of ``lengths`` tokens. What a second row has stays, and padding spreads nothing that is no number."""
    recorded, plain = ServedPrompts(make()), ServedPrompts(make(), is_recorded=False)
    start = 0
    for count in lengths:
        chunk = (0, start, count, ())
        check_same(recorded.prefill(chunk), plain.prefill(chunk))
        start += count
    check_same(recorded.held(), plain.held())


@pytest.mark.parametrize("make", [_hybrid, _llama])
def test_rows_together(make):
    """Each has the bits that it has alone, and a state at a page border is the one behind the tokens before it."""
    together, alone = ServedPrompts(make()), ServedPrompts(make(), is_recorded=False)
    first, second = (0, 0, PAGE + 4, ((PAGE, 2),)), (1, 0, 9, ())
    found = together.prefill(first, second)
    alone.prefill((0, 0, PAGE, ()))
    check_same(together.state(2), alone.state(0))
    if alone.states:
        alone.states.begin(0, None)
    check_same(found, [*alone.prefill(first), *alone.prefill(second)])
    check_same(together.held(), alone.held())
