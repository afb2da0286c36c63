"""Which backend runs a target: the fastest that can, or the one that was asked for."""

import pytest

from flashdraft.backends.eager import EagerBackend
from flashdraft.backends.registry import BACKENDS, choose_backend
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from toys import toy_target


def test_auto_takes_the_first_that_can() -> None:
    target = toy_target()
    assert choose_backend("auto", target) is EagerBackend
    assert list(BACKENDS)[-1] == "eager", "the one that knows every target"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cuda", "cuda cannot run this target: no kernels run on cpu; leave it out"),
        ("graphs", "graphs cannot run this target: the model is on cpu"),
        ("native", "native cannot run this target: it needs bfloat16 or quantized weights"),
        (
            "flashinfer",
            f"attention backend is 'flashinfer'; expected auto or one of: {', '.join(BACKENDS)}",
        ),
    ],
)
def test_one_that_cannot_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Engine(toy_target(), config=EngineConfig(attention_backend=name))


def test_a_new_one_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered, it runs: every answer is the loop's."""
    monkeypatch.setitem(BACKENDS, "mine", (__name__, "Counting"))
    target, params = toy_target(), SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    engine = Engine(target, config=EngineConfig(attention_backend="mine"))
    engine.add_request("a", [1, 2, 3], params)
    tokens = [token for news in engine.run() for token in news.token_ids]
    assert tokens == generate(target, None, [1, 2, 3], params).token_ids
    assert isinstance(engine.runner.backend, Counting)
    assert engine.runner.backend.num_steps == 8


class Counting(EagerBackend):
    num_steps = 0

    def block_step(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.num_steps += 1
        return super().block_step(*args, **kwargs)


def test_eager_is_the_reference_where_a_faster_one_could_run() -> None:
    """The embedded target in bfloat16 has a C++ form on some machines; asked for, PyTorch runs it everywhere."""
    llm = LLM(draft=None, attention_backend="eager")
    assert type(llm.engine.runner.backend) is EagerBackend
    answer = llm.generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True))
    assert len(answer[0].outputs[0].token_ids) == 2
