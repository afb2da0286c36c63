"""The examination of a pair: one verdict, the reasons, and the figures behind it."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from flashdraft.checkpoint.load import (
    check_pair,
    eos_token_ids,
    load_drafter,
    load_target,
    load_tokenizer,
    outline_target,
    training_notes,
)
from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document
from flashdraft.data.prompts import Prompt, encode_prompts
from flashdraft.doctor.costs import Cost, judge_costs, step_costs
from flashdraft.doctor.served import Served, read_served
from flashdraft.doctor.trials import IN_FLOAT16, Trial, measure, trials_of, type_trials
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.sampling_params import SamplingParams

HEALTHY, FAULTY, WEAK, UNUSABLE = "healthy", "faulty", "weak", "unusable"
EXIT_CODES = {HEALTHY: 0, WEAK: 3, FAULTY: 4, UNUSABLE: 5}  # 1 and 2: the examination itself failed
# A reading must accept this much more than the drafter as it is before it is called the right one.
_MARGIN_LEN = 0.2
_OTHER_TEXTS = 1.5  # a margin: other prompts have other answers, some of them easier
_SERVED_SHARE = 0.7  # of what the drafter accepts here, a server should reach
_WEAK_LEN = 1.5  # a round gains less than half a token by drafting: it hardly pays
_MAX_MASKS = 8
_ANSWERS_SHARE = 0.35  # of the time, for the target's answers
_ASKED = (
    "Why is the sky blue?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "A shop sells pens at 3 for 2 dollars. How much do 12 pens cost? Think step by step.",
    "Describe a walk in the mountains.",
)
PROMPTS = tuple(
    Prompt(f"doctor/{i}", "doctor", ({"role": "user", "content": text},)) for i, text in enumerate(_ASKED)
)


@dataclass(frozen=True)
class Examination:
    """What was found. ``acceptance_length`` as everywhere: tokens gained a verification."""

    verdict: str  # healthy, faulty, weak or unusable
    reasons: list[str]
    acceptance_length: float | None = None
    accepted_by_position: list[float] = field(default_factory=list)
    trials: dict[str, float] = field(default_factory=dict)  # name -> acceptance length
    num_answer_tokens: int = 0
    costs: list[Cost] = field(default_factory=list)  # by concurrency; empty where they cannot be measured
    served: Served | None = None  # what a running server has accepted
    left_out: list[str] = field(default_factory=list)  # what there was no time for

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def to_text(self) -> str:
        """For people: the verdict first."""
        lines = [f"{self.verdict}: {'; '.join(self.reasons)}"]
        if self.acceptance_length is not None:
            by_position = " ".join(f"{share:.0%}" for share in self.accepted_by_position)
            lines += [
                "",
                f"acceptance length {self.acceptance_length:.2f} on {self.num_answer_tokens} tokens of greedy answers",
                f"accepted by position: {by_position}",
                "",
                "acceptance length when the drafter is read otherwise:",
                *(f"  {name:<24} {length:.2f}" for name, length in self.trials.items()),
            ]
            if self.trials.get(IN_FLOAT16, self.acceptance_length) - 1 < (self.acceptance_length - 1) / 2:
                lines += [
                    "",
                    "its activations leave float16's range: start other engines with --dtype bfloat16",
                ]
        if self.left_out:
            lines += ["", f"no time for: {', '.join(self.left_out)} (--max-seconds gives more)"]
        if self.costs:
            lines += [
                "",
                "requests at once   break-even acceptance length   block to verify   expected speed-up",
            ]
            lines += [
                f"{cost.concurrency:>16}   {cost.break_even:>28.2f}   {cost.best_block:>15}   {cost.speedup:>16.2f}x"
                for cost in self.costs
            ]
            lines += ["", *self.flags()]
        if self.served is not None:
            by_position = " ".join(f"{share:.0%}" for share in self.served.accepted_by_position) or "not told"
            lines += [
                "",
                f"the {self.served.engine} server accepts {self.served.acceptance_length:.2f}: {by_position}",
            ]
        return "\n".join(lines)

    def flags(self) -> list[str]:
        """What to start a server with, for one request at a time and for many."""
        told = []
        for cost in (self.costs[0], self.costs[-1]):
            size = cost.best_block
            ours = f"--block-size {size}" if size > 1 else "--draft none"
            theirs = (
                f'vLLM {{"num_speculative_tokens": {size - 1}}}' if size > 1 else "vLLM without a drafter"
            )
            told.append(f"for {cost.concurrency} at once: flashdraft serve {ours}; {theirs}")
        return told


def examine(
    target: str,
    draft: str,
    prompts: Sequence[Prompt] = PROMPTS,
    max_tokens: int = 128,
    dtype: str = "float32",
    device: str = "cpu",
    url: str | None = None,
    max_seconds: float = 60.0,
) -> Examination:
    """Load a pair, let the target answer ``prompts`` greedily, and try the drafter's readings on the answers.

    ``max_seconds``: about how long, loading apart; what there is no time for is named. With ``url``, what a running
    server accepts is compared. A drafter that cannot be loaded for this target is a finding, not an error. Raises what
    loading the target raises, and UsageError where no answer is long enough to draft, or the server tells of no drafts.
    """
    served = None if url is None else read_served(url)
    outline_target(target)
    try:
        check_pair(target, draft)
    except CheckpointError as error:
        return Examination(UNUSABLE, [str(error)])
    model, tokenizer = load_target(target, dtype, device), load_tokenizer(target)
    try:
        drafter = load_drafter(draft, model, dtype, device)
    except CheckpointError as error:
        return Examination(UNUSABLE, [str(error)])
    if not isinstance(drafter, DFlashModel):
        raise UsageError(
            f"{draft} holds an MTP head; expected a DFlash drafter: give one, or flashdraft bench it"
        )
    ends = eos_token_ids(target)
    spare = [i for i in sorted(tokenizer.added_tokens_decoder) if i not in ends]
    masks = [i for i in spare if i != drafter.config.mask_token_id and i < drafter.config.vocab_size]
    template = training_notes(draft).get("chat_template_kwargs", {})
    token_ids, others = prompt_readings(tokenizer, prompts, template)
    found = examine_pair(model, drafter, token_ids, max_tokens, masks[:_MAX_MASKS], ends, others, max_seconds)
    with suppress(UsageError):  # hybrid targets: the engine does not batch them
        costs = judge_costs(step_costs(model, drafter), drafter.config.block_size, found.accepted_by_position)
        found = replace(found, costs=costs)
    return found if served is None else compare_served(found, served)


def examine_pair(
    target: TargetModel,
    drafter: DFlashModel,
    prompts: Sequence[list[int]],
    max_tokens: int,
    mask_token_ids: Sequence[int] = (),
    stop_ids: Sequence[int] = (),
    others: Mapping[str, Sequence[list[int]]] = MappingProxyType({}),
    max_seconds: float = float("inf"),
) -> Examination:
    """The same for models in memory and prompts of token ids; ``others``: the same prompts told otherwise, by name.

    After about ``max_seconds`` no further trial begins. Raises UsageError for answers of no length.
    """
    started = time.perf_counter()
    rows, num_tokens, num_left = _answered(
        target, prompts, max_tokens, stop_ids, max_seconds * _ANSWERS_SHARE
    )
    left_out = [f"{num_left} of {len(prompts)} prompts"] if num_left else []
    readings = [
        *trials_of(drafter.config, target.config, mask_token_ids),
        *type_trials(drafter.config, target.dtype),
    ]
    trials: list[Trial] = []
    longest = 0.0
    for trial in readings:
        begun = time.perf_counter()
        if trials and begun - started + longest > max_seconds:
            left_out.append(trial.name)
            continue
        trials.append(measure(target, drafter, rows, trial))
        longest = max(longest, time.perf_counter() - begun)
    for name, told in others.items():
        # Its answers take as long as those that all the trials share.
        if time.perf_counter() - started + longest > max_seconds * (1 - _ANSWERS_SHARE):
            left_out.append(name)
            continue
        fault = (
            f"the drafter was trained on prompts told as: {name}; serve it so, or train it on what is served"
        )
        trial = Trial(name, fault, drafter.config, margin=_OTHER_TEXTS)
        told_rows = _answered(target, told, max_tokens, stop_ids, max_seconds * _ANSWERS_SHARE)[0]
        trials.append(measure(target, drafter, told_rows, trial))
    verdict, reasons = _judge(trials, len(readings) + len(others) - len(trials))
    found = trials[0]
    return Examination(
        verdict,
        reasons,
        found.acceptance_length,
        list(found.accepted_by_position),
        {trial.name: trial.acceptance_length for trial in trials},
        num_tokens,
        left_out=left_out,
    )


def compare_served(found: Examination, served: Served) -> Examination:
    """``found`` with what a server accepts; much less than here is a fault of how it serves."""
    here = found.acceptance_length or 1.0
    if found.verdict != HEALTHY or served.acceptance_length - 1 >= _SERVED_SHARE * (here - 1):
        return replace(found, served=served)
    reason = (
        f"the server accepts {served.acceptance_length:.2f} where the drafter reaches {here:.2f}: compare the chat"
        " template, the sampling, the types and the drafter's config that it was started with"
    )
    return replace(found, verdict=FAULTY, reasons=[reason], served=served)


def _answered(
    target: TargetModel,
    prompts: Sequence[list[int]],
    max_tokens: int,
    stop_ids: Sequence[int],
    max_seconds: float = float("inf"),
) -> tuple[PackedRows, int, int]:
    """Greedy answers, packed, their number of tokens, and how many prompts there was no time for."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    answers: list[list[int]] = []
    started = time.perf_counter()
    for prompt in prompts:
        if answers and time.perf_counter() - started > max_seconds:
            break
        answers.append(generate(target, None, prompt, params, eos_token_ids=stop_ids).token_ids)
    texts = [
        Document(str(i), "doctor", 0.0, list(prompts[i]), answer, "")
        for i, answer in enumerate(answers)
        if len(answer) > 1
    ]
    if not texts:
        raise UsageError("the target answers every prompt with one token; give other prompts")
    longest = max(len(text.prompt_token_ids) + len(text.answer_token_ids) for text in texts)
    rows = pack(texts, -(-(longest + 1) // 128) * 128, target.device)
    return rows, sum(map(len, answers)), len(prompts) - len(answers)


def _judge(trials: list[Trial], num_untried: int = 0) -> tuple[str, list[str]]:
    found, *others = (trial for trial in trials if trial.fault or trial is trials[0])
    length = found.acceptance_length
    better = [
        trial
        for trial in others
        if trial.acceptance_length > max(length * trial.margin, length + _MARGIN_LEN)
    ]
    if better:
        best = max(better, key=lambda trial: trial.acceptance_length / trial.margin)
        return FAULTY, [
            f"{best.fault} (acceptance length {best.acceptance_length:.2f} in place of {length:.2f})"
        ]
    if length < _WEAK_LEN:
        mend = "train it on this target's own answers, in the chat template that is served"
        return WEAK, [f"acceptance length {length:.2f}, and {_no_better(found, others, num_untried)}: {mend}"]
    return HEALTHY, [f"acceptance length {length:.2f}, and {_no_better(found, others, num_untried)}"]


def _no_better(found: Trial, others: list[Trial], num_untried: int) -> str:
    """That no other reading is to be preferred; one that accepts a little more is named.

    ``num_untried``: readings that there was no time for, of which nothing is said.
    """
    best = max(others, key=lambda trial: trial.acceptance_length, default=found)
    if num_untried and not others:
        return "there was no time to read the drafter otherwise (--max-seconds gives more)"
    which = "no other reading of the drafter"
    if num_untried:
        which = f"none of the {len(others)} other readings that were tried ({num_untried} were not: --max-seconds)"
    if best.acceptance_length <= found.acceptance_length:
        return f"{which} does better"
    return (
        f"{which} does clearly better ({best.name} accepts {best.acceptance_length:.2f};"
        " examine more --prompts to be sure)"
    )


def prompt_readings(
    tokenizer: Any, prompts: Sequence[Prompt], trained: Mapping[str, Any] = MappingProxyType({})
) -> tuple[list[list[int]], dict[str, list[list[int]]]]:
    """Prompts as they are served, and told in other ways that a drafter may have been trained on.

    ``trained``: the values of the chat template that its config.json tells of.
    """
    served = encode_prompts(tokenizer, prompts, {})
    if not tokenizer.chat_template:
        return served, {}
    texts = ["\n\n".join(message["content"] for message in prompt.messages) for prompt in prompts]
    others = {"no chat template": [list(tokenizer.encode(text)) for text in texts]}
    if trained:
        name = "as its config.json says, " + json.dumps(dict(trained))
        others[name] = encode_prompts(tokenizer, prompts, trained)
    if "enable_thinking" in str(tokenizer.chat_template):
        others |= {
            f"enable_thinking {str(on).lower()}": encode_prompts(tokenizer, prompts, {"enable_thinking": on})
            for on in (True, False)
        }
    return served, {name: ids for name, ids in others.items() if ids != served}
