"""vLLM's steps on one GPU, beside gpu_steps.py's and gpu_embedded.py's: closed loops of its engine's own steps.

    python benchmarks/peers/vllm_steps.py 27b FOLDER OUT.json --weights bf16|fp8|int4 --method ar|b8|b16
    python benchmarks/peers/vllm_steps.py 135m FOLDER OUT.json --method ar|b8|b16 --prompts PROMPTS.json   # embedded

Run by the Python of vLLM 0.24 with flashdraft importable and VLLM_USE_FLASHINFER_SAMPLER=0. For 27b, FOLDER gets the
configs of Qwen3.5-27B's shape and weights are random: ``fp8`` as Qwen3.5-27B-FP8 is published (blocks of 128 by 128),
``int4`` as llm-compressor writes w4a16 (symmetric, groups of 128), each with the matrices in codes that gpu_steps.py
has. For 135m, FOLDER has target/ (`flashdraft convert --model embedded --to hf`) and, for blocks, dflash/ with a
drafter of the classic layout (vLLM 0.24 knows no DFlash 2); PROMPTS.json is a list of lists of token ids.

OUT.json: {"told", "pair", "weights", "kernels": which products vLLM chose, "up_s", "cells": {"NAME xN": [passes]}},
written after every pass; vllm_rows.py makes rows of it. A pass answers N prompts at a time; its ``step_ms`` is the
median between steps in which all N decode. The first pass still compiles. Acceptance of 27b's blocks is synthetic,
at the model card's lengths. With VLLM_TRITON_FORCE_FIRST_CONFIG=1 vLLM starts 100 s sooner: prompts' gated delta
kernels are then not tuned, which no decoding step runs.
"""

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from statistics import median

BORN = time.perf_counter()
LENGTHS = {"b16": [7.93, 5.47], "b8": [5.9]}
VOCABULARY, PROMPT = 248320, 256
VISION = {
    "model_type": "qwen3_5",
    "depth": 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": 5120,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
    "num_position_embeddings": 256,
    "deepstack_visual_indexes": [],
}
TOKENS = {
    "image_token_id": 248056,
    "video_token_id": 248057,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
}


def say(*what):
    print(f"[{time.perf_counter() - BORN:6.1f}]", *what, flush=True)


def quantization(weights, layers):
    """The quantization_config of a checkpoint in ``weights``; None for bf16."""
    if weights == "fp8":
        kinds = ("conv1d", "in_proj_a", "in_proj_b")
        floats = [f"model.language_model.layers.{i}.linear_attn.{k}" for i in range(layers) for k in kinds]
        told = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
        return told | {
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head", "model.visual", *floats],
        }
    if weights == "int4":
        codes = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
        group = {
            "targets": ["Linear"],
            "weights": codes,
            "input_activations": None,
            "output_activations": None,
        }
        told = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
        return told | {
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head", "re:.*visual.*", "re:.*linear_attn\\.(conv1d|in_proj_[ab])$"],
        }
    return None


def write_configs(folder, weights):
    """FOLDER/target and FOLDER/dflash: config.json of the 27B's shape and of its drafter's."""
    from flashdraft.bench.published import TARGETS, pair_configs

    shape = dict(TARGETS["qwen3.5-27b"])
    layers = shape["num_hidden_layers"]
    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    text = shape | {
        "layer_types": ["full_attention" if (i + 1) % 4 == 0 else "linear_attention" for i in range(layers)],
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "attn_output_gate": True,
        "mamba_ssm_dtype": "float32",
        "dtype": "bfloat16",
        "rope_parameters": rope | {"mrope_section": [11, 11, 10], "mrope_interleaved": True},
        "eos_token_id": 248044,
    }
    target = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5"}
    target |= {"text_config": text, "vision_config": VISION, "tie_word_embeddings": False, **TOKENS}
    if told := quantization(weights, layers):
        target["quantization_config"] = told
    _, drafter = pair_configs("qwen3.5-27b")
    drafter = {**drafter.to_dict(), "dtype": "bfloat16", "tie_word_embeddings": False}
    for name, config in (("target", target), ("dflash", drafter | {"max_position_embeddings": 32768})):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def conditional_rates(length, block):
    """Conditional chances: so many tokens always, one now and then, none beyond, as gpu_steps.py's dice."""
    whole = int(length - 1)
    return [1.0] * whole + [length - 1 - whole] + [0.0] * (block - 2 - whole)


def engine_options(args):
    """What ``vllm.LLM`` is built with."""
    target, block = str(args.folder / "target"), {"b16": 16, "b8": 8}.get(args.method)
    told = {"model": target, "dtype": "bfloat16", "max_num_seqs": 32, "max_model_len": 2048}
    told |= {"enable_prefix_caching": False, "disable_log_stats": False}
    if args.kv_gib:  # instead of all that is free: vLLM may then start beside another process
        told |= {
            "kv_cache_memory_bytes": int(args.kv_gib * 2**30),
            "gpu_memory_utilization": args.utilization,
        }
    if block:
        draft = {"method": "dflash", "model": str(args.folder / "dflash")}
        told["speculative_config"] = draft | {"num_speculative_tokens": block - 1}
    if args.pair == "135m":
        return told | {"max_num_batched_tokens": 8192}
    if block:
        synthetic = {"rejection_sample_method": "synthetic"}
        synthetic["synthetic_acceptance_length"] = LENGTHS[args.method][0]
        told["speculative_config"] |= synthetic
    sizes = [(block or 1) * count for count in args.counts]
    return told | {
        "tokenizer": target,
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "language_model_only": True,
        "max_num_batched_tokens": args.batched_tokens,
        "additional_config": {"gdn_prefill_backend": "triton"},
        "compilation_config": {"cudagraph_capture_sizes": sizes},
    }


def set_rates(worker, rates):
    """In vLLM's worker: whether its synthetic acceptance has these chances now."""
    import torch

    runner = worker.model_runner
    for holder in (runner, getattr(runner, "speculator", None)):
        sampler = getattr(holder, "rejection_sampler", None)
        if sampler is not None and sampler.synthetic_conditional_rates is not None:
            sampler.synthetic_conditional_rates.copy_(torch.tensor(rates))
            return True
    return False


def fill_codes(worker):
    """In vLLM's worker: random codes and small scales, where dummy weights leave what was in memory or NaN."""
    import torch

    filled = {}
    for name, one in worker.get_model().named_parameters():
        if one.dtype == torch.float8_e4m3fn:
            one.data.view(torch.uint8).random_(0, 256).bitwise_and_(
                0xB7
            )  # exponents below 7: finite, |x| < 1
        elif one.dtype in (torch.int32, torch.uint8):
            one.data.random_()
        elif name.rpartition(".")[2].startswith("weight_scale"):
            one.data.fill_(2.0**-7)
        else:
            continue
        kind = f"{str(one.dtype).removeprefix('torch.')} {name.rpartition('.')[2]}"
        filled[kind] = filled.get(kind, 0) + one.numel()
    return filled


def kernels_of(worker):
    """In vLLM's worker: how many layers' products run by which of its kernels."""
    counts = {}
    for module in worker.get_model().modules():
        method = getattr(module, "quant_method", None)
        owners = (method, getattr(method, "scheme", None), getattr(module, "scheme", None))
        found = [
            kernel
            for one in owners
            for name in ("fp8_linear", "kernel", "w8a8_block_fp8_linear")
            if (kernel := getattr(one, name, None)) is not None
        ]
        if method is not None:
            name = type(found[0]).__name__ if found else type(method).__name__
            counts[name] = counts.get(name, 0) + 1
    return counts


def closed_loop(engine, prompts, params, concurrency):
    """Answers all, ``concurrency`` at a time: rates of the whole and of the steps in which all decode."""
    from vllm.inputs import TokensPrompt

    asked = done = tokens = 0
    steps = []
    started = time.perf_counter()
    while done < len(prompts):
        while asked < len(prompts) and asked - done < concurrency:
            engine.add_request(f"{started}-{asked}", TokensPrompt(prompt_token_ids=prompts[asked]), params)
            asked += 1
        outs = engine.step()
        now, new = time.perf_counter(), sum(len(one.outputs[0].token_ids) for one in outs)
        done += sum(one.finished for one in outs)
        tokens += new
        if new:
            steps.append((now, len(outs), new))
    wall, most = time.perf_counter() - started, max(step[1] for step in steps)
    cell = {
        "most_active": most,
        "wall_s": round(wall, 3),
        "tokens": tokens,
        "tokens_s": round(tokens / wall, 1),
    }
    gaps = [(b[0] - a[0], b[2]) for a, b in itertools.pairwise(steps) if a[1] == b[1] == most]
    if gaps:
        spent, made = sum(gap for gap, _ in gaps), sum(n for _, n in gaps)
        cell["step_ms"] = round(1e3 * median(gap for gap, _ in gaps), 3)
        cell |= {
            "tokens_a_step": round(made / len(gaps) / most, 3),
            "steady_tokens_s": round(made / spent, 1),
        }
    return cell


def asked_of(args, count):
    """Prompts of a pass with ``count`` at a time, and how many tokens each is answered with."""
    import torch

    if args.pair == "135m":
        return json.loads(args.prompts.read_text())[: max(10, 5 * count)], 256
    gen = torch.Generator().manual_seed(count)
    return torch.randint(0, VOCABULARY - 8, (count, PROMPT), generator=gen).tolist(), args.max_tokens


def measure(args, llm, found):
    """``args.turns`` passes a cell; first ones alone when the seconds are over."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    began, block = time.perf_counter(), {"b16": 16, "b8": 8}.get(args.method)
    lengths = LENGTHS[args.method] if block and args.pair == "27b" else [None]
    for length in lengths:
        if length and not all(llm.collective_rpc(set_rates, args=(conditional_rates(length, block),))):
            raise SystemExit("vLLM's synthetic acceptance was not found in its worker")
        for count in args.counts:
            prompts, most = asked_of(args, count)
            asked = {"temperature": 0.0, "max_tokens": most, "output_kind": RequestOutputKind.DELTA}
            by_text = args.pair == "135m"
            params = SamplingParams(**asked, ignore_eos=not by_text, detokenize=by_text)
            name = f"{args.method}{f' {length}' if length else ''} x{count}"
            for turn in range(args.turns):
                if turn and time.perf_counter() - began > args.seconds:
                    break
                cell = closed_loop(llm.llm_engine, prompts, params, count)
                found["cells"].setdefault(name, []).append(cell)
                say(args.pair, args.weights, name, turn, cell)
                args.out.write_text(json.dumps(found, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pair", choices=["27b", "135m"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", choices=["bf16", "fp8", "int4"], default="bf16")
    parser.add_argument("--method", choices=["ar", "b8", "b16"], default="ar")
    parser.add_argument("--prompts", type=Path, help="of 135m")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8, 16, 32], help="requests at a time")
    parser.add_argument("--max-tokens", type=int, default=192, help="of a 27b's answer")
    parser.add_argument("--batched-tokens", type=int, default=16384)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=600, help="of measuring; then only first passes are made"
    )
    parser.add_argument(
        "--kv-gib", type=float, help="memory for keys, values and states, instead of all that is free"
    )
    parser.add_argument(
        "--utilization", type=float, default=0.95, help="the share of memory that must be free"
    )
    parser.add_argument(
        "--wait-for", type=Path, help="measure when this file is there, so that it can start early"
    )
    args = parser.parse_args()
    if args.pair == "135m" and not (args.prompts and (args.folder / "target").is_dir()):
        parser.error("135m wants --prompts and FOLDER/target, as this script's head says")
    if args.pair == "27b":
        write_configs(args.folder, args.weights)
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = (
        "1"  # the worker's functions above are sent to its process
    )
    from vllm import LLM

    say("imported")
    llm = LLM(**engine_options(args))
    found = {"told": {key: str(value) for key, value in vars(args).items()}, "pair": args.pair}
    found |= {"weights": args.weights, "kernels": llm.collective_rpc(kernels_of)[0]}
    say("engine is up", found["kernels"])
    if args.weights != "bf16":
        say("filled", llm.collective_rpc(fill_codes)[0])
    found |= {"up_s": round(time.perf_counter() - BORN, 1), "cells": {}}
    while args.wait_for and not args.wait_for.exists():
        time.sleep(0.2)
    say("goes")
    measure(args, llm, found)
    say("done")


if __name__ == "__main__":
    main()
