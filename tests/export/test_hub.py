"""Pushing, against a stand-in for the hub's client, and against no server at all."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from cpu_grpo.errors import UserError
from cpu_grpo.export.__main__ import main


class Hub:
    """What is called of huggingface_hub.HfApi, with its own argument names."""

    calls: list
    error = None

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message=None):
        if self.error:
            raise self.error
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
        return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch):
    api = Hub()
    api.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    return api


def push(repository="someone/tiny"):
    main(["tiny", "--to", "gguf", "--push", repository])


def test_a_push_makes_a_private_repository_and_uploads_the_whole_export(place, hub, capsys):
    push()
    assert hub.calls == [
        ("create", "someone/tiny", True, True),
        ("upload", "someone/tiny", ["README.md", "source.json", "tiny-f16.gguf"]),
    ]
    assert capsys.readouterr().out.splitlines()[-1] == "pushed: https://hub.example/someone/tiny/commit/1"


@pytest.mark.parametrize(
    ("status", "remedy"), [(403, "that the token may write there"), (404, "the name"), (500, "the connection")]
)
def test_what_the_server_refuses_is_told_and_the_export_stays(place, hub, status, remedy):
    response = SimpleNamespace(status_code=status)
    hub.error = RuntimeError("no")
    hub.error.response = response
    with pytest.raises(
        UserError, match=rf"\(the server answered {status}\): the export lies whole in .*, so check {remedy}"
    ):
        push()
    assert Path("exports/tiny-gguf/tiny-f16.gguf").is_file()


def test_no_server_is_told_by_the_real_client(place, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with pytest.raises(UserError, match=r"someone/tiny could not be pushed to \(\w*Error\): .* check the connection"):
        push()


@pytest.mark.parametrize("repository", ["tiny", "a/b/c", "../x", "a/ b"])
def test_a_name_that_is_none_is_refused_before_any_work(place, hub, repository):
    with pytest.raises(UserError, match=r"is no repository: give it as owner/name"):
        push(repository)
    assert not Path("exports").exists()


def test_without_a_token_nothing_begins(place, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"--push needs a token .* run `hf auth login`, or set HF_TOKEN"):
        push()
    assert not Path("exports").exists()


def test_a_file_alone_is_not_pushed(place, hub):
    with pytest.raises(UserError, match=r"--push uploads a directory"):
        main(["tiny", "--to", "gguf", "--out", "m.gguf", "--push", "a/b"])
