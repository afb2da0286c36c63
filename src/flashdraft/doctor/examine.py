"""The examination of a pair: one verdict, the reasons, and the figures behind it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flashdraft.checkpoint.load import eos_token_ids, load_drafter, load_target, load_tokenizer
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document
from flashdraft.doctor.trials import Trial, measure, trials_of
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.sampling_params import SamplingParams

HEALTHY, FAULTY, WEAK, UNUSABLE = "healthy", "faulty", "weak", "unusable"
# A reading must accept this much more than the drafter as it is before it is called the right one.
_MARGIN, _MARGIN_LEN = 1.1, 0.2
_WEAK_LEN = 1.5  # a round gains less than half a token by drafting: it hardly pays
_MAX_MASKS = 8
PROMPTS = (
    "Why is the sky blue?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "A shop sells pens at 3 for 2 dollars. How much do 12 pens cost? Think step by step.",
    "Describe a walk in the mountains.",
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
                *(f"  {name:<20} {length:.2f}" for name, length in self.trials.items()),
            ]
        return "\n".join(lines)


def examine(
    target: str,
    draft: str,
    prompts: Sequence[str] = PROMPTS,
    max_tokens: int = 128,
    dtype: str = "float32",
    device: str = "cpu",
) -> Examination:
    """Load a pair, let the target answer ``prompts`` greedily, and try the drafter's readings on the answers.

    A drafter that cannot be loaded for this target is a finding, not an error. Raises what loading the target
    raises, and UsageError where no answer is long enough to draft.
    """
    model, tokenizer = load_target(target, dtype, device), load_tokenizer(target)
    try:
        drafter = load_drafter(draft, model, dtype, device)
    except CheckpointError as error:
        return Examination(UNUSABLE, [str(error)])
    token_ids = [_prompt_token_ids(tokenizer, prompt) for prompt in prompts]
    if not isinstance(drafter, DFlashModel):
        raise UsageError(
            f"{draft} holds an MTP head; expected a DFlash drafter: give one, or flashdraft bench it"
        )
    spare = [i for i in sorted(tokenizer.added_tokens_decoder) if i not in eos_token_ids(target)]
    masks = [i for i in spare if i != drafter.config.mask_token_id and i < drafter.config.vocab_size]
    return examine_pair(model, drafter, token_ids, max_tokens, masks[:_MAX_MASKS], eos_token_ids(target))


def examine_pair(
    target: TargetModel,
    drafter: DFlashModel,
    prompts: Sequence[list[int]],
    max_tokens: int,
    mask_token_ids: Sequence[int] = (),
    stop_ids: Sequence[int] = (),
) -> Examination:
    """The same for models in memory and prompts of token ids. Raises UsageError for answers of no length."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    answers = [generate(target, None, prompt, params, eos_token_ids=stop_ids).token_ids for prompt in prompts]
    texts = [
        Document(str(i), "doctor", 0.0, list(prompts[i]), answer, "")
        for i, answer in enumerate(answers)
        if len(answer) > 1
    ]
    if not texts:
        raise UsageError("the target answers every prompt with one token; give other prompts")
    longest = max(len(text.prompt_token_ids) + len(text.answer_token_ids) for text in texts)
    rows = pack(texts, -(-(longest + 1) // 128) * 128, target.device)
    trials = [
        measure(target, drafter, rows, trial)
        for trial in trials_of(drafter.config, target.config, mask_token_ids)
    ]
    verdict, reasons = _judge(trials)
    found = trials[0]
    return Examination(
        verdict,
        reasons,
        found.acceptance_length,
        list(found.accepted_by_position),
        {trial.name: trial.acceptance_length for trial in trials},
        sum(map(len, answers)),
    )


def _judge(trials: list[Trial]) -> tuple[str, list[str]]:
    found, *others = trials
    length = found.acceptance_length
    best = max(others, key=lambda trial: trial.acceptance_length)
    if best.acceptance_length > max(length * _MARGIN, length + _MARGIN_LEN):
        return FAULTY, [
            f"{best.fault} (acceptance length {best.acceptance_length:.2f} in place of {length:.2f})"
        ]
    if length < _WEAK_LEN:
        return WEAK, [
            f"acceptance length {length:.2f}, and no other reading of the drafter does better: train it on this"
            " target's own answers, in the chat template that is served"
        ]
    return HEALTHY, [f"acceptance length {length:.2f}, and no other reading of the drafter does better"]


def _prompt_token_ids(tokenizer: Any, prompt: str) -> list[int]:
    if not tokenizer.chat_template:
        ids: list[int] = tokenizer.encode(prompt)
        return ids
    chat = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
