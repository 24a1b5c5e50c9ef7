"""GSM8K from local files: what its splits are made of, and mistakes in its files."""

import json
from pathlib import Path
from typing import Any

import pytest

from cpu_grpo.config.schema import Task
from cpu_grpo.tasks.problems import SPLITS, of_split
from cpu_grpo.tasks.splits import draw
from drawing import assert_disjoint, complaint, row, words

GSM8K = Path(__file__).parents[2].parent / "shared" / "gsm8k"


def gsm8k(directory: Path, **options: Any) -> Task:
    """A task over six training and four test problems."""
    for split, count in (("train", 6), ("test", 4)):
        rows = [
            {"question": f"{split} {i}?", "answer": f"It is <<1+{i}={1 + i}>>{1 + i}.\n#### {1 + i:,}"}
            for i in range(count)
        ]
        lines = "".join(json.dumps(fields) + "\n" for fields in rows)
        (directory / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return Task(**{"kind": "gsm8k", "path": str(directory), "train": 3, "validation": 2, "test": 3} | options)


def test_gsm8k_validation_is_cut_from_train_and_test_is_only_test(tmp_path):
    for seed in range(5):
        drawn = draw(gsm8k(tmp_path), seed, words)
        origins = {split: {p.question.split()[0] for p in of_split(drawn.problems, split)} for split in SPLITS}
        assert origins == {"train": {"train"}, "validation": {"train"}, "test": {"test"}}
        assert [len(of_split(drawn.problems, split)) for split in SPLITS] == [3, 2, 3]
        assert_disjoint(drawn.problems)


def test_gsm8k_test_problems_are_the_first_in_the_published_order_for_every_seed(tmp_path):
    orders = [[p.question for p in of_split(draw(gsm8k(tmp_path), seed, words).problems, "train")] for seed in range(5)]
    assert len({tuple(order) for order in orders}) > 1
    for seed in range(5):
        drawn = draw(gsm8k(tmp_path), seed, words)
        assert [p.question for p in of_split(drawn.problems, "test")] == ["test 0?", "test 1?", "test 2?"]


def test_gsm8k_answer_is_what_follows_the_mark(tmp_path):
    for problem in draw(gsm8k(tmp_path), 1, words).problems:
        assert problem.answer == str(1 + int(problem.question.split()[1].rstrip("?")))
        assert problem.difficulty == 1


def test_gsm8k_level_is_the_number_of_calculations(tmp_path):
    task = gsm8k(tmp_path, train=2, validation=1)
    lines = [
        row("none", "Just so.\n#### 1"),
        row("one", "<<1+1=2>>2\n#### 2"),
        row("three", "<<1+1=2>>2 <<2+1=3>>3 <<3+1=4>>4\n#### 4"),
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = {p.question: p.difficulty for p in draw(task, 1, words).problems if p.split != "test"}
    assert found == {"none": 1, "one": 1, "three": 3}


def test_gsm8k_does_not_fill_test_from_train(tmp_path):
    message = complaint(gsm8k(tmp_path, train=1, validation=1, test=5))
    assert "task.test=5 asks for more than the 4 " in message


def test_gsm8k_without_room_for_validation(tmp_path):
    message = complaint(gsm8k(tmp_path, train=5, validation=2))
    assert "task.validation=2 asks for more than the 1 " in message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (row("q", "It is 5"), "no #### before its number"),
        ({"question": "q"}, 'no text field "answer"'),
        (row("q", 5), 'no text field "answer"'),
        (row(5, "#### 5"), 'no text field "question"'),
    ],
)
def test_gsm8k_mistakes_are_told_with_file_and_problem(tmp_path, line, reason):
    task = gsm8k(tmp_path)
    with (tmp_path / "test.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
    message = complaint(task)
    assert message.startswith(f"{tmp_path / 'test.jsonl'}, problem 5")
    assert reason in message
    assert "is this GSM8K?" in message


def test_gsm8k_without_one_of_its_files(tmp_path):
    task = gsm8k(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    assert str(tmp_path / "test.jsonl") in complaint(task)


@pytest.mark.skipif(not (GSM8K / "train.jsonl").is_file(), reason="the real GSM8K is not beside this repository")
def test_the_real_gsm8k():
    task = Task(kind="gsm8k", path=str(GSM8K), train=500, validation=100, test=200)
    drawn = draw(task, 1, words)
    assert [len(of_split(drawn.problems, split)) for split in SPLITS] == [500, 100, 200]
    assert_disjoint(drawn.problems)
    assert {p.id.split(":")[1] for p in of_split(drawn.problems, "test")} == {"test"}
    assert {p.id.split(":")[1] for p in drawn.problems if p.split != "test"} == {"train"}
    assert all(any(character.isdigit() for character in p.answer) and "#" not in p.answer for p in drawn.problems)
    assert {problem.difficulty for problem in drawn.problems} >= {1, 2, 3, 4, 5}
    assert [p.id for p in of_split(drawn.problems, "test")[:50]] == [f"gsm8k:test:{index}" for index in range(50)]
