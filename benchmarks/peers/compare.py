"""Our server beside every peer: one closed-loop client, the same prompts, systems in turns, one table.

    python benchmarks/peers/compare.py up                    # start what is not up yet, wait until all answer
    python benchmarks/peers/compare.py measure --seconds 220 # a slice; the next call goes on where it stopped
    python benchmarks/peers/compare.py report
    python benchmarks/peers/compare.py down

`benchmarks/peers/run.sh` does all of it. A round is one group of prompts answered by every system; their order rotates
from round to round. Every group is asked of a server once, so no prefix cache knows its prompts. All answers have
the same length (ignore_eos), greedy. Servers that are not being asked are idle.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop
from systems import PEERS, System, all_systems, port_of

from flashdraft.bench.client import Client
from flashdraft.bench.online import Load, Target, measure
from flashdraft.bench.tables import number, table
from flashdraft.bench.tasks import TASKS, BenchPrompt, load_task
from flashdraft.intervals import ratio_interval
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

RESULTS = Path(__file__).parent.parent / "results" / "peers"
RUNNING = PEERS / "running.json"
MAX_TOKENS = 256  # of each answer
ROUNDS = {1: 5, 8: 2, 16: 2, 32: 2}  # groups by concurrency, each of as many prompts
_LONGEST_PROMPT = 1600  # characters: with its answer it fits into every server's slot
_START_S = 900
_BASE = "flashdraft AR"


def as_rounds(text: str) -> dict[int, int]:
    """``1=5,8=2``: five groups of one prompt, two of eight."""
    return {int(load): int(number) for load, number in (part.split("=") for part in text.split(","))}


def groups(wanted: dict[int, int]) -> Iterator[tuple[int, int, list[BenchPrompt]]]:
    """(concurrency, round, prompts): the tasks in turns, no prompt twice."""
    by_task = [[p for p in load_task(task, 60) if len(p.turns[0]) <= _LONGEST_PROMPT] for task in TASKS]
    mixed = iter([p for one in itertools.zip_longest(*by_task) for p in one if p])
    for idx in range(max(wanted.values())):
        for concurrency, rounds in wanted.items():
            if idx < rounds:
                yield concurrency, idx, list(itertools.islice(mixed, concurrency))


def chosen(names: str) -> list[System]:
    """Systems whose label has one of ``names`` in it; all without names."""
    wanted = [name for name in names.split(",") if name]
    return [s for s in all_systems() if not wanted or any(name in label(s) for name in wanted)]


def label(system: System) -> str:
    return f"{system.name} ({system.weights})"


def answers(system: System) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port_of(system)}/v1/models", timeout=5) as reply:
            return "data" in json.load(reply)
    except (OSError, ValueError):
        return False


def up(systems: list[System]) -> None:
    """One after the other: two that compile at a time would take the memory of both."""
    PEERS.mkdir(parents=True, exist_ok=True)
    running = json.loads(RUNNING.read_text()) if RUNNING.exists() else {}
    for system in systems:
        if answers(system):
            continue
        log = PEERS / f"server-{port_of(system)}.log"
        argv = [part.replace("{port}", str(port_of(system))) for part in system.argv]
        with log.open("w") as out:
            process = subprocess.Popen(
                argv, env=os.environ | system.env, stdout=out, stderr=out, start_new_session=True
            )
        running[label(system)] = process.pid
        RUNNING.write_text(json.dumps(running))
        started = time.monotonic()
        while not answers(system) and process.poll() is None and time.monotonic() - started < _START_S:
            time.sleep(1)
        state = "is up" if answers(system) else f"did not come up: {log}"
        print(f"{label(system)} {state} after {time.monotonic() - started:.0f} s", flush=True)


def down(systems: list[System]) -> None:
    """End what ``up`` started."""
    running = json.loads(RUNNING.read_text()) if RUNNING.exists() else {}
    for system in systems:
        if pid := running.pop(label(system), None):
            try:
                os.killpg(pid, signal.SIGTERM)
            except ProcessLookupError:
                print(f"{label(system)} had ended")
    RUNNING.write_text(json.dumps(running))


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(runs, rows)."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["run"] for line in lines if "run" in line], [line for line in lines if "run" not in line]


def measure_slice(
    systems: list[System], path: Path, seconds: float, wanted: dict[int, int], max_tokens: int
) -> bool:
    """Ask what no row holds yet until ``seconds`` are over; whether all is measured."""
    started = time.monotonic()
    runs, rows = read_rows(path)
    settings = {"max_tokens": max_tokens, "rounds": wanted, "greedy": True, "ignore_eos": True}
    if runs and runs[-1]["settings"] != json.loads(json.dumps(settings)):
        raise SystemExit(
            f"{path} was measured with {runs[-1]['settings']}, not {settings}: choose another --out"
        )
    provenance = collect_provenance()
    if runs and (sha := runs[-1]["provenance"]["git_sha"]) != provenance["git_sha"]:
        raise SystemExit(
            f"{path} holds rows of commit {sha}, this is {provenance['git_sha']}: choose another --out"
        )
    done = {(row["system"], row["concurrency"], row["round"]) for row in rows}
    alive = [system for system in systems if answers(system)]
    if missing := [label(s) for s in systems if s not in alive]:
        print(f"not up, left out: {', '.join(missing)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"run": {"settings": settings, "provenance": provenance}}) + "\n")
        for concurrency, idx, prompts in groups(wanted):
            order = [s for s in alive if s.most >= concurrency]
            first = idx % len(order) if order else 0
            for place, system in enumerate([*order[first:], *order[:first]]):
                if (label(system), concurrency, idx) in done:
                    continue
                if time.monotonic() - started > seconds:
                    return False
                try:
                    row = uvloop.run(ask(system, concurrency, prompts, max_tokens))
                except FailedError as error:
                    print(f"{error}; left out from here on", flush=True)
                    alive.remove(system)
                    continue
                where = {"system": label(system), "round": idx, "place": place}
                file.write(json.dumps(where | row) + "\n")
                file.flush()
                print(
                    f"x{concurrency} round {idx} {label(system)}: {row['output_tokens_per_s']:.1f} tokens/s,"
                    f" acceptance length {row['acceptance_length'] or 1:.2f}",
                    flush=True,
                )
    return True


class FailedError(Exception):
    """A system did not answer."""


async def ask(
    system: System, concurrency: int, prompts: list[BenchPrompt], max_tokens: int
) -> dict[str, Any]:
    params = SamplingParams(temperature=0.0, seed=0, max_tokens=max_tokens, ignore_eos=True)
    async with Client(f"http://127.0.0.1:{port_of(system)}") as client:
        row = await measure(client, "mixed", prompts, params, Load(concurrency), Target(), system.name)
    if row.num_failed:
        raise FailedError(f"{label(system)} failed at {concurrency}: {row.first_error}")
    kept = ("concurrency", "num_requests", "wall_s", "num_prompt_tokens", "num_output_tokens")
    told = {name: getattr(row, name) for name in (*kept, "output_tokens_per_s", "acceptance_length")}
    return told | {"ttft_p50_s": row.ttft_s.p50 if row.ttft_s else None}


def report(path: Path) -> str:
    """Tokens a second by system and concurrency, over our plain decoding's, and acceptance lengths."""
    runs, rows = read_rows(path)
    names = [name for name in map(label, all_systems()) if any(row["system"] == name for row in rows)]
    loads = sorted({row["concurrency"] for row in rows})
    base = next(name for name in names if name.startswith(_BASE))
    lines = []
    for name in names:
        cells = [cell(rows, name, base, load) for load in loads]
        own = [row for row in rows if row["system"] == name and row["acceptance_length"]]
        gained = sum(row["num_output_tokens"] - row["num_requests"] for row in own)
        rounds = sum(
            (row["num_output_tokens"] - row["num_requests"]) / row["acceptance_length"] for row in own
        )
        ttft = [r["ttft_p50_s"] for r in rows if r["system"] == name and r["concurrency"] == loads[0]]
        streams = not name.startswith(("transformers", "dflash"))
        lines.append(
            [
                name,
                *cells,
                number(gained / rounds if rounds else None, ".2f"),
                number(sorted(ttft)[len(ttft) // 2] if ttft and streams else None, ".0f", 1e3),
            ]
        )
    header = ["system", *(f"{load} at a time" for load in loads), "acceptance length", "TTFT ms"]
    last, settings = runs[-1]["provenance"], runs[-1]["settings"]
    asked = ", ".join(f"{rounds} of {load}" for load, rounds in settings["rounds"].items())
    notes = (
        f"Output tokens a second, prefill included; in brackets the ratio to {base} on the same prompts and its 95 %"
        f" interval over rounds. {settings['max_tokens']} tokens an answer (ignore_eos), greedy, one streaming client"
        f" on the same {last['num_threads']} cores. Rounds: {asked} prompts. TTFT: median at concurrency 1. Mended:"
        " with vllm_cpu_context_norm.patch, without which vLLM's CPU build drafts worse than the drafter can."
    )
    told = "\n".join(f"- {name}: {value}" for name, value in last.items())
    return f"# Beside the peers\n\n{notes}\n\n{table(header, lines)}\n\n## Where the numbers come from\n\n{told}\n"


def cell(rows: list[dict[str, Any]], name: str, base: str, load: int) -> str:
    found = {
        (row["system"], row["round"]): (row["num_output_tokens"], row["wall_s"])
        for row in rows
        if row["concurrency"] == load
    }
    idxs = [idx for system, idx in found if system == name and (base, idx) in found]
    if not idxs:
        return "–"
    own, others = [found[name, idx] for idx in idxs], [found[base, idx] for idx in idxs]
    speed, other = (sum(t for t, _ in one) / sum(s for _, s in one) for one in (own, others))
    interval = ratio_interval(idxs, own, others)
    told = f", {interval[0]:.2f} to {interval[1]:.2f}" if interval and name != base else ""
    return f"{speed:.1f} ({speed / other:.2f}x{told})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("up", "measure", "report", "down"))
    parser.add_argument("--systems", default="", help="parts of their labels, with commas; all without")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="measure: begin nothing new after"
    )
    parser.add_argument(
        "--rounds",
        type=as_rounds,
        default=ROUNDS,
        help="measure: groups by concurrency, 1=5,8=2 for instance",
    )
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="measure: of each answer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    systems, rows = chosen(args.systems), args.out / "rows.jsonl"
    if args.verb == "up":
        up(systems)
    elif args.verb == "down":
        down(systems)
    elif args.verb == "measure":
        print(
            "all is measured"
            if measure_slice(systems, rows, args.seconds, args.rounds, args.max_tokens)
            else "there is more to measure"
        )
    else:
        (args.out / "report.md").write_text(report(rows))
        print(report(rows))


if __name__ == "__main__":
    main()
