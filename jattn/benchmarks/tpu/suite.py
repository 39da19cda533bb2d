"""The rows of the TPU suite: kernels compiled, not run, beside splash attention."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ...ops.attention.implementations.pallas_tpu.estimate import StepEstimate
from ..cases import Bar
from ..row import Row
from .compiler import GENERATIONS, missing
from .kernels import STEPS, TILE
from .measure import Measured, measure, start

DEFAULT = ("v5e", "v6e", "tpu7x")
NOT_RUN = "compiled, not run"
NO_ESTIMATE = "no estimate (the compiler's simulation fails)"

LENGTH, HEADS = {"v6e": 16384, "v5e": 16384}, 32
"""Of the whole kernels: tokens (by generation; of others `SHORT`) and query heads."""

SHORT = 8192
"""Keys and values of two key heads of this length fit in the vector memory of every generation, so a step computes as
many heads as in the rows of a tile."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """The cost of a tile of 512 queries and 512 keys of one query head.

    Attributes:
        kernel: a kernel of `kernels.KERNELS`.
        what: in words.
        generation: what it is compiled for.
        bar: the target for the compiler's estimate, in cycles, if there is one.
        bundles: the target for the bundles beside those of splash attention, if there is one.
    """

    kernel: str
    what: str
    generation: str
    bar: Bar | None
    bundles: Bar | None = None

    @property
    def name(self) -> str:
        return f"{self.kernel.replace(' ', '-')}-{self.generation}"

    @property
    def kernels(self) -> tuple[str, ...]:
        """What is compiled: a splash-like kernel, splash, the kernel."""
        direction = self.kernel.partition(" ")[0]
        return f"splash-like {direction}", f"splash {direction}", self.kernel

    def run(self) -> Row:
        """Compile the kernel and splash attention."""
        try:
            return self._compiled()
        except RuntimeError as error:
            return _failed(self.name, f"{self.what}, {self.generation}", error)

    def _compiled(self) -> Row:
        clone, splash, found = (measure(name, self.generation) for name in self.kernels)
        cycles = None if found.growth is None else found.growth.tile
        ratio = found.bundles / splash.bundles
        return Row(
            self.name,
            f"{self.what}, {self.generation}",
            f"512 x 512 x {256 if self.kernel.endswith('wide') else 128}",
            _cost(found, self.generation),
            f"splash-like {_cost(clone, self.generation)}; splash {splash.bundles:.0f} bundles",
            cycles,
            f"{NO_ESTIMATE if cycles is None else f'{cycles:.0f} cycles'}, {ratio:.2f} x splash's bundles; {NOT_RUN}",
            ", ".join(
                f"at most {bar.value:g}{unit}"
                for bar, unit in ((self.bar, " cycles"), (self.bundles, " x splash's bundles"))
                if bar is not None
            )
            or "-",
            self._met(cycles, ratio),
            _details(found, clone, splash),
        )

    def _met(self, cycles: float | None, ratio: float) -> bool | None:
        """Whether all targets are met, of those that there is a figure for."""
        figures = ((self.bar, cycles), (self.bundles, ratio))
        found = [bar.met(figure) for bar, figure in figures if bar is not None and figure is not None]
        return all(found) if found else None


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole call, causal, of 32 query heads and 8 key heads of 128, from the estimates of its tiles.

    Attributes:
        backward: with the backward pass.
        generation: what it is compiled for.
        bar: the target for the ratio to the splash-like kernel, if there is one.
    """

    backward: bool
    generation: str
    bar: Bar | None

    @property
    def name(self) -> str:
        return f"whole-{'both' if self.backward else 'forward'}-{self.generation}"

    @property
    def kernels(self) -> tuple[str, ...]:
        """What is compiled: for each pass, full tiles, partial ones, a splash-like kernel."""
        directions = ("forward", "backward")[: 1 + self.backward]
        return tuple(name for one in directions for name in (f"{one} full", f"{one} partial", f"splash-like {one}"))

    def run(self) -> Row:
        """Compile the kernels and splash attention."""
        try:
            return self._compiled()
        except RuntimeError as error:
            return _failed(self.name, f"a whole call, {self.generation}", error)

    def _compiled(self) -> Row:
        length = LENGTH.get(self.generation, SHORT)
        rows = length // TILE
        full, partial = rows * (rows - 1) // 2, rows
        ours = other = 0.0
        known = True
        growths = [measure(name, self.generation).growth for name in self.kernels]
        for whole, edge, clone in zip(growths[::3], growths[1::3], growths[2::3], strict=True):
            if whole is None or edge is None or clone is None:
                known = False
                continue
            ours += HEADS * (full * whole.tile + partial * edge.tile + rows * edge.row)
            other += HEADS * ((full + partial) * clone.tile + rows * clone.row)
        ratio = ours / other if known else None
        clock = GENERATIONS[self.generation].chip.clock
        return Row(
            self.name,
            f"{'forward + backward' if self.backward else 'forward'}, causal, {full + partial} of {rows**2} tiles, "
            f"{self.generation}",
            f"1 x {length} x 32/8 x 128",
            f"{ours:.3g} cycles ({1e3 * ours / clock:.2f} ms at {clock / 1e9:g} GHz)" if known else NO_ESTIMATE,
            f"splash-like {other:.3g} cycles ({1e3 * other / clock:.2f} ms)" if known else NO_ESTIMATE,
            ratio,
            f"{'-' if ratio is None else f'{ratio:.2f} x'}; {NOT_RUN}",
            "-" if self.bar is None else f"at most {self.bar.value:g}",
            None if self.bar is None or ratio is None else self.bar.met(ratio),
            {"ours": ours, "other": other},
        )


@dataclasses.dataclass(frozen=True)
class Decode:
    """A step of decoding: one new token of a sequence, with a cache.

    Computing a tile and copying the next one happen at once, and the slower of the two bounds the step. The compiler
    estimates the first, the bandwidth of the memory tells the second.

    Attributes:
        step: one of `kernels.STEPS`.
        what: in words.
        filled: the tokens in the cache.
        generation: what it is compiled for.
    """

    step: str
    what: str
    filled: int
    generation: str

    @property
    def name(self) -> str:
        return f"decode-{self.step.replace(' ', '-')}-{self.filled}-{self.generation}"

    @property
    def kernels(self) -> tuple[str, ...]:
        """What is compiled."""
        return (f"decode {self.step}",)

    def run(self) -> Row:
        """Compile the kernel."""
        try:
            return self._compiled()
        except RuntimeError as error:
            return _failed(self.name, f"{self.what}, {self.generation}", error)

    def _compiled(self) -> Row:
        step, generation = STEPS[self.step], GENERATIONS[self.generation]
        found = measure(self.kernels[0], self.generation)
        keys, chip = step.tile(generation.target), generation.chip
        if found.growth is None:
            unit, compute, rest = "bundles", found.bundles, found.schedule.bundles - found.bundles
        else:
            unit, compute, rest = "cycles", found.growth.tile, found.growth.row + found.growth.once
        copies = step.tile_bytes(generation.target) / chip.bytes
        compute /= step.cores(generation.target)  # each has its share of the tiles
        cost = StepEstimate(keys, copies, compute, -(-self.filled // keys), True, chip.bandwidth)
        cycles, all_copies = cost.cycles + rest, cost.tiles * copies
        bound = "copies" if copies > compute else "computing"
        return Row(
            self.name,
            f"{self.what}, {self.filled} tokens, {self.generation}",
            f"1 x {step.q_heads}/{step.kv_heads} x {step.dim}",
            f"{cycles:.4g} cycles ({1e6 * cycles / chip.clock:.1f} µs at {chip.clock / 1e9:g} GHz); a tile of {keys} "
            f"keys: {compute:.0f} {unit}",
            f"copies at {chip.bandwidth / 1e9:.0f} GB/s: {all_copies:.4g} cycles; a tile: {copies:.0f}",
            cycles / all_copies,
            f"{cycles / all_copies:.2f} x the copies, bound by {bound}; {NOT_RUN}",
            "-",
            None,
            {"ours": dataclasses.asdict(found), "copies": copies},
        )


def _failed(name: str, what: str, error: RuntimeError) -> Row:
    """The row of a kernel that does not compile."""
    said = str(error).replace("|", "/")
    return Row(name, what, "-", said, "-", None, f"no estimate; {NOT_RUN}", "-", None, {})


def _cost(found: Measured, generation: str) -> str:
    """Cycles, microseconds and bundles of a tile of one head."""
    if found.growth is None:
        return f"{found.bundles:.0f} bundles"
    cycles, clock = found.growth.tile, GENERATIONS[generation].chip.clock
    return f"{cycles:.0f} cycles ({1e6 * cycles / clock:.2f} µs), {found.bundles:.0f} bundles"


def _details(*found: Measured) -> dict[str, Any]:
    return dict(zip(("ours", "splash-like", "splash"), map(dataclasses.asdict, found), strict=True))


TARGETS: Mapping[str, tuple[str, dict[str, int]]] = {
    "forward full": ("forward, full tile, 4 query heads a key head", {"v5e": 1150, "v6e": 520, "tpu7x": 520}),
    "forward multi-head": ("forward, full tile, a key head each", {"v5e": 1190, "v6e": 560, "tpu7x": 560}),
    "forward partial": ("forward, causal partial tile", {"v5e": 1160, "v6e": 610, "tpu7x": 600}),
    "forward scored": ("forward, ALiBi + soft cap + segments", {"v5e": 1260, "v6e": 860, "tpu7x": 840}),
    "backward full": ("backward, full tile, 4 query heads a key head", {"v5e": 2650, "v6e": 1260, "tpu7x": 1260}),
    "backward multi-head": ("backward, full tile, a key head each", {}),
    "backward partial": ("backward, causal partial tile", {"v5e": 2680, "v6e": 1400, "tpu7x": 1400}),
    "backward scored": ("backward, ALiBi + soft cap + segments", {"v5e": 3290, "v6e": 2200, "tpu7x": 2130}),
    "forward wide": ("forward, full tile, 256 features", {}),
    "backward wide": ("backward, full tile, 256 features", {}),
    "forward float32": ("forward, full tile, float32", {}),
    "backward float32": ("backward, full tile, float32", {}),
}
"""Of each kernel: what it is, and the most cycles a tile by generation."""

BUNDLES = {
    "forward full": {"v5e": 0.9, "v6e": 0.58, "tpu7x": 0.58},
    "backward full": {"v5e": 1.03, "v6e": 0.75, "tpu7x": 0.72},
}
"""Of some kernels, the most bundles of a tile beside splash's by generation."""

DECODING: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "grouped": ("decoding, 32/8 heads", (4096, 65536)),
    "grouped partial": ("decoding, 32/8 heads, all tiles partial", (4096,)),
    "paged": ("decoding, 32/8 heads, pages of 128", (4096, 65536)),
    "small pages": ("decoding, 32/8 heads, pages of 16", (65536,)),
    "latent": ("decoding, latents for 128 heads", (4096, 65536)),
    "latent partial": ("decoding, latents for 128 heads, all tiles partial", (4096,)),
    "narrow": ("decoding, 32/8 heads of 64", (65536,)),
    "multi-query": ("decoding, 8 heads, one key head", (65536,)),
    "float32": ("decoding, 32/8 heads, float32", (65536,)),
}
"""Of each step of decoding: what it is, and the tokens in the cache."""


def begin(rows: Sequence[Tile | Whole | Decode]) -> None:
    """Compile for some rows in the background."""
    for row in rows:
        for kernel in row.kernels:
            start(kernel, row.generation)


def tpu(generations: Sequence[str] = DEFAULT) -> tuple[Tile | Whole | Decode, ...]:
    """The rows of the TPU suite.

    Args:
        generations: names of `GENERATIONS`.

    Raises:
        ValueError: a generation is unknown, or libtpu is not installed.
    """
    unknown = [name for name in generations if name not in GENERATIONS]
    if unknown:
        raise ValueError(f"`generations` must be of {', '.join(GENERATIONS)}; got {', '.join(unknown)}.")
    if missing() is not None:
        raise ValueError(f"nothing can be compiled for a TPU here: {missing()}.")
    rows: list[Tile | Whole | Decode] = []
    for generation in generations:
        for kernel, (what, most) in TARGETS.items():
            bar = Bar(most[generation], True) if generation in most else None
            most_bundles = BUNDLES.get(kernel, {}).get(generation)
            bundles = None if most_bundles is None else Bar(most_bundles, True)
            rows.append(Tile(kernel, what, generation, bar, bundles))
        for backward, most in ((False, 0.45), (True, 0.62)):
            rows.append(Whole(backward, generation, Bar(most, True) if generation == "v6e" else None))
        for step, (what, lengths) in DECODING.items():
            rows += [Decode(step, what, length, generation) for length in lengths]
    return tuple(rows)
