"""What prompts cost whoever decodes beside them, and how fast rollouts are: the embedded pair, on a CPU or a GPU.

    python benchmarks/prompt_neighbours.py OUT.jsonl
    python benchmarks/prompt_neighbours.py OUT.jsonl --device cuda --rows 4096

Four requests decode, then long prompts come, and a short one. By every rule of RULES in turns, on one engine each: how
long the four wait for their next token (p99 over what it is without prompts), and the short one for its first. Then
rollouts of so many rows, which begin and end at different times. One JSON object a line.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch

from flashdraft.data.engine_answers import for_many_rows, rollout_config
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

RULES = {
    "512 tokens": {"max_prompt_tokens": 512},
    "no limit": {},
    "2 times": {"max_prefill_slowdown": 2.0},
    "2.5 times": {"max_prefill_slowdown": 2.5},
    "3 times": {"max_prefill_slowdown": 3.0},
}
NUM_NEIGHBOURS, SHORT = 4, 64
MOST_SAID = 4000  # tokens of a neighbour's answer


def percentile(values, share):
    """Of ``values``, the one that ``share`` of them do not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def greedy(max_tokens):
    """Answers of exactly so many tokens."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def prompt_of(target, length, seed):
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, target.config.vocab_size - 8, (length,), generator=generator).tolist()


class Neighbours:
    """An engine by one rule, and what its neighbours see of ``num_long`` prompts of ``length`` tokens."""

    def __init__(self, target, num_long, length, rule):
        self.target, self.num_long, self.length, self.rule = target, num_long, length, rule
        self.most_said = min(MOST_SAID, target.config.max_position_embeddings - 512)
        tokens = NUM_NEIGHBOURS * (256 + self.most_said) + num_long * (length + 16) + 2 * SHORT
        config = EngineConfig(
            max_running=16, prefix_caching=False, num_pages=-(-tokens // 16) + 16, **RULES[rule]
        )
        self.engine = Engine(target, None, config, (), None, 1)
        self.engine.runner.record_prompts()  # as at a server's start
        self.quiet, self.busy, self.first_s, self.prefill_s = [], [], [], []
        self._last = {}  # when each neighbour's last token came

    def turn(self, counts):
        """One turn; ``counts``: whether it goes into the figures, or makes recordings and kernels ready."""
        if not counts:
            kept = self.quiet, self.busy, self.first_s, self.prefill_s
            self.quiet, self.busy, self.first_s, self.prefill_s = [], [], [], []
        for idx in range(NUM_NEIGHBOURS):
            prompt = prompt_of(self.target, 256, idx)
            self.engine.add_request(f"neighbour-{idx}", prompt, greedy(self.most_said))
        while any(request.is_prefilling for request in self.engine.requests.values()):
            self._step([])
        for step in range(110):
            self._step(self.quiet if step >= 10 else [])
        started = time.perf_counter()
        names = [f"long-{idx}" for idx in range(self.num_long)]
        for idx, name in enumerate(names):
            self.engine.add_request(name, prompt_of(self.target, self.length, idx), greedy(1))
        for _ in range(3):
            self._step(self.busy)
        asked = time.perf_counter()
        self.engine.add_request("short", prompt_of(self.target, SHORT, 99), greedy(1))
        while any(name in self.engine.requests for name in (*names, "short")):
            if "short" in self._step(self.busy):
                self.first_s.append(time.perf_counter() - asked)
        self.prefill_s.append(time.perf_counter() - started)
        for name in list(self.engine.requests):
            self.engine.abort(name)
        self.engine.step()
        if not counts:
            self.quiet, self.busy, self.first_s, self.prefill_s = kept

    def _step(self, gaps):
        """One step: adds to ``gaps`` what neighbours waited for its tokens; returns who had tokens."""
        news = [output.request_id for output in self.engine.step() if output.token_ids]
        now = time.perf_counter()
        for name in news:
            if name.startswith("neighbour"):
                gaps.append(now - self._last.get(name, now))
                self._last[name] = now
        return news

    def figures(self):
        """Of all turns that count."""
        quiet, busy = (percentile(gaps, 0.99) for gaps in (self.quiet, self.busy))
        return {
            "rule": self.rule,
            "prompts": f"{self.num_long} x {self.length}",
            "quiet_p99_ms": round(1e3 * quiet, 1),
            "busy_p50_ms": round(1e3 * percentile(self.busy, 0.5), 1),
            "busy_p99_ms": round(1e3 * busy, 1),
            "p99_ratio": round(busy / quiet, 2),
            "prefill_s": round(max(self.prefill_s), 2),
            "short_first_s": round(max(self.first_s), 3),
        }


def neighbours(target, num_long, length, rules, turns, say):
    """A row of figures for each rule, their turns interleaved."""
    every = [Neighbours(target, num_long, length, rule) for rule in rules]
    for turn in range(1 + turns):
        for one in every:
            one.turn(turn > 0)
    for one in every:
        say("neighbours", NUM_NEIGHBOURS, **one.figures())


class Rollouts:
    """``num_rows`` answers of 32 to 256 tokens at a time, each of which makes way for the next."""

    def __init__(self, target, num_rows):
        self.target, self.num_rows = target, num_rows
        self.engine = Engine(target, None, rollout_config(num_rows, 384), (), None, 1)
        self.random, self.count = random.Random(0), 0
        self.asked = {}  # tokens of prompts without a first token yet

    def step(self):
        """Rows and tokens of one step, and tokens of prompts that it ended."""
        while len(self.engine.requests) < 2 * self.num_rows:
            name, length = str(self.count), self.random.randrange(32, 128)
            prompt = prompt_of(self.target, length, self.count)
            self.engine.add_request(name, prompt, greedy(self.random.randrange(32, 256)))
            self.asked[name] = length
            self.count += 1
        news = [output for output in self.engine.step() if output.token_ids]
        prompts = sum(self.asked.pop(output.request_id, 0) for output in news)
        return len(news), sum(len(output.token_ids) for output in news), prompts


def rollouts(target, num_rows, seconds, say):
    """Steps and tokens a second, of ``seconds``, once nine rows of ten decode or as long has passed."""
    every, started = Rollouts(target, num_rows), time.perf_counter()
    with for_many_rows():
        while every.step()[0] < 0.9 * num_rows and time.perf_counter() - started < seconds:
            pass
        filled, found = time.perf_counter(), []
        while time.perf_counter() - filled < seconds:
            found.append(every.step())
        took = time.perf_counter() - filled
    rows, tokens, prompts = (sum(one) for one in zip(*found, strict=True))
    say(
        "rollouts", num_rows, steps_per_s=round(len(found) / took, 2), output_tokens_per_s=round(tokens / took),
        prompt_tokens_per_s=round(prompts / took), rows_a_step=round(rows / len(found)),
        fill_s=round(filled - started, 1),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--long", type=int, nargs=2, default=[4, 1024], help="how many prompts, of how many tokens"
    )
    parser.add_argument("--turns", type=int, default=1, help="that count, after one that does not")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=["512 tokens", "2.5 times"])
    parser.add_argument("--rows", type=int, default=0, help="of rollouts; 0: none")
    parser.add_argument("--seconds", type=float, default=30, help="of rollouts")
    args = parser.parse_args()
    target, provenance = LLM(draft=None, device=args.device).target, collect_provenance(args.device)

    def say(method, requests, **values):
        row = {"pair": "135m", "method": method, "requests": requests, **values}
        print(json.dumps(row), flush=True)
        with args.out.open("a") as file:
            file.write(json.dumps(row | {"provenance": provenance}) + "\n")

    if args.long[0]:
        neighbours(target, *args.long, args.rules, args.turns, say)
    if args.rows:
        rollouts(target, args.rows, args.seconds, say)


if __name__ == "__main__":
    main()
