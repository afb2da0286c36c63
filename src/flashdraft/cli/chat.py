"""``flashdraft chat``: a conversation in the terminal, with the accepted draft tokens in colour."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from flashdraft.cli.answer_stream import LEGEND, AnswerStream, Piece
from flashdraft.cli.options import (
    BlockSizeOption,
    DeviceOption,
    DraftOption,
    DraftTreeOption,
    ExactDtypeOption,
    MaxTokensOption,
    ModelOption,
    QuantizationOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    ThinkingOption,
    TopKOption,
    TopPOption,
    measure_steps,
    open_llm,
    opening,
    parse_block_size,
    tell_room,
    template_values,
    what_cut,
)
from flashdraft.errors import UsageError

if TYPE_CHECKING:
    from flashdraft.llm import LLM
    from flashdraft.sampling_params import SamplingParams

HELP = """/stats          what the drafts were worth
/system TEXT    answer under this system prompt from now on; without a text, under none
/save FILE      write the conversation as JSON
/reset          forget the conversation
/help           this
/quit, Ctrl-D   end; Ctrl-C cuts an answer short
\"\"\"             begins and ends a message of several lines"""
KEPT = "/quit or Ctrl-D ends; the conversation is kept"
_QUOTES = '"' * 3


def chat(
    model: ModelOption = "embedded",
    draft: DraftOption = None,
    block_size: BlockSizeOption = None,
    draft_tree: DraftTreeOption = None,
    system: SystemOption = None,
    thinking: ThinkingOption = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = None,
    dtype: ExactDtypeOption = None,
    quantization: QuantizationOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Talk with the model. /help tells what there is beside talking; Ctrl-C cuts an answer short.

    \b
    Examples:
      flashdraft chat
      flashdraft chat --system "Answer in one sentence." --temperature 0.7
      flashdraft chat --model path/to/model --draft path/to/drafter
    """
    from flashdraft.sampling_params import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    size = parse_block_size(block_size)
    llm = open_llm(model, draft, dtype, device, size, quantization=quantization, draft_tree=draft_tree)
    measure_steps(llm)
    tell_room(llm, max_tokens)
    conversation = Conversation(llm, params, system, template_values(thinking))
    conversation.console.print(f"{LEGEND}\n\n{HELP}")
    while (line := conversation.ask()) is not None and line != "/quit":
        try:
            conversation.take(line)
        except KeyboardInterrupt:  # meant for an answer that had just ended
            conversation.console.print(f"\n{KEPT}")


class Conversation:
    """The messages so far, what their answers cost, and the terminal that shows them."""

    def __init__(
        self,
        llm: "LLM",
        params: "SamplingParams",
        system: str | None = None,
        template_values: dict[str, bool] | None = None,
    ) -> None:
        from flashdraft.spec_decode.metrics import RequestMetrics

        self.llm, self.params = llm, params
        self.template_values = template_values or {}
        self.console = Console(highlight=False)
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.metrics = RequestMetrics(num_requests=0)
        self.total_s = 0.0

    def ask(self) -> str | None:
        """What the user types next; None at the end of the input. Ctrl-C here loses nothing."""
        if sys.stdin.isatty():
            import readline  # noqa: F401 - importing it gives input() a history and an editable line
        while True:
            try:
                text = input("\n> ")
                if not text.startswith(_QUOTES):
                    return text.strip()
                text = text.removeprefix(_QUOTES)
                while not text.endswith(_QUOTES):
                    text += "\n" + input(". ")
                return text.removesuffix(_QUOTES).strip()
            except EOFError:
                self.console.print()
                return None
            except KeyboardInterrupt:
                self.console.print(f"\n{KEPT}")

    def take(self, line: str) -> None:
        """Do or answer what was typed."""
        if line.startswith("/"):
            self.command(line)
        elif line:
            self.answer(line)

    def command(self, line: str) -> None:
        """Do what a line that begins with a slash asks for."""
        name, _, rest = line.partition(" ")
        if name == "/stats":
            self.console.print(self.stats())
        elif name == "/system":
            self.system = rest.strip() or None
            self.console.print(
                "The system prompt is set." if self.system else "There is no system prompt now."
            )
        elif name == "/save":
            self._save(rest.strip())
        elif name == "/reset":
            self.messages.clear()
            self.console.print("The conversation starts afresh.")
        elif name == "/help":
            self.console.print(HELP)
        else:
            self.console.print(f"There is no command {name}.\n{HELP}", markup=False)

    def _save(self, file: str) -> None:
        if not file:
            self.console.print("/save needs a file's name, for example /save chat.json")
            return
        try:
            text = json.dumps(opening(self.system) + self.messages, ensure_ascii=False, indent=1)
            Path(file).expanduser().write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            self.console.print(f"{file} cannot be written: {error.strerror}", markup=False, soft_wrap=True)
        else:
            self.console.print(f"{len(self.messages)} messages are in {file}", markup=False, soft_wrap=True)

    def answer(self, question: str) -> None:
        """Stream the answer to ``question``; a cut answer is kept as far as it came."""
        asked = {"role": "user", "content": question}
        said: list[str] = []

        def show(pieces: list[Piece]) -> None:
            said.extend(piece.text for piece in pieces)
            for piece in pieces:
                self.console.print(Text(piece.text, piece.style), end="", soft_wrap=True)

        stream = AnswerStream(self.llm.tokenizer, show)
        reason = "abort"
        try:
            turns = [*opening(self.system), *self.messages, asked]
            outputs = self.llm.chat(
                turns, self.params, stream.on_round, chat_template_kwargs=self.template_values
            )
            reason = outputs[0].outputs[0].finish_reason
        except UsageError as error:
            self.console.print(f"{error}; /reset starts afresh", markup=False, soft_wrap=True)
            return
        except KeyboardInterrupt:
            pass
        stream.finish()
        self.messages += [asked, {"role": "assistant", "content": "".join(said)}]
        self.metrics.add(stream.metrics)
        self.total_s += stream.total_s
        if reason == "abort":
            self.console.print(" [dim]… stopped[/]", end="")
        elif reason == "length":
            why = what_cut(stream.num_tokens, self.params.max_tokens)
            self.console.print(f" [dim]… cut after {stream.num_tokens} tokens, by {why}[/]", end="")
        self.console.print()

    def stats(self) -> str:
        """What the answers, cut ones too, cost and what their drafts were worth."""
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
