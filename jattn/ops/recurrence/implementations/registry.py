"""The implementations of the linear recurrence and of the delta rule, in the order in which the default tries them.

To add one: a `RecurrenceImplementation` in a module here, and a row below. What it is asked for, with as many heads of
queries, keys, values and states (see `jattn.ops.recurrence.groups`):

    run(call, arrays) -> (out [..., length, heads, v_dim], final state [..., heads, k_dim, v_dim])

An output or state that depends on NaN or inf is NaN; nothing else is (see `jattn.ops.recurrence.nonfinite`).
"""

from ...dispatch import Operation, Row

_HERE = __name__.rpartition(".")[0]

ROWS = (
    Row("chunked", f"{_HERE}.chunked", "Chunked"),
    Row("scan", f"{_HERE}.scan", "Scan"),
)

LINEAR = Operation("linear_recurrence", ROWS)
DELTA = Operation("delta_rule", ROWS)
