"""Recordings that two engines of a process make at once, from threads of their own."""

import gc
import threading

from flashdraft.ops.recorded import _alone


def test_one_thread_records_at_a_time():
    """And garbage is not collected before the last of them is done."""
    inside, others = threading.Event(), []

    def other():
        inside.set()
        with _alone():
            others.append(gc.isenabled())

    assert gc.isenabled()
    thread = threading.Thread(target=other)
    with _alone():
        thread.start()
        assert inside.wait(60)
        thread.join(0.2)
        assert not others
        with _alone():  # work that has recordings of its own
            assert not gc.isenabled()
        assert not gc.isenabled()
    thread.join(60)
    assert others == [False]
    assert gc.isenabled()
