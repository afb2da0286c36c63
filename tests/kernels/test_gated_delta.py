"""Kernels of gated delta layers under Triton's interpreter, against the PyTorch layer and its cache."""

import random
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from torch import Tensor
from transformers import Qwen3_5TextConfig

from flashdraft.cache.state_cache import LayerState
from flashdraft.models.qwen3_5 import GatedDeltaNet
from flashdraft.ops.triton import delta_inputs, gated_delta
from flashdraft.ops.triton.delta_inputs import gated_delta_prepare, num_scalars
from flashdraft.ops.triton.fused import gated_norm
from flashdraft.ops.triton.gated_delta import (
    conv_commit,
    gated_delta_block,
    gated_delta_commit,
    gated_delta_step,
)

NUM_SLOTS = 7
EVERY = slice(None)


@dataclass
class Case:
    """One layer, its state in slots, and inputs of a block of each row."""

    layer: GatedDeltaNet
    state: LayerState
    slots: Tensor
    x: Tensor  # [rows, width, hidden_size]

    @classmethod
    def made(cls, rows, width, dtype, key_heads=1, groups=2, key_dim=16, value_dim=16, seed=0) -> "Case":
        config = Qwen3_5TextConfig(
            hidden_size=48,
            linear_num_key_heads=key_heads,
            linear_num_value_heads=key_heads * groups,
            linear_key_head_dim=key_dim,
            linear_value_head_dim=value_dim,
        )
        torch.manual_seed(seed)
        layer = GatedDeltaNet(config)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        torch.nn.init.normal_(layer.A_log, mean=-1.0)
        layer = layer.to(dtype).requires_grad_(False)
        state = layer.new_state(NUM_SLOTS)
        state.recurrent.normal_()
        state.conv.normal_()
        slots = torch.randperm(NUM_SLOTS)[:rows]
        return cls(layer, state, slots, torch.randn(rows, width, 48, dtype=dtype))

    def copy(self) -> LayerState:
        return LayerState(self.state.recurrent.clone(), self.state.conv.clone())

    @cached_property
    def projected(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """qkv, z, a, b as slices of one fused projection, made once: its bits depend on the number of tokens."""
        layer = self.layer
        parts = (layer.in_proj_qkv, layer.in_proj_z, layer.in_proj_a, layer.in_proj_b)
        fused = torch.cat([part(self.x) for part in parts], dim=-1)
        return fused.split([part.out_features for part in parts], dim=-1)

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.layer.conv1d.weight.squeeze(1), self.layer.A_log, self.layer.dt_bias

    def prepared(self, state: LayerState, rows=EVERY, tree=None) -> tuple[Tensor, Tensor]:
        """What the tokens of some rows bring, NaN where nothing is written."""
        qkv, _, a, b = (part[rows] for part in self.projected)
        layer, blank = self.layer, float("nan")
        convolved = torch.full_like(qkv, blank, memory_format=torch.contiguous_format)
        scalars = torch.full((*qkv.shape[:2], num_scalars(layer.key_heads, layer.heads)), blank)
        slots = self.slots[rows]
        kept = convolved, scalars
        gated_delta_prepare(qkv, a, b, *self.weights, state.conv, state.recurrent, slots, *kept, tree)
        return convolved, scalars

    def outputs(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, width, self.layer.heads, self.layer.value_dim, dtype=self.x.dtype)

    def block(self, state: LayerState, rows=EVERY, tree=None) -> Tensor:
        """The rule's outputs by the kernels of blocks, of some rows."""
        convolved, scalars = self.prepared(state, rows, tree)
        out = self.outputs(*convolved.shape[:2])
        gated_delta_block(convolved, scalars, state.recurrent, self.slots[rows], out, tree)
        return out

    def step_alone(self, state: LayerState, row: int, t: int) -> Tensor:
        """One token of one row, made true: [heads, value_dim]."""
        rows, tokens = slice(row, row + 1), slice(t, t + 1)
        qkv, _, a, b = (part[rows, tokens] for part in self.projected)
        out, slots = self.outputs(1, 1), self.slots[rows]
        gated_delta_step(qkv, a, b, *self.weights, state.conv, state.recurrent, slots, out)
        inputs = self.projected[0][rows, tokens].unsqueeze(0)
        conv_commit(inputs, state.conv.unsqueeze(0), self.slots[rows], torch.tensor([0]), torch.tensor([1]))
        return out[0, 0]


def commit(cases: list[Case], states: list[LayerState], *parts: tuple[Tensor, Tensor], path=None, tree=None):
    """Both commits over the layers of ``cases``, of some (starts, counts) after each other; states are written."""
    qkv = torch.stack([case.projected[0] for case in cases])
    prepared = [case.prepared(state, tree=tree) for case, state in zip(cases, states, strict=True)]
    convolved, scalars = (torch.stack(part) for part in zip(*prepared, strict=True))
    conv = torch.stack([state.conv for state in states])
    recurrent = torch.stack([state.recurrent for state in states])
    slots = cases[0].slots
    for starts, counts in parts:
        gated_delta_commit(convolved, scalars, recurrent, slots, starts, counts, path)
        conv_commit(qkv, conv, slots, starts, counts, path)
    for i, state in enumerate(states):
        state.conv.copy_(conv[i])
        state.recurrent.copy_(recurrent[i])


def positions(rows: int, width: int) -> Tensor:
    """Of tokens in the middle of their texts."""
    return torch.arange(9, 9 + width).expand(rows, -1)


def agree(found: Tensor, expected: Tensor) -> None:
    """float32: rounding of sums; bfloat16: a unit in the last place here and there."""
    tolerance = 2e-5 if expected.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


SIZES = [
    # rows, width, key_heads, groups, key_dim, value_dim
    (1, 1, 2, 3, 16, 16),
    (3, 5, 1, 2, 32, 16),
    (5, 2, 1, 1, 16, 64),
    (1, 16, 1, 1, 128, 16),
    (1, 2, 1, 3, 64, 128),
    (3, 1, 3, 1, 64, 32),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width", "key_heads", "groups", "key_dim", "value_dim"), SIZES)
def test_a_block_equals_the_pytorch_layer(rows, width, key_heads, groups, key_dim, value_dim, dtype):
    case = Case.made(rows, width, dtype, key_heads, groups, key_dim, value_dim)
    expected_state = case.copy()
    expected_state.use(case.slots)
    expected = case.layer(case.x, positions(rows, width), expected_state)

    state = case.copy()
    out = case.block(state)
    z = case.projected[1].view(out.shape)
    norm = case.layer.norm
    gated = gated_norm(out.flatten(0, 1), z.flatten(0, 1), norm.weight, norm.eps)
    agree(case.layer.out_proj(gated.view(rows, width, -1)), expected)
    assert torch.equal(state.recurrent, case.state.recurrent)
    assert torch.equal(state.conv, case.state.conv)

    expected_state.commit([width] * rows)
    commit([case], [state], (torch.zeros(rows, dtype=torch.long), torch.full((rows,), width)))
    agree(state.recurrent, expected_state.recurrent)
    assert torch.equal(state.conv, expected_state.conv)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 5), (torch.bfloat16, 9)])
def test_tokens_have_the_bits_that_they_have_alone(dtype, width):
    """A block of each of two rows in one launch, against one row and one token at a time."""
    case = Case.made(2, width, dtype)
    out, alone = case.block(case.copy()), case.copy()
    for row in range(2):
        for t in range(width):
            assert torch.equal(case.step_alone(alone, row, t), out[row, t])


@pytest.mark.parametrize("seed", range(2))
def test_commits_have_the_bits_of_steps(seed):
    """Two layers, each row with its own number of tokens, in two parts; a row may have none."""
    dtype = (torch.float32, torch.bfloat16)[seed % 2]
    cases = [Case.made(4, 6, dtype, seed=seed) for _ in range(2)]
    cases[1].layer.conv1d.weight.mul_(-0.7)
    cases[1].layer.A_log.add_(0.3)
    first, second = torch.tensor([0, 3, 2, 1]), torch.tensor([3, 0, 1, 4])
    states = [case.copy() for case in cases]
    commit(cases, states, (torch.zeros(4, dtype=torch.long), first), (first, second))
    for case, state in zip(cases, states, strict=True):
        stepped = case.copy()
        for row in range(4):
            for t in range(int(first[row] + second[row])):
                case.step_alone(stepped, row, t)
        assert torch.equal(state.recurrent, stepped.recurrent)
        assert torch.equal(state.conv, stepped.conv)


def random_tree(rng: random.Random, size: int, width: int) -> tuple[list[list[int]], Tensor, Tensor]:
    """The path to each token, and what kernels are told of a tree of ``size`` tokens; what nobody writes is -7."""
    paths = [[0]]
    while len(paths) < size:
        paths.append([*paths[rng.randrange(max(0, len(paths) - 4), len(paths))], len(paths)])
    depths, told = torch.zeros(width, dtype=torch.int64), torch.full((width, width), -7, dtype=torch.int32)
    told[:, 0] = 0
    for place, path in enumerate(paths):
        depths[place] = len(path) - 1
        told[place, : len(path)] = torch.tensor(path)
    return paths, depths, told


@pytest.mark.parametrize(("dtype", "heads"), [(torch.float32, (1, 2)), (torch.bfloat16, (2, 1))])
def test_tokens_of_trees_have_the_bits_of_their_paths(dtype, heads):
    """Outputs, and the states behind a path committed in two parts, of two layers; padding beside trees and a chain."""
    rng, width = random.Random(0), 8
    cases = [Case.made(3, width, dtype, *heads, seed=width) for _ in range(2)]
    cases[1].layer.conv1d.weight.mul_(-0.7)
    trees = [random_tree(rng, width, width), random_tree(rng, width - 1, width), random_tree(rng, 2, width)]
    tree = torch.stack([one[1] for one in trees]), torch.stack([one[2] for one in trees])
    # Paths whose third token from the end stands elsewhere than in a chain: all that the convolution keeps.
    chosen = [
        max(paths, key=lambda own: (len(own) > 3 and own[-3] > len(own) - 3, len(own))) for paths, *_ in trees
    ]
    assert chosen[0][-3] > len(chosen[0]) - 3, "choose another seed: no path strays so early"
    path = torch.tensor([[*one, *range(len(one), width)] for one in chosen])
    counts = torch.tensor([len(one) for one in chosen])
    first = counts * torch.tensor([0, 1, 0]) // 2
    states = [case.copy() for case in cases]
    outs = [case.block(state, tree=tree) for case, state in zip(cases, states, strict=True)]
    commit(cases, states, (0 * first, first), (first, counts - first), path=path, tree=tree)
    for case, state, out in zip(cases, states, outs, strict=True):
        expected = case.copy()
        for row, (paths, *_) in enumerate(trees):
            slot, behind = case.slots[row], dict[int, LayerState]()
            for *above, place in paths:
                before = behind[above[-1]] if above else case.state
                alone = behind[place] = LayerState(before.recurrent.clone(), before.conv.clone())
                assert torch.equal(case.step_alone(alone, row, place), out[row, place])
            alone = behind[chosen[row][-1]]
            expected.recurrent[slot], expected.conv[slot] = alone.recurrent[slot], alone.conv[slot]
            assert not out[row, len(paths) :].any(), "padding is finite"
        assert torch.equal(state.recurrent, expected.recurrent)
        assert torch.equal(state.conv, expected.conv)


def test_bits_do_not_depend_on_the_tile(monkeypatch):
    """Sums are written out, so that programs of other tiles, and others' tokens beside them, change nothing."""
    case = Case.made(1, 5, torch.float32, key_dim=32, value_dim=32, groups=1)
    found = []
    for values, tokens, many_rows in ((32, 1, 2), (16, 4, 2), (16, 4, 1)):
        monkeypatch.setattr(gated_delta, "VALUES", values)
        monkeypatch.setattr(gated_delta, "MANY_ROWS_OF_BLOCKS", many_rows)
        monkeypatch.setattr(delta_inputs, "TOKENS", tokens)
        found.append((case.block(case.copy()), *case.prepared(case.copy())))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert torch.equal(one, same)
            assert not one.isnan().any(), "all is written"


def test_steps_of_few_and_of_many_rows_have_the_same_bits(monkeypatch):
    """They load in another order, and programs have other numbers of values."""
    case, found = Case.made(1, 3, torch.bfloat16, key_dim=32, value_dim=32), []
    for few_rows, many_rows in ((0, 2), (1, 2), (0, 1), (1, 1)):
        monkeypatch.setattr(gated_delta, "FEW_ROWS", few_rows)
        monkeypatch.setattr(gated_delta, "MANY_ROWS", many_rows)
        state = case.copy()
        outs = [case.step_alone(state, 0, t) for t in range(3)]
        found.append((torch.stack(outs), state.recurrent))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert torch.equal(one, same)
            assert not one.isnan().any(), "all is written"


@pytest.mark.parametrize("bias", [-100.0, -10.0, 0.0, 19.0, 21.0, 100.0])
def test_gates_of_any_size(bias):
    """Decays from none to all, and nothing overflows; softplus is a line from 20 on in PyTorch."""
    case = Case.made(1, 2, torch.float32)
    case.layer.in_proj_a.weight.zero_()
    case.layer.dt_bias.fill_(bias)
    expected = case.copy()
    expected.use(case.slots)
    case.layer(case.x, positions(1, 2), expected)
    expected.commit([2])
    state = case.copy()
    commit([case], [state], (torch.tensor([0]), torch.tensor([2])))
    agree(state.recurrent, expected.recurrent)
