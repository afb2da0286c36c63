"""The house is in order, and each check of ``house.py`` catches the offender that is planted for it."""

from pathlib import Path

import pytest

from house import (
    CHECKS,
    Check,
    Sources,
    arrows_point_down,
    clients_are_patient,
    clocks_are_not_asserted,
    files_are_short,
    folders_are_packages,
    functions_are_short,
    glossary_words_are_used,
    lock_faults,
    names_say_something,
    no_import_circles,
    public_things_are_explained,
    read_sources,
    reexports_are_declared,
    the_tree_is_drawn,
)

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def sources() -> Sources:
    return read_sources(REPO)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_in_order(check: Check, sources: Sources) -> None:
    faults = list(check(sources, (REPO / "docs/architecture.md").read_text()))
    assert not faults, "\n" + "\n".join(faults)


# A house in order of three rooms, and what each check must say when one file of it is spoilt.

CLEAN = {
    "src/flashdraft/__init__.py": '"""Root."""\nfrom flashdraft.llm import LLM\n__all__ = ["LLM"]\n',
    "src/flashdraft/errors.py": '"""Errors."""\n',
    "src/flashdraft/ops/__init__.py": '"""Ops."""\nfrom .norm import norm\n__all__ = ["norm"]\n',
    "src/flashdraft/ops/norm.py": '"""Norm."""\ndef norm():\n    """It."""\n    from .. import errors\n',
    "src/flashdraft/llm.py": '"""Face."""\nimport flashdraft.ops.norm\nclass LLM:\n    """It."""\n',
    "tests/test_it.py": "def test_it(): ...\n",
}
PLAN = """
## The tree
src/flashdraft/
  errors.py     leaves
  ops/          functions
    norm.py
  llm.py
## Floors
| 2 | `llm` |
| 1 | `ops` |
| 0 | `errors` |
"""
ERRORS, NORM, LLM = "src/flashdraft/errors.py", "src/flashdraft/ops/norm.py", "src/flashdraft/llm.py"
OPS, DOC = "src/flashdraft/ops/__init__.py", '"""It."""\n'
CLIENT = "httpx2"
PLANTED: list[tuple[Check, str, str, str]] = [
    (arrows_point_down, NORM, "from flashdraft.llm import LLM", "imports flashdraft.llm"),
    (arrows_point_down, NORM, "from ..llm import LLM", "imports flashdraft.llm"),
    (arrows_point_down, NORM, "def f():\n    import flashdraft.llm", "imports flashdraft.llm"),
    (arrows_point_down, NORM, "if TYPE_CHECKING:\n    from flashdraft import llm", "imports flashdraft.llm"),
    (
        arrows_point_down,
        LLM,
        "from flashdraft import generate",
        "'generate' stands on no floor; a name is imported",
    ),
    (arrows_point_down, "src/flashdraft/new.py", "import flashdraft.errors", "'new' stands on no floor"),
    (no_import_circles, NORM, "from flashdraft.ops import rope", "import circle"),
    (no_import_circles, ERRORS, "def f():\n    from flashdraft.llm import LLM", "import circle"),
    (no_import_circles, ERRORS, "if TYPE_CHECKING:\n    from .ops import norm", "import circle"),
    (files_are_short, ERRORS, "x = 1\n" * 400, "has 401 lines"),
    (files_are_short, "tests/test_it.py", "x = 1\n" * 400, "has 401 lines"),
    (functions_are_short, LLM, "class A:\n  async def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
    (reexports_are_declared, OPS, "from flashdraft.ops.norm import norm", "without __all__"),
    (reexports_are_declared, OPS, "from .norm import norm\n__all__ = []", "__all__ lacks ['norm']"),
    (reexports_are_declared, OPS, "from .norm import norm\n__all__ = ['norm', 'rope']", "names ['rope']"),
    (
        folders_are_packages,
        "src/flashdraft/cache/pages.py",
        "",
        "src/flashdraft/cache/__init__.py is missing",
    ),
    (clients_are_patient, "tests/test_it.py", f"{CLIENT}.post(url)", "patient.post does not"),
    (clocks_are_not_asserted, "tests/test_it.py", "assert time.time() - began < 1", "what time() says"),
    (clocks_are_not_asserted, "tests/test_it.py", "assert began + 1 > perf_counter()", "perf_counter() says"),
    (names_say_something, "src/flashdraft/utils.py", "", "'utils' says nothing"),
    (names_say_something, "src/flashdraft/helpers/norm.py", "", "'helpers' says nothing"),
    (public_things_are_explained, LLM, "def f(): ...", "llm.py:2 f has no docstring"),
    (public_things_are_explained, LLM, "class A: ...", "llm.py:2 A has no docstring"),
    (public_things_are_explained, LLM, f"class A:\n    {DOC}    def f(self): ...", "A.f has no docstring"),
    (glossary_words_are_used, "src/flashdraft/verifier.py", "", "'verifier'"),
    (glossary_words_are_used, LLM, "class BlockProposer: ...", "'BlockProposer'"),
    (glossary_words_are_used, LLM, "def f(q_probs): ...", "'q_probs'"),
    (glossary_words_are_used, LLM, "mean_eal = 1.0", "'mean_eal'"),
    (glossary_words_are_used, LLM, "self.target_hidden = 1", "'target_hidden'"),
    (the_tree_is_drawn, "src/flashdraft/ops/rope.py", "", "src/flashdraft/ops/rope.py is not drawn"),
]


def write_house(root: Path, files: dict[str, str]) -> Sources:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return read_sources(root)


@pytest.mark.parametrize(
    ("check", "path", "text", "fault"), PLANTED, ids=[f"{p[0].__name__}-{i}" for i, p in enumerate(PLANTED)]
)
def test_a_planted_offender_is_caught(check: Check, path: str, text: str, fault: str, tmp_path: Path) -> None:
    assert not list(check(write_house(tmp_path, CLEAN), PLAN))
    faults = list(check(write_house(tmp_path, {path: DOC + text}), PLAN))
    assert len(faults) == 1
    assert fault in faults[0]


def test_a_module_without_a_docstring_and_a_drawn_file_that_is_gone_are_caught(tmp_path: Path) -> None:
    sources = write_house(tmp_path, CLEAN | {LLM: ""})
    assert list(public_things_are_explained(sources, PLAN)) == [f"{LLM}: the module has no docstring"]
    del sources[LLM]
    assert list(the_tree_is_drawn(sources, PLAN)) == [
        f"docs/architecture.md, The tree, draws {LLM}, which is gone"
    ]


def test_the_lock_is_in_step_with_pyproject() -> None:
    files = (REPO / "pyproject.toml").read_text(), (REPO / "requirements.lock").read_text()
    assert not list(lock_faults(*files))


@pytest.mark.parametrize(
    "lock", ["", "torch==2.10.0", "torch==2.13.0\nnvidia-x==1", "torch==2.13.0+cpu", "torch"]
)
def test_a_lock_out_of_step_is_caught(lock: str) -> None:
    pyproject = '[project]\ndependencies = ["torch>=2.11"]\noptional-dependencies.dev = []\n'
    assert list(lock_faults(pyproject, lock))
    assert not list(lock_faults(pyproject, "# torch\ntorch==2.13.0\n"))
