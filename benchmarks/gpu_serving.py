"""What a server on one GPU is expected to do, at a published pair's shape with random weights.

Usage: gpu_serving.py OUT.jsonl [pair]. How long neighbours wait for their next token while prompts of 32k tokens are
computed, and a short prompt for its first; a second turn over 8k cached tokens beside the first; prompts of 64 to 512
tokens, with what the host launches and where its time goes. One JSON object a line.
"""

import cProfile
import pstats
import sys
import time

import torch
from gpu_steps import Bench

from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.sampling_params import SamplingParams


def percentile(values, share):
    """Of ``values``, the one that ``share`` of them do not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def engine_of(bench, tokens, caching, **config):
    """An engine of 16 requests in pages for ``tokens``."""
    config = EngineConfig(max_running=16, prefix_caching=caching, num_pages=tokens // 16, **config)
    engine = Engine(bench.target, None, config, (), None, 1)
    engine.runner.record_prompts()  # as at a server's start
    return engine


def greedy(max_tokens):
    """Answers of exactly so many tokens."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def gaps_of(engine, names, until):
    """Seconds between tokens of ``names``, as they come, until ``until`` says so."""
    last, gaps = {}, []
    while not until():
        news = engine.step()
        now = time.perf_counter()
        for out in news:
            if out.request_id in names and out.token_ids:
                if out.request_id in last:
                    gaps.append(now - last[out.request_id])
                last[out.request_id] = now
        yield gaps, news, now


def neighbours(bench):
    """Four requests decode; then four prompts of 8k tokens come, and one of 64."""
    engine = engine_of(bench, 48 * 1024, False)
    names = [f"neighbour-{idx}" for idx in range(4)]
    for name, ids in zip(names, bench.prompts(4, 256), strict=True):
        engine.add_request(name, ids, greedy(4000))
    for _ in range(20):
        engine.step()
    steps = iter(range(100))
    quiet = next(
        iter([list(gaps) for gaps, _, _ in gaps_of(engine, names, lambda: next(steps, None) is None)][-1:])
    )
    for turn in range(2):  # the second knows its kernels
        for idx, ids in enumerate(bench.prompts(4, 8192)):
            engine.add_request(f"long-{turn}-{idx}", ids, greedy(1))
        for _ in range(3):
            engine.step()
        engine.add_request(f"short-{turn}", bench.prompts(1, 64)[0], greedy(1))
        asked, first_s, busy = time.perf_counter(), None, []
        waits = lambda turn=turn: not any(name.startswith(f"long-{turn}") for name in engine.requests)  # noqa: E731
        for gaps, news, now in gaps_of(engine, names, waits):
            busy = gaps
            if any(out.request_id == f"short-{turn}" for out in news):
                first_s = now - asked
    bench.row(
        "neighbours", 4,
        quiet_p99_ms=round(1e3 * percentile(quiet, 0.99), 1),
        busy_p50_ms=round(1e3 * percentile(busy, 0.5), 1),
        busy_p99_ms=round(1e3 * percentile(busy, 0.99), 1),
        prefill_s=round(time.perf_counter() - asked, 2),
        short_first_s=round(first_s or -1.0, 3),
    )  # fmt: skip


def second_turn(bench):
    """8k tokens, and 8k and 64 more that begin with them."""
    engine = engine_of(bench, 24 * 1024, True)
    seconds, cached = [], []
    for turn in range(2):
        first = bench.prompts(1, 8192)[0]
        first[0] = 1000 + turn
        for ids in (first, first + bench.prompts(1, 64)[0]):
            engine.add_request("turn", ids, greedy(1))
            started = time.perf_counter()
            last = list(engine.run())[-1]
            seconds.append(time.perf_counter() - started)
            cached.append(last.num_cached_tokens)
    bench.row(
        "second turn", 1, cold_s=round(seconds[2], 3), cached_s=round(seconds[3], 3), cached_tokens=cached[3]
    )


def launches_of(work):
    """Kernels, graphs and copies that the host starts in ``work``, by the profiler; None: it saw none."""
    with torch.profiler.profile() as profile:
        work()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events()]
    found = {
        "kernels": sum("LaunchKernel" in name for name in names),
        "graphs": names.count("cudaGraphLaunch"),
        "copies": sum(name.startswith(("cudaMemcpy", "cudaMemset")) for name in names),
    }
    return found if any(found.values()) else None


def chunk(bench):
    """Prompts alone: ``step_ms`` until its token is there, ``host_ms`` until the host has started its forward."""
    engine, host_s = engine_of(bench, 4096, False), []
    forward = engine.runner.forward

    def timed(*given):
        began = time.perf_counter()
        step = forward(*given)
        host_s.append(time.perf_counter() - began)
        return step

    engine.runner.forward = timed
    for length in (64, 128, 256, 512):
        host_s.clear()

        def run(name="chunk", length=length):
            engine.add_request(name, bench.prompts(1, length)[0], greedy(1))
            list(engine.run())

        times = []
        for _ in range(4):
            torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        step_ms, host_ms = (round(1e3 * min(seconds), 1) for seconds in (times, host_s))
        bench.row("chunk", 1, tokens=length, step_ms=step_ms, host_ms=host_ms, launches=launches_of(run))
    profile = cProfile.Profile()
    profile.runcall(run)
    pstats.Stats(profile).sort_stats("tottime").print_stats(22)


def main():
    bench = Bench(sys.argv[2] if len(sys.argv) > 2 else "qwen3.5-27b", sys.argv[1], 400, "bf16")
    for job in (chunk, second_turn, neighbours):
        try:
            job(bench)
        except Exception as error:
            bench.say("failed", job.__name__, repr(error)[:500])


if __name__ == "__main__":
    main()
