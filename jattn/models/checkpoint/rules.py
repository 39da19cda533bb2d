"""The rules of single layers, stored as PyTorch stores them: kernels are (outputs, inputs)."""

from .table import Rule


def linear_rules(tensor: str, path: str) -> tuple[Rule, Rule]:
    """The rules of a `nnx.Linear` that is stored as PyTorch stores it."""
    return Rule(f"{tensor}.weight", f"{path}.kernel", "o i -> i o"), Rule(f"{tensor}.bias", f"{path}.bias")


def norm_rules(tensor: str, path: str) -> tuple[Rule, Rule]:
    """The rules of a layer norm."""
    return Rule(f"{tensor}.weight", f"{path}.scale"), Rule(f"{tensor}.bias", f"{path}.bias")


def projection_rules(tensor: str, path: str) -> tuple[Rule, Rule]:
    """The rules of a projection to heads."""
    return (
        Rule(f"{tensor}.weight", f"{path}.kernel", "(h d) f -> f h d"),
        Rule(f"{tensor}.bias", f"{path}.bias", "(h d) -> h d"),
    )


def out_rules(tensor: str, path: str) -> tuple[Rule, Rule]:
    """The rules of the projection from heads back to features."""
    return Rule(f"{tensor}.weight", f"{path}.kernel", "f (h d) -> h d f"), Rule(f"{tensor}.bias", f"{path}.bias")
