"""What the server asks of an engine: answers as async iterators, a health and two counts. Nothing of tensors."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from flashdraft.admission import BlockSize
from flashdraft.engine.types import EngineStats, StepOutput
from flashdraft.grammar import Grammar, GrammarState
from flashdraft.sampling_params import SamplingParams


class EngineClient(Protocol):
    """An engine as the server sees it."""

    @property
    def healthy(self) -> bool:
        """Whether it can answer; False before the start, after the stop and after a failure."""
        ...

    def stats(self) -> EngineStats:
        """How busy it is."""
        ...

    def check(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, block_size: BlockSize | None
    ) -> None:
        """Raise UsageError for what cannot be served; no work, no state."""
        ...

    async def begin_grammar(self, grammar: Grammar | None) -> GrammarState | None:
        """Make ``grammar`` ready without holding up anybody. Raises UsageError for one that cannot be used."""
        ...

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
        block_size: BlockSize | None = None,
        priority: int = 0,
        client: str | None = None,
    ) -> AsyncGenerator[StepOutput, None]:
        """Answer one prompt, a lower ``priority`` first; clients share each step. Closing the iterator aborts.

        Raises UsageError, or EngineError when it died.
        """
        ...

    def flush_cache(self) -> bool:
        """Forget what is kept between requests; False when that cannot be done now."""
        ...

    async def start(self) -> None:
        """Begin to answer."""
        ...

    async def stop(self) -> None:
        """End; what is unfinished gets an EngineError. Once more does nothing."""
        ...
