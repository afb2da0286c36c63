"""What one forward pass runs over: token ids and where they stand. It knows no request and no sampling."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ForwardBatch:
    """Tokens of one forward pass, one row for each sequence.

    ``kv_len`` is an upper bound of ``positions + 1`` kept on the host, so that no step waits for the device.
    """

    token_ids: Tensor  # [batch, num_tokens]
    positions: Tensor  # [batch, num_tokens], absolute, ascending within a row
    kv_len: int

    @classmethod
    def of_row(cls, token_ids: list[int], start: int, device: torch.device | str = "cpu") -> "ForwardBatch":
        """One sequence's tokens at positions ``start, start + 1, ...``: a prefill chunk or a block."""
        end = start + len(token_ids)
        ids = torch.tensor([token_ids], dtype=torch.long, device=device)
        return cls(ids, torch.arange(start, end, device=device).unsqueeze(0), end)
