"""What is known of a run's data before it starts: which prompts are asked, which are not and why, how long they are."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flashdraft.data.on_policy import AnswerCounts, OnPolicyConfig, without_repeats
from flashdraft.data.prompts import Prompt, PromptSet, group_of, prompt_text
from flashdraft.errors import DataError

_ENCODED_AT_A_TIME = 1000


@dataclass(frozen=True)
class KindOfPrompts:
    """Of the prompts of one kind of text; tokens with the chat template, of first turns alone."""

    num_prompts: int
    num_tokens: int


@dataclass(frozen=True)
class PromptReport:
    """What the rows came to."""

    num_rows: int
    left_out: dict[str, int]  # why -> prompts
    kinds: dict[str, KindOfPrompts]
    num_left_out_answers: int  # of the prompts that are asked
    num_kept_answers: int
    num_answers: int  # to be made: turns at each temperature
    template: str

    @property
    def num_prompts(self) -> int:
        """Prompts that are asked."""
        return sum(kind.num_prompts for kind in self.kinds.values())

    @property
    def num_tokens(self) -> int:
        """Of their first turns."""
        return sum(kind.num_tokens for kind in self.kinds.values())

    def to_text(self) -> str:
        """For people."""
        lines = [
            f"{self.num_rows:>10,} rows",
            *(f"{count:>10,} left out: {why}" for why, count in self.left_out.items() if count),
            f"{self.num_prompts:>10,} prompts of {self.num_tokens:,} tokens are asked for {self.num_answers:,} answers",
        ]
        if self.num_left_out_answers:
            lines.append(f"{self.num_left_out_answers:>10,} answers of the data are left out and made anew")
        if self.num_kept_answers:
            lines.append(f"{self.num_kept_answers:>10,} answers of the data stay, as context")
        lines += [f"  template: {self.template}", "", f"{'kind':<24} {'prompts':>9} {'tokens each':>12}"]
        lines += [
            f"{name:<24} {kind.num_prompts:>9,} {kind.num_tokens / kind.num_prompts:>12.0f}"
            for name, kind in self.kinds.items()
        ]
        return "\n".join(lines)


def report_prompts(
    tokenizer: Any, found: PromptSet, prompts: Sequence[Prompt], config: OnPolicyConfig
) -> tuple[list[Prompt], list[str], PromptReport]:
    """The prompts of ``found`` that can be asked, a line for each that cannot, and the report.

    ``prompts``: the part of ``found`` that is wanted.
    """
    template = json.loads(config.chat_template_kwargs)
    asked, texts, bad = [], [], list(found.bad)
    for prompt in prompts:
        try:
            texts.append(prompt_text(tokenizer, prompt, template))
        except DataError as error:
            bad.append(str(error))
        else:
            asked.append(prompt)
    lengths = dict(zip((prompt.id for prompt in asked), _lengths(tokenizer, texts), strict=True))
    different = without_repeats(asked)
    fitting = [prompt for prompt in different if lengths[prompt.id] <= config.max_prompt_len]
    kinds: dict[str, KindOfPrompts] = {}
    for prompt in fitting:
        before = kinds.get(kind := group_of(prompt.source), KindOfPrompts(0, 0))
        kinds[kind] = KindOfPrompts(before.num_prompts + 1, before.num_tokens + lengths[prompt.id])
    told = "the target has none: answers go on with the text"
    if tokenizer.chat_template:
        told = "the target's own" + (f", with {config.chat_template_kwargs}" if template else "")
    left_out = {
        "bad rows": len(bad),
        "equal to another": len(asked) - len(different),
        f"longer than {config.max_prompt_len} tokens (--max-prompt-len)": len(different) - len(fitting),
        "beyond --limit": len(found.prompts) - len(prompts),
    }
    report = PromptReport(
        num_rows=found.num_rows,
        left_out=left_out,
        kinds=dict(sorted(kinds.items())),
        num_left_out_answers=sum(prompt.num_left_out for prompt in fitting),
        num_kept_answers=sum(prompt.num_kept for prompt in fitting),
        num_answers=len(config.temperatures) * sum(1 + len(prompt.next_turns) for prompt in fitting),
        template=told,
    )
    return asked, bad, report


def _lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    lengths: list[int] = []
    for start in range(0, len(texts), _ENCODED_AT_A_TIME):
        part = list(texts[start : start + _ENCODED_AT_A_TIME])
        ids = tokenizer(part, add_special_tokens=not tokenizer.chat_template)["input_ids"]
        lengths += map(len, ids)
    return lengths


def answers_text(counts: dict[str, AnswerCounts], max_new_tokens: int) -> str:
    """A table of the answers that are there, with the share that the limit cut."""
    lines = [f"{'kind':<24} {'answers':>9} {'tokens each':>12} {f'cut at {max_new_tokens}':>12}"]
    for name, one in counts.items():
        length, cut = one.num_tokens / one.num_answers, one.num_cut / one.num_answers
        lines.append(f"{name:<24} {one.num_answers:>9,} {length:>12.0f} {cut:>12.0%}")
    return "\n".join(lines)
