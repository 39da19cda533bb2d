"""The page as a file: what it stores reads back, nothing in it can harm, and wrong arguments are named."""

import base64
import functools
import html
import json
import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest

import jattn
from jattn import visualization
from jattn.visualization import document, encoding

view = functools.partial(visualization.view, labels=False)
"""Without measures, which take compiling."""
NASTY = ["</script><script>alert(1)</script>", "\"'&<b>", "\u2028", "שלום", "👩‍👩‍👧", "http://a", "", "\ud83d"]


def softmax(scores):
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def maps(layers=2, heads=3, queries=8, keys=8, seed=0, sharp=1.0):
    draw = np.random.default_rng(seed).normal(size=(layers, 1, heads, queries, keys)).astype(np.float32)
    return list(softmax(sharp * draw))


def parts(page):
    """The JSON and the arrays of a page, read as a browser reads them: text up to the first `</script>`."""
    text = page if isinstance(page, str) else page.html
    found = [
        re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.S)
        for name in ("contents", "blobs")
    ]
    return [json.loads(one[1]) for one in found]


def unpacked(blob):
    return np.frombuffer(zlib.decompress(base64.b64decode(blob)), np.uint8)


def heads_of(contents):
    return [head for group in contents["groups"] for layer in group["layers"] for head in layer["heads"]]


@pytest.mark.parametrize("bits", encoding.BITS)
def test_codes_are_as_near_as_they_say(bits):
    weights = np.concatenate([np.linspace(0, 1, 5000), np.geomspace(1e-9, 1, 5000)]).astype(np.float32)[None]
    codes, levels = encoding.codes(weights, bits).astype(float), 2**bits - 1
    error = np.abs((codes / levels) ** 2 - weights)
    assert error.max() <= encoding.largest_error(bits)
    assert (error <= (codes + 0.25) / levels**2 + 1e-7).all()  # what the page says beside each number
    faint = weights < encoding.smallest_shown(bits)
    assert (codes[faint] == 0).all() and (codes[weights > encoding.smallest_shown(bits) * 1.001] > 0).all()


def test_a_page_stores_the_weights():
    given = maps()
    contents, blobs = parts(view(given, NASTY))
    assert contents["levels"] == 255
    stored = [unpacked(blobs[head["weights"]]).reshape(8, 8) for head in heads_of(contents)]
    error = np.abs((np.array(stored) / 255) ** 2 - np.concatenate(given)[0:].reshape(6, 8, 8))
    assert error.max() <= 1 / 255


def test_tokens_are_data_and_nothing_else():
    page = view(maps(), NASTY, title="</title><script>1</script>").html
    contents, _ = parts(page)
    assert contents["groups"][0]["queries"] == NASTY
    assert page.count("</script>") == 3 and page.count("<script") == 3
    assert "alert(1)</script>" not in page and "\u2028" not in page and "<b>" not in page
    assert page.encode("utf-8")  # half an emoji is escaped
    assert "http" not in page.lower()


def test_chance_does_not_write_http(monkeypatch):
    """Base64 may contain any four letters: a line break in between is not read."""
    monkeypatch.setattr(encoding.zlib, "compress", lambda data, level: base64.b64decode("ABChttpDEFGh"))
    found = encoding.packed(b"")
    assert "http" not in found and base64.b64decode(found) == base64.b64decode("ABChttpDEFGh")
    written = document.written({"title": "t"}, [found])
    assert "http" not in written and parts(written)[1] == [found]


def test_a_notebook_shows_a_frame_for_each_page():
    page = view(maps(), NASTY)
    frame = page._repr_html_()
    inside = re.fullmatch(r'<iframe srcdoc="([^"]*)" [^<>]*></iframe>', frame)
    assert inside is not None and html.unescape(inside[1]) == page.notebook_html


def test_a_notebook_keeps_few_layers_of_long_texts(tmp_path):
    page = view(maps(layers=6, queries=64, keys=64), notebook_limit=40_000)
    contents, blobs = parts(page.notebook_html)
    layers = contents["groups"][0]["layers"]
    assert 1 <= len(layers) < 6 and sum(map(len, blobs)) < 60_000
    assert f"{len(layers)} of 6 layers" in contents["notes"][0] and ".save(path)" in contents["notes"][0]
    saved = page.save(tmp_path / "heads.html").read_text(encoding="utf-8")
    assert len(parts(saved)[0]["groups"][0]["layers"]) == 6


def test_many_tokens_take_fewer_bits_and_the_page_says_so():
    given = maps(layers=4, heads=4, queries=128, keys=128)
    size = encoding.predicted_size([one for layer in given for one in layer[0]], 8)
    contents, blobs = parts(view(given, limit=int(size * 0.75)))
    assert contents["bits"] in (5, 6) and contents["levels"] == 2 ** contents["bits"] - 1
    assert sum(map(len, blobs)) <= size * 0.8
    with pytest.raises(ValueError, match=r"16 maps of 128 x 128 take more even in four bits.*`layers=`"):
        view(given, limit=size // 20).save("nowhere.html")


def test_too_many_maps_are_computed_in_the_page_from_queries_and_keys():
    draw = np.random.default_rng(0).normal(size=(2, 1, 4, 64, 8)).astype(np.float32)
    given = list(softmax(np.einsum("lbhqd,lbhkd->lbhqk", draw, draw)))
    for page in (
        view(given, query=list(draw), key=list(draw), limit=1000),
        view(None, query=list(draw), key=list(draw)),
    ):
        contents, blobs = parts(page)
        heads = heads_of(contents)
        assert len(heads) == 8 and all("weights" not in head for head in heads)
        stored = unpacked(blobs[heads[5]["query"]])
        values = stored[64 * 4 :].view(np.int8).reshape(64, 8) / 127 * stored[: 64 * 4].view("<f4")[:, None]
        assert np.abs(values - draw[1, 0, 1]).max() <= np.abs(draw[1, 0, 1]).max() / 200


def recorded(keep, **pieces):
    draw = np.random.default_rng(0).normal(size=(2, 1, 64, 4, 8)).astype(np.float32)
    with jattn.record(keep=keep) as seen:
        jattn.attention(draw[0], draw[1, :, :, :2], draw[1, :, :, :2], mask=jattn.masks.Causal(), **pieces)
    return seen


def test_a_recording_has_its_queries_and_keys():
    """The neuron view and computed maps need no further argument; chosen heads have their own vectors."""
    every = recorded(("weights", "query", "key"))
    contents, _ = parts(view(every, heads=[3, 0]))
    assert all(head["off"] < 0.02 and "weights" in head and "mask" in head for head in heads_of(contents))
    for source, options in ((every, {"limit": 500}), (recorded(["query", "key"]), {})):
        contents, _ = parts(view(source, heads=[3, 0], **options))
        assert all("weights" not in head and "query" in head and "mask" in head for head in heads_of(contents))
    layer = jattn.analysis.read(recorded(["query", "key"]))[0]
    np.testing.assert_allclose(layer.weights, every["attention.0"], atol=1e-6)
    assert layer.mask.shape == (1, 1, 64, 64)


def test_maps_that_cannot_be_computed_are_not():
    capped = {"scores": jattn.scores.SoftCap(0.5)}
    every = recorded(("weights", "query", "key"), **capped)
    contents, _ = parts(view(every))
    assert contents["groups"][0]["layers"][0]["besides"] == ["SoftCap"]
    assert all(head["off"] > 0.05 for head in heads_of(contents))
    message = r"'attention.0' must be stored.*depend on SoftCap"
    with pytest.raises(ValueError, match=message):
        _ = view(every, limit=500).html
    with pytest.raises(ValueError, match=message):
        view(recorded(["query", "key"], **capped))
    with pytest.raises(ValueError, match=r"'attention.0' were not kept and cannot be computed: .*SoftCap"):
        jattn.analysis.describe(recorded(["query", "key"], **capped))
    with pytest.raises(ValueError, match=r"must have the weights of 'attention.0', or both its query and key"):
        view(recorded("query"))
    given = [every["attention.0"]]
    record = every.record("attention.0")
    with pytest.raises(ValueError, match=r"softmax\(query · key\) is up to 0.* off"):
        _ = view(given, query=[record.query], key=[record.key], limit=500).html


def test_the_neuron_view_says_how_far_its_softmax_is_off():
    query = np.random.default_rng(0).normal(size=(1, 4, 8, 16)).astype(np.float32) / 4
    key = np.random.default_rng(1).normal(size=(1, 2, 8, 16)).astype(np.float32)
    scores = np.einsum("bhqd,bhkd->bhqk", query, key.repeat(2, 1))
    right = view([softmax(scores)], query=[query], key=[key])
    biased = view([softmax(scores + 3 * np.eye(8))], query=[query], key=[key])
    assert all(head["off"] < 0.02 for head in heads_of(parts(right)[0]))
    assert all(head["off"] > 0.2 for head in heads_of(parts(biased)[0]))
    assert len({head["key"] for head in heads_of(parts(right)[0])}) == 2  # grouped heads share their keys


def test_masks_are_drawn_as_masks():
    given = maps(layers=1)
    causal = np.tril(np.ones((8, 8), bool))
    zeroed = [np.where(causal, one, 0) / np.where(causal, one, 0).sum(-1, keepdims=True) for one in given]
    for page in (
        view(zeroed),
        view(given, mask=jattn.masks.Causal()),
        view(given, mask=lambda q, k: k <= q),
        view(given, mask=causal),
    ):
        contents, blobs = parts(page)
        (number,) = {head["mask"] for head in heads_of(contents)}
        assert (np.unpackbits(unpacked(blobs[number])).reshape(8, 8) == causal).all()
    padded = view(given, valid=[[1] * 6 + [0] * 2])
    contents, blobs = parts(padded)
    bits = np.unpackbits(unpacked(blobs[heads_of(contents)[0]["mask"]])).reshape(8, 8)
    assert not bits[:, 6:].any() and bits[:, :6].all()


def test_tiles_of_an_explanation_are_laid_over():
    array = jattn.explain(
        *[np.zeros((1, 8, 3, 4), np.float32)] * 3,
        mask=jattn.masks.Causal(),
        implementation=jattn.implementations.Tiled(q_tile=4, k_tile=4),
    )
    contents, blobs = parts(view(maps(), plan=array))
    plan = heads_of(contents)[0]["plan"]
    assert plan["tiles"] == [4, 4] and unpacked(blobs[plan["states"]]).tolist() == [1, 0, 2, 1]


def test_nan_is_said_and_stored_apart():
    given = maps()
    given[1] = given[1].copy()
    given[1][0, 2, 3, 4] = np.nan
    contents, blobs = parts(view(given))
    assert any("1 of 192 weights are NaN" in note and "head 2" in note for note in contents["notes"])
    (bad,) = [head["bad"] for head in heads_of(contents) if "bad" in head]
    assert np.flatnonzero(np.unpackbits(unpacked(blobs[bad]))).tolist() == [3 * 8 + 4]
    assert [head["label"] for head in heads_of(contents) if head.get("label") == "NaN"] == []


def test_weights_above_one_have_a_scale():
    contents, blobs = parts(view([10 * one for one in maps()]))
    for head, want in zip(heads_of(contents), np.concatenate(maps()).reshape(6, 8, 8), strict=True):
        read = head["scale"] * (unpacked(blobs[head["weights"]]).reshape(8, 8) / 255) ** 2
        assert np.abs(read - 10 * want).max() <= head["scale"] / 255


def test_labels_and_measures_are_those_of_describe():
    given = [np.stack([np.eye(8, k=-1) + np.outer(np.eye(8)[0], np.eye(8)[0]), np.full((8, 8), 1 / 8)])[None]]
    heads = jattn.analysis.describe(given)
    for page in (visualization.view(given), view(given, labels=heads)):
        contents, _ = parts(page)
        one, other = heads_of(contents)
        assert (one["label"], one["score"]) == ("previous", 1.0) and "label" not in other
        for mine, want in zip((one, other), heads, strict=True):
            found = dict(zip(contents["measures"], mine["measures"], strict=True))
            assert found == pytest.approx({**want.measures, **want.scores}, abs=1e-4)
    bare, _ = parts(view(given, labels=False))
    assert bare["measures"] == [] and all("measures" not in head for head in heads_of(bare))


def test_encoder_decoder_and_cross_are_groups():
    given = {"encoder": maps(2, 2, 5, 5), "decoder": maps(2, 2, 4, 4), "cross": maps(2, 2, 4, 5)}
    tokens = {"encoder": list("abcde"), "decoder": list("wxyz")}
    groups = parts(view(given, tokens))[0]["groups"]
    assert [(one["side"], len(one["layers"]), one["same"]) for one in groups] == [
        ("encoder", 2, True),
        ("decoder", 2, True),
        ("cross", 2, False),
    ]
    assert groups[2]["queries"] == tokens["decoder"] and groups[2]["keys"] == tokens["encoder"]


def test_a_recording_is_shown_with_its_tokens():
    x = np.random.default_rng(0).normal(size=(1, 5, 2, 4)).astype(np.float32)
    with jattn.record(queries=[1, 3]) as seen:
        jattn.attention(x, x, x)
    group = parts(view(seen.tokens(list("abcde"))))[0]["groups"][0]
    assert group["queries"] == ["b", "d"] and group["keys"] == list("abcde") and group["numbers"] == [1, 3]


def test_labels_and_sentences_and_patches():
    page = view(
        maps(),
        NASTY,
        labels={("0", 1): ("previous", 0.9), (1, 2): "induction"},
        sentences=5,
        image=np.zeros((4, 6, 3)),
        grid=(2, 3),
    )
    contents, _ = parts(page)
    heads = heads_of(contents)
    assert (heads[1]["label"], heads[1]["score"], heads[5]["label"]) == ("previous", 0.9, "induction")
    group = contents["groups"][0]
    assert group["sentences"]["keys"] == [0] * 5 + [1] * 3
    assert group["grids"]["keys"] == {"rows": 2, "columns": 3, "first": 2}
    assert contents["image"].startswith("data:image/png;base64,iVBOR")


def test_bertviz_calls_are_pages():
    """The arguments of BertViz 1.4's functions, in their order."""
    given = maps()
    group = parts(visualization.head_view(given, list("abcdefgh"), 5, layer=1, heads=[0, 2]))[0]
    assert group["start"] == {"view": "heads", "layer": 1, "shown": "0,2"}
    assert group["groups"][0]["sentences"]["keys"] == [0] * 5 + [1] * 3
    pair = {"encoder_attention": maps(2, 2, 5, 5), "cross_attention": maps(2, 2, 4, 5)}
    page = visualization.model_view(
        encoder_tokens=list("abcde"), decoder_tokens=list("wxyz"), include_layers=[1], display_mode="light", **pair
    )
    contents = parts(page)[0]
    assert contents["start"] == {"view": "overview", "theme": "light"}
    assert [[layer["name"] for layer in one["layers"]] for one in contents["groups"]] == [["encoder.1"], ["cross.1"]]
    assert (
        visualization.head_view(given, list("abcdefgh"), html_action="return")
        == visualization.head_view(given, list("abcdefgh"))._repr_html_()
    )


BAD = {
    "bertviz": (lambda: visualization.head_view(maps(), list("abcdefgh"), html_action="save"), "`html_action` must be"),
    "bertviz nothing": (lambda: visualization.model_view(), "`attention` must be given"),
    "tokens": (lambda: view(maps(), ["a"]), "must have 8 tokens"),
    "layer": (lambda: view(maps(), layers=7), "`layers` must be"),
    "head": (lambda: view(maps(), heads=7), "`heads` must be among"),
    "example": (lambda: view(maps(), example=1), "`example` must be"),
    "plan of another size": (
        lambda: view(maps(), plan=jattn.explain(*[np.zeros((1, 64, 3, 4), np.float32)] * 3)),
        "`plan` must be of a call as large as some map.*64 queries",
    ),
    "source": (lambda: view(3), "`source` must be"),
    "sentence before": (lambda: view(maps(), sentences=-1), "`sentences` must be"),
    "sentence of none": (lambda: view(maps(), sentences={"both": 2}), "`sentences` must have keys among"),
    "label without text": (lambda: view(maps(), labels={(0, 0): 3}), r"`labels\[\(0, 0\)\]` must be a text"),
    "label with NaN": (lambda: view(maps(), labels={(0, 0): ("a", np.nan)}), r"`labels\[\(0, 0\)\]` must be a text"),
    "no file": (lambda: view(maps(), image="/no/such", grid=(2, 2)), "`image` must be a file that exists"),
    "bright": (lambda: view(maps(), image=np.full((2, 2), 300), grid=(2, 2)), "`image` must be an array"),
    "brighter": (lambda: view(maps(), image=np.full((2, 2), 2.0), grid=(2, 2)), "`image` must be an array"),
    "patch": (lambda: view(maps(), first_patch=3), "`first_patch` must be left out"),
    "start number": (lambda: view(maps(), start={"query": np.nan}), r"`start\['query'\]` must be a text"),
    "no path": (lambda: view(maps()).save("/no/such/page.html"), "`path` must be that of a file"),
    "bertviz layer": (lambda: visualization.head_view(maps(), layer="a"), "`layer` must be the number of a layer"),
    "bertviz heads": (lambda: visualization.head_view(maps(), heads=1), "`heads` must be a list of numbers"),
    "nothing": (lambda: view(None), "needs `query` and `key`"),
    "one of two": (lambda: view(maps(), query=[np.zeros((1, 3, 8, 2), np.float32)] * 2), "`query` and `key`"),
    "negative": (lambda: view([-one for one in maps()]), "at least 0"),
    "shape": (lambda: view([np.zeros((3, 3), np.float32)]), "batch, heads, queries, keys"),
    "sentences": (lambda: view(maps(), sentences=[0, 1]), "`sentences` must be"),
    "labels": (lambda: view(maps(), labels={(9, 9): "x"}), "`labels` must name heads"),
    "labels kind": (lambda: view(maps(), labels=3), "`labels` must be"),
    "plan": (lambda: view(maps(), plan=3), "`plan` must be"),
    "grid": (lambda: view(maps(), image=np.zeros((2, 2)), grid=3), "`grid` must be"),
    "image": (lambda: view(maps(), image=np.zeros((2, 2, 7)), grid=(2, 2)), "`image` must be"),
    "image bytes": (lambda: view(maps(), image=b"abc", grid=(2, 2)), "PNG, JPEG"),
    "grid alone": (lambda: view(maps(), grid=(2, 2)), "`image` must be given"),
    "start": (lambda: view(maps(), start="nowhere"), "`start` must be"),
    "start key": (lambda: view(maps(), start={"layers": 1}), "`start` must be"),
    "limit": (lambda: view(maps(), limit=0), "`limit` must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


@functools.cache
def node():
    return shutil.which("node")


def test_scripts_are_modules_that_share_one_scope(tmp_path):
    """Each script and all together: a name that two of them declare is a syntax error."""
    if node() is None:
        pytest.skip("NOT TESTED: node is not here to parse the page's scripts")
    files = {"all": document.script(), **{name: document._read(f"{name}.js") for name in document.MODULES}}
    for name, text in files.items():
        path = tmp_path / f"{name}.mjs"
        path.write_text(text, encoding="utf-8")
        done = subprocess.run([node(), "--check", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert not re.search(r"^(import|export)\b", files["all"], re.MULTILINE)


def test_scripts_set_text_never_markup():
    """No string becomes markup or code, none asks the network, and each module is imported before it is used."""
    for place, name in enumerate(document.MODULES):
        text = document._read(f"{name}.js")
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|\bfetch\b|XMLHttp", text
        )
        assert not found, f"{name}.js has {found}"
        for other in re.findall(r'^import .* from "\./(\w+)\.js";$', text, re.MULTILINE):
            assert document.MODULES.index(other) < place, f"{name}.js comes before {other}.js, which it imports"


def test_what_belongs_to_an_example_is_its_own():
    """Sentences of all examples; and a head without finite vectors has no neuron view, and the page says so."""
    both = [np.concatenate([one, one]) for one in maps()]
    contents, _ = parts(view(both, sentences=[[0] * 8, [0] * 3 + [1] * 5], example=1))
    assert contents["groups"][0]["sentences"]["keys"] == [0] * 3 + [1] * 5
    vectors = np.ones((1, 3, 8, 2))
    vectors[0, 1, 2] = np.nan
    contents, _ = parts(view(maps(), query=[vectors] * 2, key=[np.ones((1, 3, 8, 2))] * 2))
    assert ["query" in head for head in heads_of(contents)] == [True, False, True] * 2
    assert "head 1 is NaN or infinite in part, and not shown" in contents["notes"][0]
