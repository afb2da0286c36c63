"""What a prompt that waits was found to need, and what it needs by then."""

from flashdraft.answer import Answer
from flashdraft.engine.request import Request
from flashdraft.engine.scheduler import EngineConfig, Scheduler
from flashdraft.sampling_params import SamplingParams

PAGE = 4  # tokens


def added(scheduler: Scheduler, arrival: int, prompt: list[int]) -> Request:
    answer = Answer(prompt, SamplingParams(temperature=0.0, max_tokens=4), 4, (), None, None)
    request = Request(str(arrival), prompt, answer, len(prompt) + 4, 1, 0, arrival)
    scheduler.add(request)
    return request


def test_who_cannot_start_as_it_was_looked_up_is_looked_up_again() -> None:
    """Pages that another one held when they were found are free pages later, which starting takes as well."""
    scheduler = Scheduler(EngineConfig(page_size=PAGE).on("cpu", 1), 9, lambda _: 1)
    first, second = added(scheduler, 0, [1] * 13), added(scheduler, 1, [2] * 15)
    scheduler.schedule_chunks(scheduler.schedule_blocks([]))
    first.num_committed = first.num_observed = len(first.prompt)
    scheduler.register_pages(first, len(first.prompt))
    large = added(scheduler, 2, [1] * 13 + [3] * 10)
    scheduler.schedule_chunks(scheduler.schedule_blocks([]))
    assert large.to_start == (3, 11)  # of its 6 pages the first one's 3 are held, and full
    scheduler.finish(first)
    for _ in range(2):
        scheduler.schedule_chunks(scheduler.schedule_blocks([]))
        scheduler.check_integrity()
        assert not large.pages
    assert large.to_start == (6, 11)
    scheduler.finish(second)
    scheduler.schedule_chunks(scheduler.schedule_blocks([]))
    assert large.num_cached_tokens == 3 * PAGE
