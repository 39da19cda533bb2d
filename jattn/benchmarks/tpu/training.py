"""A training step of a whole model on a TPU pod slice: compiled, not run.

The model is split by `jattn.models.shard` over 16 chips, batch and parameters over the same axis. Blocks run in a loop,
and each is computed again in the gradient. Parameters and the moments of AdamW are bfloat16. What is shown is the
memory of a chip as the compiler plans it.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ... import models
from ...foundation.target import compiled_for
from ...models.llama import LlamaConfig, LlamaForCausalLM
from ..cases import Bar
from ..row import Row
from .compiler import devices_of, missing

TOPOLOGY, CHIPS = "v5e:4x4", 16
LLAMA_7B = LlamaConfig(
    vocabulary=32000, features=4096, depth=32, heads=32, mlp_features=11008, max_length=4096, remat=True, scan=True
)
"""The sizes of Llama 2 7B."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What the compiler says of a training step.

    Attributes:
        arguments, temporaries: bytes of a chip: parameters, moments and tokens; everything else.
        kernels: the number of calls of jattn's Pallas kernels.
        seconds: how long tracing and compiling took.
    """

    arguments: int
    temporaries: int
    kernels: int
    seconds: float


def compiled_step(config: LlamaConfig, length: int, batch: int) -> Step:
    """Compile forward, backward and AdamW for `TOPOLOGY`.

    Args:
        config: the sizes of the model.
        length: tokens of a sequence.
        batch: sequences, a multiple of the chips.
    """
    mesh = Mesh(devices_of(TOPOLOGY).reshape(-1), ("data",), axis_types=(AxisType.Auto,))
    shapes = nnx.eval_shape(lambda: LlamaForCausalLM(config, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    model = models.shard(shapes, mesh, batch="data", parameters="data")
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    transform = optax.adamw(1e-4)
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    def on(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    moments = optax.tree_utils.tree_map_params(
        transform,
        lambda moment, parameter: on(moment, parameter.sharding),
        jax.eval_shape(transform.init, parameters),
        parameters,
        transform_non_params=lambda one: on(one, whole),
    )
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=rows)

    def step(parameters: Any, moments: Any, tokens: jax.Array) -> Any:
        def loss(parameters: Any) -> jax.Array:
            return models.next_token_loss(nnx.merge(graph, parameters, rest)(tokens), tokens)

        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, moments = transform.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), moments, value

    kept = jax.tree.map(lambda one: one.sharding, (parameters, moments))
    began = time.perf_counter()
    with compiled_for("tpu v5e"):
        lowered = jax.jit(step, donate_argnums=(0, 1), out_shardings=(*kept, None)).lower(parameters, moments, tokens)
    compiled = lowered.compile()
    memory, text = compiled.memory_analysis(), compiled.as_text() or ""
    assert memory is not None
    return Step(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        text.count('custom_call_target="tpu_custom_call"'),
        time.perf_counter() - began,
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """The memory of a chip in a training step.

    Attributes:
        name, what: of the row.
        config: the sizes of the model.
        length: tokens of a sequence; there is one for each chip.
    """

    name: str
    what: str
    config: LlamaConfig
    length: int

    def run(self) -> Row:
        """Compile, and return what the compiler says; nothing where libtpu is missing."""
        shape, bar = f"{CHIPS} x {self.length}", Bar(16, at_most=True)
        lacking = missing()
        if lacking:
            return Row(self.name, self.what, shape, lacking, "-", None, "-", "at most 16 GiB", None, {})
        step = compiled_step(self.config, self.length, CHIPS)
        held, used = (size / 2**30 for size in (step.arguments, step.temporaries))
        return Row(
            self.name,
            self.what,
            shape,
            f"{held:.1f} GiB of parameters and moments, {used:.1f} GiB of temporaries, {step.kernels} kernels",
            f"the {TOPOLOGY} compiler, {step.seconds:.0f} s; not run",
            held + used,
            f"{held + used:.1f} GiB a chip",
            "at most 16 GiB",
            bar.met(held + used),
            dataclasses.asdict(step),
        )


def training(length: int = 4096) -> tuple[Training, ...]:
    """The rows: one block, and the whole model.

    Args:
        length: tokens of a sequence.
    """
    depths = (1, LLAMA_7B.depth)
    return tuple(
        Training(
            f"llama-7b-{depth}",
            f"Llama 7B, {depth} of 32 blocks, forward + backward + AdamW, bfloat16",
            dataclasses.replace(LLAMA_7B, depth=depth, windows=None),
            length,
        )
        for depth in depths
    )
