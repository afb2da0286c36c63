"""Ours beside speculators' trainer or SpecForge's: what they learn from, and what the drafters accept when served.

    python benchmarks/peers/speculators_train.py data --answers ANSWERS --out WORK
    (training: speculators_train.sh, specforge_train.py)
    python benchmarks/peers/speculators_train.py report --work WORK --out benchmarks/results/speculators_train.json

`data` writes, of the same answers, what each trainer takes: documents and the target's hidden states, one file a
document, for speculators; ours makes its features from the answers itself, before its clock starts. What our trainer
holds back for its own validation, neither learns from. `report` serves prompts that neither has seen. On a GPU
(`--device cuda`) take more of both: `--layers 5 --rows 8` has speculators' default of 8,192 tokens and 512 anchors.
"""

import argparse
import json
import subprocess
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flashdraft.checkpoint.load import load_target, load_tokenizer
from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document, read_documents
from flashdraft.data.prompts import read_prompts
from flashdraft.intervals import ratio_interval
from flashdraft.llm import LLM, RequestOutput
from flashdraft.models.dflash_config import build_target_layer_ids
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.train.forward import target_features
from flashdraft.train.run import is_held_back, spare_token_id

NUM_FEATURES, BLOCK_SIZE = 5, 16
SEQ_LEN, NUM_ANCHORS = 1024, 64  # of a row: speculators' own proportion, 8192 to 512
_TILE = 128  # tokens
_BATCH = 32  # documents in one forward on a GPU


def data(args: argparse.Namespace) -> None:
    target = load_target("embedded", dtype="bfloat16", device=args.device).requires_grad_(False)
    num_layers = target.config.num_hidden_layers
    layers = (*build_target_layer_ids(num_layers, NUM_FEATURES), num_layers - 1)
    documents = read_documents(args.answers)
    learned = [doc for doc in documents if not is_held_back(doc)]
    states = args.out / "arrow" / "hidden_states"
    states.mkdir(parents=True, exist_ok=True)
    # Its trainer wants a validation set; nothing is taken for it from what both learn from.
    ordered = [*learned, *(doc for doc in documents if is_held_back(doc))]
    texts = [(doc.prompt_token_ids + doc.answer_token_ids)[:SEQ_LEN] for doc in ordered]
    with (args.out / "documents.jsonl").open("w") as out:
        for doc, text in zip(ordered, texts, strict=True):
            mask = [int(i >= len(doc.prompt_token_ids)) for i in range(len(text))]
            out.write(json.dumps({"input_ids": text, "loss_mask": mask, "seq_len": len(text)}) + "\n")
    missing = [i for i in range(len(ordered)) if not (states / f"hs_{i}.safetensors").exists()]
    size = _BATCH if args.device == "cuda" else 1
    for start in range(0, len(missing), size):
        places = missing[start : start + size]
        hidden = hidden_states(target, [ordered[i] for i in places], layers)
        for i, one in zip(places, hidden, strict=True):
            file = states / f"hs_{i}.safetensors"
            save_file(
                {"token_ids": torch.tensor(texts[i]), "hidden_states": one[: len(texts[i])].clone()}, file
            )
    write_options(args, layers, (len(learned) + 0.5) / len(documents))
    tokens = sum(len(doc.answer_token_ids) for doc in learned)
    print(f"{len(learned)} answers, {tokens} tokens of them to learn from")


def write_options(args: argparse.Namespace, layers: tuple[int, ...], share: float) -> None:
    """What both trainers are told, and for the report."""
    shape = ["--num-layers", args.layers, "--block-size", BLOCK_SIZE]
    ours = [*shape, "--num-features", NUM_FEATURES, "--seq-len", SEQ_LEN, "--rows-per-step", args.rows]
    ours += ["--blocks-per-row", NUM_ANCHORS]
    theirs = [*shape, "--target-layer-ids", *(layer + 1 for layer in layers[:-1])]
    theirs += ["--total-seq-len", args.rows * SEQ_LEN, "--max-anchors", args.rows * NUM_ANCHORS]
    theirs += ["--mask-token-id", spare_token_id(load_tokenizer("embedded")), "--train-data-ratio", share]
    for name, options in (("ours", ours), ("theirs", theirs)):
        (args.out / f"{name}.options").write_text(" ".join(map(str, options)) + "\n")
    told = {
        "shape": {"layers": args.layers, "features": NUM_FEATURES, "block_size": BLOCK_SIZE, "vocabulary": 49152},
        "anchors_a_step": args.rows * NUM_ANCHORS,
        "tokens_a_step": args.rows * SEQ_LEN,
    }  # fmt: skip
    (args.out / "shape.json").write_text(json.dumps(told) + "\n")


def hidden_states(target: Any, documents: list[Document], layers: tuple[int, ...]) -> list[torch.Tensor]:
    """[num_tokens or more, len(layers), hidden_size] of each document: the layers' outputs, before the final norm."""
    on_gpu = target.device.type == "cuda"  # one shape for all there: what is compiled is compiled once
    longest = max(len(doc.prompt_token_ids) + len(doc.answer_token_ids) for doc in documents)
    length = SEQ_LEN if on_gpu else min(-(-longest // _TILE) * _TILE, SEQ_LEN)
    filled = documents + documents[-1:] * (_BATCH - len(documents)) if on_gpu else documents
    each = [pack([doc], length, target.device) for doc in filled]
    fields = ([getattr(rows, field.name) for rows in each] for field in fields_of(PackedRows))
    features = target_features(target, PackedRows(*map(torch.cat, fields)), layers)
    return list(features.unflatten(-1, (len(layers), -1)).cpu())[: len(documents)]


def serve(draft: Path, prompts: list[Any], max_tokens: int, device: str) -> list[RequestOutput]:
    llm = LLM(draft=str(draft), block_size=BLOCK_SIZE, max_running=8, device=device)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return llm.chat([list(prompt.messages) for prompt in prompts], params)


def report(args: argparse.Namespace) -> None:
    asked = read_prompts(args.prompts)
    work, peer = args.work, args.trainer
    folder = work / ("theirs" if peer == "speculators" else peer)
    drafter = newest_checkpoint(folder) if peer == "speculators" else folder / "drafter"
    outputs = {
        "ours": serve(work / "ours" / "drafter", asked, args.max_tokens, args.device),
        peer: serve(drafter, asked, args.max_tokens, args.device),
    }
    costs = {
        name: [(len(one.outputs[0].token_ids) - 1, one.metrics.num_rounds) for one in answers]
        for name, answers in outputs.items()
    }
    log = [json.loads(line) for line in (work / "ours" / "log.jsonl").read_text().splitlines()]
    theirs = json.loads((folder / "steps.json").read_text())
    told = json.loads((work / "shape.json").read_text())
    ours = {"num_steps": log[-1]["step"], "num_blocks": log[-1]["blocks"], "seconds": log[-1]["elapsed_s"]}
    # Once all is compiled: after their first step, after our first reading of the loss.
    share = (theirs["num_steps"] - 1) / theirs["num_steps"]
    later_s = theirs["seconds"] - theirs["first_step_s"]
    theirs["blocks_per_s_later"] = round(share * theirs["num_blocks"] / later_s, 2)
    of_log = log[-1]["blocks"] - log[0]["blocks"], log[-1]["elapsed_s"] - log[0]["elapsed_s"]
    ours["blocks_per_s_later"] = round(of_log[0] / of_log[1], 2) if of_log[1] else None
    rows = {"ours": ours, peer: theirs}
    for name, row in rows.items():
        row["blocks_per_s"] = round(row["num_blocks"] / row["seconds"], 2)
        row["acceptance_length"] = round(
            sum(tokens for tokens, _ in costs[name]) / sum(rounds for _, rounds in costs[name]), 4
        )
    ours["options"] = (work / "ours.command").read_text().strip()
    if peer == "speculators":
        theirs["options"] = (work / "theirs.command").read_text().strip()
    interval = ratio_interval(range(len(asked)), costs["ours"], costs[peer])
    result = {
        **told,
        "trainers": rows,
        "blocks_per_s_ratio": round(ours["blocks_per_s"] / theirs["blocks_per_s"], 3),
        "acceptance_length_ratio_95": interval,
        "served": {"prompts": len(asked), "source": args.prompts.name, "max_tokens": args.max_tokens},
        "same_tokens": sum(
            a.outputs[0].token_ids == b.outputs[0].token_ids for a, b in zip(*outputs.values(), strict=True)
        ),
        "peer_versions": versions(args.peer, peer),
        "provenance": collect_provenance(args.device),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "provenance"}, indent=1))


def steps(args: argparse.Namespace) -> None:
    """How many steps fill the minutes, by what a short run took after its first."""
    told = json.loads(args.steps.read_text())
    each_s = (told["seconds"] - told["first_step_s"]) / (told["num_steps"] - 1)
    print(max(2, int(60 * args.minutes / each_s)))


def newest_checkpoint(folder: Path) -> Path:
    return max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def versions(python: str, trainer: str) -> dict[str, str]:
    """Of what ``python`` would import."""
    ask = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    names = [trainer, "torch", "transformers"]
    told = subprocess.run([python, "-c", ask, *names], capture_output=True, check=True, text=True).stdout
    return dict(zip(names, told.split(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("data")
    make.add_argument("--answers", type=Path, required=True)
    make.add_argument("--layers", type=int, default=2)
    make.add_argument("--rows", type=int, default=1, help="of 1,024 tokens, in a step")
    make.set_defaults(run=data)
    tell = commands.add_parser("report")
    tell.add_argument("--work", type=Path, required=True)
    tell.add_argument("--prompts", type=Path, required=True)
    tell.add_argument("--max-tokens", type=int, default=256)
    tell.add_argument("--trainer", choices=("speculators", "specforge"), default="speculators")
    tell.add_argument("--peer", required=True, help="the other trainer's python")
    tell.set_defaults(run=report)
    for command in (make, tell):
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--device", default="cpu")
    count = commands.add_parser("steps")
    count.add_argument("--steps", type=Path, required=True, help="steps.json of a short run of theirs")
    count.add_argument("--minutes", type=float, required=True)
    count.set_defaults(run=steps)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
