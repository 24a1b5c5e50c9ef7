"""What a reader of the report notices, from made-up result files."""

import base64
import csv
import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cpu_grpo.config.schema import Evaluation, Model, Pipeline, Task, Variant
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.statistics import wilson
from cpu_grpo.files import sha256, write_json, write_sealed, write_text
from cpu_grpo.report.plots import _validation_panel
from cpu_grpo.report.render import write_report
from cpu_grpo.report.results import read_trainings
from cpu_grpo.report.sweep import SweepSummary
from cpu_grpo.report.tables import Link, Table, markdown
from cpu_grpo.report.text import duration, markdown_block, markdown_inline, p_text, points
from cpu_grpo.text import visible

pytestmark = pytest.mark.slow

HOSTILE = '</pre><script src="https://evil.example/x.js"></script>|a|\n![x](http://evil.example/x.png)\n````\n\x00\ud800\u202e'


@pytest.fixture
def config() -> Pipeline:
    return Pipeline(
        model=Model(name="tiny"),
        task=Task(name="sums"),
        evaluation=Evaluation(models=["base", "good", "bad", "absent"]),
        variants={name: Variant(name=name) for name in ("good", "bad", "absent")},
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """40 problems; base solves 10 (levels 1 and 2 alternate), good 12 more and 2 fewer, bad 5 fewer."""
    base = [i < 10 for i in range(40)]
    good = [2 <= i < 22 for i in range(40)]
    bad = [i < 5 for i in range(40)]
    for model, right in (("base", base), ("good", good), ("bad", bad)):
        write_evaluation(tmp_path, model, right)
    for variant in ("good", "bad"):
        write_training(tmp_path, variant)
    write_json(
        tmp_path / "models/base/source.json",
        {
            "origin": "wheel tiny 1.0",
            "revision": "",
            "sha256": {"model.safetensors": "ab" * 32, "config.json": "cd" * 32},
        },
    )
    split = {"problems": 40, "by_difficulty": {"1": 20, "2": 20}, "numeric_answers": 40, "answer_min": -3.0}
    split |= {"answer_max": 17.0, "prompt_tokens_min": 9, "prompt_tokens_median": 11, "prompt_tokens_max": 14}
    card = {
        "task": "sums",
        "left_out": {"prompt_too_long": 3},
        "splits": {"train": split | {"problems": 77}, "test": split},
    }
    write_json(tmp_path / "data/card.json", card)
    return tmp_path


def write_evaluation(root: Path, model: str, right: list[bool], file_name: str = "", split: str = "test") -> None:
    n, solved = len(right), sum(right)
    low, high = wilson(solved, n)
    scores = {"accuracy": solved / n, "accuracy_low": low, "accuracy_high": high}
    for kind in ("strict", "flexible"):
        scores |= {f"{kind}_accuracy": solved / n, f"{kind}_low": low, f"{kind}_high": high}
    record = {"model": model, "split": split, "extraction": "flexible", "n": n, **scores, "wall_seconds": 30.0}
    path = root / "results/evaluate" / (file_name or model)
    write_json(path.with_suffix(".json"), record | {"mlflow_run_id": f"eval-{model}", "clipped_share": 0.1})
    rows = []
    for i, ok in enumerate(right):
        completion = HOSTILE if i % 2 else f"{model} says {i}"
        row = {"id": f"p{i}", "difficulty": 1 + i % 2, "question": f"What is {i} + 0?", "answer": str(i), "prompt": "x"}
        rows.append(row | {"completion": completion, "right": ok, "strict_right": ok, "tokens": 3})
    # the files hold JSON escapes for what UTF-8 cannot say
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_text(path.with_suffix(".jsonl"), text)


def write_training(root: Path, variant: str) -> None:
    record = {
        "variant": variant,
        "updates": 3,
        "completions": 96,
        "tokens": 1000,
        "wall_seconds": 61.5,
        "load_seconds": 2.5,
    }
    record |= {"completions_per_second": 12.34, "tokens_per_second": 234.5, "peak_rss_bytes": 1.5e9, "cpu_use": 0.91}
    record |= {
        "reward_first": 0.1,
        "reward_last": 0.4,
        "precision": "fp32",
        "threads": 2,
        "seed": 42,
        "load_seconds": 2.5,
    }
    write_json(root / f"results/train/{variant}.json", record | {"mlflow_run_id": f"train-{variant}", "new_key": 1})
    write_text(
        root / f"results/train/{variant}.csv",
        "step,reward,reward_std,no_spread_share,extra\n1,0.1,0.3,0.5,\n2,0.2,,0.25,x\n3,0.4,0.2,0.0,y\n",
    )


def row_of(markdown_text: str, model: str) -> list[str]:
    line = next(line for line in markdown_text.splitlines() if line.startswith(f"| {model} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_models_table_has_the_numbers(root, config):
    write_report(root, config)
    text = (root / "reports/report.md").read_text()
    good = row_of(text, "good")
    assert good[1] == "50.0 %; 35.2 to 64.8 %; n = 40"
    assert good[4].startswith("+25.0; ")
    assert good[4].endswith("; least 27.0")  # 0.5038 (statsmodels, level 0.05 / 2) of (14/40 - 0.25^2)^0.5 = 0.5362
    assert good[5] == "p = 0.026; 12 mended, 2 broken"  # by Holm, twice 2 · (1 + 14 + 91) / 2^14
    assert row_of(text, "bad")[5] == "p = 0.062; 0 mended, 5 broken"  # 2 / 2^5, the larger of the two, as it is
    assert good[6:] == ["3", "12.34", "234.5", "1.50 GB", "91 %", "2.5 s", "61.5 s"]
    base = row_of(text, "base")
    assert base[1] == "25.0 %; 14.2 to 40.2 %; n = 40"
    assert set(base[4:]) == {"–"}  # noqa: RUF001


def test_a_model_without_results_is_shown_as_not_run(root, config):
    write_report(root, config)
    text = (root / "reports/report.md").read_text()
    assert row_of(text, "absent")[1] == "not run"
    assert row_of(text, "absent")[6] == "not run"
    assert "Not run: absent." in text
    assert "absent" not in json.loads((root / "reports/metrics.json").read_text())


def test_the_summary_says_who_gained_and_who_lost(root, config):
    write_report(root, config)
    text = (root / "reports/report.md").read_text()
    assert "tiny was trained with GRPO by 2 recipes on up to 77 problems of sums" in text
    assert "good gained most: +25.0 points" in text
    assert "1 of 2 trained models has a gain whose interval excludes zero; 1 by more than chance after Holm's" in text
    assert "Worse than the base, by an interval that excludes zero: bad." in text
    assert "Training took 2.0 min in all for 192 completions, with at most 1.50 GB of memory." in text


def test_a_long_summary_is_whole(root, config):
    config.evaluation.models += [f"some/long/directory/number{i}" for i in range(60)]
    write_report(root, config)
    for name in ("report.md", "report.html"):
        text = (root / "reports" / name).read_text()
        assert "number59." in text and "Evaluation took" in text


def test_the_summary_does_not_praise_a_loss(root, config):
    config.evaluation.models = ["base", "bad"]
    write_report(root, config)
    text = (root / "reports/report.md").read_text()
    assert "No trained model gained; the nearest, bad, differs by −12.5 points" in text  # noqa: RUF001
    assert json.loads((root / "reports/metrics.json").read_text())["significant_gains"] == 0


def test_the_html_needs_no_other_file_and_runs_nothing(root, config):
    write_report(root, config)
    page = (root / "reports/report.html").read_text()
    sources = re.findall(r"<[^>]*?\bsrc\s*=\s*[\"']?([^\"'>]*)", page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert base64.b64decode(sources[0].partition(",")[2]).decode().rstrip().endswith("</svg>")
    assert not re.search(r"<(script|link|iframe|object)\b|@import|url\(", page, re.IGNORECASE)
    assert "&lt;script src=" in page  # the hostile completion is there, as text


def test_every_link_leads_to_a_place_in_the_page_to_a_file_or_to_a_run(root, config):
    write_report(root, config, lambda run: f"http://ui/{run}" if run.startswith("train") else "")
    page = (root / "reports/report.html").read_text()
    links = set(re.findall(r'<a href="([^"]*)"', page))
    places = {link for link in links if link.startswith("#")}
    assert places >= {"#variants", "#study-feasibility", "#study-progressive", "#completions", "#provenance"}
    assert all(f' id="{place[1:]}"' in page for place in places)
    runs = {link for link in links if link.startswith("http")}
    assert runs == {"http://ui/train-good", "http://ui/train-bad"}
    files = links - places - runs
    assert "../results/train/good.csv" in files and "../results/evaluate/base.jsonl" in files
    assert all((root / "reports" / file).is_file() for file in files if file.split(".")[-2] != "samples")
    assert "evaluation eval-good" in page  # a run of another machine is named, and leads nowhere
    text = (root / "reports/report.md").read_text()
    assert "[training train-good](<http://ui/train-good>)" in text


def test_hostile_completions_stay_in_their_markdown_blocks(root, config):
    write_report(root, config)
    text = (root / "reports/report.md").read_text()
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "evil.example" in text
    assert "evil.example" not in outside


def test_ten_examples_of_every_kind(root, config):
    write_report(root, config)
    page = (root / "reports/report.html").read_text()
    kinds = re.findall(r'class="kind">(\w+)<', page)
    assert kinds == ["mended"] * 4 + ["broken"] * 2 + ["unchanged"] * 4
    assert "12 mended, 2 broken, 26 unchanged" in page


def test_accuracy_by_difficulty(root, config):
    write_report(root, config)
    text = (root / "reports/report.md").read_text().partition("## Accuracy by difficulty")[2]
    assert row_of(text, "base")[1:] == ["25.0 %; 11.2 to 46.9 %; 5 of 20"] * 2
    assert row_of(text, "absent")[1:] == ["not run"] * 2


def test_provenance_and_data_card_are_there(root, config):
    write_report(root, config)
    text = (root / "reports/report.md").read_text()
    for expected in (
        "wheel tiny 1.0",
        "ab" * 32,
        "train-good",
        "eval-good",
        "torch ",
        "3 prompt too long",
        "9 / 11 / 14",
    ):
        assert expected in text
    assert "The test split was read only for this comparison" in text


def test_figures_for_machines(root, config):
    files = write_report(root, config)
    reports = root / "reports"
    figures = json.loads((reports / "metrics.json").read_text())
    assert figures["base_accuracy"] == 0.25
    assert (figures["best_model"], figures["best_accuracy"], figures["best_gain"]) == ("good", 0.5, 0.25)
    assert figures["best_gain_low"] < 0.25 < figures["best_gain_high"]
    assert figures["significant_gains"] == 1
    assert figures["bad"]["gain"] == pytest.approx(-0.125)
    with (reports / "accuracy.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["model"] for row in rows] == ["base", "good", "bad"]
    assert list(rows[0])[:7] == ["model", "accuracy", "low", "high", "gain", "gain_low", "gain_high"]
    assert rows[0]["gain"] == rows[0]["updates"] == ""
    assert (rows[1]["updates"], rows[1]["completions_per_second"], rows[1]["wall_seconds"]) == ("3", "12.34", "61.5")
    assert sorted(files) == sorted(path for path in reports.rglob("*") if path.is_file())


def test_a_run_that_was_validated_has_its_curve_with_intervals(root, config):
    write_report(root, config)
    assert "validation.svg" not in (root / "reports/report.md").read_text()
    write_text(
        root / "results/train/good.csv",
        "step,reward,validation_accuracy,validation_low,validation_high\n"
        "1,0.1,,,\n2,0.2,0.25,0.125,0.5\n3,0.4,0.5,0.375,0.75\n",
    )
    write_report(root, config)
    assert "Accuracy on validation problems as training went on" in (root / "reports/report.md").read_text()
    curve = read_trainings(root / "results/train")["good"]
    panel = _validation_panel(curve)
    assert (panel.steps, panel.values) == ([2, 3], [25, 50])
    assert panel.reach == ([12.5, 12.5], [25, 25])


def test_the_same_results_give_the_same_bytes(root, config):
    files = write_report(root, config)
    before = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in write_report(root, config)] == before


def test_nothing_run_yet_still_makes_a_report(tmp_path, config):
    write_report(tmp_path, config)
    text = (tmp_path / "reports/report.md").read_text()
    assert "Not run: base, good, bad, absent." in text
    assert "Studies with answers below: none; not run: few_problems, " in text
    assert json.loads((tmp_path / "reports/metrics.json").read_text()) == {}


def test_other_problems_are_not_paired(root, config):
    write_evaluation(root, "good", [True] * 39)
    write_report(root, config)
    text = (root / "reports/report.md").read_text()
    assert "Evaluated on other problems than the base, so not compared with it: good." in text
    assert "gain" not in json.loads((root / "reports/metrics.json").read_text())["good"]


def test_a_model_that_solves_next_to_nothing_is_called_too_weak_for_the_task(root, config):
    write_report(root, config)
    assert "a more able model" not in (root / "reports/report.md").read_text()
    write_evaluation(root, "base", [True] + [False] * 99)
    write_report(root, config)
    assert (
        "solves 1.0 % of them (95 % interval 0.2 to 5.4 %). That is next to none"
        in (root / "reports/report.md").read_text()
    )


def test_validation_results_are_called_no_final_result(root, config):
    for model in ("base", "good", "bad"):
        write_evaluation(root, model, [True, False] * 20, split="validation")
    write_report(root, config)
    text = (root / "reports/report.md").read_text()
    assert "no final result" in text
    assert "The test split was read" not in text


def test_a_model_given_as_a_directory_is_found_whatever_its_file_is_called(root, config):
    config.evaluation.models = ["base", "runs/a/model"]
    write_evaluation(root, "runs/a/model", [True] * 40, file_name="model")
    write_report(root, config)
    row = row_of((root / "reports/report.md").read_text(), "runs/a/model")
    assert row[1].startswith("100.0 %")
    assert row[6] == "–"  # noqa: RUF001


@pytest.mark.parametrize("damaged", ["{", "[]", '{"model": "good"}'])
def test_a_damaged_file_is_named(root, config, damaged):
    write_text(root / "results/evaluate/good.json", damaged)
    with pytest.raises(UserError, match=r"good\.json.*again"):
        write_report(root, config)


@pytest.mark.parametrize("name", ["train/good.csv", "evaluate/good.jsonl", "train/good.json", "evaluate/good.json"])
def test_a_result_that_was_altered_is_named(root, config, name):
    for stage, end in (("train", ".csv"), ("evaluate", ".jsonl")):
        figures = root / f"results/{stage}/good.json"
        beside = figures.with_suffix(end)
        write_sealed(figures, json.loads(figures.read_text()) | {f"sha256{end}": sha256(beside)})
    write_report(root, config)
    path = root / "results" / name
    path.write_text(path.read_text().replace("0.1", "0.9").replace("true", "false").replace("0.5", "0.6"))
    with pytest.raises(UserError, match=rf"{path.name} was altered or damaged since it was written"):
        write_report(root, config)


def test_texts():
    assert points(-0.0123) == "−1.2"  # noqa: RUF001
    assert points(0.0001) == points(-0.0001) == "0.0"
    assert (p_text(0.00001), p_text(0.25)) == ("p < 0.001", "p = 0.250")
    assert (duration(3.21), duration(600), duration(9000)) == ("3.2 s", "10.0 min", "2.5 h")
    assert visible("x" * 700, 600).endswith("… (100 more characters)")
    assert markdown_inline("a|b\n<i>![x](y)`") == "a\\|b &lt;i>!\\[x]\\(y)\\`"
    assert markdown_block("a\n````\nb").startswith("`````text\n")


def test_an_address_cannot_break_out_of_its_link():
    link = Link("a|b](x)", "http://x/?a=1&b=[2]#/c>) <script>\n|`")
    line = markdown(Table("", ["a"], [[(link,)]])).splitlines()[-1]
    assert line == r"| [a\|b]\(x)](<http://x/?a=1&b=[2]#/c%3E) %3Cscript%3E%0A%7C%60>) |"
    usual = "http://127.0.0.1:5000/#/experiments/1/runs/0a9b"
    assert f"](<{usual}>)" in markdown(Table("", ["a"], [[(Link("train", usual),)]]))


def test_markdown_columns_line_up():
    lines = markdown(Table("", ["a", "long heading"], [[("wide cell",), ("1", "2")]])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2] == "| wide cell | 1; 2         |"


def test_sweep_summary_has_a_row_for_each_job(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in (10, 2):
        write_text(tmp_path / f"multirun/{number}/.hydra/overrides.yaml", f"- seed={number}\n- variant=good\n")
    write_training(tmp_path / "multirun/2", "good")
    SweepSummary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": "multirun"}}}))
    told = capsys.readouterr().out
    lines = [line for line in told.splitlines() if line.startswith("|")][2:]
    assert lines[0].split("|")[1:6] == [" 2   ", " seed=2 variant=good  ", " good    ", " 3       ", " 0.100 -> 0.400 "]
    assert "train-good" in lines[0] and "12.34" in lines[0] and "1.50 GB" in lines[0]
    assert "seed=10" in lines[1] and "failed" in lines[1]
    assert "summary.md" in told
    assert (tmp_path / "multirun/summary.md").read_text().splitlines()[2:] == lines


def test_sweep_summary_is_there_before_the_last_job(tmp_path):
    write_training(tmp_path / "multirun/0", "good")
    hydra = {"mode": "MULTIRUN", "runtime": {"cwd": str(tmp_path)}, "sweep": {"dir": "multirun"}}
    (tmp_path / "multirun/1").mkdir()
    from hydra.types import RunMode

    hydra["mode"] = RunMode.MULTIRUN
    SweepSummary().on_job_end(OmegaConf.create({"hydra": hydra}))
    text = (tmp_path / "multirun/summary.md").read_text()
    assert "train-good" in text and "failed or unfinished" in text
