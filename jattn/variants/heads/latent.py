"""Multi-head latent attention (MLA): keys and values are computed from one latent per token, the only thing cached."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_flags, check_positive
from ...foundation.arrays import describe, known_values
from ...foundation.shapes import check_shapes
from ...layers.caches import Cache, Spec
from ...layers.decoding import check_cache, spec_of
from ...layers.layer import OWN_AXES, Layer, bias, kernel, ones, project
from ...layers.multi_head import rotated
from ...layers.norms import rms_norm
from ...layers.options import check_options
from ...masks import Causal
from ...masks.base import restricted
from ...ops.attention.api import attention
from ...ops.attention.call import check_pieces, check_positions, renamed
from ...positions import rotary
from ...similarities import Dot

interleaved_rotary: Callable[..., jax.Array] = functools.partial(rotary, pairs="interleaved")
"""As in DeepSeek's checkpoints, which pair feature 2i with 2i + 1."""

CAUSAL = Causal()


@dataclasses.dataclass(frozen=True)
class LatentAttention(Layer):
    """Multi-head latent attention (MLA): keys and values come from one latent per token, the only thing cached.

        c_t = norm(x_t W_c),    r_t = R_t x_t W_r                        one latent and one rotated key for all heads
        q_th = [q'_th ; R_t q''_th],    k_sh = [c_s U_h ; r_s],    v_sh = c_s V_h,    with q = norm(x W_d) W_q or x W_q
        out_t = Σ_h (Σ_s softmax_s(scale q_th·k_sh) v_sh) O_h

    DeepSeek-AI 2024 (arXiv:2405.04434), the attention of DeepSeek-V2, V3 and R1. U_h and V_h map the latent c to the
    keys and values of head h. A cache keeps only c and r, `kv_rank + rope_dim` numbers per token for any number of
    heads, and decoding never computes keys and values from them: by

        (c_s U_h)·q' = c_s·(U_h q'),    Σ_s w_s (c_s V_h) = (Σ_s w_s c_s) V_h

    U_h is absorbed into the query and V_h into the output, and all query heads share one key head, the latents
    themselves. Both forms are equal up to rounding. The call uses the first form; `prefill` and `step` use the
    second, except for a first chunk passed with `first=True`.

    A checkpoint of `transformers` (`DeepseekV2Attention`, `DeepseekV3Attention`) has these weights `[out, in]`:

    | parameter | weight there |
    |---|---|
    | `query_down.kernel [features, q_rank]`, `query_norm.scale` | `q_a_proj.T`, `q_a_layernorm` |
    | `query.kernel [q_rank or features, heads, head_dim + rope_dim]` | `q_b_proj.T` or `q_proj.T`, reshaped |
    | `latent.kernel [features, kv_rank + rope_dim]`, `latent_norm.scale` | `kv_a_proj_with_mqa.T`, `kv_a_layernorm` |
    | `key.kernel [kv_rank, heads, head_dim]` | `kv_b_proj.T` as `[kv_rank, heads, head_dim + v_dim]`, its first part |
    | `value.kernel [kv_rank, heads, v_dim]` | the last part of it |
    | `out.kernel [heads, v_dim, features]` | `o_proj.T`, reshaped |

    with `head_dim` for `qk_nope_head_dim`, `rope_dim` for `qk_rope_head_dim`, `v_dim` for `v_head_dim`, `kv_rank` and
    `q_rank` for `kv_lora_rank` and `q_lora_rank`. If its rotation is scaled by YaRN, pass `rotary` as
    `functools.partial(rotary, pairs="interleaved", scaling=YaRN(factor, original_length, ramp="index", ...))`, and
    `scale` is multiplied by `(0.1 * mscale_all_dim * log(factor) + 1) ** 2`.

    Args:
        features: features of inputs and outputs.
        heads: number of query heads.
        kv_rank: features of the latent.
        head_dim: features of a head's queries and keys that are not rotated.
        rope_dim: features that are rotated, an even number.
        v_dim: features of a head's values, by default `head_dim`.
        q_rank: features of the latent that queries are computed from; None computes them from the inputs.
        use_bias: whether `query_down`, `latent` and `out` add a bias.
        scale: scale of the scores, by default `1 / √(head_dim + rope_dim)`.
        epsilon: ε of the norms.
        rotary: the rotation, a function of `x [..., length, heads, dim]` and positions. By default base 10,000 with
            interleaved pairs.
        mask, scores, normalizer, implementation: as in `jattn.attention`. By default causal.
        cache: the cache that `initial_state` makes unless it is told otherwise, such as `caches.Contiguous(1024)`.

    Raises:
        ValueError: a size is below 1; `rope_dim` is odd; a piece is of the wrong kind; at the call, shapes do not
            match, and as in `jattn.attention` and the cache.

    >>> import jax
    >>> from jattn.variants.heads import LatentAttention
    >>> layer = LatentAttention(32, 4, kv_rank=12, head_dim=8, rope_dim=4)
    >>> parameters = layer.init(jax.random.key(0))
    >>> x = jax.random.normal(jax.random.key(1), (2, 10, 32))
    >>> state = layer.initial_state(parameters, (2,), length=64)
    >>> start, state = jax.jit(layer.prefill)(parameters, x[:, :9], state)
    >>> last, state = jax.jit(layer.step)(parameters, x[:, 9], state)
    >>> bool(jax.numpy.allclose(last, jax.jit(layer)(parameters, x)[:, 9], atol=1e-5))
    True
    >>> state.keys.shape, state.values.shape
    ((2, 64, 1, 16), (2, 64, 1, 0))
    """

    own_axes = OWN_AXES

    features: int
    heads: int
    _: dataclasses.KW_ONLY
    kv_rank: int
    head_dim: int
    rope_dim: int
    v_dim: int | None = None
    q_rank: int | None = None
    use_bias: bool = False
    scale: float | None = None
    epsilon: float = 1e-6
    rotary: Callable[..., jax.Array] = interleaved_rotary
    mask: Any = CAUSAL
    scores: Any = ()
    normalizer: Any = None
    implementation: Any = None
    cache: Spec | None = None

    def __post_init__(self):
        sizes = ("features", "heads", "kv_rank", "head_dim", "rope_dim")
        check_positive(**{name: getattr(self, name) for name in sizes})
        optional = {"v_dim": self.v_dim, "q_rank": self.q_rank}
        check_positive(**{name: size for name, size in optional.items() if size is not None})
        if self.rope_dim % 2:
            raise ValueError(f"`rope_dim` must be even, as features are rotated in pairs; got {self.rope_dim}.")
        check_flags(use_bias=self.use_bias)
        for name, number in (("scale", self.scale), ("epsilon", self.epsilon)):
            if (number is not None or name == "epsilon") and (
                isinstance(number, bool) or not isinstance(number, int | float)
            ):
                raise ValueError(f"`{name}` must be a number; got {describe(number)}.")
        check_options(
            rotary=self.rotary,
            dropout_rate=0.0,
            implementation=self.implementation,
            parallel=None,
            dtypes={},
            initializers={},
        )
        if not callable(self.rotary):
            raise ValueError(f"`rotary` must be a function, such as `jattn.positions.rotary`; got {self.rotary!r}.")
        check_cache(self.cache)
        mask, _, scores, normalizer, _ = check_pieces(self.mask, None, self.scores, self.normalizer, None)
        fields = {"v_dim": self.v_dim or self.head_dim, "mask": mask, "scores": scores, "normalizer": normalizer}
        fields["scale"] = (self.head_dim + self.rope_dim) ** -0.5 if self.scale is None else self.scale
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def parameters(self) -> dict[str, Any]:
        """`query`, `latent`, `latent_norm`, `key`, `value` and `out`; with `q_rank`, `query_down` and `query_norm`."""
        v_dim, width = int(self.v_dim or 0), self.kv_rank + self.rope_dim
        biases = self.use_bias
        tree: dict[str, Any] = {}
        if self.q_rank is not None:
            tree["query_down"] = _projection(self.features, self.q_rank, use_bias=biases)
            tree["query_norm"] = {"scale": bias(self.q_rank, init=ones)}
        return {
            **tree,
            "query": {"kernel": kernel(self.q_rank or self.features, self.heads, self.head_dim + self.rope_dim)},
            "latent": _projection(self.features, width, use_bias=biases),
            "latent_norm": {"scale": bias(self.kv_rank, init=ones)},
            "key": {"kernel": kernel(self.kv_rank, self.heads, self.head_dim)},
            "value": {"kernel": kernel(self.kv_rank, self.heads, v_dim)},
            "out": {
                "kernel": kernel(self.heads, v_dim, self.features, inputs=2),
                **({"bias": bias(self.features)} if biases else {}),
            },
        }

    def __call__(
        self, parameters: Mapping[str, Any], inputs: jax.Array, *, mask: Any = None, positions: Any = None
    ) -> jax.Array:
        """The whole sequence at once: `[..., length, features]`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            mask: restricts the layer's own, as `&` does.
            positions: integers `[length]` or `[..., length]`, by default 0, 1, ...
        """
        length = check_shapes({"features": self.features}, inputs=(inputs, "... length features"))["length"]
        if positions is not None:
            check_positions("positions", positions, inputs.shape[:-2], length, "inputs")
        at = jnp.arange(length) if positions is None else positions
        query, latent, turned = self._query(parameters, inputs, at), *self._latent(parameters, inputs, at)
        return self._whole(parameters, query, latent, turned, mask, positions)

    def initial_state(
        self,
        parameters: Mapping[str, Any],
        batch: tuple[int, ...] = (),
        *,
        length: int | None = None,
        cache: Spec | None = None,
        dtype: Any = None,
    ) -> Cache:
        """An empty cache of latents.

        Args:
            parameters: the layer's parameters, for their dtype.
            batch: the batch axes of the inputs to come.
            length: the capacity in tokens per example; short for `cache=caches.Contiguous(length)`.
            cache: another kind of cache instead of `length`, such as `caches.Rolling(window)`; by default the layer's.
            dtype: dtype of the cached latents, by default that of the parameters.

        Raises:
            ValueError: both `length` and `cache` are given, or neither and the layer has no default; sizes or dtypes do
                not match.
        """
        dtype = jnp.result_type(*jax.tree.leaves(parameters) or [jnp.float32]) if dtype is None else dtype
        return spec_of(length, cache, self.cache).create(batch, 1, self.kv_rank + self.rope_dim, 0, dtype)

    def prefill(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        state: Any = None,
        *,
        mask: Any = None,
        valid: Any = None,
        first: bool = False,
    ) -> tuple[jax.Array, Cache]:
        """The next tokens of each example, all at once: their outputs, and the state after them.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., new, features]`.
            state: returned by `initial_state`, `prefill` or `step`.
            mask: combined with the layer's own mask by `&`. It sees positions in the whole sequence.
            valid: booleans `[..., new]` or `[new]`, which of the inputs are tokens: see `caches.Cache.append`.
            first: whether the state is empty, so that these tokens only attend to one another. Then the keys and values
                of all heads are computed, which is faster for a long prompt: each pair takes
                `head_dim + rope_dim + v_dim` multiplications instead of `2 kv_rank + rope_dim`.

        Returns:
            `[..., new, features]`, and the state. If the tokens of an example exceed the capacity of its cache, its
            outputs are NaN.

        Raises:
            ValueError: the state does not match these inputs; there are more tokens than the cache has room for, where
                lengths are known (outside `jax.jit`); `first` is given with padding, or with a state known to hold
                tokens.
        """
        new = check_shapes({"features": self.features}, inputs=(inputs, "... new features"))["new"]
        self._check_state(state, inputs.shape[:-2], valid, first)
        at = state.positions(new, valid)
        query, latent, turned = self._query(parameters, inputs, at), *self._latent(parameters, inputs, at)
        row = jnp.concatenate([latent, turned], -1)
        with renamed(key="inputs", value="inputs"):
            view, after = state.append(row, row[..., :0], valid=valid)
        if first:
            mask = restricted(mask, view.mask)
            return view.checked(self._whole(parameters, query, latent, turned, mask, np.arange(new))), after
        absorbed = project(parameters["key"], query[..., : self.head_dim], "...lhd,chd->...lhc")
        query = jnp.concatenate([absorbed, query[..., self.head_dim :]], -1)
        found = view.with_keys_as_values().attend(query, **self._pieces(mask))
        mixed = found[..., : self.kv_rank].astype(inputs.dtype)  # the rest is a sum of rotated keys
        return self._out(parameters, project(parameters["value"], mixed, "...lhc,chv->...lhv")), after

    def step(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: Any, *, mask: Any = None, valid: Any = None
    ) -> tuple[jax.Array, Cache]:
        """The next token of each example, `[..., features]`: its output, and the state after it.

        Arguments and errors as in `prefill`; `valid [...]` says which examples advance.
        """
        check_shapes({"features": self.features}, inputs=(inputs, "... features"))
        valid = valid if valid is None else jnp.asarray(valid)[..., None]
        out, state = self.prefill(parameters, inputs[..., None, :], state, mask=mask, valid=valid)
        return out[..., 0, :], state

    def _query(self, parameters: Mapping[str, Any], inputs: jax.Array, at: Any) -> jax.Array:
        """`[..., length, heads, head_dim + rope_dim]`, its last features rotated."""
        if self.q_rank is not None:
            down = project(parameters["query_down"], inputs, "...lf,fr->...lr")
            inputs = rms_norm(down, parameters["query_norm"]["scale"], self.epsilon)
        query = project(parameters["query"], inputs, "...lf,fhd->...lhd")
        return jnp.concatenate([query[..., : self.head_dim], rotated(self.rotary, query[..., self.head_dim :], at)], -1)

    def _latent(self, parameters: Mapping[str, Any], inputs: jax.Array, at: Any) -> tuple[jax.Array, jax.Array]:
        """The latents `[..., length, 1, kv_rank]`, and the rotated keys `[..., length, 1, rope_dim]`."""
        both = project(parameters["latent"], inputs, "...lf,fc->...lc")[..., None, :]
        latent = rms_norm(both[..., : self.kv_rank], parameters["latent_norm"]["scale"], self.epsilon)
        return latent, rotated(self.rotary, both[..., self.kv_rank :], at)

    def _whole(
        self,
        parameters: Mapping[str, Any],
        query: jax.Array,
        latent: jax.Array,
        turned: jax.Array,
        mask: Any,
        positions: Any,
    ) -> jax.Array:
        """Keys and values of every head, and attention over them."""
        key, value = (project(parameters[name], latent[..., 0, :], "...lc,chd->...lhd") for name in ("key", "value"))
        key = jnp.concatenate([key, jnp.broadcast_to(turned, (*key.shape[:-1], self.rope_dim))], -1)
        return self._out(parameters, attention(query, key, value, **self._pieces(mask), key_positions=positions))

    def _out(self, parameters: Mapping[str, Any], attended: jax.Array) -> jax.Array:
        return project(parameters["out"], attended, "...lhv,hvf->...lf")

    def _pieces(self, mask: Any) -> dict[str, Any]:
        names = ("scores", "normalizer", "implementation")
        pieces = {name: getattr(self, name) for name in names}
        return {"similarity": Dot(float(self.scale or 0)), "mask": restricted(self.mask, mask), **pieces}

    def _check_state(self, state: Any, batch: tuple[int, ...], valid: Any, first: bool) -> None:
        width = self.kv_rank + self.rope_dim
        if not isinstance(state, Cache) or state.keys.shape[-2:] != (1, width) or state.values.shape[-1]:
            got = f"keys {state.keys.shape}" if isinstance(state, Cache) else describe(state)
            raise ValueError(
                "`state` must be what `initial_state(batch, length=...)`, `prefill` or `step` of the layer gave, a "
                f"cache of keys [..., 1, {width}] without values; got {got}."
            )
        if state.lengths.shape != batch:
            raise ValueError(f"`inputs` must have the batch axes {state.lengths.shape} of the state; got {batch}.")
        check_flags(first=first)
        lengths = known_values(state.lengths)
        if first and (valid is not None or (lengths is not None and lengths.any())):
            raise ValueError(
                "`first` is for a state without tokens, and inputs without padding (`valid`): leave it False."
            )


def _projection(*shape: int, use_bias: bool) -> dict[str, Any]:
    return {"kernel": kernel(*shape), **({"bias": bias(*shape[1:])} if use_bias else {})}
