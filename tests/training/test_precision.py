"""The benchmark that compares bfloat16 with float32."""

import json
from pathlib import Path

import precision
import pytest

pytestmark = pytest.mark.slow

DIGITS = ["--dataset", "digits", "--epochs", "1", "--seeds", "2", "--threads", "1", "--device", "cpu"]


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.filterwarnings("ignore::hmoevae.errors.DeadLeafWarning")
def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precision.has_bfloat16", lambda device: True)
    file = tmp_path / "report.json"
    precision.main([*DIGITS, "--json", str(file)])
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert report == json.loads(file.read_text())
    assert [row["seed"] for row in report["rows"]] == [0, 1]
    for row in report["rows"]:
        assert row["bf16"] != row["fp32"]
        assert row["bf16_off_percent"] == pytest.approx(100 * (row["bf16"] / row["fp32"] - 1))
        assert abs(row["bf16_off_percent"]) < 1


def test_without_bfloat16_there_is_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precision.has_bfloat16", lambda device: False)
    with pytest.raises(
        SystemExit, match=r"precision.py: --device: expected one with bfloat16 instructions, got cpu wit"
    ):
        precision.main(DIGITS)
