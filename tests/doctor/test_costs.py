"""Break-even and the best block from known costs; a server's metrics page; a pair examined beside its server."""

import json

import pytest

from command_line import run_command
from flashdraft.control.step_costs import Curve, StepCosts
from flashdraft.data.prompts import Prompt
from flashdraft.doctor.costs import CONCURRENCIES, judge_costs
from flashdraft.doctor.examine import Examination, compare_served, prompt_readings
from flashdraft.doctor.served import parse_metrics, read_served
from flashdraft.engine.types import EngineStats, StepOutput
from flashdraft.errors import UsageError
from flashdraft.server.metrics import ServerMetrics
from flashdraft.spec_decode.metrics import RequestMetrics
from tiny_pair import byte_tokenizer, save_tiny_pair
from web_page import web_page

SHARES = (0.8, 0.5, 0.2, 0.0, 0.0, 0.0, 0.0)


def test_break_even():
    """A target of 10 ms a step up to 8 tokens and 1 ms for each more; a drafter of 5 ms."""
    costs = StepCosts(Curve([1, 8, 64], [0.010, 0.010, 0.066]), Curve([1, 64], [0.005, 0.005]))
    found = {cost.concurrency: cost for cost in judge_costs(costs, 8, SHARES)}
    assert tuple(found) == CONCURRENCIES
    assert found[1].break_even == pytest.approx(1.5)
    # Up to 8 tokens all blocks cost the same, so the longest that brings anything is best: 4, with 2.5 tokens.
    assert found[1].best_block == 4
    assert found[1].speedup == pytest.approx(2.5 / 1.5)
    assert found[8].break_even == pytest.approx((0.066 + 0.005) / 0.010)
    # 8 rows: 16 tokens cost 18 + 5 ms for 1.8 each, against 10 ms for 1.
    assert (found[8].best_block, found[8].speedup) == (1, 1.0)


VLLM = """# TYPE vllm:spec_decode_num_drafts counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 10.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="m"} 1.7e9
# TYPE vllm:spec_decode_num_draft_tokens counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 30.0
# TYPE vllm:spec_decode_num_accepted_tokens counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 15.0
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 8.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 5.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="2"} 2.0
"""
SGLANG = """# TYPE sglang:spec_accept_length gauge
sglang:spec_accept_length{model_name="m"} 2.5
"""


def test_pages_of_three_engines():
    served = parse_metrics(VLLM, "here")
    assert (served.engine, served.acceptance_length, served.num_drafts) == ("vllm", 2.5, 10)
    assert served.accepted_by_position == (0.8, 0.5, 0.2)
    assert parse_metrics(SGLANG, "here").acceptance_length == 2.5
    with pytest.raises(UsageError, match="tells of no drafts yet"):
        parse_metrics("", "here")


def test_a_server_is_read():
    with web_page(VLLM, "/metrics") as url:
        served = read_served(url + "/v1")
    assert served.acceptance_length == 2.5
    with pytest.raises(UsageError, match="gives no metrics"):
        read_served("http://127.0.0.1:1")
    with pytest.raises(UsageError, match="expected http://HOST:PORT"):
        read_served("file:///etc")
    with (
        web_page() as url,
        pytest.raises(
            UsageError, match=r"gives no page of metrics .*expected one of flashdraft, vllm, sglang"
        ),
    ):
        read_served(url)


def test_our_own_metrics_are_read():
    metrics = ServerMetrics("m")
    for num_accepted in (3, 0, 1):
        metrics.record_step(
            StepOutput("r", [1] * (num_accepted + 1), num_drafted=7, num_accepted=num_accepted), True
        )
    served = parse_metrics(
        metrics.exposition(EngineStats(0, 0, 1, 1, 0, 0, RequestMetrics())).decode(), "here"
    )
    assert (served.engine, served.num_drafts) == ("flashdraft", 3)
    assert served.acceptance_length == pytest.approx(1 + 4 / 3)
    assert served.accepted_by_position == pytest.approx((2 / 3, 1 / 3, 1 / 3))


def test_a_server_that_accepts_less_is_a_fault():
    healthy = Examination("healthy", ["fine"], 4.0, [0.9], {}, 10)
    slow = compare_served(healthy, parse_metrics(VLLM, "here"))
    assert slow.verdict == "faulty"
    assert "the server accepts 2.50 where the drafter reaches 4.00" in slow.reasons[0]
    same = compare_served(Examination("healthy", ["fine"], 2.8, [0.9], {}, 10), parse_metrics(VLLM, "here"))
    assert (same.verdict, same.served.acceptance_length) == ("healthy", 2.5)
    assert "the vllm server accepts 2.50: 80% 50% 20%" in same.to_text()


def test_prompts_told_otherwise():
    tokenizer = byte_tokenizer()
    asked = [Prompt("a", "a", ({"role": "user", "content": "hello"},))]
    served, others = prompt_readings(tokenizer, asked)
    assert others == {"no chat template": [tokenizer.encode("hello")]}
    assert served != others["no chat template"]
    thinking = (
        "{% if enable_thinking is not defined or enable_thinking %}T{% endif %}{{ messages[0].content }}"
    )
    tokenizer.chat_template = thinking
    served, others = prompt_readings(tokenizer, asked)
    assert list(others) == ["no chat template", "enable_thinking false"]
    trained = prompt_readings(tokenizer, asked, {"enable_thinking": False})[1]
    as_trained = 'as its config.json says, {"enable_thinking": false}'
    assert trained[as_trained] == others["enable_thinking false"]
    assert as_trained not in prompt_readings(tokenizer, asked, {"enable_thinking": True})[1]
    tokenizer.chat_template = None
    assert prompt_readings(tokenizer, asked) == ([tokenizer.encode("hello")], {})


def test_the_command_measures_and_compares(tmp_path, capsys):
    model, draft = save_tiny_pair(tmp_path)
    with web_page(VLLM, "/metrics") as url:
        options = ("doctor", "--model", model, "--draft", draft, "--max-tokens", "12", "--url", url)
        text = run_command(options, capsys).stdout
        assert text.startswith("weak: ")
        assert "break-even acceptance length" in text
        assert "for 1 at once: flashdraft serve" in text
        found = json.loads(run_command((*options, "--json"), capsys).stdout)
        assert [cost["concurrency"] for cost in found["costs"]] == list(CONCURRENCIES)
        assert all(cost["break_even"] > 1 for cost in found["costs"])
        assert found["served"]["accepted_by_position"] == [0.8, 0.5, 0.2]
