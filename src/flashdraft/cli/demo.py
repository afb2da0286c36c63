"""``flashdraft demo``: real prompts, answered by plain decoding and by DFlash, side by side."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flashdraft.cli.answer_stream import AnswerStream
from flashdraft.cli.demo_screen import LineScreen, LiveScreen, Screen
from flashdraft.cli.options import (
    BlockSizeOption,
    DeviceOption,
    DraftOption,
    ExactDtypeOption,
    MaxTokensOption,
    ModelOption,
    QuantizationOption,
    check_paths,
    measure_steps,
    open_llm,
    parse_block_size,
    tell_room,
)
from flashdraft.errors import UsageError

if TYPE_CHECKING:
    from flashdraft.llm import LLM
    from flashdraft.spec_decode.metrics import RequestMetrics

DEMO_TASKS = ("gsm8k", "humaneval", "mt-bench")  # the first prompt of each
PLAIN = "plain decoding"
WARM_UP_TOKENS = 8


def demo(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Your own prompts instead of three of the benchmark's.")
    ] = None,
    model: ModelOption = "embedded",
    draft: DraftOption = None,
    block_size: BlockSizeOption = None,
    max_tokens: MaxTokensOption = 128,
    dtype: ExactDtypeOption = None,
    quantization: QuantizationOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Answer prompts twice, by plain decoding and by DFlash, and check that the tokens are the same.

    The two run one after the other, so that neither disturbs the other's clock. Exit code 1 when an answer
    differs and that is not a proven near-tie of bfloat16.

    \b
    Examples:
      flashdraft demo
      flashdraft demo --max-tokens 64
      flashdraft demo "Write a haiku about speed." "What is a prime number?"
    """
    from flashdraft.bench.tasks import load_task

    questions = prompts or [load_task(task, 1)[0].turns[0] for task in DEMO_TASKS]
    check_paths(model, draft)
    size = parse_block_size(block_size)
    llm = open_llm(model, draft, dtype, device, size, quantization=quantization)
    if llm.drafter is None or llm.block_size == 1:
        raise UsageError("the demo compares with a drafter; name one with --draft and a --block-size above 1")
    console = Console(highlight=False)
    screen: Screen = LiveScreen(console) if console.is_terminal else LineScreen(console)
    measure_steps(llm)
    tell_room(llm, max_tokens)
    contest = Contest(llm, screen, max_tokens)
    for question in questions:
        contest.answer(question)
    contest.finish()


class Contest:
    """Plain decoding (side 0) against DFlash (side 1): answers, clocks and whether the tokens agree."""

    def __init__(self, llm: "LLM", screen: Screen, max_tokens: int) -> None:
        from flashdraft.engine.engine import Engine
        from flashdraft.sampling_params import SamplingParams
        from flashdraft.spec_decode.metrics import RequestMetrics

        self.llm, self.screen = llm, screen
        plain = Engine(llm.target, None, llm.engine_config, llm.eos_token_ids, llm.tokenizer)
        self.engines = plain, llm.engine
        self.params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        self.total_s = [0.0, 0.0]
        self.metrics = [RequestMetrics(num_requests=0), RequestMetrics(num_requests=0)]
        self.num_equal = self.num_wrong = 0
        self._warm_up()

    def answer(self, question: str) -> None:
        """One question through both, and what came of it."""
        token_ids = self.llm.chat_token_ids([{"role": "user", "content": question}])
        self.screen.open(question, (PLAIN, f"DFlash, block {self.llm.block_size}"))
        answers, metrics, streams = zip(*(self._decode(side, token_ids) for side in (0, 1)), strict=True)
        self.screen.close()
        for side in (0, 1):
            self.total_s[side] += streams[side].total_s
            self.metrics[side].add(metrics[side])
        speedup = streams[1].tokens_per_s / streams[0].tokens_per_s
        verdict = self._compare(token_ids, *answers)
        length = metrics[1].acceptance_length
        self.screen.note(f"{verdict}; speed-up {speedup:.2f}x, acceptance length {length:.2f}")

    def finish(self) -> None:
        """The whole in three lines; exit code 1 when an answer was wrong."""
        speeds = [m.num_output_tokens / s for m, s in zip(self.metrics, self.total_s, strict=True)]
        drafted = self.metrics[1]
        self.screen.note(
            f"All: {PLAIN} {speeds[0]:.1f} tokens/s, DFlash {speeds[1]:.1f} tokens/s,"
            f" speed-up {speeds[1] / speeds[0]:.2f}x (prefill included)."
        )
        self.screen.note(
            f"All: acceptance length {drafted.acceptance_length:.2f}, {drafted.num_rounds} rounds of the"
            f" target instead of {self.metrics[0].num_rounds}; the same tokens in {self.num_equal} of"
            f" {drafted.num_requests} answers."
        )
        if self.num_wrong:
            raise typer.Exit(1)

    def _decode(self, side: int, token_ids: list[int]) -> "tuple[list[int], RequestMetrics, AnswerStream]":
        """One side's answer, its cost, and its clock."""
        from flashdraft.answer import RoundEvent

        stream = AnswerStream(self.llm.tokenizer, lambda pieces: self.screen.show(side, pieces))
        self.engines[side].add_request("demo", token_ids, self.params)
        answer = list[int]()
        for news in self.engines[side].run():
            stream.on_round(RoundEvent(news.token_ids, news.num_drafted, news.num_accepted))
            answer += news.token_ids
        stream.finish()
        self.screen.title(side, f"{stream.tokens_per_s:.1f} tokens/s")
        return answer, news.metrics, stream

    def _compare(self, prompt: list[int], plain: list[int], drafted: list[int]) -> str:
        """Whether the tokens are the same, in words; counts the answers that are not and should be."""
        import torch

        from flashdraft.bench.lossless import find_difference

        found = find_difference(self.llm.target, prompt, plain, drafted, self.params)
        if found is None:
            self.num_equal += 1
            return f"Same tokens: all {len(plain)}"
        where = (
            f"the tokens differ from token {found.index + 1} on (gap of the target's logits: {found.gap:.3g})"
        )
        if found.is_near_tie and self.llm.target.dtype != torch.float32:
            return f"A near-tie of rounding: {where}"
        self.num_wrong += 1
        return f"WRONG: {where}"

    def _warm_up(self) -> None:
        """First calls pay for memory and threads, and the controller measures; nobody should see that as speed."""
        short = replace(self.params, max_tokens=WARM_UP_TOKENS)
        token_ids = self.llm.chat_token_ids([{"role": "user", "content": "Count to ten."}])
        for engine in self.engines:
            engine.add_request("warm-up", token_ids, short)
            list(engine.run())
