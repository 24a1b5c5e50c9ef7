"""Answers that are text, a choice, mathematics or an expression, and the marks before them, by cases worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.tasks.answers.grader import KINDS, SLOW, Grader
from cpu_grpo.tasks.answers.marks import MARKS

TEXT, CHOICE, MATH, REGEX = (Grader(kind, MARKS) for kind in ("text", "choice", "math", "regex"))


# Marks


@pytest.mark.parametrize(
    ("marks", "completion", "answer"),
    [
        (("####",), "5\n#### 7", "7"),
        (("####",), r"#### 7 \boxed{8}. The answer is 9", "7"),
        (("boxed",), r"#### 7 \boxed{8}. The answer is 9", "8"),
        (("answer is",), r"#### 7 \boxed{8}. The answer is 9", "9"),
        (MARKS, r"The answer is 9. \boxed{8}", "8"),  # the last of them
        (("boxed",), r"\boxed{6} and \boxed{\text{so } 7}", "7"),
        (("boxed",), r"\boxed{7", None),  # never closed
        (("answer is",), "Final answer: $1,200.", "1200"),
        (("answer is",), "The final answer is: 12", "12"),
        (("answer is",), "She is answering 12", None),
        (("answer is",), "My answer is\n12", None),  # a mark's answer stands in its line
    ],
)
def test_strict_reads_what_the_task_marks(marks, completion, answer):
    assert Grader("number", marks).strict(completion) == answer


@pytest.mark.parametrize(
    ("grader", "completion", "well_formed"),
    [
        (Grader(), "so\n#### 12", True),
        (Grader(), "#### $1,200.50.\n", True),
        (Grader(), "#### -3/4", True),
        (Grader(), "#### 12 apples", False),
        (Grader(), "#### 12\nand more", False),
        (Grader(), "#### 12\n#### 12", False),
        (Grader(), "#### none", False),
        (Grader(), "12", False),
        (Grader("number", ("boxed",)), r"so $\boxed{\frac{1}{2}}$.", True),
        (Grader("number", ("boxed",)), r"so \boxed{12} apples", False),
        (Grader("number", ("answer is",)), "The answer is 12.", True),
        (Grader("text"), "#### Paris", True),
        (Grader("text"), "#### ", False),
        (Grader("choice"), "#### (B).", True),
        (Grader("choice"), "#### B, as 5 > 3", False),
        (Grader("math"), "#### $x^2$", True),
        (Grader("regex"), "#### ab", True),
    ],
)
def test_a_completion_is_well_formed_that_ends_in_one_mark_and_an_answer(grader, completion, well_formed):
    assert grader.well_formed(completion) == well_formed


# Text


@pytest.mark.parametrize(
    ("completion", "reference"),
    [
        ("The capital of France is\nParis", "Paris"),
        ("It is large.\n#### paris.\n", "Paris"),
        ("The answer is: **The Beatles**", "beatles"),
        ("So the answer is yes.", "Yes"),
        ('#### "New  York"', "new york"),
        (r"\boxed{\text{blue}}", "Blue"),
        ("Answer: 12:30", "12:30"),
        ("Answer: \u00c9mile Zola", "E\u0301mile Zola"),  # composed or not
        ("Answer: \u201ca cat\u201d", "cat"),
    ],
)
def test_text_is_found_and_compared_as_a_reader_would(completion, reference):
    assert TEXT.same(TEXT.flexible(completion), ["something else", reference])
    assert not TEXT.same(TEXT.flexible(completion), ["something else"])


@pytest.mark.parametrize(
    ("completion", "reference"),
    [("Not Paris", "Paris"), ("Paris\nor so", "Paris"), ("", "Paris"), ("yes and no", "yes"), ("12.5", "125")],
)
def test_another_text_is_not_the_same(completion, reference):
    assert not TEXT.same(TEXT.flexible(completion), [reference])


@pytest.mark.parametrize(("reference", "told"), [("a\nb", "several lines"), ("...", "neither letters nor digits")])
def test_text_that_no_completion_can_equal_is_told(reference, told):
    assert told in TEXT.flaw(reference)
    assert TEXT.flaw("Paris") == TEXT.flaw("the") == TEXT.flaw("\u5317\u4eac") == ""


# Choices


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("The answer is (b).", "B"),
        ("The correct answer is option D because A is wrong.", "D"),
        (r"Hence \boxed{A}", "A"),
        (r"Hence \boxed{\text{A}}", "A"),
        ("#### E", "E"),
        ("Let us see. (A) is wrong, (C) is right.", "C"),
        ("A. four\nB. five", "B"),
        ("I think C", "C"),
        ("I think so", None),
        ("A cat sat", None),
        ("Vitamin C-rich, so D", "D"),
        ("It's F", "F"),
        ("none", None),
        ("", None),
    ],
)
def test_a_choice_is_found_as_a_reader_would(completion, letter):
    assert CHOICE.flexible(completion) == letter


def test_a_choice_is_compared_by_its_letter():
    assert CHOICE.same("B", ["b"]) and CHOICE.same("B", ["A", "(B)"]) and not CHOICE.same("B", ["A"])
    assert not CHOICE.same(None, ["B"])
    assert CHOICE.flaw("(b).") == "" and CHOICE.flaw("Paris") == CHOICE.flaw("K") == "that is no letter from A to J"


# Mathematics


@pytest.mark.parametrize(
    ("completion", "reference"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"so $\frac12$", "1/2"),
        (r"Thus \( x^2 + 1 \)", "1 + x^2"),
        (r"\[ 2\sqrt{2} \]", r"\sqrt{8}"),
        (r"The answer is $\{2, 1\}$.", r"\{1, 2\}"),
        ("#### (1, 2)", "(1,2)"),
        (r"\boxed{x = 3}", "3"),
        ("12", "12"),
    ],
)
def test_mathematics_is_compared_by_what_it_means(completion, reference):
    assert MATH.same(MATH.flexible(completion), ["7", reference])
    assert not MATH.same(MATH.flexible(completion), ["7"])


def test_mathematics_that_cannot_be_read_is_told():
    assert MATH.flaw(r"\frac{1}{2}") == MATH.flaw("x") == "" and MATH.flaw("") == "that math-verify cannot read"


# Expressions


def test_an_expression_must_match_all_of_the_answer():
    assert REGEX.same(REGEX.flexible("#### abbc."), ["ab+c"]) and REGEX.same("a.", [r"a\."])
    assert not REGEX.same("abbcd", ["ab+c"]) and not REGEX.same("ab", ["AB"]) and REGEX.same("ab", ["(?i)AB"])
    assert REGEX.flaw("ab+c") == "" and "no regular expression" in REGEX.flaw("(")


@pytest.mark.timeout(20)
def test_an_expression_that_takes_for_ever_matches_nothing():
    assert not REGEX.same("a" * 5000 + "b", ["(a|aa)+$"])


# All of them


@given(st.sampled_from([kind for kind in KINDS if kind not in SLOW]), st.text(), st.text(max_size=99))
def test_no_text_breaks_a_kind(kind, completion, reference):
    grader = Grader(kind, MARKS)
    for found in (grader.strict(completion), grader.flexible(completion)):
        assert grader.same(found, [reference]) in (True, False)
    assert isinstance(grader.well_formed(completion), bool) and isinstance(grader.flaw(reference), str)


@given(st.text(min_size=1, max_size=40), st.sampled_from(["####", "answer is"]))
def test_a_text_behind_a_mark_is_itself(answer, mark):
    grader = Grader("text", (mark,))
    if grader.flaw(answer) or len(answer.splitlines()) != 1 or any(own in answer for own in ("####", "answer", "\\")):
        return
    completion = f"Well,\n{'####' if mark == '####' else 'the answer is'} {answer}"
    assert grader.same(grader.strict(completion), [answer])
