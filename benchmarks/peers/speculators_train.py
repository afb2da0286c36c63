"""Ours and speculators' trainer: what both learn from, and what both drafters accept when they are served.

    python benchmarks/peers/speculators_train.py data --answers ANSWERS --out WORK
    (training: speculators_train.sh)
    python benchmarks/peers/speculators_train.py report --work WORK --out benchmarks/results/speculators_train.json

`data` writes, of the same answers, what each trainer takes: documents and the target's hidden states, one file a
document, for speculators; ours makes its features from the answers itself, before its clock starts. What our trainer
holds back for its own validation, neither learns from. `report` serves prompts that neither has seen.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flashdraft.checkpoint.load import load_target, load_tokenizer
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document, read_documents
from flashdraft.data.prompts import read_prompts
from flashdraft.intervals import ratio_interval
from flashdraft.llm import LLM, RequestOutput
from flashdraft.models.dflash_config import build_target_layer_ids
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.train.forward import target_features
from flashdraft.train.run import is_held_back, spare_token_id

NUM_LAYERS, NUM_FEATURES, BLOCK_SIZE = 2, 5, 16
SEQ_LEN, NUM_ANCHORS = 1024, 64  # speculators' own proportion, 8192 to 512
_TILE = 128


def data(args: argparse.Namespace) -> None:
    target = load_target("embedded", dtype="bfloat16").requires_grad_(False)
    num_layers = target.config.num_hidden_layers
    layers = (*build_target_layer_ids(num_layers, NUM_FEATURES), num_layers - 1)
    documents = read_documents(args.answers)
    learned = [doc for doc in documents if not is_held_back(doc)]
    states = args.out / "arrow" / "hidden_states"
    states.mkdir(parents=True, exist_ok=True)
    with (args.out / "documents.jsonl").open("w") as out:
        # Its trainer wants a validation set; nothing is taken for it from what both learn from.
        for place, doc in enumerate([*learned, *(doc for doc in documents if is_held_back(doc))]):
            text = (doc.prompt_token_ids + doc.answer_token_ids)[:SEQ_LEN]
            mask = [int(i >= len(doc.prompt_token_ids)) for i in range(len(text))]
            out.write(json.dumps({"input_ids": text, "loss_mask": mask, "seq_len": len(text)}) + "\n")
            file = states / f"hs_{place}.safetensors"
            if not file.exists():
                hidden = hidden_states(target, doc, layers, len(text))
                save_file({"token_ids": torch.tensor(text), "hidden_states": hidden}, file)
    shape = ["--num-layers", NUM_LAYERS, "--block-size", BLOCK_SIZE]
    ours = [*shape, "--num-features", NUM_FEATURES, "--seq-len", SEQ_LEN, "--rows-per-step", 1]
    ours += ["--blocks-per-row", NUM_ANCHORS]
    theirs = [*shape, "--target-layer-ids", *(layer + 1 for layer in layers[:-1]), "--total-seq-len", SEQ_LEN]
    theirs += ["--max-anchors", NUM_ANCHORS, "--mask-token-id", spare_token_id(load_tokenizer("embedded"))]
    theirs += ["--train-data-ratio", (len(learned) + 0.5) / len(documents)]
    for name, options in (("ours", ours), ("theirs", theirs)):
        (args.out / f"{name}.options").write_text(" ".join(map(str, options)) + "\n")
    tokens = sum(len(doc.answer_token_ids) for doc in learned)
    print(f"{len(learned)} answers, {tokens} tokens of them to learn from")


def hidden_states(target: Any, doc: Document, layers: tuple[int, ...], num_tokens: int) -> torch.Tensor:
    """[num_tokens, len(layers), hidden_size]: each layer's output, the last one's too (before the final norm)."""
    length = -(-num_tokens // _TILE) * _TILE
    features = target_features(target, pack([doc], length), layers)
    return features[0, :num_tokens].unflatten(-1, (len(layers), -1)).contiguous()


def serve(draft: Path, prompts: list[Any], max_tokens: int) -> list[RequestOutput]:
    llm = LLM(draft=str(draft), block_size=BLOCK_SIZE, max_running=8)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return llm.chat([list(prompt.messages) for prompt in prompts], params)


def report(args: argparse.Namespace) -> None:
    asked = read_prompts(args.prompts)
    work = args.work
    outputs = {
        "ours": serve(work / "ours" / "drafter", asked, args.max_tokens),
        "speculators": serve(newest_checkpoint(work / "theirs"), asked, args.max_tokens),
    }
    costs = {
        name: [(len(one.outputs[0].token_ids) - 1, one.metrics.num_rounds) for one in answers]
        for name, answers in outputs.items()
    }
    log = [json.loads(line) for line in (work / "ours" / "log.jsonl").read_text().splitlines()]
    theirs = json.loads((work / "theirs" / "steps.json").read_text())
    ours = {"num_steps": log[-1]["step"], "num_blocks": log[-1]["blocks"], "seconds": log[-1]["elapsed_s"]}
    rows = {"ours": ours, "speculators": theirs}
    for name, row in rows.items():
        row["blocks_per_s"] = round(row["num_blocks"] / row["seconds"], 2)
        row["acceptance_length"] = round(
            sum(tokens for tokens, _ in costs[name]) / sum(rounds for _, rounds in costs[name]), 4
        )
        row["options"] = (
            (work / f"{'theirs' if name == 'speculators' else 'ours'}.command").read_text().strip()
        )
    interval = ratio_interval(range(len(asked)), costs["ours"], costs["speculators"])
    result = {
        "shape": {
            "layers": NUM_LAYERS,
            "features": NUM_FEATURES,
            "block_size": BLOCK_SIZE,
            "vocabulary": 49152,
        },
        "anchors_a_step": NUM_ANCHORS,
        "tokens_a_step": SEQ_LEN,
        "trainers": rows,
        "blocks_per_s_ratio": round(ours["blocks_per_s"] / theirs["blocks_per_s"], 3),
        "acceptance_length_ratio_95": interval,
        "served": {"prompts": len(asked), "source": args.prompts.name, "max_tokens": args.max_tokens},
        "same_tokens": sum(
            a.outputs[0].token_ids == b.outputs[0].token_ids for a, b in zip(*outputs.values(), strict=True)
        ),
        "peer_versions": versions(args.peer),
        "provenance": collect_provenance(),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "provenance"}, indent=1))


def steps(args: argparse.Namespace) -> None:
    """How many steps fill the minutes, by what a short run took after its first."""
    told = json.loads((args.work / "theirs" / "steps.json").read_text())
    each_s = (told["seconds"] - told["first_step_s"]) / (told["num_steps"] - 1)
    print(int(60 * args.minutes / each_s))


def newest_checkpoint(folder: Path) -> Path:
    return max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def versions(peer: Path) -> dict[str, str]:
    """Of what its environment has installed."""
    listed = subprocess.run([peer / "bin" / "pip", "list", "--format=json"], capture_output=True, check=True)
    wanted = {"speculators", "torch", "transformers"}
    return {one["name"]: one["version"] for one in json.loads(listed.stdout) if one["name"] in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("data")
    make.add_argument("--answers", type=Path, required=True)
    make.set_defaults(run=data)
    tell = commands.add_parser("report")
    tell.add_argument("--work", type=Path, required=True)
    tell.add_argument("--prompts", type=Path, required=True)
    tell.add_argument("--max-tokens", type=int, default=256)
    tell.add_argument("--peer", type=Path, required=True)
    tell.set_defaults(run=report)
    for command in (make, tell):
        command.add_argument("--out", type=Path, required=True)
    count = commands.add_parser("steps")
    count.add_argument("--work", type=Path, required=True)
    count.add_argument("--minutes", type=float, required=True)
    count.set_defaults(run=steps)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
