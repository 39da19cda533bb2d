"""The architecture: which layer imports which, how long a file may be, what `import jattn` imports."""

import ast
import functools
import importlib
import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

LAYERS = (
    ("foundation",),
    ("masks",),
    ("scores",),
    ("similarities",),
    ("normalizers",),
    ("positions",),
    ("ops.dispatch",),
    ("ops.attention.plan",),
    ("ops.attention",),
    ("ops.attention.implementations",),
    ("ops.attention.api", "ops.attention.explain", "ops.attention.paged", "ops.attention.recording"),
    ("analysis",),
    ("visualization",),
    ("parallel",),
    ("ops.recurrence", "ops.convolution"),
    ("layers",),
    ("variants",),
    ("nnx", "linen"),
    ("models",),
    ("benchmarks",),
)
"""A module imports from its own layer or an earlier one. A room within a room is named by its path."""

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Of two in one row, only these know each other, the first the second.
SIBLINGS = {
    ("ops.attention.explain", "ops.attention.api"),
    ("ops.attention.recording", "ops.attention.api"),
}
LONGEST = 400

found = importlib.util.find_spec("jattn")
assert found is not None and found.origin is not None
ROOT = Path(found.origin).parent
FILES = sorted(ROOT.rglob("*.py"))
PUBLIC = [path for path in FILES if path.name == "__init__.py"]


def dotted(path: Path) -> str:
    parts = ["jattn", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> list[str]:
    """The absolute names a file imports, at its top or in functions; those for the type checker alone left out."""
    package = dotted(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            names.append(prefix)
            names.extend(f"{prefix}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(parsed(path))
    return names


def room(name: str) -> str | None:
    """The layer that a dotted name (without `jattn`) is in: the longest that it begins with."""
    parts = name.split(".")
    found = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((one for one in found if one in RANK), None)


def test_imports_only_earlier_layers():
    for path in FILES:
        inside = dotted(path).removeprefix("jattn").lstrip(".")
        here = room(inside)
        if inside in ("", "__main__", "ops"):
            continue  # they gather the public names from everywhere
        assert here is not None, f"jattn/{name_of(path)} is in no layer: {list(RANK)}"
        for name in imports(path):
            first, _, rest = name.partition(".")
            if first != "jattn":
                continue
            there = room(rest)
            if there is None:
                # `from .. import masks` lists the bare package too; that alone is fine, a public name of it is not
                assert rest in ("", "ops"), (
                    f"{name_of(path)} imports `{name}` from jattn's top: import it from its own layer"
                )
                continue
            allowed = here == there or RANK[there] < RANK[here] or (here, there) in SIBLINGS
            assert allowed, f"{name_of(path)} (layer {here}) imports `{name}` from the later layer {there}"


def test_no_module_imports_itself_in_a_circle():
    """Not by an import inside a function either. The files of packages are left out: they only gather names."""
    files = {dotted(path): path for path in FILES if path.name != "__init__.py"}
    left = {name: {other for other in imports(path) if other in files} for name, path in files.items()}
    while ready := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in ready}
    assert not left, f"these import each other: {sorted(left)}"


def test_uses_public_jax_only():
    for path in FILES:
        private = [name for name in imports(path) if name.startswith(("jax._", "jaxlib"))]
        assert not private, f"{name_of(path)} imports {private}"
        reached = [
            f"jax.{node.attr}"
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr)
            if isinstance(node.value, ast.Name) and node.value.id == "jax"
        ]
        assert not reached, f"{name_of(path)} reaches into {reached}"


SAID_ONCE = {
    "the dtype of sums": (r"promote_types\([^\n]*float32", "foundation/numerics.py"),
    "log-sum-exp": (r"(?:nn|special)\.logsumexp\(", "foundation/numerics.py"),
    "the largest term, for a shift": (r"stop_gradient\(\w+\.max\([^\n]*initial=-jnp\.inf", "foundation/numerics.py"),
}
"""What has a helper, and the one file that may write it out."""


@pytest.mark.parametrize("rule", SAID_ONCE)
def test_numerics_are_said_once(rule):
    pattern, home = SAID_ONCE[rule]
    again = [name_of(path) for path in FILES if re.search(pattern, path.read_text(encoding="utf-8"))]
    assert set(again) <= {home}, f"{rule} is a function of {home}; it is written out in {again}"


def test_files_are_short_and_say_what_they_are():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LONGEST, f"{name_of(path)} is longer than {LONGEST} lines"
        if text.strip():
            assert ast.get_docstring(parsed(path)), f"{name_of(path)} has no docstring"


def test_files_of_tests_and_examples_are_short():
    clone = Path(__file__).parents[1]
    files = [path for folder in ("tests", "examples") for path in (clone / folder).rglob("*.py")]
    long = [str(path) for path in files if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST]
    assert files and not long


@pytest.mark.parametrize("path", PUBLIC, ids=name_of)
def test_all_is_complete_and_true(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = importlib.import_module(dotted(path))
    bound = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    public = {name for name in bound if not name.startswith("_")}
    if not public and not hasattr(package, "__all__"):
        return  # a package that re-exports nothing
    stated = list(package.__all__)
    assert len(stated) == len(set(stated)), "`__all__` repeats a name"
    assert public <= set(stated), f"`__all__` leaves out {sorted(public - set(stated))}"
    for name in stated:
        assert hasattr(package, name), f"`__all__` lists `{name}`, which {dotted(path)} does not have"
    if path.parent != ROOT:
        odd = [type(node).__name__ for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        assert not odd, f"{name_of(path)} defines something: a package's __init__ only re-exports"


def test_every_module_is_importable():
    """Nothing hides behind a missing import; a command line (`__main__`) is read, not run."""
    package = importlib.import_module("jattn")
    for module in pkgutil.walk_packages(package.__path__, "jattn."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_import_brings_little():
    """`import jattn` loads JAX, NumPy, chex and jaxtyping, and none of what only the modules, examples or tests use."""
    code = "import json, sys; import jax, chex; before = set(sys.modules); import jattn; \
print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules)]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    added, loaded = json.loads(done.stdout)
    heavy = {
        "flax",
        "optax",
        "orbax",
        "matplotlib",
        "tqdm",
        "torch",
        "pytest",
        "hypothesis",
        "tensorflow",
        "keras",
        "safetensors",
    }
    assert not heavy & {name.split(".")[0] for name in loaded}
    pallas = [name for name in added if name.startswith("jax.experimental.pallas")]
    assert not pallas, f"kernels are imported when an implementation is asked for, not before: {pallas}"
    others = {name.split(".")[0] for name in added} - {"jattn"} - set(sys.stdlib_module_names)
    assert others <= {
        "jax",
        "jaxlib",
        "numpy",
        "chex",
        "jaxtyping",
        "ml_dtypes",
        "opt_einsum",
        "scipy",
        "wadler_lindig",
    }, others


def test_contributing_lists_the_layers():
    """The page that says where code belongs says what this file says."""
    page = Path(__file__).parents[1] / ".github/CONTRIBUTING.md"
    if not page.exists():
        pytest.skip("not in a source distribution")
    found = re.search(r"<!-- layers -->\n```text\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    listed = tuple(tuple(re.split(r"  +", line)[0].split(", ")) for line in found[1].splitlines())
    assert listed == LAYERS
