"""Our trainer beside speculators' and SpecForge's: equal seconds on one device, the same answers, the same shape.

    python benchmarks/peers/trainers.py data --answers ANSWERS --work WORK --device cuda --layers 5 --rows 8
    python benchmarks/peers/trainers.py train --work WORK --device cuda --seconds 60 \
        --speculators "$PEERS/speculators/bin/python" --specforge "$PEERS/specforge/bin/python"
    python benchmarks/peers/trainers.py report --work WORK --device cuda --prompts OTHERS --out trainers.json

ANSWERS: the folder that `flashdraft train --answers-only` fills. `data` writes what each trainer takes: documents and
the target's hidden states, one file a document; ours makes its features itself, within its seconds. What ours holds
back for its own validation, none learns from. `train` starts them all at once; each warms up (compiles), and then they
have the device in turns, its first weights again and its schedule stretched over the turn. A trainer that is not ready
in time is stopped, and that is its row. `report` serves prompts that none has seen with each drafter.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flashdraft.checkpoint.load import load_target, load_tokenizer
from flashdraft.data.loader import PackedRows, fits, pack
from flashdraft.data.on_policy import Document, read_documents
from flashdraft.data.prompts import read_prompts
from flashdraft.intervals import ratio_interval
from flashdraft.llm import LLM
from flashdraft.models.dflash_config import build_target_layer_ids
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.train.forward import target_features
from flashdraft.train.run import is_held_back, spare_token_id

NUM_FEATURES, BLOCK_SIZE = 5, 16
ROW_TOKENS, ROW_ANCHORS = 1024, 64  # speculators' own proportion, 8192 to 512
HERE = Path(__file__).parent
PEERS = ("speculators", "specforge")
_TILE = 128  # tokens
_BATCH = 32  # documents in one forward on a GPU
_AFTER_S = 60  # for a trainer to save its drafter


def data(args: argparse.Namespace) -> None:
    """Documents, hidden states in both peers' forms, the target as a folder, and shape.json."""
    states, features = args.work / "arrow" / "hidden_states", args.work / "features"
    for made in (states, features):
        made.mkdir(parents=True)
    to_folder = ["convert", "--model", "embedded", "--to", "hf", "--dtype", "float32", "--out"]
    to_folder.append(str(args.work / "target"))
    converting = subprocess.Popen([sys.executable, "-m", "flashdraft", *to_folder], stdout=subprocess.DEVNULL)
    target = load_target("embedded", dtype="bfloat16", device=args.device).requires_grad_(False)
    num_layers = target.config.num_hidden_layers
    layers = build_target_layer_ids(num_layers, NUM_FEATURES)
    documents = [doc for doc in read_documents(args.answers) if fits(doc, ROW_TOKENS)]
    learned = [doc for doc in documents if not is_held_back(doc)]
    # speculators' trainer wants a validation set; nothing is taken for it from what all learn from.
    ordered = [*learned, *(doc for doc in documents if is_held_back(doc))]
    texts = [(doc.prompt_token_ids + doc.answer_token_ids)[:ROW_TOKENS] for doc in ordered]
    masks = [loss_mask(doc) for doc in ordered]
    with (args.work / "documents.jsonl").open("w") as out:
        for text, mask in zip(texts, masks, strict=True):
            out.write(json.dumps({"input_ids": text, "loss_mask": mask, "seq_len": len(text)}) + "\n")

    def write(place: int, hidden: torch.Tensor) -> None:
        ids = torch.tensor(texts[place])
        save_file({"token_ids": ids, "hidden_states": hidden}, states / f"hs_{place}.safetensors")
        if place < len(learned):  # the last of the layers is for losses that DFlash has not there
            one = {"input_ids": ids, "loss_mask": torch.tensor(masks[place])}
            one["hidden_states"] = hidden[:, :-1].flatten(1).clone()
            torch.save(one, features / f"{place:06d}.ckpt")

    size = _BATCH if args.device == "cuda" else 1
    with ThreadPoolExecutor(8) as writers:
        writing = []
        for start in range(0, len(ordered), size):
            batch = ordered[start : start + size]
            hidden = hidden_states(target, batch, (*layers, num_layers - 1))
            lengths = [len(text) for text in texts[start : start + size]]
            some = torch.cat([one[:length] for one, length in zip(hidden, lengths, strict=True)]).cpu()
            for place, one in enumerate(some.split(lengths), start):
                writing.append(writers.submit(write, place, one.clone()))
        for one in writing:
            one.result()  # a full disk would leave documents without states
    told = {
        "target": "embedded",
        "layers": args.layers,
        "features": list(layers),
        "block_size": BLOCK_SIZE,
        "mask_token_id": spare_token_id(load_tokenizer("embedded")),
        "row_tokens": ROW_TOKENS,
        "rows": args.rows,
        "anchors": args.rows * ROW_ANCHORS,
        "documents": len(learned),
        "answer_tokens": sum(len(doc.answer_token_ids) for doc in learned),
        "held_back": len(ordered) - len(learned),
    }
    (args.work / "answers").symlink_to(args.answers.resolve())
    if converting.wait():
        raise SystemExit(f"the target could not be written to {args.work / 'target'}")
    (args.work / "shape.json").write_text(json.dumps(told) + "\n")
    print(json.dumps({"data": told}), flush=True)


def loss_mask(document: Document) -> list[int]:
    """1 at the tokens of the answer, 0 at the prompt's, of those that fit a row."""
    asked, answered = len(document.prompt_token_ids), len(document.answer_token_ids)
    return ([0] * asked + [1] * answered)[:ROW_TOKENS]


def hidden_states(target: Any, documents: list[Document], layers: tuple[int, ...]) -> list[torch.Tensor]:
    """[num_tokens or more, len(layers), hidden_size] of each document: the layers' outputs, before the final norm."""
    on_gpu = target.device.type == "cuda"  # one shape for all there: what is compiled is compiled once
    longest = max(len(doc.prompt_token_ids) + len(doc.answer_token_ids) for doc in documents)
    length = ROW_TOKENS if on_gpu else min(-(-longest // _TILE) * _TILE, ROW_TOKENS)
    filled = documents + documents[-1:] * (_BATCH - len(documents)) if on_gpu else documents
    each = [pack([doc], length) for doc in filled]
    fields = ([getattr(rows, field.name) for rows in each] for field in fields_of(PackedRows))
    rows = PackedRows(*(torch.cat(parts).to(target.device) for parts in fields))
    features = target_features(target, rows.rows(slice(None)), layers)
    return list(features.unflatten(-1, (len(layers), -1)))[: len(documents)]


def command_of(name: str, args: argparse.Namespace, told: dict[str, Any]) -> list[str]:
    """How the trainer is started."""
    script = str(HERE / f"trainer_{name}.py")
    if name == "ours":
        more = ["--seconds", str(args.seconds), "--device", args.device]
        return [sys.executable, script, str(args.work), *more]
    python = shlex.split(getattr(args, name))
    if name == "specforge":
        return [*python, script, str(args.work), "--seconds", str(args.seconds)]
    learned, all_documents = told["documents"], told["documents"] + told["held_back"]
    options = {
        "speculator-type": "dflash", "num-layers": told["layers"], "block-size": told["block_size"],
        "target-layer-ids": [layer + 1 for layer in told["features"]], "mask-token-id": told["mask_token_id"],
        "total-seq-len": told["rows"] * told["row_tokens"], "max-anchors": told["anchors"],
        "train-data-ratio": (learned + 0.5) / all_documents, "on-missing": "raise", "log-freq": 1_000_000,
        "verifier-name-or-path": args.work / "target", "data-path": args.work / "arrow",
        "save-path": args.work / name, "log-dir": args.work / f"{name}.logs",
    }  # fmt: skip
    if (
        args.device == "cpu"
    ):  # no Triton for its loss, no FlexAttention backwards, and no cores for 12 workers
        options |= {"loss-implementation": "eager", "draft-attn-impl": "sdpa", "num-workers": 0}
    given: list[Any] = [*python, script, args.work, "train"]
    for option, value in options.items():
        given += [f"--{option}", *(value if isinstance(value, list) else [value])]
    return list(map(str, given))


def start(name: str, args: argparse.Namespace, told: dict[str, Any]) -> "subprocess.Popen[bytes]":
    folder = args.work / name
    folder.mkdir()
    command = command_of(name, args, told)
    (folder / "command").write_text(shlex.join(command) + "\n")
    with (args.work / f"{name}.log").open("wb") as log:
        env = os.environ | {"FLASHDRAFT_TURN": str(args.seconds)}
        return subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)


def train(args: argparse.Namespace) -> None:
    """All warm up at once, then have the device in turns."""
    told = json.loads((args.work / "shape.json").read_text())
    names = ["ours", *(name for name in PEERS if getattr(args, name))]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by the way of `finally`
    for name in (
        "ours",
        *PEERS,
    ):  # what an earlier run left would be gone on with, or reported beside this one
        shutil.rmtree(args.work / name, ignore_errors=True)
    began = time.monotonic()
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in names:
            running[name] = start(name, args, told)
        while time.monotonic() - began < args.ready_within and any(
            not (args.work / name / "ready").exists() and process.poll() is None
            for name, process in running.items()
        ):
            time.sleep(0.1)
        faults = {name: not_ready(name, running[name], args) for name in names}
        for name in names:
            row = {"trainer": name, **(faults[name] or turn_of(name, running[name], args))}
            (args.work / name / "row.json").write_text(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    finally:
        for process in running.values():
            stop(process)


def not_ready(name: str, process: "subprocess.Popen[bytes]", args: argparse.Namespace) -> dict[str, Any]:
    """The row of a trainer that has not warmed up, which is stopped: what it compiles would disturb the others."""
    code = process.poll()
    if (args.work / name / "ready").exists():
        return {}
    stop(process)
    late = f"not ready in {args.ready_within} s" if code is None else f"ended with {code} before it was ready"
    return {"error": late, "log": tail(args.work / f"{name}.log")}


def turn_of(name: str, process: "subprocess.Popen[bytes]", args: argparse.Namespace) -> dict[str, Any]:
    """Give the trainer its turn, and wait until it has saved what it learned."""
    folder, fault = args.work / name, ""
    (folder / "turn").touch()
    try:
        code = process.wait(args.seconds + _AFTER_S)
        fault = f"ended with {code} in its turn" if code else ""
    except subprocess.TimeoutExpired:
        fault = f"had not saved its drafter {_AFTER_S} s after its turn"
    stop(process)
    if fault or not (folder / "turn.json").exists():
        return {"error": fault or "ended without a word of its turn", "log": tail(args.work / f"{name}.log")}
    row = {
        "warm_up_s": float((folder / "ready").read_text()),
        **json.loads((folder / "turn.json").read_text()),
    }
    return row | {"blocks_per_s": round(row["num_blocks"] / row["seconds"], 1)}


def tail(log: Path) -> str:
    """The end of a log, which may have been cut within a character."""
    return log.read_text(errors="replace")[-300:]


def stop(process: "subprocess.Popen[bytes]") -> None:
    """The trainer and the workers that it started, which may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def serve(args: argparse.Namespace) -> None:
    """Answer the prompts with one drafter: a JSON line an answer."""
    asked = read_prompts(args.prompts)
    llm = LLM(
        draft=str(args.draft), dtype="bfloat16", block_size=BLOCK_SIZE, max_running=32, device=args.device
    )
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    answers = llm.chat([list(prompt.messages) for prompt in asked], params)
    with args.out.open("w") as out:
        for prompt, answer in zip(asked, answers, strict=True):
            ids = list(answer.outputs[0].token_ids)
            row = {
                "id": prompt.id,
                "task": prompt.source,
                "rounds": answer.metrics.num_rounds,
                "token_ids": ids,
            }
            out.write(json.dumps(row) + "\n")


def report(args: argparse.Namespace) -> None:
    """Serve all drafters and put the rows together."""
    rows = [
        json.loads(path.read_text())
        for name in ("ours", *PEERS)
        for path in args.work.glob(f"{name}/row.json")
    ]
    if not rows:
        raise SystemExit(f"{args.work} has no trainer's row.json; expected `train` to have run there")
    served = serve_all([row["trainer"] for row in rows if "seconds" in row], args)
    costs = {
        name: [(len(one["token_ids"]) - 1, one["rounds"]) for one in answers]
        for name, answers in served.items()
    }
    for row in rows:
        name = row["trainer"]
        row["command"] = (args.work / name / "command").read_text().strip()
        if name in served:
            row |= {"acceptance_length": accepted(costs[name]), "by_task": by_task(served[name], costs[name])}
        elif "seconds" in row:
            row["error"] = "its drafter could not be served"
    ours, beside = rows[0], {}
    for row in rows:
        name = row["trainer"]
        if name in PEERS and {name, "ours"} <= served.keys():
            same = sum(
                a["token_ids"] == b["token_ids"] for a, b in zip(served["ours"], served[name], strict=True)
            )
            beside[name] = {
                "blocks_per_s_ratio": round(ours["blocks_per_s"] / row["blocks_per_s"], 3),
                "acceptance_length_ratio": round(ours["acceptance_length"] / row["acceptance_length"], 4),
                "acceptance_length_ratio_95": ratio_interval(
                    range(len(costs[name])), costs["ours"], costs[name]
                ),
                "same_answers": f"{same} of {len(costs[name])}",
            }
    result = {
        "shape": json.loads((args.work / "shape.json").read_text()),
        "trainers": rows,
        "ours_over": beside,
        "served": {"prompts": len(read_prompts(args.prompts)), "max_tokens": args.max_tokens},
        "provenance": collect_provenance(args.device),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "provenance"}))


def serve_all(names: list[str], args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The answers with each trainer's drafter, all at once: what a drafter accepts takes no clock."""
    common = ["--device", args.device, "--prompts", str(args.prompts), "--max-tokens", str(args.max_tokens)]
    running = []
    for name in names:
        folder = args.work / name
        draft = folder / ("0" if name == "speculators" else "drafter")
        own = ["--draft", str(draft), "--out", str(folder / "served.jsonl")]
        running.append(subprocess.Popen([sys.executable, __file__, "serve", *own, *common]))
    ended = {name: process.wait() for name, process in zip(names, running, strict=True)}
    return {
        name: [json.loads(line) for line in (args.work / name / "served.jsonl").read_text().splitlines()]
        for name, code in ended.items()
        if code == 0
    }


def accepted(costs: list[tuple[int, int]]) -> float:
    return round(sum(tokens for tokens, _ in costs) / max(sum(rounds for _, rounds in costs), 1), 4)


def by_task(served: list[dict[str, Any]], costs: list[tuple[int, int]]) -> dict[str, float]:
    grouped = defaultdict(list)
    for one, cost in zip(served, costs, strict=True):
        grouped[one["task"]].append(cost)
    return {task: accepted(some) for task, some in grouped.items()}


def seconds(said: str) -> float:
    number = float(said)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{said} is no time; expected seconds above 0")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    verbs = {verb.__name__: commands.add_parser(verb.__name__) for verb in (data, train, serve, report)}
    for verb in (data, train, serve, report):
        verbs[verb.__name__].set_defaults(run=verb)
        verbs[verb.__name__].add_argument("--device", default="cpu")
    for name in ("data", "train", "report"):
        verbs[name].add_argument("--work", type=Path, required=True)
    for name in ("serve", "report"):
        verbs[name].add_argument("--prompts", type=Path, required=True)
        verbs[name].add_argument("--max-tokens", type=int, default=128)
        verbs[name].add_argument("--out", type=Path, required=True)
    verbs["serve"].add_argument("--draft", type=Path, required=True)
    verbs["data"].add_argument("--answers", type=Path, required=True)
    verbs["data"].add_argument("--layers", type=int, default=2)
    verbs["data"].add_argument("--rows", type=int, default=1, help="of 1,024 tokens, in a step")
    verbs["train"].add_argument("--seconds", type=seconds, required=True, help="of each trainer's turn")
    verbs["train"].add_argument("--ready-within", type=seconds, default=900, help="seconds, for all warm-ups")
    for name in PEERS:
        verbs["train"].add_argument(f"--{name}", help="the command of its python; without, it is left out")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
