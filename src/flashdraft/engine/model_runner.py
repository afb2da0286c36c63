"""Runs target and drafter for the requests of one step: one ForwardBatch for rows of similar width."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.admission import MAX_TREE
from flashdraft.batch import ForwardBatch
from flashdraft.cache.hybrid_rows import HybridRows
from flashdraft.cache.kv_cache import LayerKV
from flashdraft.cache.model_cache import ModelCache
from flashdraft.cache.paged_kv_cache import CacheRow, GatheredRows, PagedKVCache, StagedAt, power_of_two
from flashdraft.cache.paged_rows import new_rows
from flashdraft.cuda.build import cuda_target
from flashdraft.engine.request import Request
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.models.base import TargetModel, TargetOutput
from flashdraft.ops.attention import FirstKeys
from flashdraft.ops.block_mask import CachedMask
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.tree import DraftTree

if TYPE_CHECKING:
    from flashdraft.cuda.rows import DeviceRows
    from flashdraft.cuda.target import CudaTarget


@dataclass(frozen=True)
class Verified:
    """What the target says to one request's tokens."""

    logits: Tensor  # [num_wanted, vocab_size], float32, of the last tokens; empty where no request reads them
    argmax: list[int]
    features: Tensor | None  # [num_tokens, feature_size], padding behind them

    def at(self, places: list[int]) -> "Verified":
        """The same with the choices at ``places`` alone, which rise."""
        if len(places) == len(self.argmax):
            return self
        logits = self.logits[places] if len(self.logits) else self.logits
        return replace(self, logits=logits, argmax=[self.argmax[place] for place in places])


@dataclass(frozen=True)
class TargetStep:
    """One forward over rows of ``width`` tokens, padding included."""

    output: TargetOutput
    width: int
    argmax: Tensor | None = None  # of all slots, where the head ran along

    def hidden_at(self, slots: list[int]) -> Tensor:
        """Final hidden states of some slots, counted row by row."""
        every = self.output.hidden.flatten(0, 1)
        return every if slots == list(range(len(every))) else every[slots]


class ModelRunner:
    """Holds the caches. Knows requests, but neither who runs nor what is kept."""

    def __init__(
        self, target: TargetModel, drafter: Drafter | None, config: EngineConfig, num_pages: int
    ) -> None:
        self.target = target
        size, num_rows = config.page_size, config.max_running
        self.drafter = drafter.open(num_rows, num_pages, size) if drafter else None
        self.feature_layers = drafter.feature_layers if drafter else ()
        self.on_device = cuda_target(target)
        self.states: Any
        if self.on_device:
            self.cache = self.on_device.new_cache(num_pages, size, num_rows * (MAX_TREE + size))
            width = power_of_two(max(drafter.max_block_size if drafter else 1, 1))
            self.states = self.on_device.new_states(config.num_slots, power_of_two(num_rows) * width)
        else:
            # Its states are the engine's, its keys and values tell a shape.
            shown = target.new_cache(config.num_slots, 1)
            self.states = shown.states if isinstance(shown, ModelCache) else {}
            paged = [layer.k.shape for layer in shown.layers if isinstance(layer, LayerKV)]
            _, kv_heads, _, head_dim = paged[0]
            spare = num_rows * (MAX_TREE + size) if target.reads_pages else 0
            self.cache = PagedKVCache(
                len(paged), num_pages, size, kv_heads, head_dim, target.dtype, target.device, spare
            )
        self.can_record = target.is_recordable
        self._no_logits = torch.empty(0, target.config.vocab_size, device=target.device)
        # Prefill chunks and blocks differ too much in width to share rows.
        self.chunk_rows, self.block_rows = self.new_rows(), self.new_rows()

    def new_rows(self) -> GatheredRows:
        """Rows for the target's forwards."""
        if self.on_device:
            return self.on_device.new_rows(self.cache, self.states)
        if self.states:
            return HybridRows(self.cache, self.states)
        return new_rows(self.cache, self.target.reads_pages)

    @property
    def records_blocks(self) -> bool:
        """Whether steps of blocks are recorded, and so come in few shapes."""
        return self.on_device is not None or (self.block_rows.records and self.can_record)

    def join(self, request: Request) -> None:
        """A request was admitted; its state is that of its found prefix, and the drafter hears of it."""
        if self.on_device and self.states:
            self.states.begin(request.slot, request.checkpoint)
        elif isinstance(self.chunk_rows, HybridRows):
            self.chunk_rows.begin(request.slot, request.checkpoint)
        if self.drafter:
            prefix = request.token_ids[: request.num_committed]
            self.drafter.join(request.draft_row, prefix, request.max_len)

    def propose(self, requests: Sequence[Request]) -> dict[Request, DraftTree]:
        """The draft of each: a tree of ``tree_size - 1`` tokens, or a chain of ``block_size - 1``, at most.

        The drafter has taken all that they committed (:meth:`catch_up`).
        """
        if not requests:
            return {}
        assert self.drafter is not None
        drafts = self.drafter.propose(
            [request.draft_row for request in requests],
            [request.anchor for request in requests],
            [request.draft_shape for request in requests],
        )
        # No room is taken behind the answer's end; a chain is cut there when its length is known.
        return {
            request: draft.up_to(request.most_tokens - 1) if request.tree_size else draft
            for request, draft in zip(requests, drafts, strict=True)
        }

    def catch_up(self, requests: Sequence[Request]) -> None:
        """Let the drafter take what is committed but not observed, of all ``requests`` in one projection."""
        late = [r for r in requests if r.num_observed < r.num_committed]
        if not late or self.drafter is None:
            return
        token_ids = [r.token_ids[r.num_observed : r.num_committed] for r in late]
        features = [_joined(r.pending) for r in late]
        self.drafter.observe([r.draft_row for r in late], token_ids, features)
        for request in late:
            request.num_observed, request.pending = request.num_committed, []

    def run(
        self,
        rows: GatheredRows,
        requests: Sequence[Request],
        token_ids: Sequence[list[int]],
        num_wanted: Sequence[int],
        parents: Sequence[Sequence[int]] | None = None,
    ) -> list[Verified]:
        """One target forward over ``token_ids`` of each request, which follow what it has committed.

        ``num_wanted``: for how many of its last tokens each wants logits. ``parents``: of tokens that are trees
        (ForwardBatch.as_trees).
        """
        order = rows.seat([request.key for request in requests])
        placed = [token_ids[i] for i in order]
        trees = [parents[i] for i in order] if parents else None
        reads_logits = any(request.answer.reads_logits for request in requests)
        with_head = (
            rows is not self.chunk_rows and not reads_logits
        )  # of a prompt one token's choice is wanted
        step = self.forward(rows, [requests[i].row for i in order], placed, trees, with_head)
        # Only the slots that are wanted go through the head.
        place = {request_idx: row for row, request_idx in enumerate(order)}
        slots = [
            place[i] * step.width + len(ids) - wanted + k
            for i, (ids, wanted) in enumerate(zip(token_ids, num_wanted, strict=True))
            for k in range(wanted)
        ]
        logits, features = self._no_logits, step.output.features
        if reads_logits:
            logits = self.target.logits(step.hidden_at(slots))
            argmax = logits.argmax(-1).tolist()
        elif step.argmax is None:
            argmax = self.target.argmax(step.hidden_at(slots)).tolist()
        else:
            every = step.argmax.tolist()
            argmax = [every[slot] for slot in slots]
        kept = [None] * len(requests) if features is None else features.unbind()
        results, done = [], 0
        for i, wanted in enumerate(num_wanted):
            own = slice(done, done + wanted)
            done += wanted
            said = logits[own] if len(logits) else logits
            results.append(Verified(said, argmax[own], kept[place[i]]))
        return results

    def forward(
        self,
        rows: GatheredRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None = None,
        with_head: bool = True,
    ) -> TargetStep:
        """The target over ``token_ids`` of each row, in the order in which they lie, padded to one width.

        ``parents``: see :meth:`run`. ``with_head``: whether the choice behind each token is wanted. Nothing of it but
        the features outlasts the next forward.
        """
        counts = [len(ids) for ids in token_ids]
        width = max(counts)
        if self.on_device:
            device_rows = cast("DeviceRows", rows)
            return self._on_device(self.on_device, device_rows, placed, token_ids, parents, with_head)
        if rows.records and self.can_record:
            return self._replay(rows, placed, token_ids, parents, power_of_two(width))
        positions, kv_len = rows.arrange(placed, counts)
        ids = _padded(token_ids, width, len(placed), self.target.device)
        ends = torch.tensor([row.start + count for row, count in zip(placed, counts, strict=True)])
        batch = ForwardBatch(ids, positions, kv_len, ends=ends)
        if parents:
            batch = batch.as_trees(parents)
        if not with_head:
            return TargetStep(self.target.forward(batch, rows, self.feature_layers), width)
        output, argmax = self.target.greedy(batch, rows, self.feature_layers)
        return TargetStep(output, width, None if argmax is None else argmax.flatten())

    def _replay(
        self,
        rows: GatheredRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None,
        width: int,
    ) -> TargetStep:
        """The same as one recording, for all steps of as many rows, this width and about this context."""
        positions, kv_len = rows.arrange_padded(placed, width)
        ids = _padded(token_ids, width, len(positions), self.target.device)
        batch = ForwardBatch(ids, positions, kv_len)
        if parents:
            batch = batch.as_trees([*parents, *([[]] * (len(positions) - len(parents)))])
        inputs = [batch.token_ids, batch.positions, batch.slots]
        if width > 1:
            inputs.append(batch.tree.mask(kv_len) if batch.tree else CachedMask(positions, kv_len).dense())

        # Of a prompt one token's logits are wanted, of a block all.
        layers, with_head = rows.layers, rows is not self.chunk_rows

        def work(ids: Tensor, positions: Tensor, slots: Tensor, mask: Tensor | None = None) -> Any:
            seen = FirstKeys(positions[:, 0] + 1) if mask is None else mask
            source = StagedAt(layers, slots, seen)
            output = self.target.forward(ForwardBatch(ids, positions, kv_len), source, self.feature_layers)
            return output, self.target.argmax(output.hidden).flatten() if with_head else None

        output, argmax = rows.recorded((*positions.shape, kv_len), work, inputs)
        if output.features is not None:  # they may wait for a draft, and the next replay overwrites them
            output = replace(output, features=output.features.clone())
        return TargetStep(output, width, argmax)

    def _on_device(
        self,
        target: "CudaTarget",
        rows: "DeviceRows",
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None,
        with_head: bool,
    ) -> TargetStep:
        if rows is not self.chunk_rows:
            output, argmax = target.step(rows, placed, token_ids, parents, self.feature_layers, with_head)
            return TargetStep(output, output.hidden.shape[1], argmax)
        outputs = target.prefill(rows, placed, token_ids, self.feature_layers)
        width = max(len(ids) for ids in token_ids)
        return TargetStep(_side_by_side(outputs, width), width)

    def commit(
        self,
        rows: GatheredRows,
        requests: Sequence[Request],
        paths: Sequence[Sequence[int]],
        features: Sequence[Tensor | None],
    ) -> None:
        """Make the tokens of each request at places ``paths[i]``, as :meth:`run` had them, true.

        Keeps their features until the drafter takes them (:meth:`catch_up`).
        """
        order = rows.seat([request.key for request in requests])
        rows.commit_paths([requests[i].row for i in order], [paths[i] for i in order])
        for request, path, given in zip(requests, paths, features, strict=True):
            request.num_committed += len(path)
            if given is not None:
                is_chain = path[-1] == len(path) - 1
                request.pending.append(given[: len(path)] if is_chain else given[list(path)])
            if self.drafter is None:
                request.num_observed = request.num_committed


def _padded(token_ids: Sequence[list[int]], width: int, num_rows: int, device: torch.device) -> Tensor:
    """[num_rows, width], zeros behind each row's tokens and in rows without any."""
    padded = [ids + [0] * (width - len(ids)) for ids in token_ids]
    padded += [[0] * width] * (num_rows - len(padded))
    return torch.tensor(padded, device=device)


def _side_by_side(outputs: Sequence[TargetOutput], width: int) -> TargetOutput:
    """Outputs [1, num_tokens, ...] as rows of one width, padded."""

    def padded(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(part, (0, 0, 0, width - part.shape[1])) for part in parts])

    features = [one.features for one in outputs if one.features is not None]
    return TargetOutput(padded([one.hidden for one in outputs]), padded(features) if features else None)


def _joined(parts: list[Tensor]) -> Tensor | None:
    """One tensor of ``parts``, None of none; most often there is one, which is not copied."""
    return torch.cat(parts) if len(parts) > 1 else next(iter(parts), None)
