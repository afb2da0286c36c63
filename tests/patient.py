"""httpx2's calls as a test makes them: its own five seconds are too short for an answer on a busy machine."""

from functools import partial

import httpx2

PATIENCE_S = 60  # until a test gives up that the machine has no time for

get = partial(httpx2.get, timeout=PATIENCE_S)
options = partial(httpx2.options, timeout=PATIENCE_S)
post = partial(httpx2.post, timeout=PATIENCE_S)
request = partial(httpx2.request, timeout=PATIENCE_S)
stream = partial(httpx2.stream, timeout=PATIENCE_S)
