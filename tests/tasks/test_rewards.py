"""Reward components worked by hand, and the lists of them that TRL gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.config.schema import Rewards
from cpu_grpo.tasks.answers.grader import Grader
from cpu_grpo.tasks.rewards import (
    COMPONENTS,
    closeness,
    concise,
    correct,
    digits,
    format,
    keywords,
    length,
    reward_functions,
)

GRADER = Grader()


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("#### 12", 1),
        ("3 + 9 = 12.", 1),
        ("12.0", 1),
        ("12 or 13", 0),  # the last number counts
        ("-12", 0),
        ("twelve", 0),
        ("", 0),
    ],
)
def test_correct(completion, reward):
    assert correct(completion, ["12"], GRADER) == reward


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("3 + 9 = 12.", "12", 1),
        ("13", "12", 1 / 2),
        ("First 9, then 11.", "12", 1 / 2),  # the last number counts
        ("-12", "12", 1 / 25),
        ("12.5", "12", 2 / 3),
        ("1/2", "3/4", 4 / 5),
        ("9" * 40, "12", 0),  # as good as nothing
        ("9" * 41, "12", 0),  # no number
        ("twelve", "12", 0),
        ("12", "twelve", 0),
        ("", "12", 0),
    ],
)
def test_closeness(completion, answer, reward):
    assert closeness(completion, [answer], GRADER) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("12", 1),
        ("x" * 596 + " 12.", 1),
        ("x" * 696 + " 12.", 0.75),
        ("x" * 896 + " 12.", 0.25),
        ("x" * 996 + " 12.", 0),
        ("x" * 2000 + " 12.", 0),
        ("13", 0),
        ("x" * 696 + " 13.", 0),
        ("", 0),
    ],
)
def test_concise_pays_right_answers_alone(completion, reward):
    assert concise(completion, ["12"], GRADER) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("#### 12", 1),
        ("So it is\n####12\n", 1),
        ("#### -1,234.50", 1),
        ("#### \u22125.", 1),
        ("#### $18", 1),
        ("#### 99", 1),  # the form counts, not the value
        ("12", 0),
        ("#### 12 apples", 0),
        ("#### 12\nThat is all.", 0),
        ("#### 12 #### 12", 0),
        ("#### 1\n#### 12", 0),
        ("####", 0),
        ("#### twelve", 0),
        ("", 0),
    ],
)
def test_format(completion, reward):
    assert format(completion, ["12"], GRADER) == reward


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("First, we add; THEN the answer.", 0.3),
        ("first first first", 0.1),
        ("some sofas, stepped", 0),  # parts of words do not count
        ("first then next because therefore so step total answer calculate", 1),
        ("", 0),
    ],
)
def test_keywords(completion, reward):
    assert keywords(completion, ["12"], GRADER) == pytest.approx(reward)


@pytest.mark.parametrize(("completion", "reward"), [("a 7", 1), ("x9y", 1), ("seven", 0), ("", 0)])
def test_digits(completion, reward):
    assert digits(completion, ["12"], GRADER) == reward


@pytest.mark.parametrize(("words", "reward"), [(0, 0), (1, 0.02), (25, 0.5), (50, 1), (400, 1)])
def test_length(words, reward):
    assert length("word " * words, ["12"], GRADER) == pytest.approx(reward)


@pytest.mark.parametrize("name", ["keywords", "digits", "length"])
def test_the_studys_components_ignore_the_answer(name):
    text = "First add 3, then the answer is 4"
    assert COMPONENTS[name](text, ["4"], GRADER) == COMPONENTS[name](text, ["5"], GRADER) > 0


def test_functions_carry_names_and_weights_in_one_order():
    functions, weights = reward_functions(Rewards(correct=1.0, format=0.1, keywords=0.0, digits=0.5, length=-0.25))
    assert [function.__name__ for function in functions] == ["correct", "format", "digits", "length"]
    assert weights == [1.0, 0.1, 0.5, -0.25]


def test_the_studys_components_of_weight_zero_are_absent():
    functions, _ = reward_functions(Rewards(digits=1.0))
    assert [function.__name__ for function in functions] == ["correct", "format", "digits"]


def test_correct_and_format_are_logged_at_weight_zero_and_count_nothing():
    functions, weights = reward_functions(Rewards(correct=0.0, format=0.0, keywords=2.0))
    assert [function.__name__ for function in functions] == ["correct", "format", "keywords"]
    assert weights == [0.0, 0.0, 2.0]


def test_each_function_computes_the_component_it_is_named_after():
    completions, answers = ["First 5", "#### 12"], [["5"], ["7", "12"]]
    functions, _ = reward_functions(Rewards(**dict.fromkeys(COMPONENTS, 1.0)))
    assert [function.__name__ for function in functions] == list(COMPONENTS)
    found = {function.__name__: function(completions=completions, accepted=answers) for function in functions}
    assert found == {
        "correct": [1, 1],
        "strict": [0, 1],
        "closeness": [1, 1],
        "format": [0, 1],
        "keywords": [0.1, 0],
        "digits": [1, 1],
        "length": [0.04, 0.04],
        "concise": [1, 1],
    }


@pytest.mark.parametrize("wrap", [str, lambda text: [{"role": "assistant", "content": text}]], ids=["plain", "message"])
def test_functions_take_both_of_trls_forms_and_its_other_columns(wrap):
    functions, _ = reward_functions(Rewards())
    completions = [wrap("#### 5"), wrap("#### 6"), wrap("")]
    found = functions[0](prompts=["a", "b", "c"], completions=completions, accepted=[["5"]] * 3, difficulty=[1, 1, 2])
    assert found == [1.0, 0.0, 0.0]


def test_lists_of_unequal_length_are_refused():
    functions, _ = reward_functions(Rewards())
    with pytest.raises(ValueError):
        functions[0](completions=["1", "2"], accepted=[["1"]])


@given(st.text(), st.text(min_size=1))
def test_every_component_is_between_0_and_1_on_any_text(completion, answer):
    for component in COMPONENTS.values():
        assert 0 <= component(completion, [answer], GRADER) <= 1


@pytest.mark.timeout(20)
@pytest.mark.parametrize("hostile", ["9" * 10**6, "#### " * 200_000, " " * 10**6, "so " * 300_000, "9,." * 300_000])
def test_a_hostile_megabyte_earns_no_reward_for_being_right(hostile):
    assert correct(hostile, ["12"], GRADER) == 0
    assert format(hostile, ["12"], GRADER) == 0


@pytest.mark.timeout(10)
@pytest.mark.parametrize("hostile", ["#### " + "9" * 19_900 + "x", "9" * 19_900 + ",1", "####" + " " * 19_900 + "x"])
def test_a_batch_of_hostile_completions_is_scored_quickly(hostile):
    functions, _ = reward_functions(Rewards())
    for function in functions:
        assert function(completions=[hostile] * 32, accepted=[["12"]] * 32) == [0.0] * 32
