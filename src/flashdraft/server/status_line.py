"""A line every few seconds while answers are under way: how fast, how many, what drafts are worth, how full."""

import asyncio
from time import perf_counter
from typing import Any

from flashdraft.engine.types import EngineStats
from flashdraft.server.logs import log_event
from flashdraft.server.metrics import Totals
from flashdraft.server.service import Service

EVERY_S = 10.0


async def report_status(service: Service, every_s: float = EVERY_S) -> None:
    """Write a line every ``every_s`` seconds until cancelled; none for a time in which nothing happened."""
    before, started = service.metrics.totals(), perf_counter()
    while True:
        await asyncio.sleep(every_s)
        now, ended = service.metrics.totals(), perf_counter()
        if fields := status_of(before, now, ended - started, service.engine.stats()):
            log_event("status", **fields)
        before, started = now, ended


def status_of(before: Totals, now: Totals, seconds: float, stats: EngineStats) -> dict[str, Any] | None:
    """The line's fields for the time between two counts; None where nothing happened."""
    if now == before and not stats.num_running and not stats.num_waiting:
        return None
    num_rounds = now.rounds - before.rounds
    return {
        "output_tokens_per_s": round((now.output_tokens - before.output_tokens) / seconds, 1),
        "prompt_tokens_per_s": round((now.prompt_tokens - before.prompt_tokens) / seconds, 1),
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "acceptance_length": round((now.round_tokens - before.round_tokens) / num_rounds, 2)
        if num_rounds
        else None,
        "cache_used": f"{1 - stats.num_free_pages / max(stats.num_pages, 1):.0%}",
    }
