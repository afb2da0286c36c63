"""A user's own drafter, request by request: its features are whole, it may draw trees and tell how sure it is."""

from math import log

import pytest
import torch
from torch import Tensor

from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.drafter import DraftShape
from flashdraft.spec_decode.per_request import PerRequestDrafter
from flashdraft.spec_decode.tree import DraftTree
from toys import toy_target

TARGET = toy_target()
PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPT = list(range(3, 40))


class Reader(PerRequestDrafter):
    """Keeps what it observes, and drafts the first two likeliest tokens that its features' last row names."""

    feature_layers = (1,)
    max_block_size = 4
    can_branch = True

    def __init__(self) -> None:
        self.states: list[Reading] = []

    def begin(self, max_len: int) -> "Reading":  # noqa: ARG002
        self.states.append(Reading())
        return self.states[-1]


class Reading:
    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.features: list[Tensor] = []

    def observe(self, token_ids: list[int], features: Tensor | None) -> None:
        assert features is not None
        assert features.shape[:2] == (1, len(token_ids))
        self.token_ids += token_ids
        self.features.append(features[0])

    def propose(self, anchor: int, shape: DraftShape) -> DraftTree:
        guess = (anchor * 7 + len(self.token_ids)) % 90
        tokens, sure = [guess, guess + 1, guess + 2], [log(0.5), log(0.4), log(0.3)]
        if shape.size is None:
            return DraftTree.chain(tokens[: shape.depth], sure[: shape.depth])
        return DraftTree(tokens, [0, 0, 1], sure).first(shape.size)


@pytest.mark.parametrize("draft_tree", [None, 3])
def test_a_second_request_with_the_same_prompt_has_its_features_too(draft_tree: int | None) -> None:
    """A found prefix would come without features, so none is looked for."""
    drafter = Reader()
    engine = Engine(TARGET, drafter, EngineConfig(page_size=4), block_size=4, draft_tree=draft_tree)
    wanted = generate(TARGET, None, PROMPT, PARAMS).token_ids
    for name in ("first", "second"):
        engine.add_request(name, PROMPT, PARAMS)
        *_, last = engine.run()
        assert last.num_cached_tokens == 0
    first, second = drafter.states
    assert second.token_ids[: len(PROMPT)] == PROMPT
    assert first.token_ids == second.token_ids
    assert second.token_ids == [*PROMPT, *wanted][: len(second.token_ids)]
    torch.testing.assert_close(torch.cat(first.features), torch.cat(second.features))
    engine.check_integrity()


def test_alone_and_in_a_batch_it_gives_plain_decodings_tokens() -> None:
    prompts = [[i, 5, i] for i in range(4)]
    engine = Engine(TARGET, Reader(), EngineConfig(page_size=4))  # blocks are the controller's
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, PARAMS, draft_tree=4 if i == 3 else None)
    tokens: dict[str, list[int]] = {}
    for news in engine.run():
        tokens.setdefault(news.request_id, []).extend(news.token_ids)
    for i, prompt in enumerate(prompts):
        plain = generate(TARGET, None, prompt, PARAMS).token_ids
        assert tokens[str(i)] == plain
        assert generate(TARGET, Reader(), prompt, PARAMS, draft_tree=4).token_ids == plain


def test_what_is_no_drafter_is_refused() -> None:
    with pytest.raises(
        UsageError, match="draft is a dict; expected a name, or a drafter that is a subclass of"
    ):
        LLM("embedded", {})  # type: ignore[arg-type]
