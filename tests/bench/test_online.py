"""The online benchmark against our own server: what it sends, counts and times; other servers' metrics as text."""

import asyncio
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from math import exp
from types import SimpleNamespace

import pytest

from command_line import run_command
from flashdraft.bench import online
from flashdraft.bench.client import Client, StreamedAnswer, _take
from flashdraft.bench.online import Load, OnlineRow, Target, _acceptance, _at_random, measure
from flashdraft.bench.scraped import DraftCounts, draft_counts
from flashdraft.bench.tasks import BenchPrompt, load_task
from flashdraft.errors import EngineError
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from server_case import Running, serving
from tiny_pair import save_tiny_pair
from web_page import web_page

GREEDY = SamplingParams(temperature=0.0, seed=0, max_tokens=12, ignore_eos=True)
PROMPTS = load_task("gsm8k", 5)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    target, drafter = save_tiny_pair(tmp_path_factory.mktemp("pair"))
    with serving(LLM(target, drafter, block_size=4, dtype="float32")) as server:
        yield server


def asked(running: Running, load: Load, target: Target | None = None) -> OnlineRow:
    async def ask() -> OnlineRow:
        async with Client(running.url) as client:
            return await measure(client, "gsm8k", PROMPTS, GREEDY, load, target or Target(), "ours")

    return asyncio.run(ask())


def test_a_server_of_web_pages_is_told() -> None:
    async def ask(url: str) -> None:
        async with Client(url):
            pass

    with (
        web_page() as url,
        pytest.raises(EngineError, match=r"/v1/models lists no model .*; expected an OpenAI-"),
    ):
        asyncio.run(ask(url))


@pytest.mark.parametrize("load", [Load(concurrency=1), Load(concurrency=3), Load(rate=50.0)])
def test_a_servers_answers_are_counted_and_timed(running: Running, load: Load) -> None:
    row = asked(running, load)
    assert (row.num_requests, row.num_failed, row.first_error) == (5, 0, None)
    assert row.num_output_tokens == 5 * 12
    assert row.num_prompt_tokens > 5 * 100
    assert row.output_tokens_per_s == pytest.approx(60 / row.wall_s)
    assert row.requests_per_s == row.goodput_per_s == pytest.approx(5 / row.wall_s)
    assert row.ttft_s is not None
    assert row.tpot_s is not None
    assert row.total_s is not None
    assert 0 < row.ttft_s.p50 < row.total_s.p50 <= row.wall_s
    assert row.total_s.mean == pytest.approx(row.ttft_s.mean + 11 * row.tpot_s.mean)
    assert (row.concurrency, row.rate) == (load.concurrency, load.rate)
    assert row.acceptance_source == "usage"
    assert row.acceptance_length is not None
    assert row.acceptance_length >= 1
    assert (row.num_graded, row.num_correct) == (0, 0)  # all were cut


def test_usage_and_counters_agree_where_every_round_drafts(running: Running) -> None:
    async def counts() -> DraftCounts:
        async with Client(running.url) as client:
            return draft_counts(await client.get("/metrics"))

    before = asyncio.run(counts())
    row = asked(running, Load(concurrency=2))
    grown = asyncio.run(counts()).since(before)
    assert grown.num_drafts > 0
    # The counters leave out the last round of an answer where nothing was left to draft.
    assert row.acceptance_length == pytest.approx(grown.acceptance_length or 0, rel=0.15)
    assert len(row.accepted_by_position) <= 3


def test_goodput_counts_what_kept_to_the_target(running: Running) -> None:
    assert asked(running, Load(concurrency=5), Target(ttft_s=1e-6)).goodput_per_s == 0
    assert asked(running, Load(concurrency=5), Target(tpot_s=1e-6)).goodput_per_s == 0
    loose = asked(running, Load(concurrency=5), Target(ttft_s=60, tpot_s=60))
    assert loose.goodput_per_s == loose.requests_per_s


def test_failures_are_counted_and_told(running: Running) -> None:
    async def ask() -> OnlineRow:
        async with Client(running.url, model="another") as client:
            return await measure(client, "gsm8k", PROMPTS[:2], GREEDY, Load(2), Target())

    row = asyncio.run(ask())
    assert (row.num_failed, row.num_output_tokens, row.ttft_s) == (2, 0, None)
    assert row.first_error is not None
    assert "404" in row.first_error

    async def nobody() -> None:
        async with Client("http://127.0.0.1:9"):
            pass

    with pytest.raises(EngineError, match=r"expected an OpenAI-compatible server"):
        asyncio.run(nobody())


def test_arrivals_are_a_poisson_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 gaps of mean 1/2000 s on a clock that runs in sleep alone: 5 sigma of the mean is 25 %."""
    times, now = list[float](), [0.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        await asyncio.sleep(0)

    on_this_clock = SimpleNamespace(sleep=sleep, ensure_future=asyncio.ensure_future, gather=asyncio.gather)
    monkeypatch.setattr(online, "perf_counter", lambda: now[0])
    monkeypatch.setattr(online, "asyncio", on_this_clock)

    async def ask(_: BenchPrompt) -> StreamedAnswer:
        times.append(now[0])
        while len(times) < 400:  # nobody waits for an answer
            await asyncio.sleep(0)
        return StreamedAnswer(0.0)

    asyncio.run(_at_random(ask, PROMPTS * 80, 2000.0, random.Random(1)))
    assert times[-1] == pytest.approx(400 / 2000, rel=0.25)
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert sum(gap > 1 / 2000 for gap in gaps) == pytest.approx(400 * exp(-1), rel=0.25)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stream_may_be_cut_anywhere(size: int) -> None:
    """Within a character, within a line end: what was said is the same. Comments are no part of it."""
    chunks: list[dict[str, object]] = [
        {"choices": [{"delta": {"content": text}}]} for text in ("naïve ", "🎉")
    ]
    chunks.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})
    lines = [": ping", *(f"data: {json.dumps(one, ensure_ascii=False)}" for one in chunks), "data: [DONE]"]
    body = "".join(f"{line}\r\n\r\n" for line in lines).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for at in range(0, len(body), size):
            writer.write(body[at : at + size])
            await asyncio.sleep(0.001)  # so that it leaves by itself
        writer.close()

    async def ask() -> StreamedAnswer:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with Client(f"http://127.0.0.1:{port}", model="any") as client:
                return await client.ask("Hi", GREEDY)

    answer = asyncio.run(ask())
    assert (answer.error, answer.text, answer.num_output_tokens) == (None, "naïve 🎉", 5)
    assert len(answer.delivered_at) == 2


def test_pieces_without_text_are_not_deliveries() -> None:
    answer = StreamedAnswer(0.0)
    for delta in ({"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "a"}, {}):
        _take(answer, {"choices": [{"delta": delta}]})
    _take(answer, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7}})
    assert (answer.text, len(answer.delivered_at), answer.num_output_tokens) == ("hma", 2, 7)
    _take(answer, {"choices": [], "timings": {"draft_n": 9, "draft_n_accepted": 4}})
    assert answer.num_accepted == 4
    # 6 tokens after the first in 6 - 4 rounds.
    assert _acceptance([answer], DraftCounts()) == (3.0, "usage")


VLLM = """\
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 60.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 40.0
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 700.0
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 230.0
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 80.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 50.0
"""
SGLANG = """\
# TYPE sglang:spec_accept_length gauge
sglang:spec_accept_length{model_name="m",tp_rank="0"} 3.4
# TYPE sglang:gen_throughput gauge
sglang:gen_throughput{model_name="m"} 90.0
"""


def test_other_servers_counters_come_to_one_definition() -> None:
    vllm = draft_counts(VLLM)
    assert (vllm.num_drafts, vllm.num_drafted, vllm.acceptance_length) == (100, 700, pytest.approx(3.3))
    assert vllm.accepted_by_position == [0.8, 0.5]
    later = draft_counts(VLLM.replace("} 60.0", "} 160.0").replace("} 230.0", "} 330.0"))
    assert later.since(vllm).acceptance_length == 2.0
    assert vllm.since(DraftCounts()).accepted_by_position == [0.8, 0.5]
    assert draft_counts(SGLANG).acceptance_length == 3.4
    assert draft_counts(VLLM + VLLM.replace("vllm:", "flashdraft:")) == vllm  # ours tells it under both names
    assert draft_counts("").acceptance_length is None


def test_the_command_measures_a_server(
    running: Running, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("online")
    small = ("bench", "--url", running.url + "/v1", "--tasks", "gsm8k", "--limit", "2", "--max-tokens", "5")
    done = run_command(
        (*small, "--concurrency", "1,2", "--label", "ours", "--json", "--out", str(out)), capsys
    )
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [(row["method"], row["concurrency"], row["num_failed"]) for row in rows] == [
        ("ours", 1, 0),
        ("ours", 2, 0),
    ]
    assert len((out / "rows.jsonl").read_text().splitlines()) == 3
    assert "| gsm8k | ours | 2 at a time |" in (out / "report.md").read_text()
    random_arrivals = run_command((*small, "--rate", "20"), capsys)
    assert "| gsm8k | server | 20 a second |" in random_arrivals.stdout
    both = run_command((*small, "--multi-turn"), capsys)
    assert (both.exit_code, "in process" in both.stderr) == (2, True)
