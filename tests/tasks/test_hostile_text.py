"""Completions, questions and answers that somebody made to deceive or to take long."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.config.schema import Rewards, Task
from cpu_grpo.errors import UserError
from cpu_grpo.tasks import problems, splits
from cpu_grpo.tasks.answers.grader import KINDS, SLOW, Grader
from cpu_grpo.tasks.answers.marks import MARKS, MAX_TEXT
from cpu_grpo.tasks.answers.number import is_number, number
from cpu_grpo.tasks.problems import Problem, problem_from_row
from cpu_grpo.tasks.rewards import COMPONENTS, correct, reward_functions
from cpu_grpo.tasks.sources import published_place

NUMBERS = Grader()
strict, flexible = NUMBERS.strict, NUMBERS.flexible


def right(completion, answer):
    return correct(completion, [answer], NUMBERS)


# What a reader takes for another number than 5, though it begins or ends in an ASCII 5.
NOT_FIVE = {
    "raised": "5\u00b2",
    "a half more": "5\u00bd",
    "an Arabic digit before": "\u06615",
    "a full-width digit behind": "5\uff11",
    "a Chinese thousand": "5\u5343",
    "Arabic decimals": "1\u066b5",
    "a negative power": "5\u207b\u00b3",
    "a power": "1e5",
    "a power with a sign": "5E+3",
    "nothing visible between": "1\u200b5",
    "a soft hyphen between": "5\u00ad1",
    "the other direction": "1\u202e5",
    "an accent between": "1\u03015",
    "digits on keys": "1\ufe0f\u20e35\ufe0f\u20e3",
    "a time of day": "5:30",
    "a time's end": "1:5",
    "a mixed number": "5 1/2",
    "a million": "5 million",
    "a fraction in LaTeX": "\\frac{5}{2}",
    "a formula in LaTeX": "\\frac{x}{5}",
    "thousands in LaTeX": "1\\,005",
    "too many digits": "5" * 41,
    "a minus that is wide": "\uff0d5",
    "a fraction's own slash": "5\u20444",
    "a decimal by a number": "5.0/2",
}


@pytest.mark.parametrize("written", NOT_FIVE.values(), ids=NOT_FIVE)
@pytest.mark.parametrize("frame", ["{}", "The answer is {}.", "5 or 7, so {}", "#### {}"])
def test_what_is_not_five_is_not_right(written, frame):
    completion = frame.format(written)
    assert right(completion, "5") == 0
    assert not NUMBERS.same(strict(completion), ["5"])


@pytest.mark.parametrize("written", ["5\u00b2", "5e99", "5:30", "1\u200b5", "5" * 41, "\u06615"])
def test_a_number_that_cannot_be_read_hides_the_one_before(written):
    assert flexible(f"It is 7, I mean {written}.") is None
    assert strict(f"#### {written} or 7") is None
    assert not is_number(written) and number(written) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5 m\u00b2", 5),  # a unit's power is no number's
        ("x\u00b2 = 25", 25),
        ("Fu\u00df 5", 5),
        ("\u7b54\u6848\u662f5\u3002", 5),
        ("5\ufe0f\u20e3", 5),  # one digit on a key
        ("\ufeff5", 5),
        ("5\u200b", 5),
        ("\uff0d5", -5),
        ("3\u20444", 0.75),
        ("3\u22154", 0.75),
        ("1.5/2", 0.75),
        ("5e", 5),
        ("5 e3", 3),
        ("5e3", 5000),
        ("5 1/2", 5.5),
        ("5.5 million", 5_500_000),
    ],
)
def test_what_can_be_read_is(text, value):
    assert number(flexible(text)) == value


@pytest.mark.parametrize("digits", ["\u0665", "\uff15", "\u2165", "\u4e94", "\u00b2", "\U0001d7d3", "\u0be7"])
def test_digits_of_other_scripts_alone_are_no_number(digits):
    assert flexible(f"The answer is {digits}") is None
    assert right(digits, digits) == 0
    assert not is_number(digits)


@pytest.mark.parametrize("before", ["7", "1,", "-", "3/", "3 / ", "1.", "$-", "1e"])
def test_half_a_number_at_the_limit_is_not_read(before):
    """As much of a completion as is read may begin within a number."""
    completion = before + "45" + "x" * (MAX_TEXT - 2)
    assert right(completion, "45") == 0
    assert right(completion + " 45", "45") == 1
    assert right("-" + "x" * MAX_TEXT + " 45", "45") == 1


FOREIGN = st.characters(categories=["Nd", "Nl", "No"], min_codepoint=128)
UNSEEN = st.text(st.characters(categories=["Cf", "Mn", "Me"]), max_size=3)


@given(FOREIGN, UNSEEN, st.integers(0, 999))
def test_a_number_that_touches_digits_of_another_script_is_not_read(foreign, unseen, value):
    for text in (f"{foreign}{unseen}{value}", f"{value}{unseen}{foreign}", f"= {value}{unseen}{foreign}."):
        assert flexible(text) is None


@given(UNSEEN.filter(bool), st.integers(0, 999), st.integers(0, 999))
def test_numbers_with_nothing_to_be_seen_between_are_not_read(unseen, one, other):
    assert flexible(f"{one}{unseen}{other}") is None


# Time

LONG = {
    "digits": "9" * 20_000_000,
    "a million digits": "9" * 1_000_000,
    "a list": "9," * 10_000_000,
    "thousands": "1" + ",000" * 5_000_000,
    "fractions": "9/" * 10_000_000,
    "powers": "9e" * 10_000_000,
    "marks": "#### " * 4_000_000,
    "spaces": " " * 20_000_000,
    "nothing visible": "1" + "\u200b" * 20_000_000 + "5",
    "accents": "9\u0301\u0301\u0301" * 5_000_000,
    "other digits": "\u0665" * 20_000_000,
    "tags": "<script>" * 2_500_000,
    "zeros": "\x00" * 20_000_000,
    "signs": "-$" * 10_000_000,
}


@pytest.mark.parametrize("name", LONG)
def test_twenty_megabytes_are_read_within_a_second(name):
    text = LONG[name]
    for kind in KINDS:
        grader, begin = Grader(kind, MARKS), time.process_time()
        for extract in (grader.strict, grader.flexible, grader.well_formed):
            extract(text)
        assert time.process_time() - begin < 1
    begin = time.process_time()
    for component in COMPONENTS.values():
        component(text, ["12"], NUMBERS)
    assert right(text, "12") == 0
    assert time.process_time() - begin < 1
    for kind in KINDS:
        if kind not in SLOW:
            grader, begin = Grader(kind), time.process_time()
            assert not grader.same("12", [text[: problems.LONGEST]]) and not grader.same(text[:1_000_000], ["12"])
            assert time.process_time() - begin < 1


def test_rewards_of_a_batch_take_any_characters():
    functions, _ = reward_functions(Rewards(closeness=1.0, keywords=1.0, digits=1.0, length=1.0))
    for function in functions:
        found = function(completions=["\x00\ud800\u202e<b>|`", "\x1b[2J12"], accepted=[["12"], ["12"]])
        assert all(0 <= reward <= 1 for reward in found)


# Problems


def problem(**fields):
    return problem_from_row({"question": "What?", "answer": "5"} | fields, "f.jsonl, line 3", "f:3", NUMBERS.flaw)


def nested(depth):
    found = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"id": "\ud800"}, "half a character"),
        ({"id": nested(900)}, '"id" is neither text nor a number'),
        ({"id": {"a": 1}}, '"id" is neither text nor a number'),
        ({"id": "x" * 10**6}, '"id" has 1,000,000 characters: shorten it to 1000'),
        ({"split": nested(900)}, '"split" is list: use one of train'),
        ({"split": "x" * 10**6}, "(1,000,000 characters): use one of train"),
        ({"answer": "5" + " x" * 10**6}, '"answer" has 2,000,001 characters'),
        ({"answer": 10**4000}, '"answer" has 4,001 characters: shorten'),
        ({"answer": float("nan")}, "\"answer\" is 'nan'"),
        ({"answer": float("inf")}, "\"answer\" is 'inf'"),
        ({"answer": "\x1b[2J5"}, r"""'\x1b[2J5'"""),
        ({"answer": "5\u00b2"}, "'5\u00b2', that is no number"),
        ({"difficulty": 10**4000}, '"difficulty" is not a whole number from 1, the easiest, to 1000000'),
    ],
)
def test_a_problem_that_is_none_is_told_in_a_short_sentence(fields, told):
    with pytest.raises(UserError) as caught:
        problem(**fields)
    message = str(caught.value)
    assert message.startswith("f.jsonl, line 3") and told in message
    assert len(message) < 300 and message.isprintable()


def test_a_question_may_hold_any_characters():
    text = "\x00\x1b[2J\u2028<script>|`\u202e"
    assert problem(question=text).question == text
    assert problem(id=None).id == "f:3"


def test_an_id_that_looks_like_a_published_one_takes_no_place():
    places = [published_place(Problem(f"gsm8k:test:{end}", "q", "1")) for end in ("7", "x", "", "9" * 5000, "\u0665")]
    assert places == [7, 0, 0, 0, 0]


def test_a_question_that_no_tokenizer_could_make_short_enough_is_not_given_to_one():
    fits = splits._fits(Task(max_prompt_length=10), lambda problem: pytest.fail("tokenized"))
    assert not fits(Problem("a", "x" * 10_001, "1"))


def test_a_question_that_stands_twice_is_not_told_in_full():
    with pytest.raises(UserError) as caught:
        splits.check_disjoint([Problem(name, "x" * 10**6, "1") for name in "ab"])
    assert len(str(caught.value)) < 300
