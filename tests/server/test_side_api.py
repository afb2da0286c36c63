"""Models, health, tokens, metrics."""

import json
import re
from pathlib import Path

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
    for gauge in ("num_requests_running", "kv_cache_usage_perc"):
        assert after[f'flashdraft:{gauge}{{model_name="{MODEL}"}}'] == 0
    assert gained("spec_decode_num_plain_rounds_total") + gained("spec_decode_num_drafts_total") <= 19
    assert gained("prefix_cache_queries_total") == 3


def test_metrics_count_prefix_hits_and_plain_rounds(running: Running) -> None:
    def read(name: str) -> float:
        text = running.get("/metrics").text
        return float(re.findall(rf"^flashdraft:{name}_total\{{.*\}} (\S+)$", text, re.M)[0])

    body = {
        "prompt": [5, 6, 7, 8] * 10,
        "max_tokens": 6,
        "temperature": 0,
        "ignore_eos": True,
        "block_size": 1,
    }
    running.post("/v1/completions", **body)
    hits, plain = read("prefix_cache_hits"), read("spec_decode_num_plain_rounds")
    running.post("/v1/completions", **body)
    assert read("prefix_cache_hits") - hits == 32  # two whole pages of 16
    assert read("spec_decode_num_plain_rounds") - plain == 5


def test_the_dashboard_asks_for_metrics_that_exist(running: Running) -> None:
    dashboard = (Path(__file__).parents[2] / "deploy/grafana.json").read_text()
    asked = set(re.findall(r"flashdraft:\w+", dashboard))
    told = set(re.findall(r"^# TYPE (flashdraft:\w+)", running.get("/metrics").text, re.M))
    told |= {f"{name}_{part}" for name in told for part in ("bucket", "sum", "count")}
    assert asked
    assert asked <= told
    json.loads(dashboard)
