"""Keys, a full queue, a client that leaves, an engine that fails."""

import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from torch import Tensor

import patient
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from flashdraft.server.config import ServerConfig
from flashdraft.spec_decode.ngram import NgramDrafter, NgramState
from server_case import MODEL, serving, wait_until, waiting_client

LONG: dict[str, Any] = {"prompt": "abc", "max_tokens": 2000, "ignore_eos": True, "temperature": 0}

SHORT: dict[str, Any] = {"model": MODEL, "prompt": "a", "max_tokens": 20, "temperature": 0}


class GatedDrafter(NgramDrafter):
    """Drafts as usual, but each round waits at a gate; ``fails``: it raises instead."""

    def __init__(self) -> None:
        super().__init__(8)
        self.gate = threading.Event()
        self.fails = False

    def begin(self, max_len: int) -> NgramState:  # noqa: ARG002
        drafter = self

        class State(NgramState):
            def observe(self, token_ids: list[int], features: Tensor | None) -> None:
                assert drafter.gate.wait(patient.PATIENCE_S)
                if drafter.fails:
                    raise ZeroDivisionError("planted")
                super().observe(token_ids, features)

        return State(self)


@pytest.fixture
def drafter() -> Iterator[GatedDrafter]:
    one = GatedDrafter()
    yield one
    one.gate.set()


@pytest.fixture
def gated(llm: LLM, drafter: GatedDrafter) -> LLM:
    """The session's target with a drafter that can be held up."""
    copy = object.__new__(LLM)
    copy.__dict__.update(llm.__dict__ | {"drafter": drafter})
    return copy


def test_keys_open_everything_but_the_probes(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = ("first-key", "second-key")
    with serving(llm, api_keys=keys) as locked:
        for path in ("/v1/models", "/metrics", "/nothing"):
            assert locked.get(path).status_code == 401
        assert locked.get("/health").status_code == 200
        for key in keys:
            assert locked.openai(key).models.list().data[0].id == MODEL
        for wrong in ("first-ke", "first-key2", "é"):
            headers = {"Authorization": f"Bearer {wrong}".encode()}
            assert patient.get(f"{locked.url}/v1/models", headers=headers).status_code == 401
        with pytest.raises(openai.AuthenticationError) as caught:
            locked.openai("wrong").models.list()
        assert caught.value.code == "invalid_api_key"
    assert "-key" not in caplog.text
    assert "-key" not in repr(ServerConfig(api_keys=keys))


def test_a_full_queue_is_a_429_and_a_client_that_leaves_makes_room(gated: LLM, drafter: GatedDrafter) -> None:
    with serving(gated, max_queue=1, max_running_requests=1) as small:
        stream = small.openai().completions.create(
            model=MODEL, stream=True, max_tokens=99, prompt="a", temperature=0
        )
        next(iter(stream))  # the first is running, held up after its prefill
        waiting = threading.Thread(target=small.post, args=("/v1/completions",), kwargs={"prompt": "b"})
        waiting.start()
        wait_until(lambda: small.service.num_unfinished == 2)
        assert small.service.engine.stats().num_waiting == 1
        refused = small.post("/v1/completions", prompt="c")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "queue_full"
        stream.close()
        wait_until(lambda: small.service.num_unfinished == 1)
        drafter.gate.set()
        waiting.join(patient.PATIENCE_S)
        assert small.service.num_unfinished == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_aborted_before_its_next_token(
    gated: LLM, drafter: GatedDrafter, stream: bool
) -> None:
    with serving(gated) as one:
        with waiting_client(one, "/v1/completions", **LONG, stream=stream):
            wait_until(lambda: one.service.metrics.totals().prompt_tokens > 0)  # its first token is there
        wait_until(lambda: one.service.num_unfinished == 0)
        drafter.gate.set()
        wait_until(lambda: one.service.engine.stats().num_running == 0)
        metrics = one.get("/metrics").text
        assert f'finished_reason="abort",model_name="{MODEL}"}} 1.0' in metrics
        done = one.post("/v1/completions", prompt="abc", max_tokens=5, ignore_eos=True).json()
        assert done["usage"]["completion_tokens"] == 5


def test_an_engine_that_fails_tells_everybody(gated: LLM, drafter: GatedDrafter) -> None:
    drafter.fails = True
    with serving(gated) as broken:
        answers: list[httpx2.Response] = []

        def ask(**more: Any) -> threading.Thread:
            def post() -> None:
                answers.append(broken.post("/v1/completions", **(LONG | more)))

            thread = threading.Thread(target=post)
            thread.start()
            return thread

        threads = [ask(stream=True), ask(), ask()]
        wait_until(lambda: broken.service.num_unfinished == 3)
        drafter.gate.set()
        for thread in threads:
            thread.join(patient.PATIENCE_S)
        assert len(answers) == 3
        for answer in answers:
            assert answer.status_code in (200, 503)
            assert "planted" not in answer.text, "what failed is for the log"
            assert "engine_failed" in answer.text
        assert sorted(answer.status_code for answer in answers) == [200, 503, 503]  # a stream had begun
        assert broken.get("/ready").status_code == broken.get("/health").status_code == 503
        assert broken.post("/v1/completions", prompt="a").status_code == 503
        assert broken.service.num_unfinished == 0


def test_a_bad_request_does_not_harm_the_one_that_runs(gated: LLM, drafter: GatedDrafter, llm: LLM) -> None:
    with serving(gated) as one:
        chunks = iter(
            one.openai().completions.create(
                model=MODEL, stream=True, max_tokens=20, prompt="a", temperature=0
            )
        )
        text = next(chunks).choices[0].text
        assert one.post("/v1/completions", prompt=[10**6]).status_code == 400
        drafter.gate.set()
        text += "".join(chunk.choices[0].text for chunk in chunks)
    assert text == llm.generate("a", SamplingParams(temperature=0, max_tokens=20))[0].outputs[0].text
