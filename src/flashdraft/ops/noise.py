"""Gumbel noise of a token at a position of a text, as a function of the text's seed: whoever asks, wherever it runs.

A hash, not a generator with a state, so that noise of any token is had by itself: a kernel makes it where a token is
chosen (triton/sampling.py, the same bits but for the logarithm's last). A 32-bit mixing function with full avalanche
(C. Wellons' Hash Prospector: 16 21f0aaad 15 d35a2d97 15, bias 0.11) is applied to seed and position, then with both
halves of that to the token.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK_32, _MASK_64 = (1 << 32) - 1, (1 << 64) - 1
SPREAD = 0x9E3779B1  # 2^32 / golden ratio, odd: neighbours lie far apart


def seed_halves(seed: int) -> tuple[int, int]:
    """Two numbers below 2^32 that a seed gives (splitmix64): seeds that follow one another have nothing in common."""
    state = (seed + 0x9E3779B97F4A7C15) & _MASK_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
    state ^= state >> 31
    return state & _MASK_32, state >> 32


def gumbel_noise(seed: int, positions: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """Gumbel(0, 1) noise, float32 [len(positions), vocab_size]; row i is a function of (seed, positions[i])."""
    low, high = seed_halves(seed)
    spread = np.arange(vocab_size, dtype=np.uint32) * np.uint32(SPREAD)
    bits = np.empty((len(positions), vocab_size), np.uint32)
    for row, position in zip(bits, positions, strict=True):
        first = _mixed(np.array([(position * SPREAD ^ low) & _MASK_32], np.uint32))
        second = _mixed(first ^ np.uint32(high))
        np.bitwise_xor(_mixed(spread ^ first), second, out=row)
        _mixed(row)
    # The middle of one of 2^32 parts of (0, 1), below 1.
    shares = torch.from_numpy(bits.astype(np.float32)).add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return shares.neg_().log1p_().neg_().log_().neg_().to(device)


def _mixed(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """``x``, mixed in place."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x21F0AAAD)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0xD35A2D97)
    x ^= x >> np.uint32(15)
    return x
