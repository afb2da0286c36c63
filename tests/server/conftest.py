"""A tiny pair and its server, for every test of the server."""

from collections.abc import Iterator

import openai
import pytest

from flashdraft.llm import LLM
from flashdraft.spec_decode.ngram import NgramDrafter
from server_case import Running, serving
from tiny_pair import save_tiny_pair


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """The tiny target with an n-gram drafter, some of whose drafts are accepted (a random network's never are)."""
    target, _ = save_tiny_pair(tmp_path_factory.mktemp("pair"))
    return LLM(target, NgramDrafter(max_block_size=8), 8, dtype="float32")


@pytest.fixture(scope="session")
def running(llm: LLM) -> Iterator[Running]:
    with serving(llm) as one:
        yield one


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with running.openai() as one:
        yield one
