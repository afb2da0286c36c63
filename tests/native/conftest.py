"""The paths of the C++ part that this CPU can run: what holds for one holds for all."""

import pytest

from flashdraft.native.library import library, runnable_paths


@pytest.fixture(params=[path.name for path in runnable_paths()])
def cpu_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs on each path; it is skipped where none can be run or compiled."""
    monkeypatch.setenv("FLASHDRAFT_CPU_PATH", request.param)
    if library() is None:
        pytest.skip("no C++ compiler")
    return str(request.param)
