"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {"x_train": torch.rand(32, 1, 28, 28), "x_test": torch.rand(8, 1, 28, 28)}
    exec(compile(code, str(README), "exec"), names)
    first = names["model"].state_dict()
    exec(compile(code, str(README), "exec"), names)  # and to the same end once more
    assert all(torch.equal(value, first[name]) for name, value in names["model"].state_dict().items())
    assert "Mixture of 2: gate Conv" in capsys.readouterr().out
    assert len(names["history"]) == 20
    assert (tmp_path / "runs" / "mine" / "model.safetensors").is_file()
