"""What exists for CUDA alone: the decoding kernel, and the step that is compiled and replayed as a graph."""

import random

import pytest
import torch

from flashdraft.data.answer_generator import AnswerGenerator, AnswerRequest
from flashdraft.generate import generate
from flashdraft.ops.attention import FirstKeys, attention, attention_reference
from flashdraft.sampling_params import SamplingParams
from toys import toy_target

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("shape", [(3, 9, 3, 130, 64), (2, 4, 1, 64, 16), (65, 2, 2, 7, 32)])
def test_a_row_attends_to_its_first_keys_alone(shape: tuple[int, ...]) -> None:
    rows, heads, kv_heads, kv_len, head_dim = shape
    torch.manual_seed(0)
    q = torch.randn(rows, 1, heads, head_dim, device="cuda").transpose(1, 2)
    k, v = torch.randn(2, rows, kv_heads, kv_len, head_dim, device="cuda")
    mask = FirstKeys(torch.randint(1, kv_len + 1, (rows,), device="cuda"))
    wanted = attention_reference(q, k, v, mask.dense(kv_len))
    unseen = ~mask.dense(kv_len).transpose(1, 2).unsqueeze(1)
    found = attention(q, k.masked_fill(unseen, torch.nan), v.masked_fill(unseen, torch.nan), mask)
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=2e-3)  # tf32


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_answers_in_a_replayed_graph_are_those_of_one_request_alone() -> None:
    rng = random.Random(0)
    target = toy_target(head_dim=16).cuda()
    prompts = [[rng.randrange(97) for _ in range(rng.randrange(1, 20))] for _ in range(30)]
    wanted = [
        generate(
            target, None, prompt, SamplingParams(temperature=0.0, max_tokens=24), eos_token_ids=[5]
        ).token_ids
        for prompt in prompts
    ]
    generator = AnswerGenerator(target, 8, 20, 24, [5])
    answers = generator.run(AnswerRequest(i, prompt, 0.0) for i, prompt in enumerate(prompts))
    found = {answer.key: answer.token_ids for some in answers for answer in some}
    # The kernel's tf32 may turn a near-tie; an error of the graph turns nearly all.
    assert sum(found[i] == wanted[i] for i in range(len(prompts))) >= 25
