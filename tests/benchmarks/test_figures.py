import pytest
from figures import Figure, ratio, table
from linearity import fit, plot
from processes import WorkerFailed, ask, interleaved


def test_engines_take_turns_and_the_slow_ones_are_spread():
    assert list(interleaved({"ours": 3, "stock": 1})) == ["ours", "stock", "ours", "ours"]
    assert list(interleaved({"a": 2, "b": 2})) == ["a", "b", "a", "b"]


def test_ratios_are_of_medians():
    assert ratio([1.0, 2.0, 9.0], [30.0]) == {"ours": 2.0, "other": 30.0, "value": 15.0}
    assert ratio([10.0, 20.0], [5.0], rates=True) == {"ours": 15.0, "other": 5.0, "value": 3.0}
    assert ratio([1.0], []) == {"ours": 1.0, "other": None}


@pytest.mark.parametrize(
    ("value", "at_most", "met"), [(10.0, False, True), (9.9, False, False), (10.1, True, False), (None, False, None)]
)
def test_a_goal_is_met_or_not_or_unknown(value, at_most, met):
    assert Figure("m", "w", value=value, goal=10.0, at_most=at_most).met is met
    assert Figure("m", "w", value=value).met is None


def test_the_table_says_what_was_not_run_and_gives_units():
    full = Figure("m", "w", ours=1.5, other=30.0, bound=0.5, value=20.0, goal=12)
    text = table({"fast": [full], "none": [Figure("x", "")]})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line]
    assert lines[2] == ["fast", "m", "w", "1.5 s", "30 s", "0.5 s", "20x", ">= 12x", "yes"]
    assert lines[3] == ["none", "x", "", "", "", "", "not run", "", ""]


def test_the_line_through_exact_points_and_its_plot(tmp_path):
    line = fit([1, 2, 4, 8], [3.0, 5.0, 9.0, 17.0])
    assert (line.slope, line.intercept, line.r_squared) == pytest.approx((2.0, 1.0, 1.0))
    plot(tmp_path / "new" / "line.png", {1: [3.0], 2: [5.0, 5.1]}, line, "title")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["line.png"]
    assert (tmp_path / "new" / "line.png").read_bytes().startswith(b"\x89PNG")


def test_r_squared_falls_with_a_bend():
    # Residuals -5/3, 10/3, -5/3; distances from the mean -20/3, 10/3, 10/3: 1 - 150 / 600.
    line = fit([1, 2, 3], [0.0, 10.0, 10.0])
    assert (line.slope, line.intercept) == pytest.approx((5.0, -10 / 3))
    assert line.r_squared == pytest.approx(0.75)


def test_a_dead_worker_is_told_by_its_last_words():
    with pytest.raises(WorkerFailed, match=r"machine: .*KeyError: 'quick'"):
        ask("machine", {})
