"""Features of committed tokens that wait for a draft: of plain rounds they lie together until somebody drafts.

To cut them into rows at every step takes the host a quarter of a step of 32 requests.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from flashdraft.ops.host_copy import told


class RowOf(NamedTuple):
    """One row's token of a plain round's ``features`` [rows, 1, feature_size]."""

    features: Tensor
    row: int


Late = Tensor | RowOf  # [num_tokens, feature_size], or one token's


def gathered(pending: Sequence[Sequence[Late]]) -> list[Tensor | None]:
    """Of each request what waits in its order, [num_tokens, feature_size]; None of nothing."""
    shared = {id(one.features): one.features for parts in pending for one in parts if isinstance(one, RowOf)}
    picked = torch.empty(0)
    if shared:
        firsts, count = dict[int, int](), 0
        for key, features in shared.items():
            firsts[key], count = count, count + len(features)
        places = [
            firsts[id(one.features)] + one.row for parts in pending for one in parts if isinstance(one, RowOf)
        ]
        every = torch.cat(list(shared.values())).squeeze(1)
        picked = every[told(places, every.device)]
    found, done = list[Tensor | None](), 0
    for parts in pending:
        own = list[Tensor]()
        for is_shared, run in groupby(parts, lambda one: isinstance(one, RowOf)):
            some = list(run)
            if is_shared:
                own.append(picked[done : (done := done + len(some))])
            else:
                own += [one for one in some if isinstance(one, Tensor)]
        # Most often there is one, which is not copied.
        found.append(torch.cat(own) if len(own) > 1 else next(iter(own), None))
    return found
