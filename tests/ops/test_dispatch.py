"""The contract of all operations: the order per target, refusals with reasons, and lazily imported modules."""

import dataclasses
import sys
import types

import pytest

import jattn
from jattn.foundation.target import Target, as_target, compiled_for, expected_target
from jattn.ops.dispatch import Implementation, Operation, Row


class Kernel(Implementation):
    name = "kernel"

    def refuses(self, call):
        return "it takes even numbers" if call % 2 else None

    def run(self, call):
        return "kernel"

    def describe(self, call):
        return None, ""


class Plain(Kernel):
    name = "plain"

    def refuses(self, call):
        return "it takes numbers below 10" if call >= 10 else None


@pytest.fixture
def operation():
    module = types.ModuleType("module_of_plain")
    module.Plain = Plain  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["module_of_plain"] = module
    yield Operation(
        "sum", (Row("kernel", "module_of_kernel", "Kernel", ("tpu",)), Row("plain", "module_of_plain", "Plain"))
    )
    del sys.modules["module_of_plain"]


@pytest.fixture
def with_kernel(operation):
    module = types.ModuleType("module_of_kernel")
    module.Kernel = Kernel  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["module_of_kernel"] = module
    yield operation
    del sys.modules["module_of_kernel"]


CPU, TPU = Target("cpu"), Target("tpu", "v5e")


def test_a_kernel_is_imported_only_for_its_platform(operation):
    assert operation.choose(2, target=CPU).name == "plain"
    assert operation.verdicts(2, CPU) == {"kernel": "it is for tpu, and the program is for cpu", "plain": None}
    with pytest.raises(jattn.Unsupported, match=r"`kernel` refuses this call: it is for tpu.*`plain` accepts"):
        operation.choose(2, "kernel", CPU)
    with pytest.raises(ModuleNotFoundError, match=r"module_of_kernel"):
        operation.choose(2, target=TPU)


def test_the_first_for_the_target_that_accepts_runs(with_kernel):
    assert [with_kernel.choose(2, target=one).name for one in (CPU, TPU)] == ["plain", "kernel"]
    assert with_kernel.choose(3, target=TPU).name == "plain"
    assert isinstance(with_kernel.choose(2, Kernel(), CPU), Kernel)  # an object is taken anywhere
    with compiled_for("tpu v5e"):
        assert with_kernel.choose(2).name == "kernel"


def test_refusals_name_every_reason(with_kernel):
    with pytest.raises(jattn.Unsupported, match=r"no implementation accepts.*even numbers.*below 10"):
        with_kernel.choose(11, target=TPU)
    with pytest.raises(
        jattn.Unsupported, match=r"`plain` refuses this call: it takes numbers below 10.*`kernel` accepts"
    ):
        with_kernel.choose(12, "plain", TPU)
    for name in ("other", 3, ["plain"]):
        with pytest.raises(ValueError, match=r"`implementation` must be None.*'kernel', 'plain'; got"):
            with_kernel.choose(2, name)
    chosen, reasons = with_kernel.reasons(2, None, TPU)
    assert (chosen.name, reasons) == ("kernel", {"plain": "it would accept, but `kernel` comes first"})
    chosen, reasons = with_kernel.reasons(2, "plain", TPU)
    assert (chosen.name, reasons) == ("plain", {"kernel": "`plain` was asked for"})


def test_gradients_are_refused_where_there_are_none():
    with pytest.raises(jattn.Unsupported, match=r"`kernel` has no `gradients`"):
        Kernel().gradients(2)


@dataclasses.dataclass(frozen=True)
class Device:
    platform: str
    device_kind: str


@pytest.mark.parametrize(
    ("given", "platform", "generation"),
    [
        ("cpu", "cpu", None),
        ("tpu v5e", "tpu", "v5e"),
        ("gpu", "cuda", None),
        ("CUDA H100", "cuda", "h100"),
        (TPU, "tpu", "v5e"),
        (Device("cpu", "cpu"), "cpu", None),
        (Device("tpu", "TPU v5 lite"), "tpu", "v5e"),
        (Device("tpu", "TPU v5"), "tpu", "v5p"),
        (Device("tpu", "TPU v4"), "tpu", "v4"),
        (Device("tpu", "TPU7x"), "tpu", "7x"),
        (Device("gpu", "NVIDIA H100 80GB HBM3"), "cuda", "h100"),
        (Device("gpu", "NVIDIA GeForce RTX 4090"), "cuda", None),
        (Device("gpu", "AMD Instinct MI300X"), "rocm", "mi300x"),
    ],
)
def test_targets(given, platform, generation):
    assert as_target(given) == Target(platform, generation)


@pytest.mark.parametrize("given", ["", "abacus", "tpu v5e x", "cpu v1", "tpu fast", 3, None])
def test_no_targets(given):
    with pytest.raises(ValueError, match=r"`target` must be"):
        as_target(given)


def test_the_target_given_holds_within():
    assert expected_target() == CPU
    with compiled_for("tpu v4"):
        with compiled_for("cuda"):
            assert expected_target() == Target("cuda")
        assert expected_target() == Target("tpu", "v4")
    assert expected_target() == CPU
