"""An answer: which path of a draft the target takes, and what of it is delivered."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from flashdraft.answer import Answer, RoundEvent
from flashdraft.grammar import Grammar
from flashdraft.sampler import token_logprobs
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.tree import DraftTree

VOCAB = 8
PROMPT = [1, 2, 3, 0]


class Digits:
    """A tokenizer whose tokens are digits."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:  # noqa: ARG002
        return "".join(map(str, token_ids))


def answer(tokenizer: Any = None, eos: Sequence[int] = (), max_tokens: int = 9, **params: Any) -> Answer:
    return Answer(PROMPT, SamplingParams(**({"temperature": 0.0} | params)), max_tokens, eos, tokenizer)


def wanting(*token_ids: int) -> torch.Tensor:
    """Logits [num, VOCAB] whose likeliest tokens are these, and the token above is next."""
    logits = torch.zeros(len(token_ids), VOCAB)
    for row, token in enumerate(token_ids):
        logits[row, token], logits[row, (token + 1) % VOCAB] = 2.0, 1.0
    return logits


CHAIN = DraftTree.chain([4, 5, 6])
TREE = DraftTree([4, 5, 6, 7], [0, 0, 1, 2])  # 4 then 6, or 5 then 7


def test_a_chain_is_followed_as_far_as_the_target_chose_it() -> None:
    assert answer().follow(CHAIN, wanting(4, 5, 0, 1)) == ([0, 1, 2], 0)
    assert answer().follow(CHAIN, wanting(4, 5, 6, 1)) == ([0, 1, 2, 3], 1)
    assert answer().follow(CHAIN, wanting(0, 0, 0, 0), argmax=[4, 0, 6, 1]) == ([0, 1], 0), "at hand already"


def test_another_rule_may_accept_chains() -> None:
    told = []

    def none(draft: list[int], wanted: list[int]) -> tuple[int, int]:
        told.append((draft, wanted))
        return 0, wanted[0]

    assert answer().follow(CHAIN, wanting(4, 5, 6, 1), accept=none) == ([0], 4)
    assert told == [([4, 5, 6], [4, 5, 6, 1])]


def test_a_tree_is_followed_along_the_targets_path() -> None:
    assert answer().follow(TREE, wanting(5, 0, 7, 0, 3)) == ([0, 2, 4], 3)
    assert answer().follow(TREE, wanting(0, 0, 0, 0, 0), argmax=[4, 6, 0, 2, 0]) == ([0, 1, 3], 2)


@pytest.mark.parametrize("draft", [CHAIN, TREE])
def test_penalties_see_the_tokens_of_the_path(draft: DraftTree) -> None:
    """The target would say 4 for ever; each time it is said it becomes less likely than the next."""
    one = answer(presence_penalty=1.5)
    logits = wanting(4, 4, 4, 4, 4)[: 1 + len(draft)]
    assert one.follow(draft, logits) == (([0, 1, 2], 4) if draft is CHAIN else ([0, 1], 5))
    one.output.token_ids.append(4)
    assert one.follow(draft, logits) == (([0], 5) if draft is CHAIN else ([0, 2], 4))


def test_sampled_choices_depend_on_the_place_and_not_on_the_draft() -> None:
    logits = torch.zeros(5, VOCAB)
    own = [answer(temperature=1.0, seed=3).chooser.choose(logits, [0] * num)[0] for num in range(2)]
    assert own[0] != own[1], "this seed says nothing: take another"
    chain, tree = DraftTree.chain([own[0], 99]), DraftTree([99, own[0]], [0, 0])
    assert answer(temperature=1.0, seed=3).follow(chain, logits[:3]) == ([0, 1], own[1])
    assert answer(temperature=1.0, seed=3).follow(tree, logits[:3]) == ([0, 2], own[1])


def test_what_is_delivered_ends_with_the_answer() -> None:
    one, logits = answer(Digits(), stop="56", logprobs=2), wanting(4, 5, 6, 7)
    assert one.deliver([4], 0, 0, logits) == RoundEvent([4], 0, 0, "4")
    assert one.goes_on
    assert (one.output.finish_reason, one.output.stop_reason) == ("length", None)
    assert one.deliver([3, 5, 6, 7], 3, 3, logits) == RoundEvent([3, 5, 6], 3, 3, "3")
    assert not one.goes_on
    output = one.output
    assert (output.token_ids, output.text) == ([4, 3, 5, 6], "43")
    assert (output.finish_reason, output.stop_reason) == ("stop", "56")
    assert (output.metrics.num_output_tokens, output.metrics.num_accepted) == (4, 3)
    assert output.logprobs == token_logprobs(logits, [4], 2) + token_logprobs(logits, [3, 5, 6], 2)


def test_accepted_tokens_behind_the_end_do_not_count() -> None:
    one = answer(eos=[5], logprobs=0)
    assert one.deliver([4, 5, 6, 7], 3, 3, wanting(4, 5, 6, 7)) == RoundEvent([4, 5], 3, 2)
    assert one.output.metrics.num_accepted == 2
    assert (one.output.finish_reason, one.output.stop_reason) == ("stop", None)
    assert [token.top for token in one.output.logprobs or ()] == [(), ()]
    plain = answer(max_tokens=2)
    assert plain.deliver([4, 4, 4], 0, 0, wanting(4, 4, 4)) == RoundEvent([4, 4], 0, 0)
    assert (plain.output.finish_reason, plain.goes_on, plain.output.logprobs) == ("length", False, None)


@pytest.mark.parametrize("num_top", [0, 2])
def test_a_prompt_is_scored_once_whatever_is_told_again(num_top: int) -> None:
    one, logits = answer(prompt_logprobs=num_top), wanting(4, 5, 6, 7)
    one.score_prompt(logits[:1], 0)
    one.score_prompt(logits[:2], 0)  # after a preemption from the start
    assert one.scores_prompt
    one.score_prompt(logits[2:], 2)  # the next chunk, whose last token is the prompt's
    assert one.output.prompt_logprobs == token_logprobs(logits, PROMPT[1:], num_top)
    assert not one.scores_prompt
    silent = answer()
    silent.score_prompt(logits, 0)
    assert silent.output.prompt_logprobs is None


def test_what_is_worth_verifying() -> None:
    assert answer().trim(CHAIN, 2).token_ids == [4, 5]
    assert answer().trim(TREE, 1).token_ids == [4, 5]

    class Grammar:
        def cut(self, output: list[int], draft: list[int]) -> list[int]:
            assert output == [0]
            return draft[:1]

    one = answer()
    one.output.token_ids.append(0)
    one.chooser.grammar = Grammar()  # type: ignore[assignment]
    assert one.trim(CHAIN, 2).token_ids == [4]
    assert one.trim(TREE, 9) is TREE, "a grammar does not thin out a tree"


def test_a_choice_knows_the_prompt_the_ends_and_the_grammar() -> None:
    nothing = DraftTree()
    assert answer(eos=[4], min_tokens=1).follow(nothing, wanting(4)) == ([0], 5), "no end that early"
    assert answer(repetition_penalty=4.0).follow(nothing, wanting(3)) == ([0], 4), "3 is in the prompt"

    class OnlySeven:
        def forbid(self, logits: torch.Tensor, *_: Any) -> None:
            logits[:, :7] = float("-inf")

    params = SamplingParams(temperature=0.0, grammar=Grammar("regex", "7*"))
    one = Answer(PROMPT, params, 9, [], None, OnlySeven())  # type: ignore[arg-type]
    assert one.follow(nothing, wanting(3)) == ([0], 7)
