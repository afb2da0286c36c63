"""A target whose layers and head are one C++ call where keys and values lie in a cache; elsewhere its modules run."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.cache.kv_cache import KVCache
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.models.base import KVSource, TargetModel, TargetOutput
from flashdraft.models.llama import LlamaModel
from flashdraft.native.decoder import TargetDecoder, torch_on_one_thread


class NativeTarget(TargetModel):
    """``model`` as ``native`` runs it, which has a copy of its frozen weights."""

    def __init__(self, model: LlamaModel, native: TargetDecoder) -> None:
        super().__init__()
        self.model, self.native = model, native
        self.config, self.specs = model.config, model.specs

    def forward(
        self, batch: ForwardBatch, cache: KVSource, feature_layers: Sequence[int] = ()
    ) -> TargetOutput:
        """See :meth:`TargetModel.forward`."""
        if not isinstance(cache, KVCache | PagedRows):
            return self.model.forward(batch, cache, feature_layers)
        return self._in_one_call(batch, cache, feature_layers)

    def greedy(
        self, batch: ForwardBatch, cache: KVSource, feature_layers: Sequence[int] = ()
    ) -> tuple[TargetOutput, Tensor | None]:
        """See :meth:`TargetModel.greedy`."""
        if not isinstance(cache, KVCache | PagedRows):
            return self.model.greedy(batch, cache, feature_layers)
        best = torch.empty_like(batch.token_ids)
        return self._in_one_call(batch, cache, feature_layers, best), best

    def _in_one_call(
        self,
        batch: ForwardBatch,
        cache: KVCache | PagedRows,
        feature_layers: Sequence[int],
        best: Tensor | None = None,
    ) -> TargetOutput:
        ran = self.native.forward(
            self.model.model.embed_tokens.weight,
            batch.positions,
            batch.kv_len,
            cache.layers,
            feature_layers,
            batch.tree,
            ends=batch.ends,
            token_ids=batch.token_ids,
            best=best,
        )
        return TargetOutput(*ran)

    def embed(self, token_ids: Tensor) -> Tensor:
        """See :meth:`TargetModel.embed`."""
        return self.model.embed(token_ids)

    def head_weight(self) -> Tensor:
        """See :meth:`TargetModel.head_weight`."""
        return self.model.head_weight()

    def logits(self, hidden: Tensor) -> Tensor:
        """See :meth:`TargetModel.logits`."""
        return self.native.logits(hidden)

    def argmax(self, hidden: Tensor) -> Tensor:
        """See :meth:`TargetModel.argmax`."""
        return self.native.argmax(hidden)

    def threads(self) -> AbstractContextManager[None]:
        """See :meth:`TargetModel.threads`."""
        return torch_on_one_thread()
