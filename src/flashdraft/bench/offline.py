"""The one-stream benchmark: every prompt is answered by every method in turn, in this process.

Methods are interleaved prompt by prompt and their order rotates, so a machine that warms up or slows down
does so for all of them. Plain decoding (AR) always runs: speed and tokens are measured against it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from flashdraft.bench.lossless import find_difference
from flashdraft.bench.results import BASELINE, Measurement, repeated_share
from flashdraft.bench.tasks import BenchPrompt
from flashdraft.errors import UsageError
from flashdraft.generate import GenerateOutput, generate
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.ngram import NgramDrafter

METHODS = ("ar", "ngram", "dflash")
_WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Method:
    """A way of decoding, under the name that the tables give it."""

    name: str
    block_size: int  # anchor included; 1: plain decoding
    drafter: Drafter | None


def choose_methods(llm: LLM, names: Sequence[str], block_sizes: Sequence[int]) -> list[Method]:
    """Plain decoding and, for each block size, what ``names`` ("ar", "ngram", "dflash") asks for.

    Raises UsageError for an unknown name, for "dflash" without a drafter and for a block size that it was not
    trained for.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UsageError(f"there is no method {unknown[0]!r}; expected some of: {', '.join(METHODS)}")
    methods = [Method(BASELINE, 1, None)]
    if "ngram" in names:
        methods += [Method("n-gram", size, NgramDrafter(size)) for size in block_sizes]
    if "dflash" in names:
        if llm.drafter is None:
            raise UsageError(
                "method dflash needs a drafter; name one with --draft, or leave dflash out of --methods"
            )
        methods += [Method("DFlash", size, llm.drafter) for size in block_sizes]
    for method in methods[1:]:
        largest = method.drafter.max_block_size if method.drafter else 1
        if not 2 <= method.block_size <= largest:
            raise UsageError(f"{method.name} got block size {method.block_size}; expected 2 to {largest}")
    return methods


@dataclass(frozen=True)
class OfflineBench:
    """The measuring itself: which methods (the first is plain decoding) answer how.

    ``multi_turn``: the second question is asked too, after plain decoding's first answer, which is every
    method's up to near-ties.
    """

    llm: LLM
    methods: Sequence[Method]
    params: SamplingParams
    multi_turn: bool = False

    def run(
        self,
        tasks: Mapping[str, Sequence[BenchPrompt]],
        on_answer: Callable[[Measurement], None] | None = None,
    ) -> list[Measurement]:
        """Answer all prompts with all methods; ``on_answer`` hears of each answer as it is measured."""
        self._warm_up()
        measurements = []
        questions = [(task, prompt) for task, prompts in tasks.items() for prompt in prompts]
        for rotation, (task, prompt) in enumerate(questions):
            for measurement in self._measure(task, prompt, rotation):
                measurements.append(measurement)
                if on_answer:
                    on_answer(measurement)
        return measurements

    def num_answers(self, tasks: Mapping[str, Sequence[BenchPrompt]]) -> int:
        """How many answers :meth:`run` will measure."""
        return len(self.methods) * sum(
            len(self._questions(prompt)) for prompts in tasks.values() for prompt in prompts
        )

    def _questions(self, prompt: BenchPrompt) -> tuple[str, ...]:
        return prompt.turns if self.multi_turn else prompt.turns[:1]

    def _measure(self, task: str, prompt: BenchPrompt, rotation: int) -> Iterator[Measurement]:
        """One prompt, turn by turn; the order of methods starts at ``rotation``."""
        messages: list[dict[str, str]] = []
        for turn, question in enumerate(self._questions(prompt)):
            messages.append({"role": "user", "content": question})
            token_ids = self.llm.chat_token_ids(messages)
            first = (rotation + turn) % len(self.methods)
            order = [*self.methods[first:], *self.methods[:first]]
            answers = {method: self._answer(method, token_ids, self.params) for method in order}
            plain = answers[self.methods[0]].output.token_ids
            for method in self.methods:
                answer = answers[method]
                tokens = answer.output.token_ids
                yield Measurement(
                    task=task,
                    prompt_id=prompt.id,
                    turn=turn,
                    method=method.name,
                    block_size=method.block_size,
                    concurrency=1,
                    order_idx=order.index(method),
                    num_prompt_tokens=len(token_ids),
                    finish_reason=answer.output.finish_reason,
                    total_s=answer.total_s,
                    metrics=answer.output.metrics,
                    repeated_share=repeated_share(tokens),
                    difference=find_difference(self.llm.target, token_ids, plain, tokens, self.params),
                )
            text = self.llm.tokenizer.decode(plain, skip_special_tokens=True)
            messages.append({"role": "assistant", "content": text})

    def _answer(self, method: Method, token_ids: list[int], params: SamplingParams) -> "_Answer":
        llm, started = self.llm, perf_counter()
        output = generate(llm.target, method.drafter, token_ids, params, method.block_size, llm.eos_token_ids)
        return _Answer(output, perf_counter() - started)

    def _warm_up(self) -> None:
        """First calls pay for memory and threads: answer something short that nobody measures."""
        token_ids = self.llm.chat_token_ids([{"role": "user", "content": "Count to ten."}])
        short = replace(self.params, max_tokens=min(self.params.max_tokens, _WARM_UP_TOKENS))
        for method in self.methods:
            self._answer(method, token_ids, short)


@dataclass(frozen=True)
class _Answer:
    output: GenerateOutput
    total_s: float
