"""Prompts' chunks recorded layer by layer and replayed, against the same target without these recordings."""

import pytest
import torch

from toys import toy_hybrid, toy_target

pytest.importorskip("triton")
from served_prompts import NUM_SLOTS, ServedPrompts, check_same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIZES = {"head_dim": 64, "hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 4096}
DELTA = {"linear_key_head_dim": 64, "linear_value_head_dim": 64}


@pytest.mark.parametrize("is_hybrid", [True, False])
def test_replays_of_two_rows_in_turn(is_hybrid):
    """Behind few keys, and more than the steps' kernel takes; nothing is recorded that was not at the start."""
    model = toy_hybrid(**SIZES, **DELTA) if is_hybrid else toy_target(**SIZES)
    model = model.to("cuda", torch.bfloat16)
    recorded, plain = ServedPrompts(model), ServedPrompts(model, is_recorded=False)
    for one in (recorded, plain):
        if one.states:
            one.states.begin(NUM_SLOTS, None)
        with torch.inference_mode():
            one.target.record_prompts(one.rows, [0, 1])
    found = recorded.target._recorded_chunk._recorded._found
    known = dict(found)
    assert known
    assert None not in known.values(), "all of them are replayed"
    starts = [0, 0]
    for count in (300, 1, 200, 63, 65, 500, 17):
        for row in (0, 1):
            chunk = (row, starts[row], count + row, ())
            check_same(recorded.prefill(chunk), plain.prefill(chunk))
            starts[row] += count + row
    check_same(
        recorded.prefill((0, 0, 100, ()), (1, 0, 30, ())), plain.prefill((0, 0, 100, ()), (1, 0, 30, ()))
    )
    check_same(recorded.held(), plain.held())
    assert found == known
