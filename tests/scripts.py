"""Benchmarks' and recipes' scripts as modules: they are in no package."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).parent.parent


@contextmanager
def scripts(folder: str, *names: str) -> Iterator[list[ModuleType]]:
    """The modules ``names`` of a ``folder`` of the repository, where they find their neighbours meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / folder))
        yield [import_module(name) for name in names]
