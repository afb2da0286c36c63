"""What a neighbour sees of a server while others use or abuse it: /health every 50 ms, and short completions.

    python benchmarks/neighbour.py --url http://127.0.0.1:8000 --seconds 20

Run so beside a load: whoever asks in the load's own process waits for that process too.
"""

import argparse
import asyncio
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

_EVERY_S = 0.05
_PROMPT = "The capital of France is"
_NUM_TOKENS = 8


@dataclass
class Neighbour:
    """Seconds that each answer took; one that did not come within ``limit_s`` counts as that."""

    url: str
    limit_s: float = 30.0
    address: str = "127.0.0.1"  # where it asks from
    health_s: list[float] = field(default_factory=list)
    completion_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def watch(self, seconds: float) -> None:
        """Ask for ``seconds``, each time on a connection of its own."""
        end = perf_counter() + seconds
        await asyncio.gather(self._ask_health(end), self._ask_completion(end))

    def figures(self) -> dict[str, Any]:
        """Milliseconds and seconds for a table."""
        return {
            "health_p99_ms": round(1000 * percentile(self.health_s, 0.99), 1),
            "health_max_ms": round(1000 * max(self.health_s), 1),
            "completion_median_s": round(statistics.median(self.completion_s), 3),
            "completion_max_s": round(max(self.completion_s), 3),
            "completions": len(self.completion_s),
            "failures": len(self.failures),
            "first_failures": self.failures[:3],
        }

    async def _ask_health(self, end: float) -> None:
        while perf_counter() < end:
            started = perf_counter()
            await self._timed(self.health_s, "GET", "/health", None)
            await asyncio.sleep(max(0.0, _EVERY_S - (perf_counter() - started)))

    async def _ask_completion(self, end: float) -> None:
        body = {"prompt": _PROMPT, "max_tokens": _NUM_TOKENS, "temperature": 0, "ignore_eos": True}
        while perf_counter() < end:
            await self._timed(self.completion_s, "POST", "/v1/completions", body)
            await asyncio.sleep(0.2)

    async def _timed(self, to: list[float], method: str, path: str, body: Any) -> None:
        started = perf_counter()
        try:
            async with asyncio.timeout(self.limit_s):
                answer = await self._ask(method, path, json.dumps(body).encode() if body else b"")
            if not answer.startswith(b"HTTP/1.1 200 "):
                self.failures.append(f"{path}: {answer[:200]!r}")
        except (OSError, TimeoutError) as error:
            self.failures.append(f"{path}: {type(error).__name__}")
        to.append(perf_counter() - started)

    async def _ask(self, method: str, path: str, body: bytes) -> bytes:
        """The whole answer, read without a client's own work: what it would cost is not the server's."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=(self.address, 0))
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            return await reader.read()
        finally:
            writer.close()


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--address", default="127.0.0.1", help="where it asks from")
    args = parser.parse_args()
    neighbour = Neighbour(args.url, address=args.address)
    asyncio.run(neighbour.watch(args.seconds))
    print(json.dumps(neighbour.figures()))


if __name__ == "__main__":
    main()
