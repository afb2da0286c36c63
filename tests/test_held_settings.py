"""What is changed for the whole process is as it was when the last holder has left, in whatever order they leave."""

import gc
import sys
from collections.abc import Iterator

import pytest

from flashdraft.data.answerer import AnswerRequest
from flashdraft.data.engine_answers import EngineAnswers
from flashdraft.engine.engine import Engine
from flashdraft.held_settings import NO_COLLECTION
from flashdraft.ops.recorded import _alone
from toys import toy_target


def settings() -> tuple[bool, float]:
    return gc.isenabled(), sys.getswitchinterval()


@pytest.fixture(params=[True, False])
def before(request: pytest.FixtureRequest) -> Iterator[tuple[bool, float]]:
    """A process that looks for cycles, and one that does not."""
    was = settings()
    (gc.enable if request.param else gc.disable)()
    sys.setswitchinterval(0.003)
    yield settings()
    (gc.enable if was[0] else gc.disable)()
    sys.setswitchinterval(was[1])


@pytest.mark.parametrize("first", [0, 1])
def test_answers_of_two_engines_at_a_time_leave_the_process_as_it_was(
    first: int, before: tuple[bool, float]
) -> None:
    target = toy_target(num_hidden_layers=1)
    asked = [AnswerRequest(key, [3, 4, 5], 0.0) for key in range(3)]
    every = [EngineAnswers(Engine(target), 4).run(asked) for _ in range(2)]
    for answers in every:
        next(answers)
    within = settings()
    assert not within[0]
    assert within[1] < before[1]
    every.pop(first).close()  # type: ignore[attr-defined]
    assert settings() == within, "the other one still answers"
    assert list(every[0]) == []
    assert settings() == before


def test_a_recording_beside_answers_leaves_cycles_alone(before: tuple[bool, float]) -> None:
    recording = _alone()
    recording.__enter__()
    with NO_COLLECTION:
        recording.__exit__(None, None, None)
        assert not gc.isenabled()
    with _alone(), _alone():
        assert not gc.isenabled()
    assert settings() == before
