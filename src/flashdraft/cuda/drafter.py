"""A DFlash drafter on a GPU: context stored into pages, blocks drafted, both recorded."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache, power_of_two, slots_of
from flashdraft.cuda.chunk_lengths import MOST_STORED_TOKENS
from flashdraft.cuda.convolved import run_convolved
from flashdraft.cuda.layers import Attention, Norm, layers_of, run
from flashdraft.cuda.products import product
from flashdraft.cuda.rows import DeviceRows, RowTables
from flashdraft.cuda.step import StepSource, StoreSource
from flashdraft.cuda.weights import Product, apart
from flashdraft.models.dflash import DFlashModel
from flashdraft.ops.block_mask import BlockRule
from flashdraft.ops.host_copy import pinned, told
from flashdraft.ops.triton.chosen_drafts import branches, likeliest_tokens
from flashdraft.ops.triton.fused import rope_of
from flashdraft.ops.triton.likeliest import likeliest_of
from flashdraft.ops.triton.paged_attention import Visible
from flashdraft.ops.triton.sampling import noise_of
from flashdraft.ops.triton.trees import Branches

T = TypeVar("T")


class CudaDrafter:
    """Runs a drafter's layers. Its weights are the model's, laid out anew."""

    def __init__(self, model: DFlashModel, num_pages: int, page_size: int, num_rows: int) -> None:
        self.model = model
        self.fuse, self.fused_norm = Product.of([model.fc]), Norm.of(model.hidden_norm)
        self.layers, self.last = layers_of(list(model.layers)), Norm.of(model.norm)
        config, weight = model.config, model.fc.weight
        num_spare = num_rows * (power_of_two(config.block_size) + page_size)
        self.cache = PagedKVCache(
            model.kv_shapes(), num_pages, page_size, weight.dtype, weight.device, num_spare, by_layer=True
        )
        self.rows = DeviceRows(self.cache)

    def observe(self, placed: Sequence[CacheRow], counts: Sequence[int], features: Tensor) -> None:
        """Store keys and values of verified tokens, ``features`` [num_tokens, ...] row after row."""
        device, total = features.device, len(features)
        positions = [
            at
            for row, count in zip(placed, counts, strict=True)
            for at in range(row.start, row.start + count)
        ]
        [slots] = slots_of(self.cache, placed, counts)
        if total > MOST_STORED_TOKENS:
            self.store(features, told([positions, slots], device))
            return
        more = power_of_two(total) - total
        scratch = self.rows.scratch_page * self.cache.page_size
        places = torch.tensor([positions + [0] * more, slots + [scratch] * more])
        inputs = F.pad(features, (0, 0, 0, more)), pinned(places, device)

        def work(features: Tensor, places: Tensor) -> None:
            self.store(features, places)

        self.rows.recorded(("context", total + more), work, inputs)

    def draft(
        self,
        embed: Callable[[Tensor], Tensor],
        placed: Sequence[CacheRow],
        anchors: Sequence[int],
        block_sizes: Sequence[int],
        key: Hashable,
        found: Callable[[Tensor, Tensor], T],
    ) -> T:
        """What ``found`` makes of final hidden states [rows, slots, hidden_size] behind ``anchors``, and these [rows].

        Rows and slots are padded; all of it is one recorded forward, with one ``key`` for each ``found``.
        ``embed``: the target's.
        """
        unknown = [self.model.config.mask_token_id]
        blocks = [[anchor, *unknown * (size - 1)] for anchor, size in zip(anchors, block_sizes, strict=True)]
        width = power_of_two(max(block_sizes))
        asked, num_keys = self.rows.tables(placed, blocks, width)

        def work(numbers: Tensor) -> T:
            tables = RowTables.of(numbers, width, self.cache.page_size)
            return found(self.hidden(tables, num_keys, embed)[:, 1:], tables.token_ids[:, 0])

        return self.rows.recorded((*asked.shape, width, num_keys, key), work, [asked])

    def hidden(self, tables: RowTables, num_keys: int, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Final hidden states [num_rows, width, hidden_size] of blocks; ``embed``: the target's."""
        places = tables.places
        rules = self.model.config.rules
        seen = {rule: _visible(rule, places, tables.ends) for rule in set(rules)}
        rope = self._rope(places.flatten())
        source = StepSource(self.cache, tables, [seen[rule] for rule in rules], num_keys, rope)
        x = self.model.scaled_inputs(embed(tables.token_ids.flatten()))
        if self.model.config.conv_kernel_size:
            return apart(run_convolved(self.layers, self.last, x, source), 0, places.shape)
        hidden, _ = run(self.layers, self.last, x, source)
        return apart(hidden, 0, places.shape)

    def likeliest(self, hidden: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest tokens [rows, slots] of final hidden states [rows, slots, hidden_size], and log-probabilities.

        ``head``: the target's, [vocab_size, hidden_size].
        """
        rows, log_probs = likeliest_of(self._logits(hidden.flatten(0, 1), head), True)
        assert log_probs is not None
        tokens, shape = self.model.head_tokens(rows), hidden.shape[:-1]
        return apart(tokens, 0, shape), apart(log_probs, 0, shape)

    def branches(
        self, hidden: Tensor, anchors: Tensor, head: Tensor, ranks: int, rules: tuple[Tensor, Tensor] | None
    ) -> Branches:
        """The ``ranks`` best of a slot's candidates behind each one before it, by the frozen selector.

        ``hidden``, ``head``: of :meth:`likeliest`; ``anchors`` [rows]. ``rules``: as cuda/build.RowRules has them, and
        first positions; None: all rows are greedy.
        """
        config, shape = self.model.config, hidden.shape[:-1]
        *codebooks, projection = self.model.candidate_selector.frozen
        tokens, distances = hidden.flatten(0, 1), None if config.draft_vocab_size is None else self.model.d2t
        ids, log_probs = likeliest_tokens(self._logits(tokens, head), config.selector_top_k, distances)
        found, wanted = (
            (apart(ids, 0, shape), apart(log_probs, 0, shape)),
            product(tokens, Product((projection,))),
        )
        sampled = (rules[0], noise_of(found[0], *rules), config.selector_anchor_sampled) if rules else ()
        return branches(found, anchors, wanted, codebooks, ranks, *sampled)

    def _logits(self, hidden: Tensor, head: Tensor) -> Tensor:
        """Of ``hidden`` [num_tokens, hidden_size], by what it drafts through."""
        logits = product(hidden, Product((self.model.head_rows(head),)))
        return self.model.scaled(logits.float()) if self.model.config.scales_logits else logits

    def store(self, features: Tensor, places: Tensor) -> None:
        """Keys and values of tokens with ``features`` [num_tokens, ...]; ``places`` [2, ...]: positions and slots."""
        positions, slots = places
        fused = self.fused_norm.alone(product(features, self.fuse))
        source = StoreSource(self.cache, slots, self._rope(positions))
        for layer in self.layers:
            assert isinstance(layer.mixer, Attention)
            layer.mixer.store(fused, source)

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        rotary = self.model.rotary
        return rope_of(
            positions, rotary.speeds_on(positions.device), rotary.factor, self.model.fc.weight.dtype
        )


def _visible(rule: BlockRule, places: Tensor, ends: Tensor) -> Visible:
    """What slots of blocks at ``places`` [rows, width] see of rows that end before ``ends`` [rows]: see BlockRule."""
    last = ends.unsqueeze(1).expand_as(places).long()
    first = torch.zeros_like(places)
    if rule.is_causal:
        last = torch.minimum(last, places + 1)
    if rule.window is not None:
        first = places[:, :1] - rule.window if rule.from_anchor else places - rule.window + 1
        first = first.expand_as(places).clamp(min=0)
        if not rule.from_anchor:
            last = torch.minimum(last, places + rule.window)
    return Visible(first.int().contiguous(), last.int().contiguous())
