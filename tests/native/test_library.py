"""The compiled library where it cannot be had: one line that says why."""

import pytest

from flashdraft.native import library as library_file
from flashdraft.native.library import library


def test_a_compiler_that_fails_without_a_word_is_told_in_one_short_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library_file._library.cache_clear()
    try:
        assert library() is None
    finally:
        library_file._library.cache_clear()
    [line] = [record.getMessage() for record in caplog.records if "plain PyTorch" in record.getMessage()]
    assert line.endswith("did not compile or load (false ended with code 1 and said nothing)")
