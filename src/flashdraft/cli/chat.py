"""``flashdraft chat``: a conversation in the terminal, with the accepted draft tokens in colour."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from flashdraft.cli.answer_stream import LEGEND, AnswerStream, Piece
from flashdraft.cli.options import (
    BlockSizeOption,
    DeviceOption,
    DraftOption,
    DraftTreeOption,
    DtypeOption,
    MaxTokensOption,
    ModelOption,
    QuantizationOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    open_llm,
    parse_block_size,
)
from flashdraft.errors import UsageError

if TYPE_CHECKING:
    from flashdraft.llm import LLM, RequestOutput
    from flashdraft.sampling_params import SamplingParams

HELP = "/stats  what the drafts were worth    /reset  forget the conversation    /help    /quit (or Ctrl-D)"


def chat(
    model: ModelOption = "embedded",
    draft: DraftOption = None,
    block_size: BlockSizeOption = None,
    draft_tree: DraftTreeOption = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = None,
    dtype: DtypeOption = "bfloat16",
    quantization: QuantizationOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Talk with the model. Within: /stats /reset /help /quit; Ctrl-C cuts an answer short.

    \b
    Examples:
      flashdraft chat
      flashdraft chat --temperature 0.7 --block-size 8
      flashdraft chat --model path/to/model --draft path/to/drafter
    """
    from flashdraft.sampling_params import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    size = parse_block_size(block_size)
    llm = open_llm(model, draft, dtype, device, size, quantization=quantization, draft_tree=draft_tree)
    conversation = Conversation(llm, params)
    conversation.console.print(f"{LEGEND}\n{HELP}")
    while (line := conversation.ask()) is not None:
        if line == "/quit":
            return
        if line.startswith("/"):
            conversation.command(line)
        elif line:
            conversation.answer(line)


class Conversation:
    """The messages so far, what their answers cost, and the terminal that shows them."""

    def __init__(self, llm: "LLM", params: "SamplingParams") -> None:
        from flashdraft.spec_decode.metrics import RequestMetrics

        self.llm, self.params = llm, params
        self.console = Console(highlight=False)
        self.messages: list[dict[str, str]] = []
        self.metrics = RequestMetrics(num_requests=0)
        self.total_s = 0.0

    def ask(self) -> str | None:
        """The next line that the user types; None at the end of the input."""
        if sys.stdin.isatty():
            import readline  # noqa: F401 - importing it gives input() a history and an editable line
        try:
            return input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            self.console.print()
            return None

    def command(self, line: str) -> None:
        """Do what /stats, /reset or /help asks for."""
        if line == "/stats":
            self.console.print(self.stats())
        elif line == "/reset":
            self.messages.clear()
            self.console.print("The conversation starts afresh.")
        elif line == "/help":
            self.console.print(HELP)
        else:
            self.console.print(f"There is no command {line}. {HELP}", markup=False)

    def answer(self, question: str) -> None:
        """Stream the answer to ``question``; a cut answer is kept as far as it came."""
        self.messages.append({"role": "user", "content": question})
        said: list[str] = []

        def show(pieces: list[Piece]) -> None:
            said.extend(piece.text for piece in pieces)
            for piece in pieces:
                self.console.print(Text(piece.text, piece.style), end="", soft_wrap=True)

        stream = AnswerStream(self.llm.tokenizer, show)
        try:
            self._count(self.llm.chat(self.messages, self.params, stream.on_round)[0], stream)
        except UsageError as error:
            self.messages.pop()
            self.console.print(f"{error}; /reset starts afresh", markup=False)
            return
        except KeyboardInterrupt:
            stream.finish()
        self.console.print()
        self.messages.append({"role": "assistant", "content": "".join(said)})

    def _count(self, output: "RequestOutput", stream: AnswerStream) -> None:
        stream.finish()
        self.metrics.add(output.metrics)
        self.total_s += stream.total_s

    def stats(self) -> str:
        """What the finished answers cost and what their drafts were worth."""
        metrics = self.metrics
        if not metrics.num_requests:
            return "There is no answer yet."
        shares = " ".join(f"{100 * share:.0f}" for share in metrics.accepted_by_position)
        return (
            f"answers {metrics.num_requests}   tokens {metrics.num_output_tokens}"
            f"   tokens/s {metrics.num_output_tokens / self.total_s:.1f} (prefill included)\n"
            f"rounds {metrics.num_rounds}   drafted {metrics.num_drafted}   accepted {metrics.num_accepted}"
            f"   acceptance length {metrics.acceptance_length:.2f}\n"
            f"percent of rounds that accept draft token 1, 2, ...: {shares or '-'}"
        )
