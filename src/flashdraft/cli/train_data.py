"""The data of ``flashdraft train``: which prompts, what is told of them before the run, and their answers."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flashdraft.data.conversations import Regenerate
from flashdraft.errors import DataError, UsageError
from flashdraft.train.config import at_least, check_fields

if TYPE_CHECKING:
    from flashdraft.data.on_policy import OnPolicyConfig
    from flashdraft.data.prompt_report import PromptReport
    from flashdraft.data.prompts import Prompt
    from flashdraft.train.run import Rollout


def _help(text: str, **more: str) -> dict[str, str]:
    return {"help": text, **more}


@dataclass(frozen=True)
class TrainData:
    """Where answers come from."""

    prompts: Path | None = field(
        default=None,
        metadata=_help(
            "Chat data, a file or folder: JSON lines, JSON, Parquet, of the datasets library; sample: 200 of our own."
        ),
    )
    answers: list[Path] | None = field(
        default=None, metadata=_help("Folder of answers already made; may be repeated.")
    )
    answers_only: bool = field(default=False, metadata=_help("Stop when the answers are made."))
    split: str | None = field(default=None, metadata=_help("Of a folder of prompts that has several."))
    regenerate: Regenerate = field(
        default="last",
        metadata=_help(
            "Which of the data's own answers the target makes anew: the turn that ends a row, all of them, or none."
        ),
    )
    skip_bad_rows: bool = field(default=False, metadata=_help("Leave out rows that cannot be asked."))
    limit: int | None = field(default=None, metadata=_help("Use this many of the prompts."))
    temperature: list[float] | None = field(
        default=None,
        metadata=_help("Answer every prompt at this temperature; repeatable.  [default: 0 and 0.7]"),
    )
    max_prompt_len: int = field(default=512, metadata=_help("Leave out longer prompts (tokens)."))
    max_new_tokens: int = field(default=384, metadata=_help("The longest answer."))
    answer_rows: int = field(default=32, metadata=_help("Answers made at a time."))
    rollout_url: str | None = field(
        default=None,
        metadata=_help("A server that answers in place of a target here (vLLM, SGLang, flashdraft)."),
    )
    rollout_model: str | None = field(
        default=None, metadata=_help("The target's name there.  [default: the first it lists]")
    )
    rollout_key: str | None = field(
        default=None, metadata=_help("Its API key.", envvar="FLASHDRAFT_ROLLOUT_KEY")
    )
    thinking: bool | None = field(
        default=None,
        metadata=_help(
            "The chat template's enable_thinking; noted in the drafter.  [default: not said]",
            flag="--thinking/--no-thinking",
        ),
    )

    def check(self) -> None:
        """Raise UsageError for a value out of range, nothing to train on, or several processes that would answer."""
        from flashdraft.train.ranks import launched_count

        check_fields(
            self,
            [
                *at_least(self, 1, "max_prompt_len", "answer_rows"),
                *at_least(self, 2, "max_new_tokens"),  # an anchor and what is drafted
                (self.limit is None or self.limit >= 1, "limit", "1 or more"),
                (all(one >= 0 for one in self.temperature or ()), "temperature", "0 or more"),
            ],
        )
        if self.prompts is None and not self.answers:
            raise UsageError(
                "there is nothing to train on; give --prompts (to be answered) or --answers (made before)"
            )
        if self.prompts is not None and launched_count() > 1:
            raise UsageError("--prompts are answered by one process; make --answers first (--answers-only)")

    def on_policy(self, target: str, seed: int) -> "OnPolicyConfig":
        """How the answers are made."""
        from flashdraft.data.on_policy import OnPolicyConfig

        template = json.dumps({} if self.thinking is None else {"enable_thinking": self.thinking})
        sizes = self.max_prompt_len, self.max_new_tokens, self.answer_rows
        return OnPolicyConfig(target, tuple(self.temperature or (0.0, 0.7)), *sizes, seed, template)

    def rollout(self) -> "Rollout | None":
        """The server that answers, if one does."""
        from flashdraft.train.run import Rollout

        named = self.rollout_model, self.rollout_key
        return Rollout(self.rollout_url, *named) if self.rollout_url else None

    def report(self, config: "OnPolicyConfig") -> "tuple[list[Prompt], PromptReport]":
        """The prompts to ask, and the report on them, which is printed.

        Raises DataError for files that cannot be read, and for bad rows that are not to be skipped.
        """
        from flashdraft.checkpoint.load import load_tokenizer
        from flashdraft.data.prompt_report import report_prompts
        from flashdraft.data.prompts import collect_prompts
        from flashdraft.train.run import some_prompts

        assert self.prompts is not None
        found = collect_prompts(self.prompts, self.regenerate, self.split)
        wanted = some_prompts(found.prompts, self.limit)
        asked, bad, report = report_prompts(load_tokenizer(config.target), found, wanted, config)
        for line in bad:
            typer.echo(line, err=True)
        typer.echo(report.to_text() + "\n")
        if bad and not self.skip_bad_rows:
            raise DataError(
                f"{len(bad)} of {found.num_rows} rows cannot be asked; mend them, or add --skip-bad-rows"
            )
        if not report.num_prompts:
            raise DataError("no prompt is left to ask; give other --prompts")
        return asked, report

    def check_validation(self, asked: "list[Prompt]", config: "OnPolicyConfig") -> None:
        """Raise UsageError where the answers are to be trained on alone and none of them could be held back."""
        from flashdraft.train.run import check_validation

        if not self.answers_only and not self.answers:
            check_validation(asked, config.temperatures)


def show_answers(folder: Path, max_new_tokens: int) -> None:
    """How long the answers of a folder are, and how many were cut."""
    from flashdraft.data.on_policy import count_answers
    from flashdraft.data.prompt_report import answers_text

    typer.echo(answers_text(count_answers(folder), max_new_tokens) + "\n")


def num_answers(folder: Path) -> str:
    """How many answers are kept, in words."""
    from flashdraft.data.on_policy import count_answers

    return f"{sum(one.num_answers for one in count_answers(folder).values()):,} answers are kept in {folder}"
