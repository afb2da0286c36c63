"""The 27B recipe at full shape with random weights: steps of training and a rollout, beside what --dry-run foretells.

    python benchmarks/rehearse_27b.py --gpu H200 --out benchmarks/results/h200/rehearsal_27b.json
    python benchmarks/rehearse_27b.py --gpu H200 --blocks-per-row 1024 --tokens 0 --out FILE   # another shape's steps

Needs one GPU of 141 GB and nothing else. With --tiny the script itself is rehearsed, on any machine.
"""

import argparse
import gc
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3_5TextConfig

from flashdraft.bench.cost_model import Job
from flashdraft.bench.efficiency import steady_tokens_per_s
from flashdraft.bench.gpu_planning import forecast as forecast_serving
from flashdraft.bench.gpu_planning import published_pair
from flashdraft.bench.published import CARD_PAIR, pair_configs, usual_drafter
from flashdraft.data.answerer import AnswerRequest
from flashdraft.data.engine_answers import EngineAnswers, rollout_config
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document
from flashdraft.engine.engine import Engine
from flashdraft.gpus import read_gpu
from flashdraft.models.base import TargetModel, build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.provenance import collect_provenance
from flashdraft.train.config import TrainConfig
from flashdraft.train.forecast import PairSizes, forecast
from flashdraft.train.trainer import Trainer

RECIPE = TrainConfig(
    seq_len=4096,
    rows_per_step=1,
    blocks_per_row=512,
    total_blocks=10**9,
    served_prompts=0,
    checkpoint_minutes=1e9,
)
TINY_RECIPE = TrainConfig(
    seq_len=256, rows_per_step=1, blocks_per_row=16, total_blocks=10**6, served_prompts=0
)
WARM_STEPS = 3
PROMPT_LEN = 100


def tiny_configs() -> tuple[Any, Any]:
    """A pair of the same kind, small."""
    target = Qwen3_5TextConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16,
        linear_value_head_dim=16, linear_conv_kernel_dim=4, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    return target, usual_drafter(target, 2)


def random_network(make: Any, device: str) -> Any:
    """Built where it runs, in bfloat16: 27 G parameters have no room for a second copy."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            network = make()
    finally:
        torch.set_default_dtype(before)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return network


def measure_training(
    target: TargetModel, drafter: DFlashModel, config: TrainConfig, steps: int, device: str
) -> dict[str, float]:
    rng, vocab = random.Random(0), target.config.vocab_size
    texts = [
        Document(str(i), "x", 0.0, [rng.randrange(vocab) for _ in range(64)],
                 [rng.randrange(vocab) for _ in range(config.seq_len // 4)], "stop")
        for i in range(8)
    ]  # fmt: skip
    rows = pack(texts, config.seq_len, device)
    trainer = Trainer(target, drafter, rows, {}, config, Path(tempfile.mkdtemp()))

    def step() -> None:
        trainer._step()
        trainer.progress.step += 1

    for _ in range(WARM_STEPS):
        step()
    wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    step_s = (time.perf_counter() - started) / steps
    return {
        "step_s": step_s,
        "peak_bytes": peak_bytes(device),
        "blocks_per_s": config.blocks_per_row / step_s,
    }


def peak_bytes(device: str) -> int:
    """The most that PyTorch has held so far, and what CUDA holds beside it; 0 on a CPU."""
    if device != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.max_memory_reserved() + total - free - torch.cuda.memory_reserved()


def measure_rollout(target: TargetModel, num_rows: int, num_tokens: int) -> dict[str, float]:
    per_row = num_tokens // num_rows
    engine = Engine(target, None, rollout_config(num_rows, PROMPT_LEN + per_row))

    def answer(first_token: int) -> int:
        requests = [AnswerRequest(i, [first_token + i] * PROMPT_LEN, 0.7) for i in range(num_rows)]
        answers = EngineAnswers(engine, per_row).run(requests)
        return sum(len(one.token_ids) for part in answers for one in part)

    started = time.perf_counter()
    for first_token in (200, 300):  # prompts that share nothing with those below, answers as long
        answer(first_token)  # kernels are made; what a step's shape has the second time is recorded
    warm = time.perf_counter()
    made = answer(3)
    ended = time.perf_counter()
    return {
        "num_rows": num_rows, "num_tokens": made, "tokens_per_s": made / (ended - warm), "warm_s": warm - started,
    }  # fmt: skip


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def said_of(args: argparse.Namespace) -> tuple[Any, Any, TrainConfig]:
    """(target's config, drafter's, the run's) that are asked for."""
    target, shape = tiny_configs() if args.tiny else pair_configs(CARD_PAIR)
    config = TINY_RECIPE if args.tiny else RECIPE
    return target, shape, replace(config, blocks_per_row=args.blocks_per_row or config.blocks_per_row)


def foretell(args: argparse.Namespace, target: Any, shape: Any, config: TrainConfig) -> dict[str, Any]:
    """What `train --dry-run` tells of the steps, and the planner of the rollout (of the card's own pair)."""
    gpu = read_gpu(args.gpu)
    told = forecast(PairSizes(target, shape), config, gpu, 1, 0, keeps_features=False)
    found = {
        "step_s": told.step_s,
        "memory_bytes": told.memory_bytes,
        "blocks_per_s": told.blocks_per_s,
        "memory": told.memory,
    }
    if args.tokens:
        job = Job(PROMPT_LEN, args.tokens // args.answer_rows)
        plan = forecast_serving(published_pair(CARD_PAIR), gpu, job, "dflash", engine="flashdraft")
        found["rollout_tokens_per_s"] = steady_tokens_per_s(
            plan.costs, job, args.answer_rows, 1, 1.0, plan.token_s
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", default="H200")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--blocks-per-row", type=int, help="default: the recipe's")
    parser.add_argument("--tokens", type=int, default=1000, help="of the rollout; 0: none")
    parser.add_argument("--answer-rows", type=int, default=8)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target_config, shape, config = said_of(args)
    foretold = foretell(args, target_config, shape, config)
    print(json.dumps(foretold), flush=True)
    target = random_network(lambda: build_target(target_config), args.device).requires_grad_(False)
    drafter = random_network(lambda: DFlashModel(shape), args.device)
    # Training first: what an engine records stays in memory that is not training's.
    training = measure_training(target, drafter, config, args.steps, args.device)
    found: dict[str, Any] = {
        "foretold": foretold,
        "training": training,
        "ratios": {
            "memory": training["peak_bytes"] / foretold["memory_bytes"],
            "step": training["step_s"] / foretold["step_s"],
        },
        "provenance": collect_provenance(args.device),
    }
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(training), json.dumps(found["ratios"]), flush=True)
    if not args.tokens:
        return
    del drafter
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()
    found["rollout"] = measure_rollout(target, args.answer_rows, args.tokens)
    found["ratios"]["rollout"] = found["rollout"]["tokens_per_s"] / foretold["rollout_tokens_per_s"]
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found["rollout"]), json.dumps(found["ratios"]))


if __name__ == "__main__":
    main()
