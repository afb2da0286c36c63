"""What vLLM answers, with and without a drafter: run by the Python that has vLLM, not by this project's.

    flashdraft convert --model embedded --to hf --out pair/target
    python benchmarks/peers/vllm_pair.py prompts --limit 40 --out prompts.json
    VLLM_PYTHON benchmarks/peers/vllm_tokens.py --model pair/target --draft FOLDER --block-size 16 \\
        --dtype float32 --prompts prompts.json --out vllm-dflash.json
    (the same without --draft: plain decoding)

Writes every answer's token ids, vLLM's own counts of drafts and accepted tokens by task, and whether this vLLM has
vllm_cpu_context_norm.patch in it.
"""

import argparse
import inspect
import json
import time
from pathlib import Path

import vllm
from vllm import LLM, SamplingParams
from vllm.model_executor.models.qwen3_dflash import DFlashQwen3Model


def counts(llm: LLM) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in llm.get_metrics():
        if metric.name.startswith("vllm:spec_decode_num") and hasattr(metric, "value"):
            found[metric.name.removeprefix("vllm:spec_decode_")] = float(metric.value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--max-running", type=int, default=32)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    speculative = {"method": "dflash", "model": args.draft, "num_speculative_tokens": args.block_size - 1}
    llm = LLM(
        args.model,
        dtype=args.dtype,
        max_model_len=2048,
        max_num_seqs=args.max_running,
        speculative_config=speculative if args.draft else None,
        disable_log_stats=False,
        enforce_eager=True,  # tokens are meant, not speed: nothing is compiled
    )
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    is_mended = "is_cpu" in inspect.getsource(DFlashQwen3Model._normalize_context_k)
    result: dict[str, object] = {
        "settings": {k: str(v) for k, v in vars(args).items()},
        "vllm": vllm.__version__
        + (", vllm_cpu_context_norm.patch applied" if is_mended else ", as released"),
        "tasks": {},
    }
    for task, prompts in json.loads(args.prompts.read_text()).items():
        before, started = counts(llm), time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - started
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        spent = {name: value - before.get(name, 0.0) for name, value in counts(llm).items()}
        result["tasks"][task] = {"token_ids": tokens, "seconds": seconds, **spent}  # type: ignore[index]
    args.out.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
