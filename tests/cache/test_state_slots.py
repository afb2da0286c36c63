"""Slots of states: held, kept for prefixes, forgotten in order of use."""

import random

import pytest

from flashdraft.cache.state_slots import StateSlots


def test_a_kept_state_is_found_until_its_slot_is_needed() -> None:
    slots = StateSlots(3)
    for link in (b"a", b"b"):
        slots.keep(slots.take(), link)
    assert slots.longest([b"a", b"x", b"b", b"y"]) == 3
    assert slots.longest([b"x"]) == 0
    used = slots.find(b"a")
    assert slots.take() not in (used, slots.find(b"b"))
    slots.find(b"a")
    slots.take()  # b is the least recently used now
    assert (slots.longest([b"b"]), slots.longest([b"a"])) == (0, 1)
    slots.take()
    assert slots.num_free == 0
    slots.check_integrity([0, 1, 2])


def test_the_same_prefix_is_kept_once() -> None:
    slots = StateSlots(4)
    slots.keep(slots.take(), b"a")
    first = slots.find(b"a")
    slots.keep(slots.take(), b"a")
    assert (slots.find(b"a"), slots.num_free) == (first, 4)
    slots.check_integrity([])


def test_no_slot_is_lost() -> None:
    rng, slots, held = random.Random(0), StateSlots(9), []
    for _ in range(500):
        if slots.num_free and rng.random() < 0.6:
            held.append(slots.take())
        elif held:
            slot = held.pop(rng.randrange(len(held)))
            if rng.random() < 0.5:
                slots.free(slot)
            else:
                slots.keep(slot, bytes([rng.randrange(12)]))
        slots.check_integrity(held)
    with pytest.raises(AssertionError, match="holders differ"):
        slots.check_integrity([*held, 0])
