"""Prompts' chunks of a few hundred tokens, recorded layer by layer: to launch them takes longer than they run.

What stands between two layers' mixing of tokens is one recording for each of few lengths (vLLM's piecewise graphs):
the one's output, its feed-forward network, norms, the next one's inputs, keys and values into their pages. The mixing
itself is the source's, over true tokens alone, as without recordings: attention is launched, and gated delta layers
have recordings of their own (prefill_delta.py), which borders where states are kept cut. So padding writes no key but
into the scratch page and reaches no state, and such a border does not make the host run all layers twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashdraft.cache.paged_kv_cache import PagedKVCache
from flashdraft.cuda.chunk_lengths import CHUNK_LENGTHS
from flashdraft.cuda.layers import Handed, Layer, Norm, behind_mixing
from flashdraft.cuda.step import Source, StoreSource
from flashdraft.ops.host_copy import pinned
from flashdraft.ops.recorded import Recorded


@dataclass(frozen=True)
class _Between:
    """What layers hand to their mixing and get of it, of the longest chunk's tokens: see Handed."""

    asked: Tensor
    gate: Tensor | None
    found: Tensor

    @classmethod
    def of(cls, handed: Handed, like: Tensor) -> "_Between":
        """Those of layers that hand so much, for the tokens of ``like`` and in its type."""
        asked, gate, found = (
            None if shape is None else like.new_zeros(len(like), *shape) for shape in handed
        )
        assert asked is not None
        assert found is not None
        return cls(asked, gate, found)


class RecordedChunk:
    """One chunk at a time, of one row or several, end to end. All recordings read and write the same tensors."""

    def __init__(
        self,
        layers: Sequence[Layer],
        last: Norm,
        cache: PagedKVCache,
        embed: Callable[[Tensor], Tensor],
        rope: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        """``embed``: of token ids; ``rope``: cos, sin of positions [num_tokens]."""
        self._layers, self._last, self._cache, self._embed, self._make_rope = layers, last, cache, embed, rope
        weight, most = last.weight, CHUNK_LENGTHS[-1]
        self._recorded = Recorded(weight.device)
        self.slots = torch.zeros(most, dtype=torch.int64, device=weight.device)
        cos, sin = (one.clone(memory_format=torch.contiguous_format) for one in rope(self.slots))
        self.rope = cos, sin
        self._x = weight.new_zeros(most, len(weight), dtype=cache.slots.dtype)  # what a layer gives
        self._normed = torch.zeros_like(self._x)  # what the last one does, by the norm behind it
        kinds = {handed: _Between.of(handed, self._x) for handed in {one.mixer.handed for one in layers}}
        self._between = [kinds[one.mixer.handed] for one in layers]
        self._kinds = list(kinds.values())

    def takes(self, num_tokens: int) -> bool:
        """Whether chunks of so many tokens, all rows together, run so."""
        return num_tokens <= len(self._x)

    def __call__(
        self,
        told: NDArray[np.int64],
        source: Source,
        feature_layers: Sequence[int],
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Final hidden states [num_tokens, hidden_size] and the outputs of ``feature_layers``, as layers.run.

        ``told`` [3, num_tokens]: token ids, positions, and slots where keys and values go; ``source``: what mixes these
        tokens.
        """
        count = told.shape[1]
        length = next(one for one in CHUNK_LENGTHS if one >= count)
        numbers = torch.zeros(3, length, dtype=torch.int64)
        size = self._cache.page_size
        scratch = self._cache.storages[0].scratch_page * size
        numbers[2] = scratch + torch.arange(length) % size
        numbers[:, :count] = torch.from_numpy(told)
        for kind in self._kinds:  # what another chunk left is not to spread
            kind.found[count:length].zero_()
        features = {}
        self._recorded((length, 0), self._begin, [pinned(numbers, self.slots.device)])
        for idx, (layer, between) in enumerate(zip(self._layers, self._between, strict=True)):
            between.found[:count] = layer.mixer.mixed(between.asked[:count], source)
            self._recorded((length, idx + 1), partial(self._behind, idx, length), ())
            if idx in feature_layers:
                features[idx] = self._x[:count].clone()
        return self._normed[:count].clone(), features

    def _begin(self, numbers: Tensor) -> None:
        """From ``numbers`` [3, length] (token ids, positions, slots) to the first layer's mixing."""
        token_ids, positions, slots = numbers
        length = len(slots)
        self.slots[:length] = slots
        for own, made in zip(self.rope, self._make_rope(positions), strict=True):
            own[:length] = made
        x = self._embed(token_ids)
        self._x[:length] = x
        self._ask(0, self._layers[0].before.alone(x))

    def _behind(self, idx: int, length: int) -> None:
        """From layer ``idx``'s mixing to the next one's, or to the end."""
        layer, between = self._layers[idx], self._between[idx]
        gate = None if between.gate is None else between.gate[:length]
        mixed = layer.mixer.answered(between.found[:length], gate)
        is_last = idx + 1 == len(self._layers)
        following = self._last if is_last else self._layers[idx + 1].before
        normed, x = behind_mixing(layer, following, mixed, self._x[:length])
        self._x[:length] = x
        if is_last:
            self._normed[:length] = normed
        else:
            self._ask(idx + 1, normed)

    def _ask(self, idx: int, normed: Tensor) -> None:
        length, between = len(normed), self._between[idx]
        cos, sin = self.rope
        store = StoreSource(self._cache, self.slots[:length], (cos[:length], sin[:length]))
        asked, gate = self._layers[idx].mixer.asked(normed, store)
        between.asked[:length] = asked
        if between.gate is not None:
            assert gate is not None
            between.gate[:length] = gate
