"""A target on a GPU: steps and prompts through fused layers over pages and states."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache, power_of_two
from flashdraft.cuda.chunk_lengths import CHUNK_LENGTHS
from flashdraft.cuda.layers import Attention, Norm, layers_of, run, why_unsupported
from flashdraft.cuda.prefill_delta import RecordedPrompt
from flashdraft.cuda.products import product
from flashdraft.cuda.recorded_chunk import RecordedChunk
from flashdraft.cuda.rows import DeviceRows, RowTables, places_of
from flashdraft.cuda.states import DeviceStates
from flashdraft.cuda.step import PrefillSource, StepSource
from flashdraft.cuda.weights import Product, apart
from flashdraft.models.base import TargetModel, TargetOutput
from flashdraft.models.llama import LlamaModel
from flashdraft.models.qwen3_5 import GatedDeltaNet, Qwen3_5Model
from flashdraft.ops.host_copy import pinned, told
from flashdraft.ops.rope import Rotary
from flashdraft.ops.triton.fused import rope_of
from flashdraft.ops.triton.likeliest import likeliest_of

_MOST_STEPPED = (
    1024  # tokens of prompts, padding included: with more of them launching takes less than running
)


class CudaTarget:
    """Runs a target's layers. Its weights are the model's, laid out anew."""

    def __init__(self, model: TargetModel) -> None:
        self.model = model
        decoder = _decoder(model)
        self.deltas = [module for module in decoder.modules() if isinstance(module, GatedDeltaNet)]
        self.layers, self.last = layers_of(decoder.layers), Norm.of(decoder.norm)
        every = zip(self.layers, model.specs, strict=True)
        self.specs = [spec for layer, spec in every if isinstance(layer.mixer, Attention)]
        self._recorded_prompt: RecordedPrompt | None = None
        self._recorded_chunk: RecordedChunk | None = None

    def new_cache(self, num_pages: int, page_size: int, num_spare: int) -> PagedKVCache:
        """Storage of keys and values, a layer's in one piece."""
        cache = PagedKVCache(
            self.model.kv_shapes(),
            num_pages,
            page_size,
            self.model.dtype,
            self.model.device,
            num_spare,
            by_layer=True,
        )
        self._recorded_chunk = RecordedChunk(self.layers, self.last, cache, self.model.embed, self._rope)
        return cache

    def new_rows(self, cache: PagedKVCache, states: DeviceStates | None) -> DeviceRows:
        """Rows for its forwards."""
        return DeviceRows(cache, states)

    def new_states(self, num_slots: int, most_tokens: int, most_kept: int) -> DeviceStates | None:
        """States of ``num_slots`` sequences, for steps of so many tokens (see DeviceStates); None where it has none."""
        if not self.deltas:
            return None
        states = DeviceStates(self.deltas, num_slots, most_tokens, most_kept)
        self._recorded_prompt = RecordedPrompt(states)
        return states

    def step(
        self,
        rows: DeviceRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None,
        feature_layers: Sequence[int],
        with_head: bool,
    ) -> tuple[TargetOutput, Tensor | None]:
        """A recorded step: blocks of one width, behind what each row has committed; ``parents``: of trees.

        Output [rows, width, ...] with padding, and the choices of all its tokens, flat.
        """
        width = power_of_two(max(len(ids) for ids in token_ids))
        numbers, num_keys = rows.tables(placed, token_ids, width)
        inputs = [numbers]
        if parents and any(list(row) != list(range(len(row))) for row in parents):
            inputs += [pinned(one, self.model.device) for one in _tree(parents, len(numbers), width)]
        key = (*numbers.shape, width, num_keys, len(inputs), with_head)

        def work(numbers: Tensor, depths: Tensor | None = None, paths: Tensor | None = None) -> Any:
            tables = RowTables.of(numbers, width, rows.cache.page_size)
            return self.forward(rows, tables, num_keys, feature_layers, with_head, depths, paths)

        hidden, features, argmax = rows.recorded(key, work, inputs)
        if features is not None:  # they may wait for a draft, and the next replay overwrites them
            features = features.clone()
        return TargetOutput(hidden, features), argmax

    def steps_prompts(self, placed: Sequence[CacheRow], token_ids: Sequence[list[int]]) -> bool:
        """Whether chunks of prompts so short run as a recorded step. States are written by :meth:`prefill` alone."""
        width = power_of_two(max(len(ids) for ids in token_ids))
        num_tokens = power_of_two(len(placed)) * width
        return not self.deltas and num_tokens * int(self.model.config.hidden_size) <= _MOST_STEPPED

    def prefill(
        self,
        rows: DeviceRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        feature_layers: Sequence[int],
    ) -> TargetOutput:
        """Chunks of prompts, true at once: hidden states and features [num_tokens, ...], row after row."""
        counts, device = [len(ids) for ids in token_ids], self.model.device
        tokens = np.fromiter(chain.from_iterable(token_ids), np.int64)
        numbers = np.stack([tokens, *places_of(placed, counts, rows.cache.page_size)])
        chunk = self._recorded_chunk
        mixing = placed, counts, self.specs, rows.states, self._recorded_prompt
        if chunk and chunk.takes(len(tokens)):
            source = PrefillSource(rows.cache, chunk.slots, chunk.rope, *mixing)
            hidden, features = chunk(numbers, source, feature_layers)
        else:
            every, at, where = told(numbers, device)
            source = PrefillSource(rows.cache, where, self._rope(at), *mixing)
            hidden, features = run(self.layers, self.last, self.model.embed(every), source, feature_layers)
        rows.settled()
        return TargetOutput.of(hidden, features, feature_layers)

    def record_prompts(self, rows: DeviceRows, feature_layers: Sequence[int]) -> None:
        """Run a chunk of each recorded length from a prompt's start, with its states where padding has them."""
        size = rows.cache.page_size
        for length in reversed(CHUNK_LENGTHS):  # memory that the longest leaves is the others'
            row = CacheRow("recorded", range(-(-length // size)), 0, rows.spare_slot)
            fits = len(row.pages) <= rows.cache.num_pages
            for _ in range(2 if fits else 0):  # the first chooses kernels
                self.prefill(rows, [row], [[0] * length], feature_layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [num_tokens, vocab_size] of final hidden states [num_tokens, hidden_size], in the weights' type."""
        return product(hidden, Product((self.model.head_weight(),)))

    def choices(self, hidden: Tensor) -> Tensor:
        """The likeliest tokens [num_tokens] of final hidden states [num_tokens, hidden_size]; of equals the first.

        -1 where logits are no numbers.
        """
        return likeliest_of(self.logits(hidden), False)[0]

    def forward(
        self,
        rows: DeviceRows,
        tables: RowTables,
        num_keys: int,
        feature_layers: Sequence[int],
        with_head: bool,
        depths: Tensor | None = None,
        paths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The work of a step: final hidden states and features [rows, width, size], and the choices, flat.

        ``depths``, ``paths``: of trees, see :func:`_tree` and ops/triton/trees.Trees.
        """
        places, visible = tables.places, tables.visible
        positions = places if depths is None else places[:, :1] + depths
        if depths is not None:
            visible = replace(visible, last=(positions + 1).int(), paths=paths)
        seen = {window: visible.within(window) for window in {spec.window for spec in self.specs}}
        source = StepSource(
            rows.cache,
            tables,
            [seen[spec.window] for spec in self.specs],
            num_keys,
            self._rope(positions.flatten()),
            rows.states,
            None if depths is None or paths is None else (depths, paths),
        )
        x = self.model.embed(tables.token_ids.flatten())
        hidden, features = run(self.layers, self.last, x, source, feature_layers)
        if rows.states:
            rows.states.after_step(tables.state_slots, (len(places), tables.width))
        joined = TargetOutput.of(hidden, features, feature_layers).features
        shape = places.shape
        argmax = self.choices(hidden) if with_head else None
        return (
            apart(hidden, 0, shape),
            None if joined is None else apart(joined, 0, shape),
            argmax,
        )

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        rotary = self.model.rotary
        assert isinstance(rotary, Rotary)
        return rope_of(positions, rotary.speeds_on(positions.device), rotary.factor, self.model.dtype)


def _tree(parents: Sequence[Sequence[int]], num_rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Each token's depth below its root, int64 [rows, width], and its path from there, int32 [rows, width, width]."""
    depths = np.zeros((num_rows, width), np.int64)
    paths = np.zeros((num_rows, width, width), np.int32)
    for row, own in enumerate(parents):
        for place, parent in enumerate(own, 1):
            depth = depths[row, place] = depths[row, parent] + 1
            paths[row, place] = paths[row, parent]
            paths[row, place, depth] = place
    return torch.from_numpy(depths), torch.from_numpy(paths)


def _decoder(model: TargetModel) -> Any:
    return model.decoder if isinstance(model, Qwen3_5Model) else model.model


def why_not(model: TargetModel) -> str | None:
    """What keeps ``model`` from running so, or None."""
    if not isinstance(model, LlamaModel | Qwen3_5Model):
        return f"it does not know {type(model).__name__}"
    if type(model).forward not in (LlamaModel.forward, Qwen3_5Model.forward):
        return f"it does not know how {type(model).__name__} runs its layers"
    return why_unsupported(list(_decoder(model).layers))
