"""The TPU suite: every row is complete and says that nothing ran; kernels are compiled where libtpu is installed."""

import dataclasses
import json

import pytest
from tpu import needs_libtpu

from jattn.benchmarks.__main__ import main
from jattn.benchmarks.tpu import measure, suite
from jattn.benchmarks.tpu.kernels import KERNELS
from jattn.benchmarks.tpu.schedule import Region, Schedule

ESTIMATED = measure.Measured(
    Schedule(900, (Region(880, 1, 2, {"MXU": 0.5}),)), {2: 9000, 4: 33000, 6: 73000}, 2, 2, 1.0
)
UNKNOWN = measure.Measured(ESTIMATED.schedule, None, 2, 2, 1.0)


@pytest.fixture
def measured(monkeypatch):
    """The compiler's answers, without a compiler. It knows no cycles of tpu7x, and does not compile for v4."""

    def answer(kernel, generation):
        assert kernel in KERNELS
        if generation == "v4":
            raise RuntimeError("it needs too much memory")
        return UNKNOWN if generation == "tpu7x" or kernel.startswith("splash ") else ESTIMATED

    monkeypatch.setattr(suite, "measure", answer)
    monkeypatch.setattr(suite, "start", lambda kernel, generation: KERNELS[kernel])
    monkeypatch.setattr(suite, "missing", lambda: None)


def test_growth_is_for_one_head():
    assert ESTIMATED.growth is not None
    assert (ESTIMATED.growth.tile, ESTIMATED.growth.row, ESTIMATED.growth.once) == (1000, 0, 500)
    assert ESTIMATED.bundles == 440


def test_every_row_is_complete(measured, tmp_path, capsys):
    details = tmp_path / "rows.json"
    rows = main(["--suite", "tpu", "--generations", "v6e", "tpu7x", "v4", "--json", str(details)])
    assert [row.name for row in rows] == [case.name for case in suite.tpu(("v6e", "tpu7x", "v4"))]
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert all(row.cells())
        assert suite.NOT_RUN in row.shown
        if not row.name.startswith("decode"):
            assert row.figure is not None or row.met is None or "splash's bundles" in row.bar
    by_name = {row.name: row for row in rows}
    tile = by_name["forward-full-v6e"]
    assert tile.figure == 1000 and tile.met is False
    assert "1000 cycles (0.57 µs), 440 bundles" in tile.ours
    assert tile.bar == "at most 520 cycles, at most 0.58 x splash's bundles"
    assert by_name["forward-full-tpu7x"].met is False  # by bundles alone
    assert by_name["whole-forward-v6e"].figure == 1.0
    assert "528 of 1024 tiles" in by_name["whole-forward-v6e"].what
    assert "no estimate" in by_name["forward-full-tpu7x"].shown
    assert "too much memory" in by_name["forward-full-v4"].ours
    assert "too much memory" in by_name["decode-paged-4096-v4"].ours
    printed = capsys.readouterr().out
    assert all(suite.NOT_RUN in line for line in printed.splitlines() if line.startswith("["))
    assert json.loads(details.read_text(encoding="utf-8"))["rows"][0]["details"]["ours"]["cycles"]


def test_the_slower_of_copies_and_computing_bounds_a_step(measured, monkeypatch):
    """Keys and values of a tile are 2 MiB. Of the estimate, 1,000 cycles are of a tile and 500 of none."""
    rows = {row.name: row for row in suite.tpu(("v6e", "tpu7x"))}
    copies = 2**21 / (1640e9 / 1.75e9)
    found = rows["decode-grouped-4096-v6e"].run()
    assert found.figure == pytest.approx((8 * copies + 1000 + 500) / (8 * copies))
    assert "1000 cycles" in found.ours and "a tile: 2238" in found.other and "bound by copies" in found.shown
    slow = dataclasses.replace(UNKNOWN, schedule=Schedule(5000, (Region(4000, 1, 2, {"MXU": 0.5}),)), unrolled=1)
    monkeypatch.setattr(suite, "measure", lambda *asked: slow)
    found = rows["decode-grouped-4096-tpu7x"].run()
    copies = 2**21 / (3690e9 / 2.2e9)
    assert found.figure == pytest.approx((8 * 4000 + copies + 1000) / (8 * copies))
    assert "4000 bundles" in found.ours and "bound by computing" in found.shown


def test_what_cannot_be_compiled_is_said(monkeypatch, capsys):
    monkeypatch.setattr(suite, "missing", lambda: "libtpu is not installed")
    for arguments, said in ((["v9"], "v4, v5e, v5p, v6e, tpu7x; got v9"), (["v6e"], "libtpu is not installed")):
        with pytest.raises(SystemExit):
            main(["--suite", "tpu", "--generations", *arguments])
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--suite", "cpu", "--generations", "v6e"])
    assert "the suite cpu has no --generations" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kernel, generation",
    [("splash-like forward", "v6e"), pytest.param("splash forward", "v5e", marks=pytest.mark.exhaustive)],
)
@needs_libtpu
def test_the_compiler_answers(kernel, generation):
    """Splash stops the compiler's estimate on v5e, but not the benchmark."""
    found = measure.measure(kernel, generation)
    assert found.schedule.body and 700 < found.bundles < 1400  # tiles of 512: a matrix unit needs at least 512 cycles
    if kernel == "splash-like forward":
        assert found.growth is not None and found.bundles < found.growth.tile < 1.6 * found.bundles
