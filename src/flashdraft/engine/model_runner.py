"""Runs target and drafter for the requests of one step: one ForwardBatch for rows of similar width."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.cache.hybrid_rows import HybridRows
from flashdraft.cache.kv_cache import LayerKV
from flashdraft.cache.model_cache import ModelCache
from flashdraft.cache.paged_kv_cache import GatheredRows, PagedKVCache
from flashdraft.engine.request import Request
from flashdraft.models.base import TargetModel
from flashdraft.spec_decode.batch_drafter import batch_drafter
from flashdraft.spec_decode.drafter import Drafter


@dataclass(frozen=True)
class Verified:
    """What the target says to one request's tokens."""

    logits: Tensor  # [num_wanted, vocab_size], float32, of the last tokens; empty where no request reads them
    argmax: list[int]
    features: Tensor | None  # [num_tokens, feature_size]


class ModelRunner:
    """Holds the caches. Knows requests, but neither who runs nor what is kept."""

    def __init__(
        self, target: TargetModel, drafter: Drafter | None, num_pages: int, page_size: int, num_slots: int = 1
    ) -> None:
        self.target = target
        self.drafter = batch_drafter(drafter, num_pages, page_size) if drafter else None
        self.feature_layers = drafter.feature_layers if drafter else ()
        shown = target.new_cache(
            num_slots, 1
        )  # its states are the engine's, its keys and values tell a shape
        self.states = shown.states if isinstance(shown, ModelCache) else {}
        paged = [layer.k.shape for layer in shown.layers if isinstance(layer, LayerKV)]
        _, kv_heads, _, head_dim = paged[0]
        self.cache = PagedKVCache(
            len(paged), num_pages, page_size, kv_heads, head_dim, target.dtype, target.device
        )
        # Prefill chunks and blocks differ too much in width to share rows.
        self.chunk_rows, self.block_rows = self.new_rows(), self.new_rows()

    def new_rows(self) -> GatheredRows:
        """Rows for the target's forwards."""
        return HybridRows(self.cache, self.states) if self.states else GatheredRows(self.cache)

    def join(self, request: Request) -> None:
        """A request was admitted; its state is that of its found prefix, and the drafter hears of it."""
        if isinstance(self.chunk_rows, HybridRows):
            self.chunk_rows.begin(request.slot, request.checkpoint)
        if self.drafter:
            prefix = request.token_ids[: request.num_committed]
            self.drafter.join(request.draft_row, prefix, request.max_len)

    def propose(self, requests: Sequence[Request]) -> list[list[int]]:
        """A draft of ``block_size - 1`` tokens at most for each request."""
        if not requests:
            return []
        assert self.drafter is not None
        self.catch_up(requests)
        rows = [request.draft_row for request in requests]
        anchors = [request.anchor for request in requests]
        return self.drafter.propose(rows, anchors, [request.block_size for request in requests])

    def catch_up(self, requests: Sequence[Request]) -> None:
        """Let the drafter take what is committed but not observed, of all ``requests`` in one projection."""
        late = [r for r in requests if r.num_observed < r.num_committed]
        if not late or self.drafter is None:
            return
        token_ids = [r.token_ids[r.num_observed : r.num_committed] for r in late]
        features = [torch.cat(r.pending) if r.pending else None for r in late]
        self.drafter.observe([r.draft_row for r in late], token_ids, features)
        for request in late:
            request.num_observed, request.pending = request.num_committed, []

    def run(
        self,
        rows: GatheredRows,
        requests: Sequence[Request],
        token_ids: Sequence[list[int]],
        num_wanted: Sequence[int],
    ) -> list[Verified]:
        """One target forward over ``token_ids`` of each request, which follow what it has committed.

        ``num_wanted``: for how many of its last tokens each wants logits.
        """
        order = rows.seat([request.row.key for request in requests])
        width = max(len(ids) for ids in token_ids)
        positions, kv_len = rows.arrange([requests[i].row for i in order], width)
        padded = [token_ids[i] + [0] * (width - len(token_ids[i])) for i in order]
        batch = ForwardBatch(torch.tensor(padded, device=self.target.device), positions, kv_len)
        output = self.target.forward(batch, rows, self.feature_layers)
        # Only the slots that are wanted go through the head.
        place = {request_idx: row for row, request_idx in enumerate(order)}
        slots = [
            place[i] * width + len(ids) - wanted + k
            for i, (ids, wanted) in enumerate(zip(token_ids, num_wanted, strict=True))
            for k in range(wanted)
        ]
        picked = output.hidden.flatten(0, 1)[slots]
        if any(request.answer.reads_logits for request in requests):
            logits = self.target.logits(picked)
            best = logits.argmax(-1)
        else:
            logits = picked.new_empty(0, self.target.config.vocab_size)
            best = self.target.argmax(picked)
        argmax, kept = best.tolist(), output.features
        results, done = [], 0
        for i, (ids, wanted) in enumerate(zip(token_ids, num_wanted, strict=True)):
            own = slice(done, done + wanted)
            done += wanted
            features = None if kept is None else kept[place[i], : len(ids)]
            results.append(Verified(logits[own], argmax[own], features))
        return results

    def commit(
        self,
        rows: GatheredRows,
        requests: Sequence[Request],
        counts: Sequence[int],
        features: Sequence[Tensor | None],
    ) -> None:
        """Make the first ``counts[i]`` tokens of each request, as :meth:`run` had them, true.

        Keeps their features until the drafter takes them (:meth:`catch_up`).
        """
        count_of = {request.row.key: count for request, count in zip(requests, counts, strict=True)}
        order = rows.seat([request.row.key for request in requests])
        arranged = [requests[i].row for i in order]
        rows.commit(arranged, [count_of[row.key] for row in arranged])
        for request, count, given in zip(requests, counts, features, strict=True):
            request.num_committed += count
            if given is not None:
                request.pending.append(given[:count].clone())
            if self.drafter is None:
                request.num_observed = request.num_committed
