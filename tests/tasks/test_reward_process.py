"""Reward code that raises, hangs, crashes, prints and lies, in its own process: the caller hears of it in time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.errors import UserError
from cpu_grpo.tasks import reward_process
from cpu_grpo.tasks.reward_process import Fault, RewardProcess
from cpu_grpo.tasks.rewards import COMPONENTS, batched

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and process groups")

# What a function called f does, and what is said of it.
FAULTS = {
    "raises": ("raise ValueError('no idea')", "exception", "ValueError: no idea in mine.py, line 3"),
    "exits": ("sys.exit(3)", "exception", "SystemExit: 3 in mine.py, line 3"),
    "is interrupted": ("raise KeyboardInterrupt", "exception", "KeyboardInterrupt in mine.py, line 3"),
    "recurses": ("return f(completions)", "exception", "RecursionError: maximum recursion depth exceeded"),
    "raises what cannot be told": (
        "raise type('Dark', (Exception,), {'__str__': lambda e: 1 / 0})",
        "exception",
        "Dark, which cannot be told in mine.py, line 3",
    ),
    "raises at length": ("raise ValueError('x' * 10**7)", "exception", "ValueError: xxx"),
    "ends its process": ("os._exit(0)", "crash", "its process ended with exit code 0"),
    "returns nothing": ("pass", "no list", "NoneType instead of a list of 2 numbers"),
    "returns a number": ("return 1.0", "no list", "float instead of a list of 2 numbers"),
    "returns too few": ("return [1.0]", "wrong length", "1 rewards for 2 completions"),
    "returns too many": ("return [1.0] * 3", "wrong length", "more than 2 rewards for 2 completions"),
    "returns without end": ("return itertools.repeat(1)", "wrong length", "more than 2 rewards for 2 completions"),
    "returns a text": ("return 'ten'", "wrong length", "more than 2 rewards"),
}
VALUES = {
    "None": ("None", "none"),
    "NaN": ("float('nan')", "not finite"),
    "infinity": ("float('inf')", "not finite"),
    "less than fp32 has": ("-1e300", "not finite"),
    "more than a float has": ("10 ** 400", "not finite"),
    "a text": ("'1.0'", "no number"),
    "bytes": ("b'1.0'", "no number"),
    "a list": ("[1.0]", "no number"),
    "what fails as a number": ("type('Odd', (), {'__float__': lambda self: 1 / 0})()", "no number"),
}
HANGS = {
    "in Python": "while True: pass",
    "asleep": "time.sleep(1000)",
    "in C": "sum(itertools.repeat(0))",  # other threads never run
    "in C, deaf to signals": "signal.signal(signal.SIGTERM, signal.SIG_IGN); sum(itertools.repeat(0))",
    "before the end of an answer": "return (time.sleep(i * 1000) or 1.0 for i in range(2))",
}
HEAD = "import itertools, os, signal, subprocess, sys, time\n"
GOOD = "def good(completions, **others): return [float(len(text)) for text in completions]\n"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Makes mine.py, with `good` and the functions of these bodies, in the current directory; tells their places."""
    monkeypatch.chdir(tmp_path)

    def write(**bodies):
        functions = "".join(f"def {name}(completions, **others):\n    {body}\n" for name, body in bodies.items())
        Path("mine.py").write_text(HEAD + functions + GOOD)
        return [f"mine.py:{name}" for name in (*bodies, "good")]

    return write


def of_two(process, name, seconds=30.0):
    return process.rewards(name, {"completions": ["a", "bcd"]}, seconds)


def pid_of(process):
    return process._process.pid


def gone(pid, seconds=5.0):
    """Whether a process has ended, or does within these seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


# ---- rewards -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def components():
    with RewardProcess([]) as process:
        yield process


@given(st.lists(st.tuples(st.text(), st.text(min_size=1)), min_size=1, max_size=4))
def test_components_are_what_they_are_in_process(components, pairs):
    columns = {"completions": [completion for completion, _ in pairs], "accepted": [[answer] for _, answer in pairs]}
    for name in COMPONENTS:
        assert components.rewards(name, columns, 30.0) == batched(name)(**columns)


def test_text_that_no_encoding_has_gets_there(components):
    columns = {"completions": ["\ud800 12", "\x00\n12"], "accepted": [["12"], ["12"]]}
    assert components.rewards("correct", columns, 30.0) == [1.0, 1.0]


@pytest.mark.parametrize("text", ["9" * 10**6, "12 " * (10**7 // 3)], ids=["a million digits", "10 MB"])
def test_a_huge_completion_gets_there(components, text):
    columns = {"completions": [text, "12"], "accepted": [["12"], ["12"]]}
    assert components.rewards("correct", columns, 60.0) == batched("correct")(**columns)


@pytest.mark.parametrize(
    ("returned", "rewards"),
    [
        ("[1, True]", [1.0, 1.0]),
        ("(0.1, -2)", [0.1, -2.0]),
        ("(i / 3 for i in range(2))", [0.0, 1 / 3]),
        ("map(__import__('numpy').float32, (0.5, 1))", [0.5, 1.0]),
        ("__import__('numpy').array([0.1, 0.2])", [0.1, 0.2]),
        ("[__import__('fractions').Fraction(1, 3), 3.4e38]", [1 / 3, 3.4e38]),
    ],
)
def test_whatever_is_a_list_of_numbers_will_do(own, returned, rewards):
    with RewardProcess(own(f=f"return {returned}")) as process:
        assert of_two(process, "f") == rewards


def test_functions_get_what_trl_gives_and_the_trainers_state(own):
    body = "return [len(others['prompts']), others['trainer_state'].global_step + others['completion_ids'][1][0]]"
    with RewardProcess(own(f=body)) as process:
        arguments = {"prompts": ["p", "p"], "completions": ["a", "b"], "completion_ids": [[1], [5]], "answer": ["", ""]}
        assert process.rewards("f", arguments | {"trainer_state": {"global_step": 3}}, 30.0) == [2.0, 8.0]


def test_coroutines_are_awaited(own):
    code = "    import asyncio\n    await asyncio.sleep(0)\n    return [0.5, 1.0]\n"
    places = own()
    with open("mine.py", "a") as stream:
        stream.write(f"async def f(completions, **others):\n{code}")
    with RewardProcess([*places, "mine.py:f"]) as process:
        assert of_two(process, "f") == [0.5, 1.0]


# ---- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "kind", "message"), FAULTS.values(), ids=FAULTS)
def test_what_fails_is_told_and_the_next_call_works(own, body, kind, message):
    with RewardProcess(own(f=body)) as process:
        fault = of_two(process, "f")
        assert isinstance(fault, Fault) and fault.kind == kind
        assert fault.message.startswith(message) and len(fault.message) < 400
        assert of_two(process, "good") == [1.0, 3.0]


@pytest.mark.parametrize(("value", "kind"), VALUES.values(), ids=VALUES)
def test_one_value_that_is_no_reward_spoils_no_other(own, value, kind):
    with RewardProcess(own(f=f"return [{value}, 1.0]")) as process:
        fault, reward = of_two(process, "f")
        assert fault.kind == kind and reward == 1.0


@POSIX
@pytest.mark.parametrize("number", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_a_crash_is_told_by_its_signal(own, number):
    with RewardProcess(own(f=f"os.kill(os.getpid(), signal.{number})")) as process:
        assert of_two(process, "f") == Fault("crash", f"its process was ended by {number}")
        assert of_two(process, "good") == [1.0, 3.0]


@pytest.mark.parametrize("body", HANGS.values(), ids=HANGS)
def test_a_hang_ends_in_time_and_the_next_call_works(own, body):
    with RewardProcess(own(f=body)) as process:
        first, begin = pid_of(process), time.monotonic()
        assert of_two(process, "f", 0.3) == Fault("hang", "no answer within 0.3 s")
        assert time.monotonic() - begin < 30 and gone(first, 0)
        assert of_two(process, "good") == [1.0, 3.0]


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("detached", [False, True])
def test_a_hang_is_over_though_a_child_of_it_lives_on(own, detached):
    # The child has inherited the pipe that answers come through, so that it does not close.
    child = (
        "if os.fork() == 0:\n        "
        + ("os.setsid()\n        " if detached else "")
        + "time.sleep(20); os._exit(0)\n    "
    )
    with RewardProcess(own(f=f"{child}while True: pass")) as process:
        begin = time.monotonic()
        assert of_two(process, "f", 0.3).kind == "hang"
        assert of_two(process, "good") == [1.0, 3.0]
        assert time.monotonic() - begin < 15


@POSIX
def test_what_a_function_has_started_is_ended_with_it(own):
    with RewardProcess(
        own(f="[print(subprocess.Popen(['sleep', '60']).pid, file=open('pid', 'w')), 1 / 0]")
    ) as process:
        of_two(process, "f")
        child = int(Path("pid").read_text())
        assert not gone(child, 0)
        os.kill(pid_of(process), signal.SIGSTOP)
        assert of_two(process, "good", 0.2).kind == "hang"
    assert gone(child)


@pytest.mark.parametrize(
    "body",
    [
        "print('{}', flush=True)",
        "os.write(1, b'{}\\n')",
        "print('\\ud800')",
        "subprocess.run(['echo', '{}'])",
        "sys.stdin.read()",
        "os.read(0, 100)",
    ],
)
def test_printing_and_reading_disturb_no_answer(own, body):
    with RewardProcess(own(f=f"{body}; return [0.5, 1.0]")) as process:
        assert of_two(process, "f") == [0.5, 1.0]
        assert of_two(process, "good") == [1.0, 3.0]


def test_what_is_printed_before_a_hang_can_be_seen(own, capfd, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with RewardProcess(own(f="print('looking at', completions)\n    while True: pass")) as process:
        of_two(process, "f", 0.3)
    assert capfd.readouterr().err == "looking at ['a', 'bcd']\n"


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").is_file(), reason="Linux")
def test_it_goes_first_where_memory_runs_out(components):
    assert int(Path(f"/proc/{pid_of(components)}/oom_score_adj").read_text()) == 1000


@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
def test_a_memory_hog_with_a_limit_is_an_exception(own):
    hog = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)); return [0] * 2**28"
    with RewardProcess(own(f=hog)) as process:
        assert of_two(process, "f").message.startswith("MemoryError")


# ---- loading -----------------------------------------------------------------------------------------------------


def refusal(places):
    with pytest.raises(UserError) as caught, RewardProcess(places):
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("none.py:f", "rewards.custom: There is no file none.py; check the path."),
        ("nowhere.to.be:f", "nowhere.to.be cannot be imported (ModuleNotFoundError: No module named 'nowhere'"),
        ("mine.py:g", "mine.py has no function g; check the name."),
        ("mine.py:HEAD", "HEAD in mine.py is no function but int; check the name."),
        (
            "mine.py:picky",
            "picky in mine.py does not take what reward functions are given (missing a required argument",
        ),
        ("mine.py:plain", "plain in mine.py does not take what reward functions are given (got an unexpected keyword"),
        ("wrong.py:f", "wrong.py cannot be imported (SyntaxError: invalid syntax (wrong.py, line 2)): mend it."),
        ("exits.py:f", "exits.py cannot be imported (SystemExit: 2 in exits.py, line 2): mend it."),
        (
            "raises.py:f",
            "raises.py cannot be imported (ZeroDivisionError: division by zero in raises.py, line 2): mend",
        ),
        ("crashes.py:f", "crashes.py:f cannot be loaded (its process ended with exit code 4): mend it."),
    ],
)
def test_code_that_cannot_be_had_is_told_in_a_sentence(own, place, told):
    own(f="return [0, 0]")
    with open("mine.py", "a") as stream:
        stream.write("HEAD = 5\ndef picky(completions, log_metric, **others): pass\ndef plain(completions): pass\n")
    for name, body in {"wrong": "def :", "exits": "exit(2)", "raises": "1 / 0", "crashes": "os._exit(4)"}.items():
        Path(f"{name}.py").write_text(f"import os\n{body}\n")
    before = psutil.Process().children()
    assert told in refusal([place])
    assert psutil.Process().children() == before


def test_code_that_hangs_when_imported_is_told(own, monkeypatch):
    monkeypatch.setattr(reward_process, "LOAD_SECONDS", 0.5)
    own()
    Path("hangs.py").write_text("while True: pass\n")
    assert "hangs.py:f cannot be loaded (no answer within 0.5 s)" in refusal(["hangs.py:f"])


def test_packages_callables_and_files_of_the_same_name_will_do(own):
    own()
    for folder in ("package", "other"):
        Path(folder).mkdir()
        text = f"from help_{folder} import NUMBER\ndef {folder}(completions, **others): return [NUMBER] * 2\n"
        Path(folder, "mine.py").write_text(text)
        Path(folder, f"help_{folder}.py").write_text(f"NUMBER = {len(folder)}\n")
    Path("package", "__init__.py").write_text("import sys; sys.path.insert(0, 'package')\n")
    # Named as a module of Python's, which is still the one that others find.
    found = "import sys\nclass F:\n    def __call__(self, completions, **others):\n"
    found += "        return [0.5, float(hasattr(sys.modules['types'], 'ModuleType'))]\nf = F()\n"
    Path("types.py").write_text(found)
    places = ["package.mine:package", "other/mine.py:other", "mine.py:good", "types.py:f"]
    with RewardProcess(places) as process:
        found = [of_two(process, name) for name in ("package", "other", "good", "f")]
    assert found == [[7.0, 7.0], [5.0, 5.0], [1.0, 3.0], [0.5, 1.0]]


def test_two_functions_of_a_file_share_what_it_holds(own):
    own()
    Path("both.py").write_text(
        "seen = []\ndef first(completions, **others): seen.append(1.0); return seen * 2\n"
        "def second(completions, **others): return [len(seen)] * 2\n"
    )
    with RewardProcess(["both.py:first", "both.py:second"]) as process:
        assert of_two(process, "first") == of_two(process, "second") == [1.0, 1.0]


def code_of(places):
    with RewardProcess(places) as process:
        return process.code


def test_what_stands_for_the_code_changes_with_it_and_with_what_it_imports(own):
    assert code_of([]) == ""
    places = own(f="import helper; return [0, 0]")
    first = code_of(places)
    assert code_of(places) == first
    Path("mine.py").write_text("import helper\n" + Path("mine.py").read_text())
    Path("helper.py").write_text("A = 1\n")
    second = code_of(places)
    Path("helper.py").write_text("A = 1  # or 2\n")
    assert len({first, second, code_of(places)}) == 3


def test_code_that_changes_under_a_run_is_not_gone_on_with(own):
    with RewardProcess(own(f="os._exit(1)")) as process:
        of_two(process, "f")
        own(f="return [0, 0]  # mended")
        with pytest.raises(UserError, match="The reward code has changed since the run began"):
            of_two(process, "f")


def test_it_holds_neither_torch_nor_hydra(own):
    body = (
        "return [bool({'torch', 'transformers', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)), len(sys.modules)]"
    )
    with RewardProcess(own(f=body)) as process:
        heavy, modules = of_two(process, "f")
        assert not heavy and modules < 200


# ---- the end -----------------------------------------------------------------------------------------------------


@POSIX
def test_it_is_in_a_session_of_its_own_so_that_ctrl_c_is_not_for_it(components):
    assert os.getsid(pid_of(components)) == pid_of(components)


def test_it_ends_with_the_context_and_flushes_what_it_wrote(own):
    with RewardProcess(own(f="global out; out = open('log', 'w'); out.write('all'); return [0, 0]")) as process:
        of_two(process, "f")
        pid = pid_of(process)
    assert gone(pid, 0)
    assert Path("log").read_text() == "all"


PARENT = """
import sys
from cpu_grpo.tasks.reward_process import RewardProcess
with RewardProcess(["mine.py:f"]) as process:
    print(process._process.pid, flush=True)
    if sys.argv[1] == "busy":
        process.rewards("f", {"completions": ["a"]}, float(sys.argv[2]))
    input()
"""


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "body", "limit"),
    [("idle", "pass", 60), ("busy", "while True: pass", 60), ("busy", "sum(itertools.repeat(0))", 2)],
    ids=["idle", "hanging in Python", "hanging in C"],
)
def test_it_ends_when_its_parent_is_killed(own, state, body, limit):
    own(f=f"open('begun', 'w').close()\n    {body}")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, state, str(limit)], **pipes)
    pid = int(parent.stdout.readline())
    deadline = time.monotonic() + 20
    while state == "busy" and not Path("begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.communicate()
    assert gone(pid, 15)
