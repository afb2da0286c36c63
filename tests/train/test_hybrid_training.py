"""Training for a target with states: answers, packing and simulated rounds as for any other."""

import random
from pathlib import Path

import torch

from flashdraft.answer import RoundEvent
from flashdraft.batch import ForwardBatch
from flashdraft.data.answerer import AnswerRequest
from flashdraft.data.engine_answers import EngineAnswers, rollout_config
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document
from flashdraft.engine.engine import Engine
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.train.config import TrainConfig
from flashdraft.train.forward import target_features
from flashdraft.train.simulate import simulate
from flashdraft.train.trainer import Trainer
from toys import toy_dflash, toy_hybrid

TARGET = toy_hybrid().requires_grad_(False)


def answered(count: int) -> list[Document]:
    rng = random.Random(0)
    prompts = [[rng.randrange(97) for _ in range(rng.randrange(3, 20))] for _ in range(count)]
    requests = [AnswerRequest(i, prompt, 0.0) for i, prompt in enumerate(prompts)]
    answerer = EngineAnswers(Engine(TARGET, None, rollout_config(4, 60)), 40)
    answers = {a.key: a for part in answerer.run(requests) for a in part}
    return [Document(str(i), "toy", 0.0, p, answers[i].token_ids, "length") for i, p in enumerate(prompts)]


def test_it_learns_and_simulated_acceptance_is_the_served_one(tmp_path: Path) -> None:
    documents = answered(6)
    rows, drafter = pack(documents, 128), toy_dflash(TARGET)
    untrained = simulate(TARGET, drafter, rows, 8, 2, 16).acceptance_length
    config = TrainConfig(
        block_size=8, seq_len=128, rows_per_step=2, blocks_per_row=32, total_blocks=64 * 80, lr=1e-2,
        eval_minutes=60.0,
    )  # fmt: skip
    Trainer(TARGET, drafter, rows, {"toy": rows}, config, tmp_path).train(lambda _line: None)
    simulated = simulate(TARGET, drafter, rows, 8, 2, 16)
    assert simulated.acceptance_length > untrained + 1
    served: list[int] = []
    params = SamplingParams(temperature=0.0, max_tokens=40)
    for document in documents:
        rounds: list[RoundEvent] = []
        prompt = document.prompt_token_ids
        output = generate(TARGET, DFlashDrafter(drafter, TARGET), prompt, params, on_round=rounds.append)
        assert output.token_ids == document.answer_token_ids
        served += [len(event.token_ids) - 1 for event in rounds[1:]]
    assert sorted(simulated.num_accepted) == sorted(served)


def test_a_documents_features_do_not_know_its_neighbours() -> None:
    documents = answered(6)
    rows = pack(documents, 256)
    rows = rows.rows(torch.arange(len(rows)))
    layers = tuple(range(4))
    features = target_features(TARGET, rows, layers)
    places = {}
    for row in range(len(rows)):
        for start in set(rows.doc_start[row].tolist()):
            end = start + int((rows.doc_start[row] == start).sum())
            places[tuple(rows.token_ids[row, start:end].tolist())] = features[row, start:end]
    for document in documents:
        ids = [*document.prompt_token_ids, *document.answer_token_ids]
        alone = TARGET(ForwardBatch.of_row(ids, 0), TARGET.new_cache(1, len(ids)), layers).features[0]
        torch.testing.assert_close(places[tuple(ids)], alone, atol=1e-3, rtol=1e-3)
