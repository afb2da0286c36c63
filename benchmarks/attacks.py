"""What one client can do to another: a neighbour's answers and the server's memory while somebody misbehaves.

    python benchmarks/attacks.py --label after --out benchmarks/results/attacks.json
    python benchmarks/attacks.py --label before --source OTHER_CHECKOUT/src --out benchmarks/results/attacks.json

Serves the embedded pair. Each attack runs as a process of its own at nice 10 and from an address of its own, with
generated input that any client may send; meanwhile the neighbour (neighbour.py) asks as usual. Then, after a while of
quiet, memory is read again. Adds its rows to the file, and writes a table of all of them beside it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import httpx2
from neighbour import Neighbour
from served_process import ServerProcess, start_server

from flashdraft.provenance import collect_provenance

HI = [{"role": "user", "content": "hello, " * 12}]
SLOW = "root ::= " + " | ".join(f'[a-z]{{1,{i}}} "{i}"' for i in range(1, 400))
ADDRESS = "127.0.0.2"  # where the attackers are: another client than the neighbour
Attack = Callable[[str], Awaitable[None]]


async def post(url: str, path: str, body: Any, timeout: float = 60) -> None:
    """Ask once, and care for nothing."""
    with contextlib.suppress(httpx2.HTTPError):
        away = httpx2.AsyncHTTPTransport(local_address=ADDRESS)
        async with httpx2.AsyncClient(timeout=timeout, transport=away) as http:
            await http.post(url + path, json=body)


async def nothing(url: str) -> None:  # noqa: ARG001
    """The quiet server."""
    await asyncio.sleep(0.2)


async def template_kwargs(url: str) -> None:
    """Settings of the tokenizer among the template's variables."""
    more = {"truncation": True, "max_length": 3}
    await post(url, "/v1/chat/completions", {"messages": HI, "chat_template_kwargs": more, "max_tokens": 1})


async def many_answers(url: str) -> None:
    """More answers than may be asked for."""
    await post(url, "/v1/completions", {"prompt": [[1]] * 1000, "n": 100, "max_tokens": 1})


async def long_texts(url: str) -> None:
    """Texts far beyond the context, whose clients leave."""
    await post(url, "/v1/completions", {"prompt": "some words, " * 250_000, "max_tokens": 1}, timeout=3)


async def many_values(url: str) -> None:
    """A million ids to make a text of."""
    await post(url, "/detokenize", {"tokens": [5] * 1_000_000})


async def many_messages(url: str) -> None:
    """A chat of as many messages as the body may hold."""
    await post(url, "/v1/chat/completions", {"messages": [{"role": "user", "content": ""}] * 60_000})


async def slow_grammars(url: str) -> None:
    """A grammar that takes minutes to be made ready, each time another."""
    grammar = f"{SLOW} | {json.dumps(str(perf_counter()))}"
    await post(url, "/v1/completions", {"prompt": "a", "max_tokens": 2, "guided_grammar": grammar})


async def long_head(url: str) -> None:
    """A header without end."""
    with contextlib.suppress(OSError):
        reader, writer = await connect(url)
        writer.write(b"GET /health HTTP/1.1\r\nA: ")
        for _ in range(400):
            writer.write(b"x" * 8192)
            await writer.drain()
        await reader.read(1)
        writer.close()


async def half_heads(url: str) -> None:
    """Connections that begin a request."""
    with contextlib.suppress(OSError):
        _, writer = await connect(url)
        writer.write(b"GET /health HT")
        await asyncio.sleep(20)
        writer.close()


async def unread_streams(url: str) -> None:
    """Streams that nobody reads."""
    asked = {"prompt": "a", "n": 16, "stream": True, "max_tokens": 2000, "logprobs": 5, "ignore_eos": True}
    body = json.dumps(asked).encode()
    with contextlib.suppress(OSError):
        reader, writer = await connect(url)
        reader._transport.pause_reading()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        try:
            await asyncio.sleep(600)
        finally:
            writer.close()


ATTACKS: dict[str, tuple[Attack, int]] = {  # and how many clients at once
    "quiet": (nothing, 1),
    "template_kwargs": (template_kwargs, 4),
    "many_answers": (many_answers, 1),
    "long_head": (long_head, 2),
    "half_heads": (half_heads, 150),
    "long_texts": (long_texts, 6),
    "many_values": (many_values, 2),
    "many_messages": (many_messages, 2),
    "slow_grammars": (slow_grammars, 2),
    "unread_streams": (unread_streams, 10),
}


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection without a client's manners."""
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port), local_addr=(ADDRESS, 0))


async def attack(url: str, name: str, seconds: float) -> None:
    """Its clients, one request after the other, for ``seconds``."""
    act, num_clients = ATTACKS[name]
    print("begun", flush=True)

    async def client() -> None:
        while True:
            await act(url)
            await asyncio.sleep(0.05)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2 * seconds):  # it is ended before
            await asyncio.gather(*(client() for _ in range(num_clients)))


def suffer(server: ServerProcess, name: str, seconds: float) -> dict[str, Any]:
    """A row: what the neighbour saw, and memory before and at most."""
    before = server.resident_mb()
    command = [sys.executable, __file__, "--attack", name, "--url", server.url, "--seconds", str(seconds)]
    process = subprocess.Popen(command, preexec_fn=lambda: os.nice(10), stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()  # it has begun
    neighbour, most = Neighbour(server.url), [before]

    async def watch() -> None:
        watching = asyncio.create_task(neighbour.watch(seconds))
        while not watching.done():
            most.append(server.resident_mb())
            await asyncio.sleep(0.2)
        await watching

    asyncio.run(watch())
    process.kill()
    process.wait()
    return {"attack": name, **neighbour.figures(), "before_mb": round(before), "most_mb": round(max(most))}


def measure(name: str, args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Run an attack on a server of its own. What is returned waits, reads memory again and gives the row."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            start_server(["--max-running-requests", "16", "--context-length", "4096"])
        )
        asyncio.run(Neighbour(server.url).watch(3))  # the first answers take longer
        row = {"label": args.label, **suffer(server, name, args.seconds)}
        kept = stack.pop_all()

    def settled() -> dict[str, Any]:
        with kept:
            sleep(args.settle)
            after = round(server.resident_mb())
            server.process.kill()  # it may be busy for minutes
        return row | {"after_mb": after}

    return settled


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown, an attack's before and after side by side."""
    lines = [
        "A neighbour asks /health every 50 ms and for 8 tokens again and again, each time on a new connection, while"
        " one client misbehaves at nice 10. Compare an attack with the quiet server of the same source, not with other"
        " tables: machines differ, and were busy with other work. `python benchmarks/attacks.py` makes them.",
        "",
        "| attack | source | /health p99 (ms) | /health most (ms) | completion, median (s) | over the quiet one |"
        " completion, most (s) | failed | memory before, most, after (MB) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    quiet = {row["label"]: row["completion_median_s"] for row in rows if row["attack"] == "quiet"}
    for name in ATTACKS:
        of_attack = [row for row in rows if row["attack"] == name]
        for row in sorted(of_attack, key=lambda row: (row["label"] != "before", row["label"])):
            memory = " / ".join(str(row[key]) for key in ("before_mb", "most_mb", "after_mb"))
            times = (
                row["health_p99_ms"],
                row["health_max_ms"],
                row["completion_median_s"],
                f"{row['completion_median_s'] / quiet[row['label']]:.2f}" if row["label"] in quiet else "",
                row["completion_max_s"],
            )
            cells = [ATTACKS[name][0].__doc__.rstrip("."), row["label"], *times, row["failures"], memory]  # type: ignore[union-attr]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--label", default="after", help="of the rows: before, after")
    parser.add_argument(
        "--source", type=Path, help="src folder of the checkout that serves; left out: this one"
    )
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--settle", type=float, default=60, help="quiet seconds before memory is read again")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.attack:
        asyncio.run(attack(args.url, args.attack, args.seconds))
        return
    if args.source:
        os.environ["PYTHONPATH"] = str(args.source.resolve())
    names = args.attacks.split(",")
    with ThreadPoolExecutor(len(names)) as settling:  # an idle server is in nobody's way
        rows = [one.result() for one in [settling.submit(measure(name, args)) for name in names]]
    for row in rows:
        print(json.dumps(row), flush=True)
    if args.out:
        kept = json.loads(args.out.read_text()) if args.out.is_file() else {"rows": [], "provenance": {}}
        names = {row["attack"] for row in rows}
        kept["rows"] = [
            r for r in kept["rows"] if r["label"] != args.label or r["attack"] not in names
        ] + rows
        place = args.source or Path(__file__).parent
        served = subprocess.run(["git", "-C", place, "rev-parse", "HEAD"], capture_output=True, text=True)
        kept["provenance"][args.label] = collect_provenance() | {"served_git_sha": served.stdout.strip()}
        args.out.write_text(json.dumps(kept, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(kept["rows"]))


if __name__ == "__main__":
    main()
