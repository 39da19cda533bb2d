"""Functions of a score and two positions, with every primitive that a tile can be evaluated with in a TPU's kernel."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def away(q, k):
    return 0.3 * q - 0.1 * k + 0.05


@jax.custom_jvp
def own(x):
    return x * 1.0


own.defjvp(lambda primals, tangents: (own(*primals), tangents[0] * jax.lax.lgamma(abs(primals[0]) + 1)))

FUNCTIONS = {
    "exp": lambda s, q, k: jnp.exp(s - abs(q - k)) + jnp.exp2(s),
    "of numbers' bits": lambda s, q, k: s + (lax.bitcast_convert_type(s, jnp.int32) >> 24) + ~(q ^ k),
    "is finite": lambda s, q, k: jnp.where(jnp.isfinite(s), s, 0.0),
    "powers": lambda s, q, k: s**3 + jnp.square(s) + (abs(s) + 1) ** -2 + (abs(s) + 1) ** 0.3,
    "logs": lambda s, q, k: jnp.log(abs(s) + 1) + jnp.log1p(s * s) + jnp.log2(abs(s) + 2),
    "roots": lambda s, q, k: jnp.sqrt(abs(s) + 1) + lax.rsqrt(abs(s) + 1),
    "of circles": lambda s, q, k: jnp.sin(s) + jnp.cos(s) + jnp.tan(s / 4) + jnp.arctan(s) + jnp.arctan2(s, away(q, k)),
    "expm1": lambda s, q, k: jnp.expm1(s) + jnp.expm1(1e-4 * s) * 1e4,
    "erf": lambda s, q, k: lax.erf(s) + lax.erf_inv(jnp.tanh(s / 4)),
    "sign": lambda s, q, k: jnp.sign(s) * s + jnp.sign(q - k),
    "rounding": lambda s, q, k: s + jnp.floor(s) + jnp.ceil(s) + jnp.round(s) + jnp.trunc(s),
    "remainders": lambda s, q, k: s % 0.7 + s // 0.3 + jnp.fmod(s, 0.4) + (q - k) % 3 + (q - k) // 2,
    "clip": lambda s, q, k: jnp.clip(s, -0.5, away(q, k)) + jnp.maximum(s, away(q, k)),
    "bits": lambda s, q, k: s + ((q ^ k) << 2) + ((q - k) >> 1) + lax.population_count(q & k) + lax.clz(q | k),
    "unsigned": lambda s, q, k: s + ((q * 7 + k).astype(jnp.uint32) * np.uint32(0x9E3779B9) >> 20).astype(jnp.float32),
    "half precision": lambda s, q, k: (s.astype(jnp.bfloat16) * jnp.bfloat16(0.5)).astype(jnp.float32),
    "activations": lambda s, q, k: jax.nn.silu(s) + jax.nn.gelu(s) + jax.nn.elu(s) + jax.nn.leaky_relu(s),
    "own derivatives": lambda s, q, k: jax.nn.relu(s) + jax.nn.softplus(s) + jnp.logaddexp(s, away(q, k)),
    "stopped": lambda s, q, k: s * lax.stop_gradient(s) + lax.stop_gradient(jnp.exp(s)),
    "branches": lambda s, q, k: (
        lax.cond(q > k, lambda s: 2 * s, lambda s: s * s, s)
        + lax.switch((q + k) % 4 - 1, [lambda s: s, lambda s: s**2, lambda s: 3 * s], s)
    ),
    "a loop": lambda s, q, k: lax.fori_loop(0, 3, lambda i, x: x * 0.5 + i * q, s),
    "booleans": lambda s, q, k: (
        jnp.where(jnp.where(q > 2, k > q, k < q) ^ (k == 3), s, 0.0)
        + jnp.where(jnp.minimum(q > k, k > 3) <= ((q > 1) == (k > 1)), s, 1.0) * (q >= k)
        + jnp.where((q > 1) < (k > 1), s, 0.0)
    ),
    "three cases": lambda s, q, k: lax.select_n((q + k) % 3, s, 2 * s, s * s),
    "own axes": lambda s, q, k: (
        jnp.stack([s, away(q, k), s * s]).sum() + jnp.stack([s, away(q, k)]).max() + jnp.flip(jnp.stack([s, 2 * s]))[0]
    ),
    "a table of two sides": lambda s, q, k: s + jnp.arange(9.0)[(q * k) % 9] + jnp.asarray([1, 5])[(q + k) % 2],
    "past the end of a table": lambda s, q, k: s + jnp.take(jnp.arange(4.0), q - k, mode="clip"),
    "a table of both": lambda s, q, k: s + jnp.arange(12.0).reshape(3, 4)[q % 3, k % 4] * s,
    "flags of both": lambda s, q, k: jnp.where((jnp.arange(40 * 3) % 7 < 3).reshape(40, 3)[q, k % 3], s, 2 * s),
    "ldexp": lambda s, q, k: jnp.ldexp(s, (q + k) % 3),
}
