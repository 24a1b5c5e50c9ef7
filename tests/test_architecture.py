"""docs/architecture.md tells the package as it is: its folders, and every path that it names."""

import ast
import re

import pytest

from conftest import ROOT

PACKAGE = ROOT / "src" / "cpu_grpo"
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def folders():
    """Every folder of the package that has code of ours."""
    return {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}


def named(pattern):
    return set(re.findall(pattern, TEXT, re.MULTILINE))


def test_the_table_of_folders_is_the_packages():
    rows = named(r"^\| `(src/cpu_grpo/[a-z_/]+)` \|")
    assert rows == {path.relative_to(ROOT).as_posix() for path in folders()}


def test_every_folder_draws_its_boundary():
    for folder in folders():
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert docstring and docstring.splitlines()[0].endswith((".", ":")), folder


def test_no_module_lies_beside_the_folders_but_those_that_are_named():
    lying = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert lying == named(r"`src/cpu_grpo/([a-z_]+\.py)`")


@pytest.mark.parametrize("place", sorted(named(r"`((?:src|tests|conf|benchmarks|pipelines)/[\w/.]+)`")))
def test_every_path_that_is_named_exists(place):
    assert (ROOT / place).exists()


def test_files_of_the_engine_that_are_named_exist():
    engine = {path.name for path in (PACKAGE / "engine").rglob("*.*")}
    assert named(r"`(?:[a-z]+/)?([a-z_]+\.(?:cpp|h))`") <= engine
    for folder, name in named(r"`(rollout|learner|kernels|schemes|plan|experiment)/([a-z_]+\.py)`"):
        own = PACKAGE if (PACKAGE / folder).is_dir() else PACKAGE / "engine"
        assert (own / folder / name).is_file(), f"{folder}/{name}"


def test_folders_are_listed_as_imports_point():
    layers = re.search(r"layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL)[1]
    order = [re.findall(r"\w+", line) for line in re.findall(r'"([^"]+)"', layers)]
    level = {name: number for number, names in enumerate(order) for name in names}
    rows = [level[name] for name in re.findall(r"^\| `src/cpu_grpo/([a-z_]+)` \|", TEXT, re.MULTILINE)]
    assert rows == sorted(rows)
