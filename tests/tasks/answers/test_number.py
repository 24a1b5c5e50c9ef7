"""Extracting and comparing numbers, against cases worked by hand."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.tasks.answers.grader import Grader
from cpu_grpo.tasks.answers.number import flaw, number, same

strict, flexible = Grader().strict, Grader().flexible


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 12", "12"),
        ("The answer is 12.", "12"),
        ("12 apples.", "12"),
        ("3 + 4 = 7", "7"),
        ("5-3", "3"),  # a subtraction ends in 3, not in -3
        ("5\u22123", "3"),
        ("(5)-3", "3"),
        ("x=-3", "-3"),
        ("The answer is -5", "-5"),
        ("The answer is \u22125", "-5"),
        ("(-3)", "-3"),
        ("+5", "5"),
        ("1,234", "1234"),
        ("12,345,678", "12345678"),
        ("-1,234,567.89", "-1234567.89"),
        ("1,234.", "1234"),
        ("1,2,3", "3"),  # a list
        ("1, 2, 3", "3"),
        ("-1,2", "2"),
        ("3.50", "3.5"),
        ("0.5", "1/2"),
        (".5", "1/2"),
        ("-.5", "-1/2"),
        ("3/4", "3/4"),
        ("3/4.", "3/4"),
        ("-3/4", "-3/4"),
        ("1 / 2", "1/2"),
        ("1,000/2 km", "500"),
        ("$5", "5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("$1,234.50", "1234.5"),
        ("\u20ac7 or \u00a38", "8"),
        ("50%", "50"),
        ("60 km/h", "60"),
        ("#### 5", "5"),
        ("4 then\n\n8\n", "8"),
        ("It takes 3 1/2 hours.", "7/2"),
        ("-3 1/2", "-7/2"),
        ("3 5/2", "5/2"),  # no mixed number: two numbers
        ("3.5 1/2", "1/2"),
        ("2 1\u20442 cups", "5/2"),
        ("1.5 million people", "1500000"),
        ("$2 Billion", "2000000000"),
        ("1/2 million", "500000"),
        ("5 millions", "5"),
        ("1e3", "1000"),
        ("2.5E-3 m", "1/400"),
        ("x = 1e\u22122", "1/100"),
        (r"\boxed{\frac{1}{2}}", "1/2"),
        (r"$-\dfrac{3}{4}$", "-3/4"),
        (r"\frac{-3}{4}", "-3/4"),
        (r"3\frac{1}{2}", "7/2"),
        (r"\frac12", "1/2"),
        (r"\frac{1,000}{3} km", "1000/3"),
        (r"12{,}500", "12500"),
        (r"1\,234\,567", "1234567"),
        (r"\$5", "5"),
        (r"50\%", "50"),
    ],
)
def test_flexible_takes_the_last_number(text, value):
    assert number(flexible(text)) == Fraction(value)


@pytest.mark.parametrize("text", ["", "no number", "####", "- . , / $", "\u00bd", "minus", "\u0663"])
def test_flexible_finds_nothing_where_there_is_no_number(text):
    assert flexible(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("So it is 7.\n#### 12", "12"),
        ("####12", "12"),
        ("#### $18", "18"),
        ("#### -1,234.50 dollars", "-1234.5"),
        ("#### \u22125", "-5"),
        ("#### 3/4", "3/4"),
        ("#### 5.", "5"),
        ("#### 5\nand 6 is no answer", "5"),
        ("#### 5\n#### 6", "6"),  # the last mark counts
        (r"#### \frac{3}{4}", "3/4"),
        ("#### 1.5 million", "1500000"),
    ],
)
def test_strict_takes_the_number_after_the_last_mark(text, value):
    assert number(strict(text)) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    ["", "12", "### 12", "####", "#### 12:30", "#### 1e99", "####   ", "12 ####", "####\n12", "#### 5\n#### none"],
)
def test_strict_finds_nothing_without_a_number_behind_the_mark(text):
    assert strict(text) is None


def test_strict_and_flexible_differ_where_text_follows_the_mark():
    text = "#### 5\nbecause 2 and 3"
    assert (strict(text), flexible(text)) == ("5", "3")


@pytest.mark.parametrize("text", ["12:30", "at 7:05 p.m.", "5, or 3:4", "0x1e5", "1e99", r"\frac{x}{2}", "3 1/2/5"])
def test_what_is_no_number_though_it_looks_like_one_hides_those_before(text):
    assert flexible(f"7 {text}") is None


@pytest.mark.parametrize("reference", ["Paris", "12:30", "B2", "", "1e99"])
def test_a_reference_that_no_number_equals_is_told(reference):
    assert flaw(reference) == "that is no number"
    assert not any(same(own, reference) for own in ("1", "30", "2", "12"))


@pytest.mark.parametrize("reference", ["5", "$1,234.50", "3 1/2", "1.5 million", "1e3", r"\frac{1}{2}", "12 apples"])
def test_a_reference_that_is_a_number_equals_itself(reference):
    assert flaw(reference) == ""
    assert same(reference, reference) and Grader().same(flexible(f"It is {reference}."), ["0", reference])


@pytest.mark.parametrize(
    ("text", "value"),
    [("-1,234.50", "-2469/2"), ("$5", "5"), ("3/4", "3/4"), ("12 apples.", "12"), ("5-3", "5"), ("1/0", "1")],
)
def test_number_is_exact_and_the_first(text, value):
    assert number(text) == Fraction(value)


@pytest.mark.parametrize(
    ("extracted", "reference"),
    [
        ("1234", "1,234"),
        ("72.0", "72"),
        ("0.5", "1/2"),
        ("-0", "0"),
        ("0.1", "1/10"),
        ("007", "7"),
        ("$18", "18 dollars"),
        ("1,500,000", "1.5 million"),
    ],
)
def test_same(extracted, reference):
    assert same(extracted, reference)


@pytest.mark.parametrize(
    ("extracted", "reference"),
    [
        ("5", "-5"),
        ("5", "5.0000000001"),
        ("12345678901234567891", "12345678901234567892"),  # equal as floats
        ("1/3", "0.3333333333333333"),
        ("5", "five"),
        ("Paris", "Paris"),  # text is for another kind of answers
    ],
)
def test_not_same(extracted, reference):
    assert not same(extracted, reference)


def test_a_number_of_forty_digits_counts_and_a_longer_one_does_not():
    assert number(flexible("= " + "7" * 40)) == int("7" * 40)
    assert flexible("= " + "7" * 41) is None
    assert flexible("5 is not " + "7" * 5000) is None  # the last number is another, though nobody can tell which


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("hostile", "last"),
    [
        ("9" * 10**6, None),
        ("9," * 500_000, 9),
        ("1," + "000," * 300_000, None),
        ("-" * 10**6, None),
        ("#" * 10**6, None),
        ("9/" * 500_000 + "x 7", 7),
        ("9" * 9_000 + "x" * 10**6, None),
        ("9**" * 300_000 + "9", 9),
        (" " * 10**6 + "4", 4),
    ],
)
def test_a_hostile_megabyte_is_read_quickly_and_rightly(hostile, last):
    found = flexible(hostile)
    assert (None if found is None else number(found)) == last
    assert strict(hostile) is None


@pytest.mark.timeout(20)
def test_an_answer_behind_a_megabyte_is_found():
    text = "9" * 10**6 + "\n#### 42"
    assert (strict(text), flexible(text)) == ("42", "42")


def test_expressions_are_not_evaluated():
    assert flexible("9**9**9") == "9"
    assert flexible("__import__('os').getpid()") is None


PREFIXES = st.sampled_from(["", "The answer is ", "= ", "#### ", "1 + 1 makes\n", "(", "so, "])
SUFFIXES = st.sampled_from(["", ".", " apples", " apples.", "%", ")", " km/h", "\n", "!"])


@given(st.integers(-(10**30), 10**30), PREFIXES, SUFFIXES)
def test_any_integer_is_found_however_it_is_written(value, prefix, suffix):
    for written in (f"{value}", f"{value:,}"):
        assert same(flexible(prefix + written + suffix), str(value))


@given(st.decimals(-(10**12), 10**12, places=3), PREFIXES, SUFFIXES)
def test_any_decimal_is_found_however_it_is_written(value: Decimal, prefix, suffix):
    for written in (f"{value:f}", f"{value:,f}"):
        assert number(flexible(prefix + written + suffix)) == Fraction(value)


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9), SUFFIXES)
def test_any_fraction_is_found(above, below, suffix):
    assert number(flexible(f"It is {above}/{below}{suffix}")) == Fraction(above, below)


WILD = st.text() | st.text(alphabet="0123456789,./-+\u2212$%# \nx")


@given(WILD)
def test_whatever_is_extracted_is_a_number(text):
    for extract in (strict, flexible):
        found = extract(text)
        assert found is None or isinstance(number(found), Fraction)


@given(WILD, WILD)
def test_comparing_arbitrary_text_never_raises_and_is_symmetric(left, right):
    assert same(left, right) == same(right, left)


@given(WILD)
def test_strict_needs_the_mark(text):
    assert strict(text.replace("#", "")) is None
