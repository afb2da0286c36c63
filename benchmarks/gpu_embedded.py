"""The embedded pair on one GPU: the same tokens by every method, and steps and tokens a second.

    python benchmarks/gpu_embedded.py OUT.jsonl PROMPTS.json --methods plain b16 auto auto-chains
    python benchmarks/gpu_embedded.py OUT.jsonl PROMPTS.json --num-prompts 200 --max-tokens 64 --whole   # for the bits

PROMPTS.json: lists of token ids. Every answer is compared with plain decoding's of one request alone; sampled ones with
sampled plain decoding of the same seeds. Rates are of steps in which all decode, over the same tokens of each request,
and with prompts of whole answers. ``auto`` is the engine's own; ``auto-chains`` verifies no trees in rounds,
``auto-tree16`` trees of one block's tokens.
"""

import argparse
import json
import time
import traceback
from pathlib import Path
from statistics import harmonic_mean, mean, median

from flashdraft.bench.closed_loop import answer_all
from flashdraft.engine.engine import Engine
from flashdraft.engine.recorded_trees import NO_TREES, FewTrees
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

SPAN, PASSES = 128, 8  # tokens of each request whose steps are counted; passes that count
GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.6, "top_p": 0.95}
METHODS = {  # block, tokens of trees, sampling
    "plain": (1, None, GREEDY),
    "b8": (8, None, GREEDY),
    "b16": (16, None, GREEDY),
    "auto": ("auto", None, GREEDY),
    "auto-chains": ("auto", None, GREEDY),
    "auto-tree16": ("auto", None, GREEDY),
    "tree16": (16, 16, GREEDY),
    "tree32": (16, 32, GREEDY),
    "plain-sampled": (1, None, SAMPLED),
    "b16-sampled": (16, None, SAMPLED),
    "tree16-sampled": (16, 16, SAMPLED),
}
ROUND_TREES = {"auto-chains": NO_TREES, "auto-tree16": FewTrees(4, 1)}
SHOWN = (
    "requests", "method", "steps_per_s", "output_tokens_per_s", "acceptance", "same", "answers", "with_prompts_per_s",
)  # fmt: skip


def steady(engine, prompts, method, running):
    """Tokens and steps a second of ``running`` requests that all decode, over passes behind the first one.

    Counted are each request's SPAN tokens, in as many steps as they took it, however much faster others came past
    them: the same text for every method. So many steps of each would be further on in its answer the more it accepts.
    Each pass has prompts of its own, for acceptance is the prompt's; tokens a second are of all passes together (the
    harmonic mean, as each has as many tokens), steps a second the median.
    """
    block, tree, sampling = METHODS[method]
    rates, paces = [], []
    for turn in range(1 + PASSES):  # the first one makes recordings
        counts, steps, left = [0] * running, [0] * running, running
        for idx in range(running):
            params = SamplingParams(**sampling, seed=idx, max_tokens=1500, ignore_eos=True)
            prompt = prompts[(turn * running + idx) % len(prompts)]
            engine.add_request(str(idx), prompt, params, block, draft_tree=tree)
        while any(request.is_prefilling for request in engine.requests.values()):
            engine.step()
        engine.step()
        started, num_steps = time.perf_counter(), 0
        while left:
            num_steps += 1
            for one in engine.step():
                idx = int(one.request_id)
                counts[idx] += len(one.token_ids)
                if counts[idx] >= SPAN and not steps[idx]:
                    steps[idx], left = num_steps * SPAN / counts[idx], left - 1
        paces.append(num_steps / (time.perf_counter() - started))
        rates.append(running * SPAN / mean(steps) * paces[-1])
        for name in list(engine.requests):
            engine.abort(name)
        engine.step()
    return harmonic_mean(rates[1:]), median(paces[1:])


def measured(llm, method, running, prompts, asked, max_tokens):
    """A row of ``method`` with ``running`` requests, and the tokens of its answers."""
    block, tree, sampling = METHODS[method]
    params = SamplingParams(**sampling, seed=1, max_tokens=max_tokens)
    drafter = None if method.startswith("plain") else llm.drafter
    config = EngineConfig(max_running=running, prefix_caching=False, num_pages=128 * running)
    engine = Engine(llm.target, drafter, config, llm.eos_token_ids, llm.tokenizer, block, draft_tree=tree)
    if method in ROUND_TREES:
        engine.control.trees = ROUND_TREES[method]
    answer_all(engine, asked[: 2 * running], params, None, running)  # recordings, costs
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        answers = answer_all(engine, asked, params, None, running)
        seconds.append(time.perf_counter() - started)
    tokens_per_s, steps_per_s = steady(engine, prompts, method, running)
    rounds = sum(one.metrics.num_rounds for one in answers)
    made = [one.token_ids for one in answers]
    tokens = sum(map(len, made))
    row = {
        "system": "flashdraft", "pair": "135m", "method": method, "requests": running,
        "output_tokens_per_s": round(tokens_per_s, 1), "steps_per_s": round(steps_per_s, 1),
        "step_ms": round(1e3 / steps_per_s, 3), "with_prompts_per_s": round(tokens / min(seconds), 1),
        "answers": len(made), "acceptance": round(tokens / max(rounds, 1), 3),
    }  # fmt: skip
    return row, made


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--seconds", type=float, default=150, help="no method begins later")
    parser.add_argument("--num-prompts", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=192, help="of an answer")
    parser.add_argument("--whole", action="store_true", help="every method answers all prompts, not a few")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    prompts = json.loads(args.prompts.read_text())[: args.num_prompts]
    born = time.time()
    llm = LLM(device=args.device)
    print(f"loaded in {time.time() - born:.0f} s", flush=True)
    alone, provenance = {}, collect_provenance(args.device)
    for running in args.requests:
        for method in args.methods:
            if time.time() - born > args.seconds:
                return
            kind = "sampled" if METHODS[method][2] is SAMPLED else "greedy"
            is_whole = args.whole or kind not in alone
            asked = prompts if is_whole else prompts[: max(running * 3, 10)]
            try:
                row, made = measured(llm, method, running, prompts, asked, args.max_tokens)
            except Exception as error:
                traceback.print_exc()
                print("failed", running, method, repr(error)[:300], flush=True)
                continue
            expected = alone.setdefault(kind, made)
            row["same"] = sum(a == b for a, b in zip(made, expected, strict=False))
            with args.out.open("a") as file:
                file.write(json.dumps(row | {"provenance": provenance}) + "\n")
            print(f"[{time.time() - born:5.1f}]", {name: row[name] for name in SHOWN}, flush=True)


if __name__ == "__main__":
    main()
