"""Wherever the engine fails, who waits is told, the server says so, and the next one answers as ever."""

import json
import threading
from typing import Any

import httpx2
import pytest

import patient
from flashdraft.engine.async_engine import AsyncEngine
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from flashdraft.server.config import ServerConfig
from server_case import Running, own_engine, serving, wait_until

PLACES = (
    *("step", "_deliver", "scheduler.schedule_blocks", "scheduler.register_pages", "runner.run"),
    *("runner.forward", "runner.commit", "runner.propose", "control.plan", "control.learn"),
)
PATH, LONG = "/v1/completions", {"prompt": "abc", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
SHORT: dict[str, Any] = {"prompt": "a", "max_tokens": 12, "temperature": 0}


def asked(running: Running, answers: list[httpx2.Response], **more: Any) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(running.post(PATH, **LONG, **more)))
    thread.start()
    return thread


@pytest.mark.parametrize("place", PLACES)
def test_a_failure_is_told_to_all_and_a_new_server_is_as_ever(
    llm: LLM, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    engine = AsyncEngine(own_engine(llm, ServerConfig()))
    owner, _, name = place.rpartition(".")
    with serving(llm, engine) as broken:
        answers: list[httpx2.Response] = []
        threads = [asked(broken, answers, stream=number < 3) for number in range(4)]
        wait_until(lambda: engine.stats().num_running == 4)
        monkeypatch.setattr(getattr(engine.engine, owner) if owner else engine.engine, name, fail)
        for thread in threads:
            thread.join(patient.PATIENCE_S)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 503]
        for answer in answers:
            told = answer.text
            if answer.status_code == 200:
                assert told.endswith("data: [DONE]\n\n")
                told = told.split("data: ")[-2]
            assert json.loads(told)["error"]["code"] == "engine_failed"
        assert broken.get("/ready").status_code == 503
        refused = broken.post(PATH, **SHORT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_failed")
    with serving(llm) as again:
        text = again.post(PATH, **SHORT).json()["choices"][0]["text"]
        assert again.get("/ready").status_code == 200
    assert text == llm.generate("a", SamplingParams(temperature=0, max_tokens=12))[0].outputs[0].text
