"""Features that wait for a draft: those of plain rounds lie together, and each request gets its own in order."""

import random

import torch

from flashdraft.engine.late_features import Late, RowOf, gathered


def test_each_request_gets_its_own_features_in_their_order() -> None:
    rng = random.Random(3)
    rounds = [torch.randn(4, 1, 6) for _ in range(5)]
    pending: list[list[Late]] = []
    expected = []
    for row in range(3):
        parts: list[Late] = []
        every = []
        for one in rounds[row:]:  # who came later was in fewer rounds
            if rng.random() < 0.5:  # a prompt's chunk, or a step's block, between them
                alone = torch.randn(rng.randrange(1, 4), 6)
                parts.append(alone)
                every.append(alone)
            parts.append(RowOf(one, row))
            every.append(one[row])
        pending.append(parts)
        expected.append(torch.cat(every))
    alone = torch.randn(2, 6)
    found = gathered([*pending, [], [alone]])
    for one, wanted in zip(found, expected, strict=False):
        assert one is not None
        assert torch.equal(one, wanted)
    assert found[3] is None
    assert found[4] is alone, "one part is not copied"
