import json

import pytest

from benchmarking.runner import machine, memory_bytes, print_summary, print_table


def test_summary_is_one_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary({"text": "a\nb", "number": 1.5})
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert json.loads(captured.out) == {"text": "a\nb", "number": 1.5}
    assert captured.err == ""


def test_summary_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        print_summary({"number": float("nan")})


def test_table_is_on_stderr_and_not_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["", *(f"column {number}" for number in range(8))]
    print_table("title", columns, [["words", *("1,234.56" for _ in range(8))]])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("1,234.56") == 8
    assert "column 7" in captured.err


def test_machine_is_json_with_a_name_for_the_processor() -> None:
    description = json.loads(json.dumps(machine()))
    assert description["machine.cpu"]
    assert description["machine.cores"] >= 1


def test_peak_memory_is_that_of_a_python_process() -> None:
    assert 1e6 < memory_bytes("VmRSS") <= memory_bytes("VmHWM") < 1e12
