"""How a product is cut for a GPU."""

from dataclasses import dataclass

import triton

_MOST_TOKENS = 64  # of a tile


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: outputs and inputs of a tile, loads in flight, warps, tokens at least.

    No bit depends on it. Four warps with 64 outputs and 16 tokens share Hopper's own instruction, which they wait for
    together; below that each warp has its own for 16 outputs and 8 tokens, and makes floats of codes meanwhile.
    """

    outputs: int
    inputs: int
    stages: int
    warps: int
    tokens: int = 16

    def tokens_for(self, num_tokens: int) -> int:
        """Of a tile, where a product has ``num_tokens``."""
        return min(max(int(triton.next_power_of_2(num_tokens)), self.tokens), _MOST_TOKENS)
