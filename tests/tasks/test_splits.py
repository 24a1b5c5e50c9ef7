"""Drawing the splits: reproducible, disjoint, within the prompt budget; mistakes in files are told with their line."""

import importlib.util
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.config.schema import Example, Task
from cpu_grpo.errors import UserError
from cpu_grpo.tasks.answers.number import same
from cpu_grpo.tasks.problems import SPLITS, Problem, of_split, read_problems, write_problems
from cpu_grpo.tasks.sources import solution_level
from cpu_grpo.tasks.splits import Drawn, check_disjoint, draw
from drawing import assert_disjoint, complaint, row, words


def sums(**options: Any) -> Task:
    return Task(**{"kind": "chain_sum", "train": 12, "validation": 6, "test": 9} | options)


def question_texts(drawn: Drawn) -> list[str]:
    return [problem.question for problem in drawn.problems]


# Generated tasks


def test_equal_seeds_draw_equal_problems():
    assert draw(sums(), 1, words) == draw(sums(), 1, words)


def test_the_global_random_state_has_no_say():
    random.seed(1)
    first = draw(sums(), 1, words)
    random.seed(2)
    assert draw(sums(), 1, words) == first


@pytest.mark.parametrize("other", [2, 42, 43])
def test_another_seed_draws_other_problems(other):
    one, two = draw(sums(levels=[3]), 1, words), draw(sums(levels=[3]), other, words)
    shared = set(question_texts(one)) & set(question_texts(two))
    assert len(shared) < len(one.problems) / 2


def test_splits_share_neither_ids_nor_questions():
    drawn = draw(sums(train=60, validation=60, test=60, levels=[1]), 1, words)  # nearly all that level 1 has
    assert len(drawn.problems) == 180
    assert_disjoint(drawn.problems)
    assert drawn.duplicates > 0


def test_a_worked_example_is_no_problem_as_well():
    options = {"train": 60, "validation": 60, "test": 60, "levels": [1]}
    shown = question_texts(draw(sums(**options), 1, words))[::9]
    drawn = draw(sums(**options, examples=[Example(f" {text} ", "0") for text in shown]), 1, words)
    assert len(shown) == 20 and len(drawn.problems) == 180
    assert not set(shown) & set(question_texts(drawn))


def test_every_level_has_its_equal_share_of_every_split():
    drawn = draw(sums(train=9, validation=6, test=7, levels=[1, 2, 3]), 1, words)
    counts = Counter((problem.split, problem.difficulty) for problem in drawn.problems)
    assert [counts["train", level] for level in (1, 2, 3)] == [3, 3, 3]
    assert [counts["validation", level] for level in (1, 2, 3)] == [2, 2, 2]
    assert [counts["test", level] for level in (1, 2, 3)] == [3, 2, 2]


def test_without_levels_all_of_them_are_drawn():
    assert {problem.difficulty for problem in draw(sums(), 1, words).problems} == {1, 2, 3, 4}


def test_levels_are_what_they_say():
    for level, terms, digits in ((1, 2, 1), (2, 3, 1), (3, 2, 2), (4, 3, 2)):
        for problem in draw(sums(levels=[level]), 1, words).problems:
            numbers = [word for word in problem.question.split() if word.isdigit()]
            assert len(numbers) == terms
            assert {len(number) for number in numbers} == {digits}


def test_answers_are_right():
    for problem in draw(sums(), 1, words).problems:
        tokens = problem.question.replace("=", " ").split(":")[1].split()
        total = int(tokens[0])
        for sign, term in zip(tokens[1::2], tokens[2::2], strict=True):
            total += int(term) if sign == "+" else -int(term)
        assert same(problem.answer, str(total))


def test_splits_come_in_order():
    order = [problem.split for problem in draw(sums(), 1, words).problems]
    assert order == ["train"] * 12 + ["validation"] * 6 + ["test"] * 9


def test_too_long_prompts_are_left_out_and_counted():
    def length(problem: Problem) -> int:
        return 50 if "7" in problem.question else 5

    drawn = draw(sums(max_prompt_length=49), 1, length)
    assert len(drawn.problems) == 27
    assert drawn.too_long > 0
    assert not [question for question in question_texts(drawn) if "7" in question]
    assert draw(sums(max_prompt_length=50), 1, length).too_long == 0


def test_more_problems_than_a_level_has():
    with pytest.raises(UserError) as caught:
        draw(sums(train=300, levels=[1]), 1, words)
    message = str(caught.value)
    assert message.startswith("Level 1 of chain_sum")
    assert "ask for 315" in message
    assert "lower task.train, task.validation or task.test, or add levels" in message


def test_no_prompt_within_the_budget():
    with pytest.raises(UserError) as caught:
        draw(sums(train=1, validation=1, test=1, max_prompt_length=2), 1, words)
    assert "only 0 distinct problems within task.max_prompt_length" in str(caught.value)


@pytest.mark.parametrize("kind", ["chain_sum", "gsm_symbolic"])
def test_an_unknown_level(kind):
    with pytest.raises(UserError) as caught:
        draw(sums(kind=kind, levels=[9]), 1, words)
    assert f"task.levels=9 is not a level of {kind}" in str(caught.value)
    assert "use 1, 2, 3" in str(caught.value)


@pytest.mark.parametrize(
    ("solution", "level"),
    [("It is 5.", 1), ("1+1 = 2. 2*3 = 6.", 1), ("a = 1, b = $2, c = -3", 2), ("= 1 = 2 = 3 = 4", 2), ("= 1" * 5, 3)],
)
def test_a_word_problems_level_is_the_number_of_its_equations(solution, level):
    assert solution_level(solution) == level


SYMBOLIC = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 * 10**9, 2 * 10**9))
from cpu_grpo.config.schema import Task
from cpu_grpo.tasks.splits import draw
task = Task(kind="gsm_symbolic", train=6, validation=3, test=3)
for problem in draw(task, 1, lambda problem: 1).problems:
    print(problem.split, problem.difficulty)
"""


@pytest.mark.timeout(120)
@pytest.mark.skipif(importlib.util.find_spec("resource") is None, reason="memory limits are POSIX's")
def test_word_problems_are_drawn_in_little_memory():
    # In a process with a limit, because a mistake here takes all the memory of the machine.
    done = subprocess.run([sys.executable, "-c", SYMBOLIC], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    counts = Counter(done.stdout.splitlines())
    assert [counts[f"train {level}"] for level in (1, 2, 3)] == [2, 2, 2]
    assert [counts[f"validation {level}"] for level in (1, 2, 3)] == [1, 1, 1]
    assert [counts[f"test {level}"] for level in (1, 2, 3)] == [1, 1, 1]


# A user's own problems


def jsonl(directory: Path, rows: list[Any], **options: Any) -> Task:
    """A task over a file of `rows`, each a JSON object or a line of text."""
    path = directory / "mine.jsonl"
    lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return Task(**{"kind": "jsonl", "path": str(path), "train": 1, "validation": 1, "test": 1} | options)


def test_jsonl_fills_the_splits_reproducibly(tmp_path):
    task = jsonl(tmp_path, [row(f"question {i}", i) for i in range(30)], train=10, validation=5, test=7)
    drawn = draw(task, 1, words)
    assert [len(of_split(drawn.problems, split)) for split in SPLITS] == [10, 5, 7]
    assert_disjoint(drawn.problems)
    assert all(problem.question == f"question {problem.answer}" for problem in drawn.problems)
    assert draw(task, 1, words) == drawn
    assert draw(task, 2, words) != drawn


def test_a_worked_example_from_the_file_is_no_problem_as_well(tmp_path):
    task = jsonl(tmp_path, [row(f"question {i}", i) for i in range(5)], examples=[Example("Question 2", "2")], train=2)
    drawn = draw(task, 1, words)
    assert sorted(question_texts(drawn)) == ["question 0", "question 1", "question 3", "question 4"]
    assert drawn.duplicates == 1


def test_jsonl_default_ids_name_the_line(tmp_path):
    drawn = draw(jsonl(tmp_path, [row("a"), "", row("b"), row("c")]), 1, words)
    assert {problem.question: problem.id for problem in drawn.problems} == {"a": "mine:1", "b": "mine:3", "c": "mine:4"}


def test_jsonl_explicit_splits_are_respected(tmp_path):
    rows = [row(f"t{i}", split="test") for i in range(3)] + [row(f"v{i}", split="validation") for i in range(2)]
    rows += [row(f"r{i}", split="train") for i in range(4)]
    for seed in range(5):
        drawn = draw(jsonl(tmp_path, rows, train=4, validation=2, test=3), seed, words)
        assert {problem.question[0] for problem in of_split(drawn.problems, "train")} == {"r"}
        assert {problem.question[0] for problem in of_split(drawn.problems, "validation")} == {"v"}
        assert {problem.question[0] for problem in of_split(drawn.problems, "test")} == {"t"}


def test_jsonl_unmarked_problems_fill_up_the_marked(tmp_path):
    rows = [row("marked", split="test"), row("a"), row("b"), row("c")]
    drawn = draw(jsonl(tmp_path, rows, test=2), 1, words)
    assert "marked" in [problem.question for problem in of_split(drawn.problems, "test")]
    assert len(of_split(drawn.problems, "test")) == 2


def test_jsonl_does_not_take_test_problems_for_training(tmp_path):
    rows = [row("only", split="train"), *(row(f"t{i}", split="test") for i in range(9)), row("v", split="validation")]
    message = complaint(jsonl(tmp_path, rows, train=2))
    assert "task.train=2 asks for more than the 1 " in message


def test_jsonl_levels(tmp_path):
    rows = [row(f"question {i}", difficulty=1 + i % 2) for i in range(10)]
    drawn = draw(jsonl(tmp_path, rows, levels=[2]), 1, words)
    assert {problem.difficulty for problem in drawn.problems} == {2}


def test_jsonl_repeats_and_long_prompts_are_left_out_and_counted(tmp_path):
    rows = [row("What is it?"), row(" what  IS it? "), row("b"), row("c"), row("much too long a question")]
    drawn = draw(jsonl(tmp_path, rows, max_prompt_length=4), 1, words)
    assert (drawn.duplicates, drawn.too_long) == (1, 1)
    assert len(drawn.problems) == 3


def test_jsonl_too_small(tmp_path):
    rows = [row("a"), row("b"), row("b"), row("one two three"), row("c")]
    message = complaint(jsonl(tmp_path, rows, train=2, test=4, max_prompt_length=2))
    assert "task.test=4 asks for more than the 0 " in message
    assert "of 5; 1 too long, 1 repeated" in message
    assert "lower it or add problems" in message


def test_jsonl_empty(tmp_path):
    assert "task.train=1 asks for more than the 0 " in complaint(jsonl(tmp_path, [""]))


def test_jsonl_ids_must_be_unique(tmp_path):
    assert "'same'" in complaint(jsonl(tmp_path, [row("a", id="same"), row("b", id="same"), row("c")]))


@pytest.mark.parametrize(
    ("line", "words_of_message"),
    [
        ("{oops", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ({"answer": "1"}, 'has neither "question" nor "messages": give one of them'),
        ({"question": "a"}, 'no field "answer"'),
        (row(5), '"question" is not text'),
        (row(None), '"question" is not text'),
        (row("x", [[1]]), '"answer" is neither text nor a number, nor a list of them'),
        (row("x", []), '"answer" is neither text nor a number, nor a list of them'),
        (row("x", ["1", "one"]), "\"answer\" is 'one', and task.answer=number, but that is no number"),
        ({"question": "a", "messages": [], "answer": "1"}, 'has both "question" and "messages"'),
        ({"messages": [], "answer": "1"}, '"messages" is no list of {"role": ..., "content": ...}'),
        ({"messages": [{"role": "user"}], "answer": "1"}, '"messages" is no list of'),
        ({"messages": [{"role": "assistant", "content": "x"}], "answer": "1"}, "ends in what the assistant says"),
        (row("x", True), '"answer" is neither text nor a number'),
        (row("x", None), '"answer" is neither text nor a number'),
        (row("x", difficulty="hard"), '"difficulty" is not a whole number'),
        (row("x", difficulty=True), '"difficulty" is not a whole number'),
        (row("x", split="dev"), "\"split\" is 'dev': use one of train, validation, test"),
        (row("x", split=["test"]), '"split" is'),
        (row("  "), "empty question or answer"),
        (row("x", ""), "empty question or answer"),
        (
            row("x", "Paris"),
            "\"answer\" is 'Paris', and task.answer=number, but that is no number: give a number, or say",
        ),
        (row("x", "B2"), "\"answer\" is 'B2'"),
        ('{"question": "x \\ud800", "answer": "1"}', "half a character"),
        (row("x", difficulty=-1), '"difficulty" is not a whole number from 1'),
    ],
)
def test_jsonl_mistakes_are_told_with_file_and_line(tmp_path, line, words_of_message):
    message = complaint(jsonl(tmp_path, [row("fine"), "", line, row("fine too")]))
    assert message.startswith(f"{tmp_path / 'mine.jsonl'}, line 3")
    assert words_of_message in message


def test_jsonl_missing_file(tmp_path):
    message = complaint(Task(kind="jsonl", path=str(tmp_path / "none.jsonl")))
    assert str(tmp_path / "none.jsonl") in message


def test_jsonl_numbers_as_answers(tmp_path):
    drawn = draw(jsonl(tmp_path, [row("a", 5), row("b", -2.5), row("c", "1/2")]), 1, words)
    assert {problem.question: problem.answer for problem in drawn.problems} == {"a": "5", "b": "-2.5", "c": "1/2"}


def test_jsonl_several_answers_of_other_kinds(tmp_path):
    rows = [row("a", ["Paris", "City of Paris"]), row("b", "yes"), row("c", "12:30")]
    drawn = draw(jsonl(tmp_path, rows, answer="text"), 1, words)
    assert {p.question: p.accepted for p in drawn.problems} == {
        "a": ["Paris", "City of Paris"],
        "b": ["yes"],
        "c": ["12:30"],
    }
    message = complaint(jsonl(tmp_path, [row("a", "B"), row("b", "(C)"), row("c", "yes")], answer="choice"))
    assert (
        "mine.jsonl, line 3: \"answer\" is 'yes', and task.answer=choice, but that is no letter from A to J" in message
    )
    message = complaint(jsonl(tmp_path, [row("a", "a+"), row("b", "(")], answer="regex"))
    assert "line 2: \"answer\" is '(', and task.answer=regex, but that is no regular expression" in message


def test_jsonl_conversations_come_back_as_they_were_written(tmp_path):
    def said(text, *before):
        turns = [{"role": ("user", "assistant")[i % 2], "content": own} for i, own in enumerate([*before, text])]
        return {"messages": turns, "answer": "1"}

    rows = [
        said("And now?", "Hello", "Hi"),
        said("And now?", "Bye", "Bye"),
        said("And  now?", "hello", "hi"),
        said("x"),
    ]
    drawn = draw(jsonl(tmp_path, rows), 1, words)
    assert drawn.duplicates == 1  # the same question after the same words
    histories = sorted([turn["content"] for turn in problem.history] for problem in drawn.problems)
    assert histories == [[], ["Bye", "Bye"], ["Hello", "Hi"]]
    write_problems(tmp_path / "p.jsonl", drawn.problems)
    assert read_problems(tmp_path / "p.jsonl") == drawn.problems


DISTINCT = st.lists(
    st.text(min_size=1).filter(str.strip), min_size=3, max_size=12, unique_by=lambda t: " ".join(t.casefold().split())
)


@given(DISTINCT, st.booleans())
def test_jsonl_any_text_passes_through_unchanged(texts, ascii):
    with tempfile.TemporaryDirectory() as directory:
        lines = [json.dumps(row(text, str(len(text))), ensure_ascii=ascii) for text in texts]
        task = jsonl(Path(directory), lines, train=len(texts) - 2)
        drawn = draw(task, 1, words_or_one)
        write_problems(Path(directory) / "problems.jsonl", drawn.problems)
        reread = read_problems(Path(directory) / "problems.jsonl")
    assert sorted(question_texts(drawn)) == sorted(texts)
    assert all(str(len(problem.question)) == problem.answer for problem in drawn.problems)
    assert_disjoint(drawn.problems)
    assert reread == drawn.problems


def words_or_one(problem: Problem) -> int:
    return 1


def test_the_first_problems_of_a_split_are_of_all_levels():
    task = Task(name="t", kind="chain_sum", levels=[1, 2, 3], train=60, validation=30, test=60)
    for split in SPLITS:
        first = of_split(draw(task, 1, words_or_one).problems, split)[:20]
        assert {problem.difficulty for problem in first} == {1, 2, 3}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=3
)


@given(
    st.lists(st.dictionaries(st.sampled_from(["question", "answer", "difficulty", "split", "id"]), JUNK), max_size=6)
)
def test_jsonl_any_objects_are_drawn_or_refused_in_one_sentence(rows):
    with tempfile.TemporaryDirectory() as directory:
        try:
            drawn = draw(jsonl(Path(directory), [json.dumps(fields) for fields in rows]), 1, words_or_one)
        except UserError as error:
            assert "mine.jsonl, line" in str(error) or "task." in str(error) or "have the id" in str(error)
        else:
            assert_disjoint(drawn.problems)


def test_overlap_is_refused():
    one = Problem("a", "Same text?", "1", split="train")
    with pytest.raises(UserError, match="id 'a'"):
        check_disjoint([one, Problem("a", "Other text?", "1", split="test")])
    with pytest.raises(UserError, match="question 'same text\\?'"):
        check_disjoint([one, Problem("b", " same  TEXT?", "1", split="test")])
    check_disjoint([one, Problem("b", "Other text?", "1", split="test")])
