"""Pages: no page is lost or given twice; a prefix is found as long as nobody needed its pages."""

import random
from collections.abc import Callable

import pytest

from flashdraft.cache.page_pool import PagePool, page_hashes


def test_hashes_chain_whole_pages_and_continue_what_is_known() -> None:
    tokens = list(range(11))
    hashes = page_hashes(tokens, 4)
    assert len(hashes) == 2
    assert page_hashes([*tokens, 11], 4, hashes)[:2] == hashes
    assert page_hashes([9, *tokens[1:]], 4)[1] != hashes[1], "the second page hangs on the first"
    assert page_hashes([1, 23], 2) != page_hashes([12, 3], 2)
    assert {len(link) for link in hashes} == {16}


def test_a_freed_prefix_is_found_until_its_pages_are_needed_last_page_first() -> None:
    pool = PagePool(4, 2)
    hashes = page_hashes(range(6), 2)
    pages = pool.allocate(3)
    assert pages is not None
    for page, link in zip(pages, hashes, strict=True):
        pool.register(page, link)
    pool.free(pages)
    assert pool.num_free == 4
    assert pool.find_prefix(hashes) == pages
    pool.check_integrity([])
    assert pool.allocate(2) is not None, "one blank page, one evicted"
    assert pool.find_prefix(hashes) == pages[:2]
    pool.share(pages[:2])
    assert pool.num_free == 0
    assert pool.allocate(1) is None
    pool.check_integrity()


def test_pages_without_content_are_blank_again_and_the_first_of_two_alike_is_found() -> None:
    pool = PagePool(3, 2)
    assert [pool.num_pages_for(num_tokens) for num_tokens in (0, 1, 2, 3)] == [0, 1, 1, 2]
    pages = pool.allocate(3)  # all there are
    assert pages == [0, 1, 2]
    link, other = page_hashes([1, 2, 3, 4], 2)
    pool.register(0, link)
    pool.register(1, link)
    pool.register(0, other)
    assert pool.find_prefix([link, other]) == [0]
    pool.free(pages)
    pool.check_integrity([])
    pool.forget()
    pool.check_integrity([])
    assert (pool.num_free, pool.find_prefix([link])) == (3, [])
    assert sorted(pool.allocate(3) or ()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda pool: pool._blank.pop(), "a page is lost or in two states"),
        (lambda pool: pool._num_refs.update({0: 0}), "a held page has no reference"),
        (lambda pool: pool._page_of.update({b"other": 0}), "hashes and pages differ"),
        (
            lambda pool: (pool._num_refs.pop(1), pool._reusable.update({1: None})),
            "a reusable page has no hash",
        ),
        (lambda pool: (pool._num_refs.pop(0), pool._blank.append(0)), "a blank page has a hash"),
        (lambda pool: pool._num_refs.update({1: 2}), "references and holders differ"),
    ],
)
def test_integrity_names_what_is_wrong(spoil: Callable[[PagePool], object], message: str) -> None:
    pool = PagePool(4, 2)
    assert pool.allocate(2) == [0, 1]
    pool.register(0, b"link")
    pool.check_integrity([[0], [1]])
    spoil(pool)
    with pytest.raises(AssertionError) as caught:
        pool.check_integrity([[0], [1]])
    assert str(caught.value) == message


def test_random_use_keeps_the_pool_sane() -> None:
    rng = random.Random(0)
    pool, held = PagePool(23, 2), []
    texts = [[rng.randrange(3) for _ in range(12)] for _ in range(6)]
    for _ in range(2000):
        if held and rng.random() < 0.5:
            pool.free(held.pop(rng.randrange(len(held))))
        else:
            hashes = page_hashes(rng.choice(texts), 2)
            found = pool.find_prefix(hashes)
            before, idle = pool.num_free, pool.num_idle(found)
            pool.share(found)
            assert pool.num_free == before - idle
            rest = pool.allocate(len(hashes) - len(found))
            if rest is None:
                pool.free(found)
            else:
                for page, link in zip(found + rest, hashes, strict=True):
                    pool.register(page, link)
                held.append(found + rest)
        pool.check_integrity(held)
