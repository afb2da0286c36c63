"""The cost of DFlash 2's parts (benchmarks/gpu_heads.py): what is left out of a drafter, and ways in turns."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from flashdraft.spec_decode.build import drafter_of
from flashdraft.spec_decode.candidates import candidates_of
from scripts import scripts
from toys import toy_dflash2, toy_target


@pytest.fixture(scope="module")
def heads() -> Iterator[Any]:
    """The module, which takes random weights from its neighbour train_speed.py."""
    with scripts("benchmarks", "gpu_heads") as (module,):
        yield module


def test_a_part_is_left_out_and_the_layers_stay_the_same(heads: Any) -> None:
    target = toy_target().requires_grad_(False)
    whole = toy_dflash2(target, std=0.5)
    ways = heads.parts_of(whole)
    assert list(ways) == ["both parts", "no selector", "plain"]
    assert ways["both parts"].config == whole.config
    assert ways["both parts"].candidate_selector is not None
    assert ways["no selector"].candidate_selector is None
    assert ways["no selector"].config.conv_kernel_size == whole.config.conv_kernel_size > 0
    assert ways["plain"].config.conv_kernel_size == 0
    wanted = whole.state_dict()
    for model in ways.values():
        own = model.state_dict()
        assert own.keys() <= wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in own.items())
        drafter_of(model, target)  # it can be served
    hidden, anchors = torch.randn(1, 3, 48), torch.tensor([3])
    pairs = [candidates_of(model, target, hidden, anchors, 4).pairs is not None for model in ways.values()]
    assert pairs == [True, False, False]
    assert len(ways["plain"].state_dict()) < len(ways["no selector"].state_dict()) < len(wanted)


def test_every_way_is_first_in_its_turn(heads: Any) -> None:
    asked: list[str] = []

    def several(name: str) -> float:
        asked.append(name)
        return float(len(asked))

    found = heads.in_turns({"a": "a", "b": "b", "c": "c"}, several, 0.0)
    assert "".join(asked) == "abcbcacab"
    assert found == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}
