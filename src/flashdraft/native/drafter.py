"""A DFlash network whose layers and head are one C++ call, for serving."""

from collections.abc import Sequence

from torch import Tensor

from flashdraft.cache.dense_source import BlockContext
from flashdraft.cache.stored_layer import StoredLayer
from flashdraft.models.dflash import DFlashModel
from flashdraft.native.decoder import DrafterDecoder


class NativeDrafter:
    """``model`` as ``native`` runs it, which has a copy of its frozen weights."""

    def __init__(self, model: DFlashModel, native: DrafterDecoder) -> None:
        self.model, self.native = model, native
        self._tokens = model.draft_tokens() if model.config.draft_vocab_size is not None else None

    @property
    def knows_rules(self) -> bool:
        """Whether it knows which keys the layers' slots see; where it does not, blocks run through the modules."""
        return all(rule.is_uniform for rule in self.model.config.rules)

    def served(
        self,
        block: Tensor,
        positions: Tensor,
        kv_len: int,
        context: BlockContext,
        ends: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`DFlashModel.served`."""
        if not self.knows_rules:
            return self.model.served(block, positions, kv_len, context, ends)
        given = self.model.scaled_inputs(block), positions, kv_len, context.layers
        return self.native.forward(*given, windows=self._windows, ends=ends, is_causal=False)[0]

    def draft(
        self,
        block: Tensor,
        positions: Tensor,
        kv_len: int,
        context: BlockContext,
        ends: Tensor | None,
        count: int,
        anchors: Tensor,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None] | None:
        """The likeliest tokens and their log-probabilities, [batch, num_tokens - 1, count] both, best first.

        For the slots of blocks behind their ``anchors`` [batch]; None where one call does not give that. With a
        selector they are its candidates, and its ``count`` best behind each one before are told as
        :meth:`DrafterDecoder.draft` does.
        """
        if not self.knows_rules:
            return None
        given = (
            self.model.scaled_inputs(block),
            positions,
            kv_len,
            context.layers,
            self._windows,
            ends,
            self._tokens,
        )
        if self.native.selector is None:
            return None if self.model.candidate_selector else self.native.draft(*given, count)
        return self.native.draft(*given, self.model.config.selector_top_k, anchors, count)

    def context(self, features: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """See :meth:`DFlashModel.context`."""
        return self.native.context(features, positions)

    def store_context(
        self, features: Tensor, positions: Tensor, slots: Tensor, stored: Sequence[StoredLayer], kv_len: int
    ) -> None:
        """The same, put into ``slots``: see :meth:`DrafterDecoder.store_context`."""
        self.native.store_context(features, positions, slots, stored, kv_len)

    def likeliest(self, hidden: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` likeliest tokens and their log-probabilities, [..., count], of final hidden states."""
        rows, log_probs = self.native.likeliest(hidden, count)
        return self.model.head_tokens(rows), log_probs

    @property
    def _windows(self) -> list[int]:
        return [rule.window or 0 for rule in self.model.config.rules]
