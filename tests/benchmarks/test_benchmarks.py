"""The benchmark's machinery at tiny sizes: every row is complete. No times are asserted."""

import json

import pytest

from jattn.benchmarks import cases, peers, table
from jattn.benchmarks.__main__ import main
from jattn.benchmarks.gpu import gpu
from jattn.benchmarks.measure import Times, paired
from jattn.benchmarks.sides import Shape

LENGTH, LONG = 64, 640


@pytest.fixture
def no_torch(monkeypatch):
    """PyTorch takes seconds to import and to compile, and is not asked for here."""
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)


@pytest.mark.exhaustive
def test_every_row_is_complete(no_torch, tmp_path, capsys):
    tables, details = tmp_path / "table.md", tmp_path / "table.json"
    sizes = ["--length", str(LENGTH), "--long", str(LONG), "--repeats", "1"]
    rows = main([*sizes, "--markdown", str(tables), "--json", str(details)])
    asked = cases.cpu(LENGTH, LONG)
    assert [row.name for row in rows] == [case.name for case in asked]
    for row, case in zip(rows, asked, strict=True):
        missing = isinstance(case, cases.Speed) and case.other.missing() is not None
        assert (row.figure is None) == (row.met is None) == missing
        assert all(row.cells())
        assert ("not installed" in row.other) == missing
        assert row.figure is None or row.figure > 0
    assert sum(row.figure is None for row in rows) == 4
    written = tables.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| ") for line in written) == len(rows) + 1
    assert all(line.count("|") == len(table.HEAD) + 1 for line in written if line.startswith("|"))
    found = json.loads(details.read_text(encoding="utf-8"))
    assert len(found["rows"]) == len(rows)
    assert all(found["rows"][0]["details"]["ours"])
    printed = capsys.readouterr().out
    assert all(f"[{row.name}]" in printed for row in rows)


@pytest.mark.exhaustive
def test_only_the_rows_asked_for(capsys):
    rows = main(["--length", "64", "--repeats", "1", "--rows", "alibi", "--clock", "cpu"])
    assert [row.name for row in rows] == ["alibi"]
    with pytest.raises(SystemExit):
        main(["--rows", "typo"])
    assert "no row typo; there are torch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--repeats", "0"])


@pytest.mark.parametrize("suite", [cases.cpu, gpu])
def test_names_are_unique(suite):
    names = [case.name for case in suite()]
    assert len(names) == len(set(names))


def test_rows_for_a_gpu_run_in_bfloat16_and_say_what_is_missing_elsewhere(capsys):
    (row,) = main(["--suite", "gpu", "--length", "64", "--repeats", "1", "--rows", "gpt-cudnn"])
    assert row.met is None and "needs an NVIDIA GPU" in row.other
    xla = gpu(64)[0]
    assert xla.ours.build(xla.shape)().dtype == xla.other.build(xla.shape)().dtype == "bfloat16"


def test_pairs_alternate_and_count():
    calls = []
    first, second = paired(lambda: calls.append("a"), lambda: calls.append("b"), rounds=4, seconds=60.0)
    assert "".join(calls) == "abab" + 2 * "aabbbbaa"
    assert len(first.rounds) == len(second.rounds) == 4
    slow, _ = paired(lambda: None, lambda: None, rounds=50, seconds=0.0)
    assert len(slow.rounds) == 3


def test_ratio_is_the_median_of_the_rounds():
    assert Times((1.0, 8.0, 3.0)).ratio(Times((1.0, 2.0, 1.0))) == 3.0


def test_work_of_the_visited_tiles():
    """At 4096 with tiles of 512, causal visits 36 of 64 tiles a head."""
    shape = Shape("any", 4096, q_heads=8, kv_heads=8, dim=64)
    plan = cases.Choice(cases.causal).plan(shape)
    visited = plan.counts()[0] * plan.q_tile * plan.k_tile
    tiles = 4096 // 512
    assert visited == tiles * (tiles + 1) // 2 * 512**2
    assert cases._share_of_matmul(shape) == 4 * visited * 8 * 64 / (2 * 2048**3)


@pytest.mark.exhaustive
def test_bars():
    assert cases.Bar(1.0).met(1.0) and not cases.Bar(1.0).met(0.99)
    assert cases.Bar(1.4, at_most=True).met(1.4) and not cases.Bar(1.4, at_most=True).met(1.41)
