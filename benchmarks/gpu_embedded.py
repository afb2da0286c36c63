"""The embedded pair on one GPU: the same tokens by every method, and tokens a second.

Usage: gpu_embedded.py OUT.jsonl PROMPTS.json [seconds] [prompts]. PROMPTS.json: lists of token ids. Every answer is
compared with plain decoding's of one request alone. Rates are of steps in which all decode, and with prompts of whole
answers; two passes.
"""

import json
import sys
import time
import traceback
from pathlib import Path

from flashdraft.bench.closed_loop import answer_all
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

METHODS = {"plain": 1, "b8": 8, "b16": 16, "auto": "auto", "tree": 16}


def steady(engine, prompts, block, tree, running, count=100):
    """Tokens a second of ``running`` requests that all decode."""
    params = SamplingParams(temperature=0.0, max_tokens=1500, ignore_eos=True)
    for idx in range(running):
        engine.add_request(f"steady-{idx}", prompts[idx % len(prompts)], params, block, draft_tree=tree)
    while any(request.is_prefilling for request in engine.requests.values()):
        engine.step()
    for _ in range(10):
        engine.step()
    started, tokens = time.perf_counter(), 0
    for _ in range(count):
        tokens += sum(len(one.token_ids) for one in engine.step())
    seconds = time.perf_counter() - started
    for name in list(engine.requests):
        engine.abort(name)
    engine.step()
    return tokens / seconds, 1e3 * seconds / count


def main():
    out, prompts = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    limit = float(sys.argv[3]) if len(sys.argv) > 3 else 150.0
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 40
    born = time.time()
    llm = LLM(device="cuda")
    prompts, params = prompts[:count], SamplingParams(temperature=0.0, max_tokens=192)
    print(f"loaded in {time.time() - born:.0f} s", flush=True)
    engines, alone = {}, None
    for running in (1, 8, 32):
        for method, block in METHODS.items():
            if time.time() - born > limit:
                return
            few = prompts[: max(running * 3, 10)]
            try:
                tree = 16 if method == "tree" else None
                drafter = None if method == "plain" else llm.drafter
                config = EngineConfig(max_running=running, prefix_caching=False, num_pages=128 * running)
                engine = engines[running, method] = Engine(
                    llm.target, drafter, config, llm.eos_token_ids, llm.tokenizer, block, draft_tree=tree
                )
                asked = few if alone else prompts
                answer_all(engine, asked[: 2 * running], params, None, running)  # recordings, costs
                seconds = []
                for _ in range(1 if alone is None else 2):
                    started = time.perf_counter()
                    answers = answer_all(engine, asked, params, None, running)
                    seconds.append(time.perf_counter() - started)
                rate, step_ms = steady(engine, prompts, block, tree, running)
            except Exception as error:
                traceback.print_exc()
                print("failed", running, method, repr(error)[:300], flush=True)
                continue
            made = [one.token_ids for one in answers]
            alone = alone or made
            rounds = sum(one.metrics.num_rounds for one in answers)
            tokens = sum(len(one) for one in made)
            row = {
                "system": "flashdraft", "pair": "135m", "method": method, "requests": running,
                "output_tokens_per_s": round(rate, 1), "step_ms": round(step_ms, 3),
                "with_prompts_per_s": round(tokens / min(seconds), 1), "answers": len(made),
                "same": sum(a == b for a, b in zip(made, alone, strict=False)),
                "acceptance": round(tokens / max(rounds, 1), 3), "provenance": collect_provenance("cuda"),
            }  # fmt: skip
            with open(out, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"[{time.time() - born:5.1f}]",
                {k: v for k, v in row.items() if k != "provenance"},
                flush=True,
            )
            del engine
            engines.clear()


if __name__ == "__main__":
    main()
