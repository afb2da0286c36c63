"""Answers are told right from wrong, and code is run within its limits."""

import contextlib
import itertools
import os
import time
from pathlib import Path

import pytest

from flashdraft.bench import sandbox
from flashdraft.bench.accuracy import final_answer, is_correct, math_grader, same_answer
from flashdraft.bench.sandbox import passes
from flashdraft.bench.tasks import BenchPrompt, load_task
from flashdraft.errors import UsageError
from server_case import wait_until


@pytest.mark.parametrize(
    ("given", "wanted", "equal"),
    [
        ("18", "18", True),
        ("$1,080.00$", "1080", True),
        ("18", "81", False),
        (r"\dfrac{1}{2}", r"\frac12", True),
        (r"0.5", r"\frac{1}{2}", True),
        (r"-\frac{1}{2}", "-0.5", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"90^\circ", "90", True),
        (r"x = 5", "5", True),
        ("(1,234)", "(1234)", False),
        ("y = 2x", "2x", True),
        ("2x", "3x", False),
        (r"11\%", "11", True),
    ],
)
def test_answers_are_compared_in_one_spelling(given: str, wanted: str, equal: bool) -> None:
    assert same_answer(given, wanted) == same_answer(wanted, given) == equal


def test_the_final_answer_is_the_last_box_or_the_last_number() -> None:
    assert final_answer(r"so \boxed{1} and then \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert final_answer("3 + 4 = 7,000 apples") == "7,000"
    assert final_answer(r"\boxed{cut off") is None
    assert final_answer("none") is None


def test_the_references_own_answers_are_right_and_spoilt_ones_wrong() -> None:
    for task in ("gsm8k", "math500"):
        prompts = load_task(task, 100)
        for prompt, other in itertools.pairwise(prompts):
            assert is_correct(prompt, prompt.reference["solution"]) is True
            if not same_answer(prompt.reference["answer"], other.reference["answer"]):
                assert is_correct(prompt, other.reference["solution"]) is False
    assert is_correct(load_task("mt-bench", 1)[0], "anything") is None


@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_code_is_judged_by_its_tests(task: str) -> None:
    for prompt in load_task(task, 3):
        reference = prompt.reference
        code = reference.get("code") or reference["prompt"] + reference["canonical_solution"]
        assert is_correct(prompt, f"Here it is:\n```python\n{code}\n```\nDone.") is True
        assert is_correct(prompt, code) is True
        assert is_correct(prompt, f"```python\n{code.replace('return', 'return not')}\n```") is False
        assert is_correct(prompt, "I do not know.") is False


def test_a_body_alone_continues_the_prompt() -> None:
    prompt = load_task("humaneval", 1)[0]
    assert is_correct(prompt, prompt.reference["canonical_solution"]) is True


@pytest.mark.parametrize(
    "program",
    [
        "1 / 0",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "x = bytearray(1 << 30)",
        "open('big', 'w').write('x' * (2 << 20))",
        "print('end'); raise SystemExit",
        "while True: pass",
    ],
)
def test_a_program_that_fails_leaves_or_takes_too_much_has_not_passed(program: str) -> None:
    assert not passes(program, timeout_s=1.0)


def test_a_program_sees_no_network_and_an_empty_folder_and_its_children_end_with_it(tmp_path: Path) -> None:
    assert passes("import os; assert os.listdir('.') == []")
    assert not passes("import socket; socket.create_connection(('127.0.0.1', 9), 1)")
    mark = tmp_path / "late"
    spawn = f"import subprocess; subprocess.Popen(['sh', '-c', 'sleep 1; touch {mark}'])"
    assert passes(spawn)
    time.sleep(1.3)
    assert not mark.exists()


def test_a_program_writes_into_its_own_folder_alone_and_little(tmp_path: Path) -> None:
    place = tmp_path / "written"
    assert not passes(f"open({str(place)!r}, 'w')")
    assert not place.exists()
    assert passes("open('a', 'w').write('x')")
    assert not passes("for i in range(1000): open(str(i), 'w')")


def test_a_program_starts_few_processes_whoever_runs_it() -> None:
    spawn = "import subprocess\nfor _ in range({}): subprocess.Popen(['sleep', '30'])"
    assert passes(spawn.format(4))
    assert not passes(spawn.format(40))


def test_a_program_has_no_rights_to_open_the_wall() -> None:
    again = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
    assert passes(
        again + "assert libc.mount(None, b'/', None, 0x20 | 0x1000, None) == -1"
    )  # writable once more
    assert passes("import os\ntry:\n  os.setuid(0)\nexcept OSError: pass\nelse: raise ValueError")
    assert passes("import subprocess, sys; subprocess.run([sys.executable, '-c', 'import json'], check=True)")


def test_a_program_reaches_no_other_process_and_none_outlives_it() -> None:
    assert not passes(f"import os; os.kill({os.getpid()}, 0)")
    spawn = "import os, subprocess; os.setsid() if os.getpgid(0) != os.getpid() else None\n"
    spawn += "subprocess.Popen(['sleep', '31.5173'], start_new_session=True)\n"
    assert passes(spawn)
    assert not passes(spawn + "import time; time.sleep(30)", timeout_s=1.0)

    def is_left() -> bool:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
        with contextlib.suppress(OSError):  # it has just ended
            return any(b"31.5173" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
        return True

    wait_until(lambda: not is_left())  # the kernel takes a moment


@pytest.mark.parametrize(
    "program",
    [
        "import sys; print(sys.argv); sys.exit(0)",
        "import sys, os; os.write(1, b'\\n' + ' '.join(sys.argv).encode()); os._exit(0)",
        "import os; print(open('/proc/self/cmdline').read()); os._exit(0)",
    ],
)
def test_a_program_cannot_say_that_it_has_passed(program: str) -> None:
    assert not passes(program)


def test_where_nothing_can_be_walled_off_nothing_is_run_unless_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusing = sandbox._CHILD.replace("libc.unshare(", "-1 or libc.unshare(")
    monkeypatch.setattr(sandbox, "_CHILD", refusing)
    with pytest.raises(UsageError, match="--allow-code"):
        passes("never = 1")
    monkeypatch.setenv(sandbox.ALLOW, "1")
    assert passes("allowed = 1")


def test_prompts_without_a_reference_are_not_graded() -> None:
    assert is_correct(BenchPrompt("p", ("Hello",)), "Hi") is None


def test_values_in_another_form_are_equal_where_math_verify_is_installed() -> None:
    pytest.importorskip("math_verify")
    assert same_answer("2x+2", "2(x+1)")
    assert not same_answer("2x+2", "2(x+2)")
    assert "math-verify" in math_grader()
