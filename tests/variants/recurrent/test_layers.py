"""Each layer equals its equations in float64 NumPy, token by token, and has a gradient for every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrences
from differences import normal
from flax import nnx
from generative_layers import FEATURES, FEW, LAYERS, random_parameters
from tiers import rows
from variant_layers import check_layer

import jattn.linen
import jattn.nnx
from jattn.variants.recurrent import GLA, RWKV, DeltaNet, GatedDeltaNet, KimiDelta, Mamba2, RetNet, ssd, ssd_step
from jattn.variants.recurrent.layer import Recurrent

RECURRENT = {name: layer for name, layer in LAYERS.items() if isinstance(layer, Recurrent)}
OPTIONS: dict[str, Recurrent] = {
    "Mamba-2, a norm of each group": Mamba2(FEATURES, 4, 4, 3, groups=2, group_size=6, norm_eps=0.1),
    "Mamba-2, a norm of all": Mamba2(FEATURES, 4, 4, 3, group_size=12),
    "RWKV-6, a layer norm": RWKV(FEATURES, 2, 4, 3, gate_rank=5, shift_rank=4, group_norm=True, norm_eps=0.1),
    "RetNet, epsilon": RetNet(FEATURES, 2, 4, 3, norm_eps=0.1),
    "DeltaNet, negative eigenvalues": DeltaNet(FEATURES, 2, 4, 3, allow_neg_eigval=True, norm_eps=0.1),
    "Gated DeltaNet, not grouped": GatedDeltaNet(FEATURES, 2, 4, 3, norm_eps=0.1),
}
"""What published checkpoints ask for; the equations are enough."""
ALWAYS = {
    "GLA, grouped, convolved",
    "RWKV-6",
    "RetNet, grouped",
    "Gated DeltaNet",
    "DeltaNet",
    "Mamba-2",
    "Kimi Delta",
    "Mamba-2, a norm of each group",
    "RetNet, epsilon",
    "DeltaNet, negative eigenvalues",
}
"""Each layer once, and what is cheap of its options."""


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def swish(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(x))


def rms(x, epsilon=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)


def convolved(arrays, p):
    """The causal convolution of each channel of `[length, heads, dim]`, channels one after the other; swish."""
    flat = np.concatenate([array.reshape(len(array), -1) for array in arrays], 1)
    out = np.zeros(flat.shape)
    for t in range(len(flat)):
        for s in range(min(t + 1, len(p["kernel"]))):
            out[t] += p["kernel"][s] * flat[t - s]
    out = swish(out + p.get("bias", 0))
    ends = np.cumsum([array[0].size for array in arrays])[:-1]
    return [part.reshape(array.shape) for part, array in zip(np.split(out, ends, 1), arrays, strict=True)]


def turned(x):
    """Features 2i and 2i + 1 as one complex number, times e^{itθ}."""
    angles = 10000.0 ** -np.linspace(0, 1, x.shape[-1] // 2)
    made = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * np.arange(len(x))[:, None, None] * angles)
    return np.stack([made.real, made.imag], -1).reshape(x.shape)


def mixed(p, x):
    """RWKV-6's inputs, by name."""
    before = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
    rough = x + (before - x) * p["shared"]
    out = {}
    for name in ("query", "key", "value", "swish", "decay"):
        share = p[name]["bias"] + np.tanh(rough @ p[name]["down"]) @ p[name]["up"]
        out[name] = x + (before - x) * share
    return out


def truth(layer, p, x):
    """`[length, features]`, float64."""
    kind, heads, width = type(layer).__name__, layer.heads, layer.k_dim
    source = mixed(p["shift"], x) if kind == "RWKV" else {}

    def project(name):
        return np.einsum("tf,fhd->thd", source.get(name, x), p[name]["kernel"])

    def shared(array, heads=heads):
        """Of each head: heads of a group are neighbors."""
        return np.stack([array[:, h * array.shape[1] // heads] for h in range(heads)], 1)

    def low_rank(name):
        return np.einsum("tr,rhd->thd", x @ p[name]["down"], p[name]["up"]) + p[name]["bias"]

    def channels(gates):
        return np.broadcast_to(gates[..., None], (len(x), heads, width))

    scale = p["norm"]["scale"]
    if kind == "Mamba2":
        value, entry, readout = convolved([project(name) for name in ("value", "entry", "readout")], p["convolution"])
        delta = softplus(x @ p["step_size"]["kernel"] + p["step_size"]["bias"])
        decay = channels(-delta * np.exp(p["rate"]["log"]))
        out, _ = recurrences.linear(shared(readout), shared(entry), delta[..., None] * value, decay)
        out = (out + p["skip"]["scale"][:, None] * value) * swish(project("swish"))
        out = rms(out.reshape(len(x), -1, layer.group_size), layer.norm_eps).reshape(out.shape) * scale
        return np.einsum("thd,hdf->tf", out, p["out"]["kernel"])

    arrays = [project(name) for name in ("query", "key", "value")]
    if "convolution" in p:
        arrays = convolved(arrays, p["convolution"])
    query, key, value = arrays
    if kind == "RetNet":
        query, key = turned(query) / np.sqrt(width), turned(key)
        rates = np.log(1 - 2.0 ** (-5 - np.arange(key.shape[1])))
        decay = channels(shared(np.broadcast_to(rates, key.shape[:2])))
        out, _ = recurrences.linear(query, shared(key), shared(value), decay)
    elif kind == "GLA":
        decay = np.log(sigmoid(low_rank("gate")) ** (1 / 16))
        out, _ = recurrences.linear(query / np.sqrt(width), shared(key), shared(value), shared(decay))
    elif kind == "RWKV":
        decay = p["decay"]
        rates = np.einsum("tr,rhd->thd", np.tanh(source["decay"] @ decay["down"]), decay["up"]) + decay["bias"]
        out, _ = recurrences.linear(query, key, value, -np.exp(rates), p["bonus"]["scale"])
    else:
        decay = None
        if kind == "GatedDeltaNet":
            decay = -np.exp(p["decay"]["log"]) * softplus(x @ p["decay"]["kernel"] + p["decay"]["bias"])
        elif kind == "KimiDelta":
            decay = -np.exp(p["decay"]["log"])[:, None] * softplus(low_rank("decay"))
        beta = sigmoid(x @ p["beta"]["kernel"]) * (2 if layer.allow_neg_eigval else 1)
        query, key = shared(unit(query) * layer.scale, layer.num_v_heads), shared(unit(key), layer.num_v_heads)
        out, _ = recurrences.delta(query, key, value, beta, decay)
    gate = {"KimiDelta": lambda: sigmoid(low_rank("gate")), "DeltaNet": lambda: 1}.get(
        kind, lambda: swish(project("swish"))
    )()
    if kind == "RWKV" and layer.group_norm:
        out = rms(out - out.mean(-1, keepdims=True), layer.norm_eps) * scale + p["norm"]["bias"]
    else:
        out = rms(out, layer.norm_eps) * scale
    return np.einsum("thd,hdf->tf", out * gate, p["out"]["kernel"])


@pytest.mark.parametrize("name", rows(RECURRENT | OPTIONS, ALWAYS))
def test_is_its_equations_and_a_module(name):
    layer, (x,) = (RECURRENT | OPTIONS)[name], normal(0, (2, 8, FEATURES))
    parameters = random_parameters(layer)
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    if name in RECURRENT:
        out = check_layer(layer, jnp.asarray(x), parameters=parameters)
    else:
        out = jax.jit(layer.__call__)(parameters, x)
    for i in range(2):
        assert recurrences.relative_error(out[i], truth(layer, double, x[i].astype(np.float64))) < 1e-5


@pytest.mark.parametrize("name", rows(RECURRENT, FEW.intersection(RECURRENT)))
def test_steps_of_modules_agree(name):
    layer, (x,) = RECURRENT[name], normal(2, (2, FEATURES))
    module, linen = jattn.nnx.Layer(layer, rngs=nnx.Rngs(0)), jattn.linen.Layer(layer)
    definition, weights = nnx.split(module)

    @jax.jit
    def both(weights, variables, x):
        module = nnx.merge(definition, weights)
        first = linen.apply(variables, (2,), method="initial_state")
        return module.step(x, module.initial_state((2,))), linen.apply(variables, x, first, method="step")

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *both(weights, {"params": module.arrays()}, x)
    )


def test_retention_depends_on_distances_alone():
    """Far along, too: the state carries the position that queries and keys are turned by."""
    layer = RECURRENT["RetNet"]
    parameters, (x,) = random_parameters(layer), normal(6, (5, FEATURES))
    begin = layer.initial_state(parameters)
    run = jax.jit(layer.prefill)
    want, _ = run(parameters, x, begin)
    got, last = run(parameters, x, begin._replace(position=jnp.int32(1000)))
    np.testing.assert_allclose(got, want, atol=2e-4)
    assert last.position == 1005


def test_a_group_reads_one_state():
    """Grouped heads equal a layer whose keys, values and gates are repeated; the state is that much smaller."""
    layer = GLA(FEATURES, 4, 4, 3, kv_heads=2)
    parameters, (x,) = random_parameters(layer), normal(7, (9, FEATURES))
    whole = jax.tree.map(lambda leaf: leaf, parameters)
    for name in ("key", "value"):
        whole[name] = {"kernel": jnp.repeat(parameters[name]["kernel"], 2, 1)}
    for name, axis in (("up", 1), ("bias", 0)):
        whole["gate"][name] = jnp.repeat(parameters["gate"][name], 2, axis)
    out, state = jax.jit(layer.prefill)(parameters, x)
    want, apart = jax.jit(GLA(FEATURES, 4, 4, 3).prefill)(whole, x)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(state.memory, apart.memory[::2], atol=1e-5)
    assert state.memory.shape == (2, 4, 3)


def test_groups_of_the_state_space_model_are_repeated_heads():
    x, entry, readout = normal(8, (11, 4, 3), (11, 2, 4), (11, 2, 4))
    sizes, rate = np.random.default_rng(9).uniform(0, 2, (11, 4)).astype(np.float32), np.ones(4, np.float32)
    got, state = ssd(x, sizes, rate, entry, readout)
    want, other = ssd(x, sizes, rate, np.repeat(entry, 2, 1), np.repeat(readout, 2, 1))
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(state, other, atol=1e-6)
    with pytest.raises(ValueError, match="`heads` must be a multiple of `groups`; got heads 4 and groups 3"):
        ssd(x, sizes, rate, jnp.ones((11, 3, 4)), jnp.ones((11, 3, 4)))


def test_ssd_is_the_state_space_model():
    x, entry, readout, skip = normal(4, (11, 2, 3), (11, 2, 4), (11, 2, 4), (2,))
    rng = np.random.default_rng(5)
    sizes, rate = rng.uniform(0, 2, (11, 2)).astype(np.float32), rng.uniform(0.1, 3, 2).astype(np.float32)
    hidden, want = np.zeros((2, 4, 3)), np.zeros((11, 2, 3))
    for t in range(11):
        for h in range(2):
            kept = np.exp(-float(sizes[t, h]) * float(rate[h])) * hidden[h]
            hidden[h] = kept + sizes[t, h] * np.outer(entry[t, h], x[t, h])
            want[t, h] = readout[t, h] @ hidden[h] + skip[h] * x[t, h]
    out, state = ssd(x, sizes, rate, entry, readout, skip, chunk=4)
    assert recurrences.relative_error(out, want) < 1e-5
    assert recurrences.relative_error(state, hidden) < 1e-5
    one, _ = ssd_step(x[0], sizes[0], rate, entry[0], readout[0], skip, jnp.zeros((2, 4, 3)))
    np.testing.assert_allclose(one, want[0], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RetNet(8, 0, 4, 4), "`heads` must be a positive int"),
        (lambda: RetNet(8, 2, 3, 4), "`k_dim` must be even, as features are rotated in pairs; got 3"),
        (
            lambda: RetNet(8, 4, 4, 4, kv_heads=3),
            "`heads` must be a multiple of `kv_heads`; got heads 4 and kv_heads 3",
        ),
        (lambda: GLA(8, 2, 4, 4, kv_heads=4), "`heads` must be a multiple of `kv_heads`; got heads 2 and kv_heads 4"),
        (lambda: GLA(8, 2, 4, 4, temperature=0.0), "`temperature` must be above 0"),
        (lambda: GLA(8, 2, 4, 4, taps=0), "`taps` must be a positive int; got 0"),
        (lambda: DeltaNet(8, 2, 4, 4, taps=-1), "`taps` must be a positive int; got -1"),
        (lambda: Mamba2(8, 4, 4, 4, groups=3), "`heads` must be a multiple of `groups`; got heads 4 and groups 3"),
        (lambda: Mamba2(8, 4, 4, 4, taps=2.5), "`taps` must be a positive int; got 2.5"),
        (
            lambda: Mamba2(8, 4, 4, 4, group_size=5),
            "`group_size` must divide the 4 heads x 4 = 16 channels; got 5",
        ),
        (lambda: RetNet(8, 2, 4, 4, norm_eps=0.0), "`norm_eps` must be a finite number above 0; got 0.0"),
        (lambda: RWKV(8, 2, 4, 4, group_norm=1), "`group_norm` must be True or False; got 1"),
        (
            lambda: GatedDeltaNet(8, 2, 4, 4, num_v_heads=3),
            "`num_v_heads` must be a multiple of `heads`; got num_v_heads 3 and heads 2",
        ),
        (lambda: DeltaNet(8, 2, 4, 4, scale=-1.0), "`scale` must be a finite number above 0; got -1.0"),
        (lambda: KimiDelta(8, 2, 4, 4, gate_rank=0), "`gate_rank` must be a positive int; got 0"),
    ],
)
def test_wrong_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_inputs_are_named():
    layer = DeltaNet(FEATURES, 2, 4, 3)
    parameters = layer.init(jax.random.key(0))
    with pytest.raises(ValueError, match="`segment_ids` must not decrease"):
        layer(parameters, jnp.ones((3, FEATURES)), segment_ids=np.array([1, 1, 0]))
    with pytest.raises(ValueError, match="`segment_ids` must be integers of shape"):
        layer(parameters, jnp.ones((3, FEATURES)), segment_ids=np.zeros(4, int))
    with pytest.raises(ValueError, match="`rate` must have shape"):
        ssd(jnp.ones((5, 2, 3)), jnp.ones((5, 2)), jnp.ones(3), jnp.ones((5, 2, 4)), jnp.ones((5, 2, 4)))


@pytest.mark.parametrize(
    "layer", [Mamba2(4, 2000, 2, 1), GatedDeltaNet(4, 2000, 2, 1)], ids=["Mamba-2", "Gated DeltaNet"]
)
def test_decays_start_as_in_the_authors_code(layer):
    """Where all start at a half, a row is forgotten before it is known what to keep."""
    parameters = layer.init(jax.random.key(0))
    if isinstance(layer, Mamba2):
        bias, log = parameters["step_size"]["bias"], parameters["rate"]["log"]
    else:
        bias, log = parameters["decay"]["bias"], parameters["decay"]["log"]
    sizes, rates = softplus(np.asarray(bias, np.float64)), np.exp(np.asarray(log, np.float64))
    for drawn, least, most in ((np.log(sizes), np.log(0.001), np.log(0.1)), (rates, 1, 16)):
        assert least - 1e-3 <= drawn.min() and drawn.max() <= most + 1e-3
        assert abs(drawn.mean() - (least + most) / 2) < 4 * (most - least) / np.sqrt(12 * 2000)


def test_what_does_not_decay_is_named_as_it_was_given():
    x, sizes, shared = jnp.ones((10, 2, 4)), jnp.ones((10, 2)), jnp.ones((10, 1, 3))
    with pytest.raises(ValueError, match=r"`rate` must be at least 0.*The paper writes A with its minus sign"):
        ssd(x, sizes, -jnp.ones(2), shared, shared)
    with pytest.raises(ValueError, match="`step_size` must be at least 0"):
        ssd(x, -sizes, -jnp.ones(2), shared, shared)
    with pytest.raises(ValueError, match="`rate` must be at least 0"):
        ssd_step(x[0], sizes[0], -jnp.ones(2), shared[0], shared[0], None, jnp.zeros((2, 3, 4)))
    for name in ("log_decay", "bonus"):
        with pytest.raises(ValueError, match=f"`{name}` must be left out"):
            ssd(x, sizes, jnp.ones(2), shared, shared, **{name: jnp.ones(2)})


@pytest.mark.parametrize("name", rows(LAYERS, FEW))
def test_batch_axes_and_dtype_of_a_state(name):
    layer = LAYERS[name]
    parameters = layer.init(jax.random.key(0))
    with pytest.raises(ValueError, match="`batch` must be a tuple of sizes"):
        layer.initial_state(parameters, 2)
    with pytest.raises(ValueError, match=r"`dtype` must be a dtype.*'flaot'"):
        layer.initial_state(parameters, (2,), "flaot")
    with pytest.raises(ValueError, match="`dtype` must be floating-point"):
        layer.initial_state(parameters, (2,), dtype=int)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", rows(LAYERS, {"Gated DeltaNet"}))
def test_float64_is_float64_throughout(name):
    """Whole and by steps; a state that is not is refused with what makes one that is."""
    layer = LAYERS[name]
    with jax.enable_x64(True):
        parameters = jax.tree.map(np.float64, random_parameters(layer))
        inputs = np.random.default_rng(0).normal(size=(2, 6, FEATURES))

        @jax.jit
        def run(parameters, inputs):
            def token(state, x):
                out, state = layer.step(parameters, x, state)
                return state, out

            first = layer.initial_state(parameters, (2,), jnp.float64)
            return layer.prefill(parameters, inputs), jax.lax.scan(token, first, jnp.moveaxis(inputs, 1, 0))

        (whole, end), (state, steps) = run(parameters, inputs)
        np.testing.assert_allclose(np.moveaxis(steps, 0, 1), whole, rtol=0, atol=1e-12 * np.abs(whole).max())
        for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(end), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
        if not isinstance(layer, Recurrent):
            return
        with pytest.raises(ValueError, match="dtype='float64'"):
            layer.step(parameters, inputs[:, 0], layer.initial_state(parameters, (2,)))
