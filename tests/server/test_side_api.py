"""Models, health, tokens, metrics."""

import re

import openai

from server_case import MODEL, Running


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_health(running: Running) -> None:
    assert running.get("/health").status_code == running.get("/ready").status_code == 200


def test_tokens_and_back(running: Running) -> None:
    told = running.post("/tokenize", prompt="héllo").json()
    assert told["count"] == len(told["tokens"]) == 6
    assert running.post("/detokenize", tokens=told["tokens"]).json() == {"prompt": "héllo"}


def test_metrics_count_what_was_answered(running: Running) -> None:
    def read() -> dict[str, float]:
        text = running.get("/metrics").text
        return {name: float(value) for name, value in re.findall(r"^(flashdraft:\S+) (\S+)$", text, re.M)}

    before = read()
    body = {"prompt": "abc", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    usage = running.post("/v1/completions", **body).json()["usage"]
    after = read()

    def gained(name: str) -> float:
        key = f'flashdraft:{name}{{model_name="{MODEL}"}}'
        return after[key] - before.get(key, 0)

    details = usage["completion_tokens_details"]
    assert gained("prompt_tokens_total") == 3
    assert gained("generation_tokens_total") == 20
    assert gained("spec_decode_num_accepted_tokens_total") == details["accepted_prediction_tokens"]
    drafted = sum(details.values())
    assert gained("spec_decode_num_draft_tokens_total") == drafted
    assert drafted / 7 <= gained("spec_decode_num_drafts_total") <= 19
    reason = f'flashdraft:request_success_total{{finished_reason="length",model_name="{MODEL}"}}'
    assert after[reason] - before.get(reason, 0) == 1
    for histogram in ("time_to_first_token", "request_time_per_output_token", "e2e_request_latency"):
        assert gained(f"{histogram}_seconds_count") == 1
    assert after[f'flashdraft:num_requests_running{{model_name="{MODEL}"}}'] == 0
