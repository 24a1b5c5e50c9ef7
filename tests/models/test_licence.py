"""Licences are read where files name them, and nowhere else."""

import json

import pytest

from cpu_grpo.config.schema import Model
from cpu_grpo.models.licence import licence_of_card
from cpu_grpo.models.sources import prepare_model


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# Model\n", "apache-2.0"),
        ("# Model\n\nlicense: mit\n", ""),
        ("---\nlicense: [mit, gpl]\n---\n", ""),
        ('---\nlicense: "mit |\\n# not a name"\n---\n', ""),
        ("---\n: : {{\n---\n", ""),
        ("---\n- a list\n---\n", ""),
    ],
)
def test_a_cards_front_matter_names_it(tmp_path, card, licence):
    (tmp_path / "README.md").write_text(card)
    assert licence_of_card(tmp_path) == licence


def test_a_model_without_a_card_names_none(tmp_path):
    assert licence_of_card(tmp_path) == ""


def test_a_prepared_model_keeps_it(source, gguf_file, tmp_path):
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    assert prepare_model(Model(name="m", source="path", path=str(source)), tmp_path / "a")["license"] == "mit"
    record = json.loads((tmp_path / "a" / "source.json").read_text())
    assert record["license"] == "mit"
    assert prepare_model(Model(name="m", source="gguf", path=str(gguf_file)), tmp_path / "b")["license"] == ""
