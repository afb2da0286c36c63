"""The compiled library is loaded from a file of ours alone that is as it was compiled; a bad one is compiled anew."""

import os
import shutil
from pathlib import Path

import pytest

from flashdraft.native import library as library_file

pytestmark = pytest.mark.skipif(library_file.library() is None, reason="no fast CPU path on this machine")

PATH = next(iter(library_file.runnable_paths()), library_file.PATHS[0])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one library, in which compiling is copying the one that is there: a minute less."""
    compiled = library_file._place(PATH)

    def copy(_: object, to: Path) -> None:
        fresh = to.with_suffix(".new")
        shutil.copy(compiled, fresh)
        fresh.chmod(0o755)
        fresh.replace(to)

    monkeypatch.setattr(library_file, "compile_to", copy)
    folder = tmp_path / "flashdraft"
    folder.mkdir(mode=0o700)
    one = folder / "native-0.so"
    library_file._loaded(PATH, one)
    assert library_file._is_whole(one)
    return one


def test_a_library_that_was_cut_off_or_changed_is_compiled_anew(place: Path) -> None:
    whole = place.read_bytes()
    for bad in (whole[: len(whole) // 2], b"", whole[:-1] + b"\xff"):
        fresh = place.with_suffix(".bad")
        fresh.write_bytes(bad)
        fresh.replace(place)  # a loaded library is never written over
        assert not library_file._is_whole(place)
        library_file._loaded(PATH, place)
        assert place.read_bytes() == whole


def test_a_library_that_others_can_write_is_compiled_anew(place: Path) -> None:
    place.chmod(0o777)
    library_file._loaded(PATH, place)
    assert place.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_library_of_another_user_is_compiled_anew(place: Path) -> None:
    os.chown(place, 12345, 12345)
    library_file._loaded(PATH, place)
    assert place.stat().st_uid == 0


def test_a_folder_that_others_can_write_is_refused_with_the_mend(place: Path) -> None:
    place.parent.chmod(0o777)
    with pytest.raises(PermissionError, match="can be written by others: chmod go-w it"):
        library_file._loaded(PATH, place)
