"""A model that is not what was written is noticed before anything is computed with it."""

import pytest

from cpu_grpo.errors import UserError
from cpu_grpo.files import sha256, write_json
from cpu_grpo.models.integrity import intact_hash
from cpu_grpo.models.loading import RECORD, weights_hash


@pytest.fixture
def written(tmp_path):
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text(f"what {name} holds")
    files = {path.name: sha256(path) for path in sorted(tmp_path.iterdir())}
    write_json(tmp_path / RECORD, {"sha256": files})
    return tmp_path


def test_a_whole_model_has_its_weights_hash(written):
    assert intact_hash(written) == weights_hash(written)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_is_another_is_named(written, name):
    (written / name).write_text("what")
    with pytest.raises(UserError, match=f"{name} was truncated or altered since it was written: make the model again"):
        intact_hash(written)


def test_a_file_that_is_missing_is_named(written):
    (written / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json is missing, though it was written"):
        intact_hash(written)


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_a_directory_without_a_record_is_taken_as_it_is(written, text):
    (written / RECORD).unlink()
    if text is not None:
        (written / RECORD).write_text(text)
    assert intact_hash(written) == weights_hash(written)
