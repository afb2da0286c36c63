"""Rounds that leave blocks' tokens to the next, in any order of rows and beside all else that asks for states.

Everything a state goes through once with what is left, and once committed at the end of every round: the same bits.
"""

import random

import pytest
import torch
from transformers import Qwen3_5TextConfig

pytest.importorskip("triton")
from flashdraft.cuda.layers import Delta
from flashdraft.cuda.rows import RowTables
from flashdraft.cuda.states import DeviceStates
from flashdraft.cuda.step import StepSource
from flashdraft.models.qwen3_5 import GatedDeltaNet

NUM_SLOTS, MOST_KEPT = 5, 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _layers(count):
    config = Qwen3_5TextConfig(
        hidden_size=16, linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=16,
        linear_value_head_dim=16,
    )  # fmt: skip
    torch.manual_seed(count)
    layers = [GatedDeltaNet(config).to(DEVICE, torch.bfloat16).requires_grad_(False) for _ in range(count)]
    for layer in layers:
        torch.nn.init.normal_(layer.conv1d.weight, std=0.5)
        torch.nn.init.normal_(layer.A_log, mean=-1.0)
    return layers


class _Both:
    """The states of ``num_layers`` layers twice: the first leave tokens, the second do not."""

    def __init__(self, num_layers):
        layers = _layers(num_layers)
        self.deltas = [Delta(layer, idx) for idx, layer in enumerate(layers)]
        self.leaving, self.plain = (DeviceStates(layers, NUM_SLOTS, MOST_KEPT, MOST_KEPT) for _ in range(2))
        self.num_settled = 0
        taken = self.leaving._left.taken

        def counted():
            found = taken()
            self.num_settled += found is not None
            return found

        self.leaving._left.taken = counted

    def step(self, states, staged, slots, width, blocks=None):
        """What the layers find of ``staged`` [layers, rows * width, size]."""
        rows = len(slots)
        where = torch.zeros(2, rows, dtype=torch.int32, device=DEVICE)
        ids = torch.zeros(rows, width, dtype=torch.int64, device=DEVICE)
        tables = RowTables(*where, slots, ids, where[0].unsqueeze(1), 4)
        source = StepSource(None, tables, (), 0, (), states, None, blocks)
        found = []
        for delta, given in zip(self.deltas, staged, strict=True):
            kept = states.staged[delta.layer, : rows * width]
            kept.copy_(given)
            found.append(source.delta(delta.layer, kept, delta.weights))
        states.after_step(slots, (rows, width))
        return torch.stack(found)

    def staged(self, num_tokens):
        return torch.randn(
            len(self.deltas), num_tokens, self.leaving.staged.shape[-1], device=DEVICE
        ).bfloat16()

    def round(self, slots, width, counts):
        """A round of each; what they find is compared."""
        staged, told = self.staged(len(slots) * width), torch.tensor(slots, device=DEVICE)
        counts = torch.tensor(counts, device=DEVICE)
        blocks = self.leaving.blocks_of_round(self.leaving.tell_round(slots, width).to(DEVICE))
        found = self.step(self.leaving, staged, told, width, blocks)
        self.leaving.leave(told, counts, width)
        self.leaving.launched(slots, width)
        self.plain.stage(len(slots), width)
        expected = self.step(self.plain, staged, told, width)
        self.plain.commit_counts(told, counts, width, None)
        is_padding = told == NUM_SLOTS
        assert torch.equal(*(one.unflatten(1, (-1, width))[:, ~is_padding] for one in (found, expected)))

    def same(self):
        """Whether all states but padding's are."""
        return all(
            torch.equal(one[:, :-1], other[:, :-1])
            for one, other in (
                (self.leaving.recurrent, self.plain.recurrent),
                (self.leaving.conv, self.plain.conv),
            )
        )


def test_a_round_commits_what_the_round_before_left():
    """Rows in another order, of another width; nothing is committed by itself before a sequence leaves."""
    both = _Both(2)
    both.round([0, 1, 2, 3], 4, [4, 1, 0, 2])
    both.round([2, 0, 3, 1], 2, [2, 1, 1, 0])
    both.round([3, 2, 1, 0, NUM_SLOTS], 3, [3, 2, 1, 3, 0])
    both.round([0, 1, 2, 3], 4, [1, 2, 3, 4])
    assert both.num_settled == 0
    assert not both.same(), "the last round is left"
    both.round([0, 2, 3], 2, [1, 1, 2])
    assert both.num_settled == 1, "a sequence has no row in it"
    both.leaving.settle()
    assert both.same()


@pytest.mark.parametrize("seed", range(2))
def test_any_order_of_rounds_steps_beginnings_and_copies(seed):
    rng, both = random.Random(seed), _Both(2 - seed)
    kinds = []
    for _ in range(10):
        kind = rng.choice(["round"] * 4 + ["plain", "begin", "copy", "block"])
        slots = rng.sample(range(NUM_SLOTS), rng.randrange(1, NUM_SLOTS))
        width = rng.choice([2, 3, 4])
        kinds.append(kind)
        if kind == "round":
            counts = [rng.randrange(width + 1) for _ in slots]
            padding = [NUM_SLOTS] * (MOST_KEPT // width > len(slots))
            both.round([*slots, *padding], width, [*counts, *[0] * len(padding)])
            continue
        width = {"plain": 1, "block": width}.get(kind, 0)
        staged, told = both.staged(len(slots) * width), torch.tensor(slots, device=DEVICE)
        found = []
        for states in (both.leaving, both.plain):
            if width:
                states.stage(len(slots), width)
                found.append(both.step(states, staged, told, width))
            if kind == "block":
                states.commit_counts(told, torch.ones_like(told), width, None)
            if not width:
                states.begin(slots[0], None if kind == "begin" else slots[-1])
        assert not found or torch.equal(*found)
        assert both.same(), f"{kinds}: nothing is left behind what is no round"
    assert both.num_settled, "choose another seed"
