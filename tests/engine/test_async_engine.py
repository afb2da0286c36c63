"""The asyncio door: streams, aborts on leaving, failures that reach everybody."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

import pytest

import patient
from flashdraft.engine import async_engine
from flashdraft.engine.async_engine import AsyncEngine
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.engine.types import StepOutput
from flashdraft.errors import EngineError, UsageError
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from toys import toy_dflash, toy_target

TARGET = toy_target(max_position_embeddings=8192)
LONG = SamplingParams(temperature=0.0, max_tokens=4000, ignore_eos=True)  # what runs does not end by itself


def serve(work: Callable[[AsyncEngine], Awaitable[None]]) -> Engine:
    drafter = DFlashDrafter(toy_dflash(TARGET), TARGET)
    engine = Engine(TARGET, drafter, EngineConfig(page_size=4), block_size=8)

    async def main() -> None:
        door = AsyncEngine(engine)
        await door.start()
        try:
            await asyncio.wait_for(work(door), 10 * patient.PATIENCE_S)
        finally:
            await door.stop()
        assert not door.healthy

    asyncio.run(main())
    return engine


def test_requests_stream_side_by_side() -> None:
    async def one(door: AsyncEngine, seed: int) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=15 + seed, ignore_eos=True)
        outputs = [out async for out in door.generate([seed, 5], params)]
        tokens = [token for out in outputs for token in out.token_ids]
        assert tokens == generate(TARGET, None, [seed, 5], params).token_ids
        assert [out.finished for out in outputs] == [False] * (len(outputs) - 1) + [True]

    async def work(door: AsyncEngine) -> None:
        await asyncio.gather(*(one(door, seed) for seed in range(12)))

    serve(work).check_integrity()


def test_leaving_the_iterator_aborts() -> None:
    """By closing it, and by cancelling who waits at it. Commands are taken in order: a later answer is the sign."""

    async def work(door: AsyncEngine) -> None:
        closed, cancelled = door.generate([1, 2], LONG), door.generate([3], LONG, "cancelled")
        await anext(closed)
        await closed.aclose()
        await anext(cancelled)
        waiting = asyncio.ensure_future(drain(cancelled))
        await asyncio.sleep(0)  # it waits for news now
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        after = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
        assert sum([len(out.token_ids) async for out in door.generate([4], after)]) == 3
        assert not door.engine.requests

    async def drain(stream: AsyncGenerator[StepOutput, None]) -> None:
        async for _ in stream:
            pass

    engine = serve(work)
    assert engine.metrics.num_output_tokens < 2 * LONG.max_tokens


def test_a_bad_request_is_told_and_harms_nobody() -> None:
    async def work(door: AsyncEngine) -> None:
        with pytest.raises(UsageError, match="empty"):
            await anext(door.generate([], LONG))
        stream = door.generate([1], LONG, "same")
        await anext(stream)
        with pytest.raises(UsageError, match="'same' is taken"):
            await anext(door.generate([1], LONG, "same"))
        await stream.aclose()  # type: ignore[attr-defined]
        assert door.healthy
        assert door.stats().num_waiting == 0

    serve(work)


def test_a_failure_ends_every_request(caplog: pytest.LogCaptureFixture) -> None:
    async def work(door: AsyncEngine) -> None:
        streams = [door.generate([i], LONG) for i in range(3)]
        for stream in streams:
            await anext(stream)
        del door.engine.runner.block_rows.layers  # the next step fails
        for stream in streams:
            with pytest.raises(EngineError, match="the engine failed"):
                async for _ in stream:
                    pass
        assert not door.healthy
        with pytest.raises(EngineError):
            await anext(door.generate([1], LONG))

    serve(work)
    assert "the engine failed" in caplog.text
    assert "AttributeError" in caplog.text


def test_stopping_ends_what_runs() -> None:
    async def work(door: AsyncEngine) -> None:
        stream = door.generate([1], LONG)
        await anext(stream)
        await door.stop()
        with pytest.raises(EngineError, match="stopped"):
            async for _ in stream:
                pass

    serve(work)


PLACES = (
    *("step", "_deliver", "_settle", "scheduler.schedule_blocks", "scheduler.schedule_chunks"),
    *("scheduler.register_pages", "runner.join", "runner.run", "runner.forward", "runner.commit"),
    *("runner.propose", "runner.catch_up", "control.plan", "control.select", "control.learn", "abort"),
)
FAILURES = (RuntimeError, MemoryError, SystemExit, KeyboardInterrupt, AssertionError)


@pytest.mark.parametrize("place", PLACES)
def test_whatever_fails_wherever_all_streams_end_and_the_engine_says_so(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failure = FAILURES[PLACES.index(place) % len(FAILURES)]

    async def one(door: AsyncEngine, seed: int) -> list[StepOutput]:
        return [out async for out in door.generate([seed, 5], LONG)]

    async def work(door: AsyncEngine) -> None:
        streams = [asyncio.create_task(one(door, seed)) for seed in range(4)]
        left = door.generate([9], LONG)
        await anext(left)
        owner, _, name = place.rpartition(".")

        def fail(*_: object, **__: object) -> None:
            raise failure("planted")

        monkeypatch.setattr(getattr(door.engine, owner) if owner else door.engine, name, fail)
        if place == "abort":
            await left.aclose()
        if place == "runner.join":
            streams.append(asyncio.create_task(one(door, 7)))
        for stream in streams:
            with pytest.raises(EngineError, match="the engine failed; the server's log says why"):
                await stream
        assert not door.healthy
        with pytest.raises(EngineError):
            await one(door, 3)
        await left.aclose()

    serve(work)
    assert f"{failure.__name__}: planted" in caplog.text


def test_a_request_that_nobody_reads_stands_still_until_somebody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what it has said it does not say again."""
    monkeypatch.setattr(async_engine, "_LATE_S", 0.0)
    monkeypatch.setattr(async_engine, "_MOST_UNREAD", 4)
    params = replace(LONG, max_tokens=400)
    short = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)

    async def work(door: AsyncEngine) -> None:
        unread = door.generate([1, 2], params, block_size=1)
        tokens = list((await anext(unread)).token_ids)
        while not door.engine.scheduler.paused:
            await asyncio.sleep(0.01)
        (held,) = door.engine.scheduler.paused
        assert held.num_said < params.max_tokens
        assert not door.engine.has_unfinished
        assert len([out async for out in door.generate([4], short)])  # it is in nobody's way
        door.engine.check_integrity()
        async for out in unread:
            tokens += out.token_ids
        assert tokens == generate(TARGET, None, [1, 2], params).token_ids
        left = door.generate([1, 3], params, block_size=1)
        await anext(left)
        while not door.engine.scheduler.paused:
            await asyncio.sleep(0.01)
        await left.aclose()
        while door.engine.requests:
            await asyncio.sleep(0.01)

    serve(work).check_integrity()
