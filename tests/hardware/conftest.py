"""Systems that are not this one."""

import psutil
import pytest
import torch


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Makes a Linux of its own: the CPUs that this process may run on, and files by path."""

    def make(allowed, files):
        monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: allowed, raising=False)
        (tmp_path / "sys/devices/system/cpu").mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text + "\n")
        return tmp_path

    return make
