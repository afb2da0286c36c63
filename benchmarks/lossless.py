"""Is it lossless, and does training see what serving sees? Greedy, float32, five tasks.

    python benchmarks/lossless.py --limit 20 --out benchmarks/results/lossless.json

For every prompt: DFlash in one stream, plain decoding in a batch, and transformers' own ``generate`` on the same
weights; then the training code's walk over the answer, round by round, beside the rounds that were served. Results
are written after every few prompts, and a prompt that is in the file is not run again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from flashdraft.batch import ForwardBatch
from flashdraft.bench.tasks import TASKS, BenchPrompt, load_task
from flashdraft.checkpoint.load import eos_token_ids, load_drafter, load_target, load_tokenizer
from flashdraft.data.answerer import AnswerRequest
from flashdraft.data.engine_answers import EngineAnswers, rollout_config
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document
from flashdraft.engine.engine import Engine
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.train.simulate import simulate

NUM_WALKED = 4  # prompts of a task


def plain_answers(
    target: TargetModel, prompts: list[list[int]], eos: tuple[int, ...], max_tokens: int
) -> Any:
    longest = max(map(len, prompts)) + max_tokens
    generator = EngineAnswers(Engine(target, None, rollout_config(len(prompts), longest), eos), max_tokens)
    requests = [AnswerRequest(key, ids, 0.0) for key, ids in enumerate(prompts)]
    answers = [answer for part in generator.run(requests) for answer in part]
    return [answer.token_ids for answer in sorted(answers, key=lambda answer: answer.key)]


@torch.inference_mode()
def transformers_answers(
    target: TargetModel, prompts: list[list[int]], eos: int, max_tokens: int
) -> list[list[int]]:
    model = LlamaForCausalLM(target.config).eval()
    model.load_state_dict(target.state_dict(), strict=False)
    model.tie_weights()
    width = max(map(len, prompts))
    ids = torch.tensor([[eos] * (width - len(p)) + p for p in prompts])
    attended = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(
        ids,
        attention_mask=attended,
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    texts = out[:, width:].tolist()
    return [text[: text.index(eos) + 1] if eos in text else text for text in texts]


@torch.inference_mode()
def gap_at(target: TargetModel, prompt: list[int], answer: list[int], place: int) -> float:
    """The target's top-2 logit gap where two answers part."""
    ids = prompt + answer[:place]
    hidden = target.forward(ForwardBatch.of_row(ids, 0), target.new_cache(1, len(ids))).hidden[0, -1:]
    top = target.logits(hidden)[0].topk(2).values
    return float(top[0] - top[1])


def compare(target: TargetModel, prompt: list[int], ours: list[int], theirs: list[int]) -> dict[str, Any]:
    if ours == theirs:
        return {"equal": True}
    place = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    return {"equal": False, "first_difference": place, "top2_gap": gap_at(target, prompt, ours, place)}


def rounds_agree(
    target: TargetModel, drafter: Any, prompt: list[int], answer: list[int], served: list[int]
) -> Any:
    """Served ``num_accepted`` by round beside the walk's; both count delivered tokens."""
    document = Document("x", "x", 0.0, prompt, answer, "stop")
    seq_len = -(-(len(prompt) + len(answer)) // 128) * 128
    walk = simulate(target, drafter, pack([document], seq_len), drafter.config.block_size, 1, 64)
    same = sum(a == b for a, b in zip(walk.num_accepted, served, strict=False))
    return {"same": same, "rounds": max(len(walk.num_accepted), len(served))}


def compare_prompts(
    task: str, prompts: Sequence[BenchPrompt], num_walked: int, max_tokens: int, target: TargetModel,
    network: DFlashModel, tokenizer: Any,
) -> list[Any]:  # fmt: skip
    """A row for each of ``prompts``; the first ``num_walked`` are walked, which costs as much as serving."""
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p.turns[0]}], add_generation_prompt=True, return_dict=False
        )
        for p in prompts
    ]
    eos = eos_token_ids()
    plain = plain_answers(target, ids, eos, max_tokens)
    theirs = transformers_answers(target, ids, eos[0], max_tokens)
    drafter = DFlashDrafter(network, target)
    rows = []
    for prompt, prompt_ids, plain_ids, their_ids in zip(prompts, ids, plain, theirs, strict=True):
        served: list[int] = []
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        output = generate(
            target,
            drafter,
            prompt_ids,
            params,
            eos_token_ids=eos,
            on_round=lambda event, served=served: served.append(len(event.token_ids) - 1),
        )
        rows.append(
            {
                "task": task,
                "id": prompt.id,
                "max_tokens": max_tokens,
                "num_tokens": len(output.token_ids),
                "acceptance_length": output.metrics.acceptance_length,
                "plain": compare(target, prompt_ids, output.token_ids, plain_ids),
                "transformers": compare(target, prompt_ids, output.token_ids, their_ids),
                "walk": rounds_agree(target, network, prompt_ids, output.token_ids, served[1:])
                if len(rows) < num_walked
                else {"same": 0, "rounds": 0},
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=256, help="of an answer; each row states it")
    parser.add_argument(
        "--at-once",
        type=int,
        default=4,
        help="prompts that plain decoding and transformers answer in one batch",
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = load_target(dtype="float32")
    network = load_drafter(target=target, dtype="float32")
    tokenizer = load_tokenizer()
    result = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    done = {row["id"] for row in result["rows"]}
    every = [
        (task, load_task(task, args.limit)[first : first + args.at_once])
        for task in TASKS
        for first in range(0, args.limit, args.at_once)
    ]
    for task, some in every:
        prompts = [prompt for prompt in some if prompt.id not in done]
        if not prompts:
            continue
        started = time.perf_counter()
        walked = sum(row["task"] == task and row["walk"]["rounds"] > 0 for row in result["rows"])
        result["rows"] += compare_prompts(
            task, prompts, NUM_WALKED - walked, args.max_tokens, target, network, tokenizer
        )
        rows = result["rows"]
        result["summary"] = {
            "prompts": len(rows),
            "equal_to_plain": sum(row["plain"]["equal"] for row in rows),
            "equal_to_transformers": sum(row["transformers"]["equal"] for row in rows),
            "rounds": sum(row["walk"]["rounds"] for row in rows),
            "rounds_as_simulated": sum(row["walk"]["same"] for row in rows),
        }
        result["provenance"] = collect_provenance()
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        took_s = round(time.perf_counter() - started)
        print(f"{task} to {some[-1].id}: {took_s} s {json.dumps(result['summary'])}", flush=True)


if __name__ == "__main__":
    main()
