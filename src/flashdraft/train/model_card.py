"""The README.md of a drafter's folder: what it drafts for, what it accepts, how it was trained, how to serve it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from flashdraft.train.log_file import Line

CARD_FILE = "README.md"


def write_card(drafter: Path, target: str, facts: Mapping[str, Any], log: Sequence[Line]) -> None:
    """Write the card of the drafter in ``drafter``; a card that is there stays, for people edit theirs.

    ``facts``: of run.json. ``log``: the run's, whose last evaluation is told.
    """
    file = drafter / CARD_FILE
    if not file.exists() or file.read_text(encoding="utf-8").endswith(_OURS):
        file.write_text(card_text(drafter, target, facts, log), encoding="utf-8")


def card_text(drafter: Path, target: str, facts: Mapping[str, Any], log: Sequence[Line]) -> str:
    """The card in Markdown, with the YAML that the hub reads on top."""
    config, provenance = facts["config"], facts["provenance"]
    kind = "MTP head" if config["method"] == "mtp" else "DFlash drafter (arXiv 2602.06036)"
    where = target if _is_hub_name(target) else "TARGET"
    lines = [
        *_head(drafter, target, facts["config"]["method"]),
        f"A {kind} for `{Path(target).name if not _is_hub_name(target) else target}`, blocks of"
        f" {config['block_size']} tokens. Decoding with it gives the target's own text, in fewer forwards.\n",
        *_acceptance(log),
        "## Use\n",
        "It has no tokenizer, embedding or head of its own: those of the target are used.\n",
        f"    flashdraft serve {where} --draft {_DRAFTER}\n    flashdraft doctor --model {where} --draft {_DRAFTER}"
        f"\n    flashdraft launch vllm --model {where} --draft {_DRAFTER}\n",
        "## Training\n",
        f"- {facts['num_documents']:,} answers of the target itself, {facts['num_answer_tokens']:,} tokens;"
        f" {facts['num_cut_answers'] / max(facts['num_documents'], 1):.0%} were cut by the length limit",
        *(
            [f"- the chat template's values: `{json.dumps(facts['template'])}`; serve it with the same"]
            if facts["template"]
            else []
        ),
        f"- {log[-1]['blocks']:,} blocks in {log[-1]['elapsed_s'] / 3600:.2f} hours on {facts['num_processes']} x"
        f" {provenance.get('device_name', provenance.get('device'))}"
        if log
        else "- no steps yet",
        f"- rows of {config['seq_len']} tokens, {config['rows_per_step']} a step with {config['blocks_per_row']} blocks"
        f" each; {config['optimizer']} at {config['lr']:g}, weighting {config['weighting']}",
        f"- flashdraft {provenance['versions']['flashdraft']}, commit {provenance['git_sha']}\n",
        "## Publish\n",
        f"    hf upload USER/NAME {drafter}\n",
        _OURS,
    ]
    return "\n".join(lines)


_DRAFTER = "THIS_FOLDER"
_OURS = "<!-- Written by flashdraft train; delete this line to keep your own text. -->\n"


def write_tuned_card(
    drafter: Path, target: str, draft: str, kinds: Mapping[str, tuple[float, float, int]]
) -> None:
    """The card of a drafter that was tuned from ``draft``; ``kinds``: acceptance before, after, and number of texts."""
    where = target if _is_hub_name(target) else "TARGET"
    lines = [
        *_head(drafter, target, "tuned"),
        f"`{draft}`, fitted to logged requests of one domain by `flashdraft tune` or `improve`. Decoding with it gives"
        " the target's own text, in fewer forwards.\n",
        "Simulated acceptance length (tokens gained a verification, greedy); requests are held-back ones:\n",
        "| kind of text | before | after | texts |\n| --- | ---: | ---: | ---: |",
        *(
            f"| {name} | {before:.2f} | {after:.2f} | {count} |"
            for name, (before, after, count) in kinds.items()
        ),
        "\n## Use\n",
        f"    flashdraft serve {where} --draft {_DRAFTER}\n",
        "## Publish\n",
        f"    hf upload USER/NAME {drafter}\n",
        _OURS,
    ]
    (drafter / CARD_FILE).write_text("\n".join(lines), encoding="utf-8")


def _head(drafter: Path, target: str, tag: str) -> list[str]:
    """The YAML that the hub reads, and the title."""
    data = ModelCardData(
        base_model=target if _is_hub_name(target) else None,
        base_model_relation="adapter" if _is_hub_name(target) else None,
        library_name="flashdraft",
        pipeline_tag="text-generation",
        tags=["speculative-decoding", tag],
    )
    return [f"---\n{data.to_yaml()}\n---", f"# {drafter.resolve().parent.name}\n"]


def _acceptance(log: Sequence[Line]) -> list[str]:
    """The last evaluation as a table."""
    told = [line for line in log if "simulated_acceptance_length" in line]
    if not told:
        return ["It has not been evaluated.\n"]
    served = told[-1].get("served_acceptance_length", {})
    rows = [
        "Acceptance length (tokens gained a verification, greedy) on answers that were held back:\n",
        "| kind of text | simulated | served |\n| --- | ---: | ---: |",
    ]
    rows += [
        f"| {kind} | {length:.2f} | {f'{served[kind]:.2f}' if kind in served else '–'} |"
        for kind, length in told[-1]["simulated_acceptance_length"].items()
    ]
    return [*rows, ""]


def _is_hub_name(target: str) -> bool:
    return target.count("/") == 1 and target[0] not in "./~" and not Path(target).exists()
