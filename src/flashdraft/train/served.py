"""Whether training simulates what serving does: held-back prompts answered by the real loop, then simulated."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from flashdraft.answer import RoundEvent
from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.build import trained_drafter
from flashdraft.train.config import TrainConfig
from flashdraft.train.forward import Network
from flashdraft.train.simulate import Walk, answers_of, simulate

MAX_ANSWER_LEN = 128  # tokens of an answer that are served: the check shall be cheap
LARGEST_GAP = 0.03  # of simulated and served acceptance length, on the same texts


@dataclass
class ServedCheck:
    """Rounds of the same texts, served and simulated."""

    served: Walk = field(default_factory=Walk)
    simulated: Walk = field(default_factory=Walk)
    num_answers: int = 0
    num_as_stored: int = 0  # answers that are the stored ones, token by token

    def add(self, other: "ServedCheck") -> None:
        """Count ``other``'s too."""
        self.served.add(other.served)
        self.simulated.add(other.simulated)
        self.num_answers += other.num_answers
        self.num_as_stored += other.num_as_stored


def check_served(
    target: TargetModel, drafter: Network, validation: dict[str, PackedRows], config: TrainConfig
) -> dict[str, Any]:
    """What a line of the log tells of ``config.served_prompts`` prompts, spread over the kinds of text.

    A warning is among it when served and simulated acceptance part by more than 3 %. The simulation runs over the
    answers that were served, so that a near-tie, which makes another text, does not count as a difference.
    """
    total, by_kind = ServedCheck(), {}
    for place, (kind, rows) in enumerate(validation.items()):
        count = (config.served_prompts + len(validation) - 1 - place) // len(validation)
        if count:
            by_kind[kind] = _serve(target, drafter, rows, config, count)
            total.add(by_kind[kind])
    by_kind["all"] = total
    values: dict[str, Any] = {
        name: {kind: round(getattr(one, which).acceptance_length, 4) for kind, one in by_kind.items()}
        for name, which in (("served_acceptance_length", "served"), ("simulated_on_served", "simulated"))
    }
    values["accepted_by_position"] = {
        which: [round(share, 4) for share in walk.accepted_by_position(config.block_size)]
        for which, walk in (("served", total.served), ("simulated", total.simulated))
    }
    values["answers_as_stored"] = f"{total.num_as_stored} of {total.num_answers}"
    served, simulated = total.served.acceptance_length, total.simulated.acceptance_length
    if abs(simulated / served - 1) > LARGEST_GAP:
        values["warning"] = (
            f"serving accepts {served:.2f} tokens a round where training simulates {simulated:.2f}, on the same texts:"
            " what is trained is not what is served"
        )
    return values


def _serve(
    target: TargetModel, drafter: Network, rows: PackedRows, config: TrainConfig, count: int
) -> ServedCheck:
    serving = trained_drafter(drafter, target)
    check, documents = ServedCheck(), []
    for prompt, answer in _first(rows, count):
        answer = answer[:MAX_ANSWER_LEN]
        accepted: list[int] = []

        def hear(event: RoundEvent, accepted: list[int] = accepted) -> None:
            accepted.append(event.num_accepted)

        # Up to the stored answer's length, whatever ends it: as many tokens as the simulation has.
        params = SamplingParams(temperature=0.0, max_tokens=len(answer))
        # Served shapes change from call to call, compiled layers have one: without them.
        with torch.compiler.set_stance("force_eager"):
            given = generate(target, serving, prompt, params, config.block_size, on_round=hear).token_ids
        check.served.num_tokens += len(given) - 1
        check.served.num_accepted += accepted[1:]  # the first is the prefill's
        check.num_answers += 1
        check.num_as_stored += given == answer
        documents.append(Document("", "", 0.0, prompt, given, "length"))
    seq_len = rows.token_ids.shape[1]
    again = pack(documents, seq_len, target.device)
    check.simulated = simulate(
        target, drafter, again, config.block_size, config.rows_per_step, config.blocks_per_row
    )
    return check


def _first(rows: PackedRows, count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Prompt and answer of the first ``count`` documents."""
    for text, starts, anchors in zip(
        rows.token_ids.tolist(), rows.doc_start.tolist(), rows.is_anchor.tolist(), strict=True
    ):
        for begin, end in answers_of(anchors):
            if count == 0:
                return
            yield text[starts[begin] : begin], text[begin : end + 1]
            count -= 1
