"""What HTTP costs: tokens a second through the server against the offline engine, on the same requests.

    python benchmarks/server_overhead.py --out benchmarks/results/server_overhead.json

Two processes on one machine, the engine in this one and a server, take turns: one request at a time, then 32 at once,
each round with prompts of its own: at most 4 rounds. Both decode greedily with blocks of one fixed length, to the same
number of tokens. Answers over HTTP are streamed, a chunk each step, and read as they come by the lightest client there
is, bare sockets in one thread: it takes its time from the same cores, and is no part of the server. Beside the rates
stands what each process used of the processors, which other work on the machine changes less (with OMP_NUM_THREADS=1:
threads that wait for one another spin).
"""

import argparse
import json
import selectors
import socket
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from served_process import start_server

from flashdraft.bench.tasks import load_task
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

Conversation = list[dict[str, str]]


def offline(llm: LLM, chats: list[Conversation], concurrency: int, num_tokens: int) -> float:
    """Tokens a second of the engine in this process."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    started = perf_counter()
    for at in range(0, len(chats), concurrency):
        llm.chat(chats[at : at + concurrency], params)
    return len(chats) * num_tokens / (perf_counter() - started)


def served(url: str, chats: list[Conversation], concurrency: int, body: dict[str, Any]) -> float:
    """Tokens a second through HTTP, the same requests in the same groups."""
    host, _, port = url.removeprefix("http://").partition(":")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    started = perf_counter()
    for at in range(0, len(chats), concurrency):
        with selectors.DefaultSelector() as unread:
            for chat in chats[at : at + concurrency]:
                asked = json.dumps(body | {"messages": chat, "stream": True}).encode()
                connection = socket.create_connection((host, int(port)))
                connection.sendall(head % len(asked) + asked)
                unread.register(connection, selectors.EVENT_READ, bytearray())
            while unread.get_map():
                for key, _ in unread.select():
                    read_some(unread, key)
    return len(chats) * body["max_tokens"] / (perf_counter() - started)


def read_some(unread: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """What came of one answer; at its end it must be whole."""
    connection: socket.socket = key.fileobj  # type: ignore[assignment]
    if news := connection.recv(1 << 16):
        key.data.extend(news)
        return
    is_whole = key.data.startswith(b"HTTP/1.1 200 ") and b"data: [DONE]" in key.data
    assert is_whole, bytes(key.data[-300:])
    unread.unregister(connection)
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--block-size", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    prompts = iter([prompt.turns[0] for task in ("gsm8k", "mt-bench") for prompt in load_task(task, 128)])
    llm = LLM(block_size=args.block_size)
    body = {"max_tokens": args.tokens, "temperature": 0, "ignore_eos": True}
    rows: list[dict[str, float]] = []
    with start_server(["--block-size", str(args.block_size)]) as server:
        for round_number in range(args.rounds + 1):  # the first warms up
            for concurrency, count in ((1, 8), (32, 32)):
                chats = [[{"role": "user", "content": next(prompts)}] for _ in range(count)]
                row: dict[str, float] = {"concurrency": concurrency}
                ways = ["offline", "http"] if round_number % 2 else ["http", "offline"]
                for way in ways:
                    cpu_s = process_time if way == "offline" else server.cpu_s
                    before = cpu_s()
                    if way == "offline":
                        row[way] = offline(llm, chats, concurrency, args.tokens)
                    else:
                        row[way] = served(server.url, chats, concurrency, body)
                    row[f"{way}_cpu_s"] = round(cpu_s() - before, 2)
                print(json.dumps(row), flush=True)
                if round_number:
                    rows.append(row)
    ratios: dict[str, list[float]] = {"1": [], "32": []}
    cpu_ratios: dict[str, list[float]] = {"1": [], "32": []}
    for row in rows:
        ratios[str(row["concurrency"])].append(round(row["http"] / row["offline"], 4))
        cpu_ratios[str(row["concurrency"])].append(round(row["offline_cpu_s"] / row["http_cpu_s"], 4))
    figures = {
        "http_over_offline_median": {c: round(median(each), 4) for c, each in ratios.items()},
        "offline_over_http_cpu_median": {c: round(median(each), 4) for c, each in cpu_ratios.items()},
        "http_over_offline": ratios,
        "offline_over_http_cpu": cpu_ratios,
        "tokens_per_second": rows,
        "settings": {"tokens": args.tokens, "block_size": args.block_size, "rounds": args.rounds},
    }
    print(json.dumps({name: figures[name] for name in figures if name.endswith("median")}))
    if args.out:
        args.out.write_text(json.dumps(figures | {"provenance": collect_provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
