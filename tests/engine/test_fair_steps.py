"""Clients share a step: who asks for one answer does not wait for all the rows of who asks for many."""

from collections import Counter

import pytest

from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import toy_dflash, toy_target

VOCAB = 11  # random drafts are right now and then
MANY, BLOCK, LATELY = 6, 4, 16
PROMPTS = [[idx + 1, 2, 3] for idx in range(MANY + 1)]


def params(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


class Shared:
    """An engine that one client asks for six long answers, and another for a short one when they are under way."""

    def __init__(self, free_tokens: int, client: str = "one") -> None:
        self.target = toy_target(vocab_size=VOCAB)
        self.drafter = DFlashDrafter(toy_dflash(self.target), self.target)
        self.engine = Engine(
            self.target, self.drafter, EngineConfig(page_size=4, free_step_tokens=free_tokens)
        )
        self.said: dict[str, list[int]] = {str(idx): [] for idx in range(MANY + 1)}
        for idx in range(MANY):
            self.engine.add_request(str(idx), PROMPTS[idx], params(150), BLOCK, client="many")
        self.step()
        self.before = self.step()
        self.engine.add_request(str(MANY), PROMPTS[MANY], params(12), BLOCK, client=client)
        self.step()  # its prompt

    def step(self) -> Counter[str]:
        """The rows of one step, by client."""
        rows: Counter[str] = Counter()
        for output in self.engine.step():
            self.said[output.request_id] += output.token_ids
            rows["one" if output.request_id == str(MANY) else "many"] += 1
        self.engine.check_integrity()
        return rows


def test_nobody_has_more_rows_than_the_client_that_asks_for_fewest() -> None:
    shared = Shared(free_tokens=1)
    assert shared.before == {"many": MANY}
    while str(MANY) in shared.engine.requests:
        assert shared.step() == {"one": 1, "many": 1}
    # It may come back at once.
    assert [shared.step()["many"] for _ in range(LATELY)] == [1] * (LATELY - 1) + [MANY]
    lengths = [len(shared.said[str(idx)]) for idx in range(MANY)]
    assert max(lengths) - min(lengths) < 3 * 16  # its answers took turns
    while shared.engine.has_unfinished:
        shared.step()
    for idx, prompt in enumerate(PROMPTS):
        alone = generate(shared.target, shared.drafter, prompt, params(12 if idx == MANY else 150), BLOCK)
        assert shared.said[str(idx)] == alone.token_ids


@pytest.mark.parametrize(("free_tokens", "num_rows"), [(3 * BLOCK, 2), (7 * BLOCK, MANY)])
def test_tokens_that_cost_little_are_for_all(free_tokens: int, num_rows: int) -> None:
    shared = Shared(free_tokens)
    assert shared.step() == {"one": 1, "many": num_rows}


def test_one_client_alone_has_all_rows() -> None:
    shared = Shared(free_tokens=1, client="many")
    assert shared.step() == {"one": 1, "many": MANY}


@pytest.mark.parametrize(("client", "num_tokens"), [("many", 32), ("one", 60)])
def test_a_long_prompt_comes_in_short_chunks_while_another_client_decodes(
    client: str, num_tokens: int
) -> None:
    target = toy_target(vocab_size=VOCAB)
    engine = Engine(target, None, EngineConfig(page_size=4, max_step_tokens=60, free_step_tokens=1))
    engine.add_request("short", [1, 2, 3], params(40), 1, client="one")
    engine.step()
    engine.add_request("long", [idx % VOCAB for idx in range(100)], params(2), 1, client=client)
    engine.step()
    assert engine.requests["long"].num_committed == num_tokens
