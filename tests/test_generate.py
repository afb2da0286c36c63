"""The one-page algorithm: lossless whatever drafts, whatever the block; counts as defined; bad input told."""

import pytest
import torch
from transformers import LlamaForCausalLM

from flashdraft.answer import RoundEvent
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.ngram import NgramDrafter
from toys import ScriptedDrafter, toy_dflash, toy_target

PROMPT = list(range(5, 25))
TARGET = toy_target()
PARAMS = SamplingParams(temperature=0.0, max_tokens=60)
PLAIN = generate(TARGET, None, PROMPT, PARAMS).token_ids


def test_plain_decoding_equals_transformers_generate() -> None:
    model = LlamaForCausalLM(TARGET.config).eval()
    model.load_state_dict(TARGET.state_dict(), strict=False)
    model.tie_weights()
    theirs = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert theirs[0, len(PROMPT) :].tolist() == PLAIN


@pytest.mark.parametrize("block_size", [1, 2, 5, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "drafter", [DFlashDrafter(toy_dflash(TARGET), TARGET), NgramDrafter()], ids=["dflash", "ngram"]
)
def test_drafts_do_not_change_the_tokens(drafter: object, temperature: float, block_size: int) -> None:
    params = SamplingParams(temperature=temperature, max_tokens=60, seed=3, top_p=0.95)
    plain = generate(TARGET, None, PROMPT, params).token_ids
    assert generate(TARGET, drafter, PROMPT, params, block_size).token_ids == plain  # type: ignore[arg-type]


def test_a_seed_is_a_text_and_another_seed_another() -> None:
    texts = [
        generate(TARGET, None, PROMPT, SamplingParams(seed=s, max_tokens=30)).token_ids for s in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_right_draft_is_accepted_whole() -> None:
    drafter = ScriptedDrafter(PROMPT + PLAIN, lambda _: False)
    output = generate(TARGET, drafter, PROMPT, PARAMS, 8)
    # 59 tokens after the first: seven whole blocks of 8, then what is left of the budget.
    assert output.token_ids == PLAIN
    assert output.metrics.accepted_histogram == [0, 0, 1, 0, 0, 0, 0, 7]
    assert output.metrics.acceptance_length == pytest.approx(59 / 8)


def test_counts_of_a_drafter_that_errs_at_known_places() -> None:
    drafter = ScriptedDrafter(PROMPT + PLAIN, lambda place: place % 5 == 0)
    output = generate(TARGET, drafter, PROMPT, PARAMS, 8)
    metrics = output.metrics
    assert output.token_ids == PLAIN
    # The anchor stands at a multiple of 5, so 4 drafts are right and the fifth is recovered.
    assert metrics.accepted_histogram[4] == metrics.num_rounds - 1
    assert metrics.num_accepted + metrics.num_rounds == metrics.num_output_tokens - 1
    assert metrics.accepted_by_position[:4] == [1.0, 1.0, 1.0, pytest.approx(11 / 12)]


def test_rounds_are_heard_as_they_happen() -> None:
    events: list[RoundEvent] = []
    drafter = ScriptedDrafter(PROMPT + PLAIN, lambda place: place % 3 == 0)
    output = generate(TARGET, drafter, PROMPT, PARAMS, 8, on_round=events.append)
    assert [token for event in events for token in event.token_ids] == output.token_ids
    assert [len(event.token_ids) for event in events[1:]] == [event.num_accepted + 1 for event in events[1:]]
    assert len(events) == output.metrics.num_rounds + 1


@pytest.mark.parametrize("place", [0, 1, 7, 30])
def test_an_end_token_within_a_block_ends_the_text_there(place: int) -> None:
    first = PLAIN.index(PLAIN[place])
    drafter = ScriptedDrafter(PROMPT + PLAIN, lambda _: False)
    output = generate(TARGET, drafter, PROMPT, PARAMS, 8, eos_token_ids=[PLAIN[place]])
    assert output.token_ids == PLAIN[: first + 1]
    assert output.finish_reason == "stop"
    ignoring = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    assert generate(TARGET, drafter, PROMPT, ignoring, 8, eos_token_ids=[PLAIN[place]]).token_ids == PLAIN


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 9])
def test_the_budget_is_kept_to_the_token(max_tokens: int) -> None:
    drafter = ScriptedDrafter(PROMPT + PLAIN, lambda _: False)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    output = generate(TARGET, drafter, PROMPT, params, 8)
    assert output.token_ids == PLAIN[:max_tokens]
    assert output.finish_reason == "length"


def test_the_context_is_the_last_limit() -> None:
    target = toy_target(max_position_embeddings=32)
    drafter = DFlashDrafter(toy_dflash(target), target)
    output = generate(target, drafter, PROMPT, SamplingParams(temperature=0.0, max_tokens=500))
    assert len(PROMPT) + len(output.token_ids) == 32


@pytest.mark.parametrize(
    ("prompt", "block_size", "message"),
    [
        ([], 8, "empty"),
        ([1] * 512, 8, "512 tokens; expected at most 511"),
        ([1, 97], 8, "token id 97; expected ids from 0 to 96"),
        ([1], 0, "block_size is 0; expected 1 to 8"),
        ([1], 9, "block_size is 9; expected 1 to 8"),
    ],
)
def test_what_cannot_be_served_is_told(prompt: list[int], block_size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(TARGET, DFlashDrafter(toy_dflash(TARGET), TARGET), prompt, PARAMS, block_size)


def test_a_block_without_a_drafter_is_told() -> None:
    with pytest.raises(UsageError, match="there is no drafter"):
        generate(TARGET, None, PROMPT, PARAMS, 8)
