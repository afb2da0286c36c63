"""What a benchmark asks, and how: saved with its rows and compared when it goes on."""

from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from flashdraft.bench.prompt_file import load_prompt_file
from flashdraft.bench.tasks import TASKS, BenchPrompt, load_task
from flashdraft.errors import UsageError
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.simulated import SimulatedAcceptance

MIXED = "mixed"
_QUICK: dict[str, int] = {"limit": 2, "max_tokens": 48, "repeats": 1}
_QUICK_CONCURRENCY = 8
_CARD: dict[str, Any] = {"limit": 128, "max_tokens": 4096, "concurrency": "32,16,8,1", "thinking": "on"}


def _described(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class BenchConfig:
    """Settings of one benchmark. Raises UsageError for values that cannot be measured."""

    tasks: str = _described(",".join(TASKS), "Which tasks, with commas.")
    prompts_file: str = _described(
        "",
        "Prompts of your own in place of the tasks: JSON lines with question_id, category and turns, as SPEED-Bench has"
        " them. Each category is a task; --tasks picks some.",
    )
    mixed: bool = _described(False, "Ask the tasks' prompts in turns, as one task.")
    concurrency: str = _described("1", "Requests under way at a time, with commas.")
    limit: int = _described(40, "The first prompts of each task; at least as many as are under way.")
    max_tokens: int = _described(256, "The longest answer, in tokens.")
    temperature: float = _described(0.0, "0 takes the likeliest token.")
    seed: int = _described(0, "One seed gives one text.")
    ignore_eos: bool = _described(False, "Go on to --max-tokens.")
    multi_turn: bool = _described(False, "MT-Bench: ask both questions.")
    simulate_acceptance: str = _described(
        "",
        "Dice accept drafts, at this acceptance length of whole blocks or at rates by position, with commas: for"
        " studies of cost. The answers mean nothing.",
    )
    thinking: Literal["default", "on", "off"] = _described(
        "default", "The chat template's thinking mode, where it has one."
    )
    repeats: int = _described(1, "Measure everything this often, one round after the other.")

    def __post_init__(self) -> None:
        for name in ("limit", "repeats"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}; expected 1 or more")
        if min(self.concurrencies) < 1:
            raise UsageError(f"--concurrency is {self.concurrency!r}; expected 1 or more of each")

    @property
    def concurrencies(self) -> list[int]:
        """In the order in which they are measured."""
        return numbers_in(self.concurrency, "--concurrency")

    @property
    def params(self) -> SamplingParams:
        """Of every request."""
        return SamplingParams(
            temperature=self.temperature,
            seed=self.seed,
            max_tokens=self.max_tokens,
            # Texts by dice would end anywhere.
            ignore_eos=self.ignore_eos or bool(self.simulate_acceptance),
        )

    def simulated(self, block_size: int) -> SimulatedAcceptance | None:
        """The dice, for blocks of at most ``block_size``; None where the target decides."""
        said = self.simulate_acceptance
        if not said:
            return None
        try:
            rates = [float(one) for one in said.split(",")]
        except ValueError:
            raise UsageError(
                f"--simulate-acceptance is {said!r}; expected a length like 3.5 or rates like 0.8,0.7"
            ) from None
        if len(rates) == 1:
            return SimulatedAcceptance.of_length(rates[0], block_size, self.seed)
        return SimulatedAcceptance(rates, self.seed)

    @property
    def template(self) -> dict[str, bool]:
        """What the chat template is told."""
        return {} if self.thinking == "default" else {"enable_thinking": self.thinking == "on"}

    def quick(self) -> "BenchConfig":
        """Minutes instead of hours; never more than was asked."""
        fewer: dict[str, Any] = {name: min(getattr(self, name), most) for name, most in _QUICK.items()}
        kept = [str(one) for one in self.concurrencies if one <= _QUICK_CONCURRENCY]
        return replace(self, **fewer, concurrency=",".join(kept or [str(_QUICK_CONCURRENCY)]))

    def card(self) -> "BenchConfig":
        """As the model card was measured, but for what was asked otherwise."""
        usual, asked = BenchConfig(), _CARD.items()
        return replace(
            self, **{name: value for name, value in asked if getattr(self, name) == getattr(usual, name)}
        )

    def prompts(self) -> dict[str, list[BenchPrompt]]:
        """The prompts of each task in the source's order, as many as are needed at most."""
        most = max(self.limit, *self.concurrencies)
        if self.prompts_file:
            picked = () if self.tasks == BenchConfig.tasks else names_in(self.tasks)
            by_task = load_prompt_file(Path(self.prompts_file), picked)
        else:
            by_task = {name: load_task(name, most) for name in names_in(self.tasks)}
        if not by_task:
            raise UsageError(f"--tasks names none; expected some of: {', '.join(TASKS)}")
        if not self.mixed:
            return by_task
        rounds = zip_longest(*(prompts[: self.limit] for prompts in by_task.values()))
        return {MIXED: [prompt for one in rounds for prompt in one if prompt]}


def names_in(listed: str) -> list[str]:
    """Names with commas between them."""
    return list(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))


def numbers_in(listed: str, option: str) -> list[int]:
    """Numbers above 0 with commas between them. Raises UsageError, naming ``option``, for anything else."""
    names = names_in(listed)
    if not names or not all(name.isdecimal() and int(name) > 0 for name in names):
        raise UsageError(f"{option} is {listed!r}; expected numbers above 0 with commas, for example 16,8")
    return [int(name) for name in names]
