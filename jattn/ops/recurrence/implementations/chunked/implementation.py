"""The chunked implementation as the recurrences see it."""

import dataclasses

import jax

from .....foundation.arrays import is_static
from ...call import Arrays, Call, RecurrenceImplementation, megabytes
from .bodies import chunk_of, chunked_delta, chunked_linear
from .chunks import group_of


@dataclasses.dataclass(frozen=True)
class Chunked(RecurrenceImplementation):
    """Attention within a chunk and a state between chunks, all by matrix products.

    The backward pass keeps a state for each group of chunks, and recomputes what is inside of a group.
    """

    name = "chunked"

    def refusal(self, call: Call) -> str | None:
        if not is_static(call.length):
            return "it cuts the length into chunks, and here it is a symbol (of `jax.export`)"
        return None

    def run(self, call: Call, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        query, key, value, beta, log_decay, bonus, starts, state = arrays
        options = {"zero_state": call.zero_state, "copies": call.copies}
        if call.rule == "linear":
            return chunked_linear(query, key, value, log_decay, bonus, starts, state, call.chunk, **options)
        options["refine"] = call.refine
        return chunked_delta(query, key, value, beta, log_decay, starts, state, call.chunk, **options)

    def describe(self, call: Call) -> tuple[str, str]:
        chunk = chunk_of(call.chunk, call.length, call.decay == "channel")
        chunks = -(-call.length // chunk)
        group = group_of(call.chains, chunks)
        inside = 4 * call.dtype.itemsize * call.chains * group * chunk * (chunk + call.k_dim + call.v_dim)
        kept = megabytes(-(-chunks // group) * call.state_bytes)
        return f"{chunks} chunk{'s' * (chunks != 1)} of {chunk} tokens, {group} at a time", (
            f"forward: about {megabytes(inside)}; backward: about twice that, and a state for each {group * chunk} "
            f"tokens, {kept}"
        )
