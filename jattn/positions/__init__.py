"""What happens to a query and a key, or to an embedding, so that positions show in them.

Which call a checkpoint's configuration asks for: `rope_parameters` of Hugging Face (once `rope_scaling`) has a
`rope_type` (once `type`). `base` is its `rope_theta`, `dims` is `int(head_dim * partial_rotary_factor)`, and L is its
`original_max_position_embeddings`, or `max_position_embeddings` where that is missing (and for "dynamic" always).

| `rope_type`, and what else | call |
|---|---|
| "default" | `rotary(x, at, base=base, dims=dims)` |
| "linear" | `scaling=Linear(factor)` |
| "dynamic" | `scaling=DynamicNTK(factor, L, length=...)` |
| "yarn" | `scaling=YaRN(factor, L, beta_fast, beta_slow, "index")` |
| ... with `attention_factor` | `YaRN(..., attention_factor=attention_factor)` |
| ... with `mscale`, `mscale_all_dim` (DeepSeek) | `YaRN(..., mscale=mscale, mscale_all_dim=mscale_all_dim)` |
| ... with `truncate` false (gpt-oss) | `YaRN(..., rounded=False)` |
| "longrope" (once "su") | `scaling=LongRoPE(short_factor, long_factor, L, factor, length=...)` |
| ... without `factor` | `factor = max_position_embeddings / L` |
| "llama3" | `scaling=Llama3(factor, low_freq_factor, high_freq_factor, L)` |
| "proportional" | `scaling=Proportional(partial_rotary_factor)`, without `dims` |
| with `mrope_section` (Qwen2-VL, GLM-4V) | `rotary_sections(x, at, mrope_section, base=base)` |
| ... and `mrope_interleaved` (Qwen3-VL) | `rotary_sections(..., interleaved=True)` |
| "axial", of image encoders | `rotary_2d(x, at, base=base, layout="joint")` |
| ... of SAM 2 | `rotary_2d(x, at, base=base, pairs="interleaved")` |

Models that turn neighboring features (GPT-J, Cohere, GLM, Llama 4) add `pairs="interleaved"`.
"""

from .axes import rotary_2d, rotary_sections
from .packing import from_attention_mask, from_cu_seqlens
from .rotary import rotary
from .scaling import NTK, DynamicNTK, Linear, Llama3, LongRoPE, Proportional, Scaling, YaRN, rotary_frequencies
from .sinusoidal import sinusoidal
from .xpos import xpos

__all__ = [
    "NTK",
    "DynamicNTK",
    "Linear",
    "Llama3",
    "LongRoPE",
    "Proportional",
    "Scaling",
    "YaRN",
    "from_attention_mask",
    "from_cu_seqlens",
    "rotary",
    "rotary_2d",
    "rotary_frequencies",
    "rotary_sections",
    "sinusoidal",
    "xpos",
]
