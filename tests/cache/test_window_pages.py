"""Pages of layers with windows: which are held, and behind which prefix a sequence can go on."""

import random

from flashdraft.cache.window_pages import WindowPages, WindowPool, WindowRoom

SIZE = 4


def link(*parts: int) -> bytes:
    return bytes(parts)


def seen_pages(num_tokens: int, window: int) -> set[int]:
    """Pages of what is before the token behind ``num_tokens`` and within its window."""
    return {at // SIZE for at in range(max(num_tokens - window + 1, 0), num_tokens)}


def test_what_is_held_is_what_the_next_token_sees() -> None:
    for window in (1, 2, 5, 8, 13):
        pool = WindowPool(WindowRoom(window, 40), SIZE)
        own = WindowPages()
        for num_tokens in range(60):
            pool.trim(own, num_tokens, num_tokens)
            pool.reach(own, num_tokens // SIZE + 1)
            held = set(range(own.num_behind, own.num_behind + len(own.held)))
            assert held == seen_pages(num_tokens, window) | {num_tokens // SIZE}
            pool.check_integrity([own])
        assert own.aligned(-1)[: own.num_behind] == [-1] * own.num_behind
        pool.free(own)
        pool.check_integrity([])


def test_the_longest_prefix_by_brute_force() -> None:
    rng = random.Random(0)
    hashes = [link(idx) for idx in range(12)]
    for _ in range(200):
        window = rng.choice((1, 3, 4, 5, 9, 16, 60))
        is_drafters, prompt_len = rng.random() < 0.5, rng.randrange(12 * SIZE, 15 * SIZE)
        pool = WindowPool(WindowRoom(window, 12, is_drafters), SIZE)
        own = WindowPages()
        pool.reach(own, 12)
        there = {idx for idx in range(12) if rng.random() < 0.7}
        for idx in there:
            pool.register(own, idx, hashes[idx])
        expected = max(
            count
            for count in range(13)
            if seen_pages(prompt_len if is_drafters else count * SIZE, window) & set(range(count)) <= there
        )
        # A window of one token sees nothing before itself: any length will do.
        found = pool.longest(hashes, prompt_len)
        assert found == expected
        joined = pool.join(hashes[:found], prompt_len)
        assert joined.num_behind + len(joined.held) == found
        assert joined.held == own.held[joined.num_behind : found]
        pool.check_integrity([own, joined])


def test_room_for_all_that_may_run() -> None:
    """Requests of any length in steps of any cut never run out of pages."""
    rng = random.Random(1)
    room = WindowRoom.of([None, 9, 6], num_rows=3, step_tokens=20, page_size=SIZE)
    assert room is not None
    assert room.window == 9
    pool = WindowPool(room, SIZE)
    rows, done = [WindowPages() for _ in range(3)], [0, 0, 0]
    for _ in range(500):
        cuts = sorted(rng.choices(range(21), k=2))
        counts = [cuts[0], cuts[1] - cuts[0], 20 - cuts[1]]
        for own, num_tokens in zip(rows, done, strict=True):
            pool.trim(own, num_tokens, num_tokens)
        for own, num_tokens, count in zip(rows, done, counts, strict=True):
            if count:
                pool.reach(own, -(-(num_tokens + count) // SIZE))
        pool.check_integrity(rows)
        done = [num_tokens + rng.randint(0, count) for num_tokens, count in zip(done, counts, strict=True)]
    assert WindowRoom.of([None], 3, 20, SIZE) is None
