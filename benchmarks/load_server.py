"""A server under load that does not behave: is every answer right, is anything lost, does memory stay flat?

    python benchmarks/load_server.py --seconds 600 --out benchmarks/results/load_server.json

Compares every finished greedy answer with the offline answer of the same --dtype. Clients (64) ask at random for whole
and streamed answers and block sizes; a third leaves before the end, some read slowly, some send what is no request or
half of one; hostile ones, at another address, do what attacks.py does, and do not read their streams. Then the same
server must be empty, its cache in order, and right once more for each prompt. At last it is ended under load in three
ways: SIGTERM with time to finish, SIGTERM without, and kill -9 with a restart on the same port. Exits with 1 when
anything is lost or wrong.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from time import perf_counter
from typing import Any

import httpx2
from attacks import ATTACKS
from served_process import ServerProcess, start_server

from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

MALFORMED: list[bytes] = [
    b"",
    b"{",
    b"[" * 20_000,
    b'"text"',
    b"\xff\xfe{}",
    b'{"messages": []}',
    b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
    b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": -1}',
    b'{"messages": [{"role": "user", "content": "a"}], "temperature": "warm"}',
    b'{"messages": [{"role": "user", "content": "a"}], "block_size": 1000000}',
    b'{"messages": [{"role": "user", "content": "a"}], "n": 1000}',
    b'{"messages": [{"role": "user", "content": "a"}], "regex": "(((((a+)+)+)+$"}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "' + b"word " * 10_000 + b'"}]}',
    b'{"messages": [{"role": "user", "content": "' + b"x" * (5 << 20) + b'"}]}',
]


PATIENCE_S = 1800  # of the clients that behave: a machine may be busy with other work
HOSTILE = [name for name in ATTACKS if name not in ("quiet", "unread_streams", "half_heads")]


@dataclass
class Case:
    """A question with the answer that is right."""

    body: dict[str, Any]
    text: str
    num_tokens: int


@dataclass
class Account:
    """What became of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def fault(self, what: str) -> None:
        self.outcomes["FAULT"] += 1
        if len(self.faults) < 20:
            self.faults.append(what)


def offline_cases(model: str, dtype: str, num_each: int) -> list[Case]:
    """Prompts of the five tasks with the offline answers of the same precision."""
    llm = LLM(model, dtype=dtype, block_size=1)
    dice, asked = random.Random(0), []
    for task in TASKS:
        for prompt in load_task(task, num_each):
            messages = [{"role": "user", "content": prompt.turns[0]}]
            asked.append({"messages": messages, "max_tokens": dice.randint(4, 48), "temperature": 0})
    params = [SamplingParams(max_tokens=one["max_tokens"], temperature=0) for one in asked]
    outputs = llm.chat([one["messages"] for one in asked], params)
    return [
        Case(body, output.outputs[0].text, len(output.outputs[0].token_ids))
        for body, output in zip(asked, outputs, strict=True)
    ]


class Load:
    """Clients at random, until it is over."""

    def __init__(self, url: str, cases: list[Case], seed: int) -> None:
        self.url, self.cases, self.seed = url, cases, seed
        self.account = Account()

    async def run(self, num_clients: int, seconds: float) -> None:
        end = perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            for index in range(num_clients):
                group.create_task(self._client(random.Random(f"{self.seed}-{index}"), end))

    async def _client(self, dice: random.Random, end: float) -> None:
        # Each request has a connection of its own: one that is kept may be closed just when it is used again.
        anew = httpx2.Limits(max_keepalive_connections=0)
        async with httpx2.AsyncClient(timeout=PATIENCE_S, limits=anew) as http:
            while perf_counter() < end:
                kinds = ("whole", "stream", "slow", "leave", "malformed", "half", "hostile", "unread")
                kind = dice.choices(kinds, (20, 20, 10, 30, 8, 4, 1, 1))[0]
                try:
                    await getattr(self, f"_{kind}")(http, dice)
                except httpx2.HTTPError as error:
                    self.account.fault(f"{kind}: {type(error).__name__}: {error}")

    def _pick(self, dice: random.Random, stream: bool) -> tuple[Case, dict[str, Any]]:
        case = dice.choice(self.cases)
        body = case.body | {"stream": stream, "block_size": dice.choice(("auto", "auto", 1, 4, 16))}
        return case, body | ({"stream_options": {"include_usage": True}} if stream else {})

    async def _whole(self, http: httpx2.AsyncClient, dice: random.Random) -> None:
        case, body = self._pick(dice, stream=False)
        answer = await http.post(f"{self.url}/v1/chat/completions", json=body)
        if await self._is_refused(answer, dice):
            return
        told = answer.json()
        self._check(case, told["choices"][0]["message"]["content"], told["usage"]["completion_tokens"])

    async def _stream(self, http: httpx2.AsyncClient, dice: random.Random, pause_s: float = 0.0) -> None:
        case, body = self._pick(dice, stream=True)
        async with http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as answer:
            if await self._is_refused(answer, dice):
                return
            self._check(case, *await read_stream(answer, pause_s))

    async def _slow(self, http: httpx2.AsyncClient, dice: random.Random) -> None:
        await self._stream(http, dice, pause_s=dice.uniform(0.05, 0.3))

    async def _leave(self, http: httpx2.AsyncClient, dice: random.Random) -> None:
        _, body = self._pick(dice, stream=dice.random() < 0.5)
        try:
            limit = httpx2.Timeout(dice.uniform(0.01, 4), connect=60)
            async with http.stream(
                "POST", f"{self.url}/v1/chat/completions", json=body, timeout=limit
            ) as answer:
                if await self._is_refused(answer, dice):
                    return
                pieces = answer.aiter_raw()
                for _ in range(dice.randint(0, 3)):
                    await anext(pieces, None)
        except httpx2.TimeoutException:
            pass
        self.account.add("left")

    async def _malformed(self, http: httpx2.AsyncClient, dice: random.Random) -> None:
        answer = await http.post(f"{self.url}/v1/chat/completions", content=dice.choice(MALFORMED))
        if answer.status_code == 429:  # a schema that cannot be is found when its turn comes
            await self._is_refused(answer, dice)
        elif answer.status_code not in (400, 413) or "error" not in answer.json():
            self.account.fault(f"malformed: {answer.status_code} {answer.text[:200]}")
        else:
            self.account.add("malformed, told so")

    async def _half(self, _: httpx2.AsyncClient, dice: random.Random) -> None:
        """Half a request, left alone or left to the server's patience."""
        body = json.dumps(dice.choice(self.cases).body).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        sent = head % len(body) + body
        reader, writer = await asyncio.open_connection(*self.url.removeprefix("http://").split(":"))
        writer.write(sent[: dice.randrange(1, len(sent))])
        said = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(dice.choice((0.1, 90))):
                said = await reader.read()
        writer.close()
        if said and not said.startswith(b"HTTP/1.1 408 "):
            self.account.fault(f"half a request: {said[:200]!r}")
        self.account.add("half a request, told so" if said else "half a request, left")

    async def _hostile(self, _: httpx2.AsyncClient, dice: random.Random) -> None:
        await ATTACKS[dice.choice(HOSTILE)][0](self.url)
        self.account.add("hostile")

    async def _unread(self, _: httpx2.AsyncClient, dice: random.Random) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(dice.uniform(5, 60)):
                await ATTACKS["unread_streams"][0](self.url)
        self.account.add("unread")

    async def _is_refused(self, answer: httpx2.Response, dice: random.Random) -> bool:
        if answer.status_code == 200:
            return False
        await answer.aread()
        if answer.status_code == 429:
            self.account.add("queue full, told so")
            await asyncio.sleep(int(answer.headers["retry-after"]) * dice.uniform(1, 2))
        else:
            self.account.fault(f"{answer.status_code} {answer.text[:200]}")
        return True

    def _check(self, case: Case, text: str, num_tokens: int) -> None:
        if (text, num_tokens) == (case.text, case.num_tokens):
            self.account.add("right")
        else:
            self.account.fault(f"wrong: {text!r}, offline {case.text!r}")


async def read_stream(answer: httpx2.Response, pause_s: float = 0.0) -> tuple[str, int]:
    """The text and the number of tokens of a stream that must end well."""
    text, num_tokens, is_done = "", -1, False
    async for line in answer.aiter_lines():
        if not line.startswith("data: "):
            continue
        if is_done := line == "data: [DONE]":
            break
        chunk = json.loads(line[6:])
        if "error" in chunk:
            return chunk["error"]["message"], -1
        for choice in chunk["choices"]:
            text += choice["delta"].get("content", "")
        num_tokens = (chunk.get("usage") or {}).get("completion_tokens", num_tokens)
        if pause_s:
            await asyncio.sleep(pause_s)
    return (text, num_tokens) if is_done else (f"{text} (cut off)", -1)


async def watch(server: ServerProcess, samples: list[float]) -> None:
    """The server's resident memory in MB, every ten seconds."""
    while True:
        samples.append(server.resident_mb())
        await asyncio.sleep(10)


async def neighbour(server: ServerProcess, seconds: float) -> dict[str, Any]:
    """What another client than the crowd sees meanwhile, from a process of its own."""
    script = Path(__file__).parent / "neighbour.py"
    asked = ["--url", server.url, "--seconds", str(seconds), "--address", "127.0.0.3"]
    process = await asyncio.create_subprocess_exec(sys.executable, script, *asked, stdout=PIPE)
    told, _ = await process.communicate()
    figures: dict[str, Any] = json.loads(told)
    return figures


async def loaded(server: ServerProcess, cases: list[Case], args: argparse.Namespace) -> dict[str, Any]:
    """The load, and the server after it."""
    quiet = await neighbour(server, 20)
    load, samples = Load(server.url, cases, args.seed), []
    watching = asyncio.create_task(watch(server, samples))
    watched = asyncio.create_task(neighbour(server, args.seconds))
    await load.run(args.clients, args.seconds)
    watching.cancel()
    account = load.account
    end = perf_counter() + 10
    while (left := server.busy()) and perf_counter() < end:
        await asyncio.sleep(0.2)
    if left:
        account.fault(f"left in the server: {left}")
    async with httpx2.AsyncClient(timeout=PATIENCE_S) as http:
        flushed = await http.post(f"{server.url}/flush_cache")  # asserts the engine's integrity first
        if flushed.status_code != 200:
            account.fault(f"flush_cache: {flushed.status_code} {flushed.text}")
        for case in cases:
            told = (await http.post(f"{server.url}/v1/chat/completions", json=case.body)).json()
            load._check(case, told["choices"][0]["message"]["content"], told["usage"]["completion_tokens"])
    quarter = max(len(samples) // 4, 1)
    second, last = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    return {
        "seconds": args.seconds,
        "clients": args.clients,
        "outcomes": dict(account.outcomes),
        "faults": account.faults,
        "quiet_neighbour": quiet,
        "neighbour": await watched,
        "resident_mb": {
            "second_quarter": round(sum(second) / len(second), 1),
            "last_quarter": round(sum(last) / len(last), 1),
            "every_10_s": samples,
        },
    }


async def ended(server: ServerProcess, cases: list[Case], number: int) -> dict[str, int]:
    """Signal ``number`` to a server that answers 24 streams: what became of them."""
    account = Account()
    begun = asyncio.Semaphore(0)

    async def one(http: httpx2.AsyncClient, case: Case) -> None:
        body = case.body | {"stream": True, "stream_options": {"include_usage": True}}
        try:
            async with http.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
                begun.release()  # accepted
                text, num_tokens = await read_stream(answer)
        except httpx2.HTTPError:
            account.add("connection lost")
            return
        is_right = (text, num_tokens) == (case.text, case.num_tokens)
        account.add("right" if is_right else "told of an error" if "engine" in text else "connection lost")

    longest = sorted(cases, key=lambda case: -case.num_tokens)[:24]
    async with httpx2.AsyncClient(timeout=PATIENCE_S) as http, asyncio.TaskGroup() as group:
        for case in longest:
            group.create_task(one(http, case))
        for _ in longest:
            await begun.acquire()
        server.process.send_signal(number)
    await asyncio.to_thread(server.process.wait, 60)
    return dict(account.outcomes)


def endings(flags: list[str], cases: list[Case], seed: int) -> dict[str, Any]:
    """Ended under load without time to finish, and by kill -9, and served again on the same port."""
    figures: dict[str, Any] = {}
    with start_server([*flags, "--drain-seconds", "1"]) as server:
        figures["sigterm_1_second"] = asyncio.run(ended(server, cases, signal.SIGTERM))
    with start_server(flags) as server:
        asyncio.run(ended(server, cases, signal.SIGKILL))
    with start_server(flags, port=server.port) as again:
        figures["restart_s"] = round(again.started_s, 1)
        load = Load(again.url, cases, seed)
        asyncio.run(load.run(8, 10))
        figures["after_kill_9"] = dict(load.account.outcomes)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=8, help="of each task")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load-only", action="store_true", help="leave out how it ends and starts again")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    cases = offline_cases(args.model, args.dtype, args.prompts)
    flags = [args.model, "--dtype", args.dtype, "--max-queue", "24"]
    with start_server(flags) as server:
        figures = {"load": asyncio.run(loaded(server, cases, args))}
        print(json.dumps(figures), flush=True)
        if not args.load_only:
            figures["sigterm"] = asyncio.run(ended(server, cases, signal.SIGTERM))
    if not args.load_only:
        figures |= endings(flags, cases, args.seed)
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.write_text(json.dumps(figures | {"provenance": collect_provenance()}, indent=1) + "\n")
    text = json.dumps(figures)
    is_clean = "FAULT" not in text and "connection lost" not in text
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
