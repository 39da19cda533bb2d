"""Checks of a layer's options, made at construction so that mistakes surface before the first call."""

from typing import Any

from ..foundation.arguments import check_dtype, check_flags, check_rate
from ..foundation.arrays import describe
from ..ops.attention.implementations import ATTENTION
from .multi_head import check_parallel, check_rotary
from .norms import as_qk_norm
from .parameters import biased


def check_options(
    *,
    rotary: Any,
    dropout_rate: Any,
    implementation: Any,
    parallel: Any,
    dtypes: dict[str, Any],
    initializers: dict[str, Any],
    use_bias: Any = True,
    qk_norm: Any = None,
    **flags: Any,
) -> None:
    """Check the options of a layer of multi-head attention.

    Args:
        rotary: None, a flag or a function.
        dropout_rate: a probability.
        implementation: as in `jattn.attention`.
        parallel: None or `Heads`.
        dtypes: dtypes by argument name; None is skipped.
        initializers: initializers by argument name.
        use_bias: a flag, or names of projections.
        qk_norm: a flag, or a `QKNorm`.
        **flags: True or False.

    Raises:
        ValueError: names the argument, the value received and what was expected.

    >>> options = dict(rotary="yes", dropout_rate=0.1, implementation=None, parallel=None, dtypes={}, initializers={})
    >>> check_options(**options)
    Traceback (most recent call last):
    ...
    ValueError: `rotary` must be True, False or a function such as `jattn.positions.rotary`; got 'yes' (str).
    """
    check_flags(**flags)
    biased(use_bias)
    as_qk_norm(qk_norm)
    check_rotary(rotary)
    check_rate("dropout_rate", dropout_rate)
    if implementation is not None:
        ATTENTION.named(implementation)
    check_parallel(parallel)
    for name, dtype in dtypes.items():
        if dtype is not None:
            check_dtype(name, dtype)
    for name, initializer in initializers.items():
        if not callable(initializer) or isinstance(initializer, type):
            raise ValueError(
                f"`{name}` must be a function of a key, a shape and a dtype, such as "
                f"`jax.nn.initializers.lecun_normal()`; got {describe(initializer)}."
            )
