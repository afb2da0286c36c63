"""How a product is cut for a GPU."""

from dataclasses import dataclass

import torch
import triton
from triton.runtime import driver

_MOST_TOKENS = 64  # of a tile
_HOPPERS_SHARED_BYTES = 227 * 1024
_BESIDE_TILES = 19 * 1024  # bytes of a program's shared memory for what is no tile in flight


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

    def stages_of(self, num_bytes: int, device: torch.device) -> int:
        """Loads in flight of ``num_bytes`` each that ``device`` has room for: an Ada's program has 99 KiB for them."""
        shared = _HOPPERS_SHARED_BYTES
        if device.type == "cuda":
            shared = driver.active.utils.get_device_properties(device.index)["max_shared_mem"]
        return max(min(self.stages, (shared - _BESIDE_TILES) // num_bytes), 1)
