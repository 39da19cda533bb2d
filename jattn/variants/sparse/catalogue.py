"""The rows of this group in the table of variants."""

from ..catalogue import Variant

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "Sparse Transformer, strided",
        "a window and every l-th earlier key; columns brought together so that tiles are skipped",
        "Child et al. 2019, arXiv:1904.10509",
        "jattn.variants.sparse.strided_attention",
        "tests/support/variant_cases/sparse.py",
    ),
    Variant(
        "Sparse Transformer, fixed",
        "own block and the last keys of every block, gathered",
        "Child et al. 2019, arXiv:1904.10509",
        "jattn.variants.sparse.fixed_attention",
        "tests/support/variant_cases/sparse.py",
    ),
    Variant(
        "Longformer",
        "a dilated window for each head; global tokens with their own projections",
        "Beltagy et al. 2020, arXiv:2004.05150",
        "jattn.variants.sparse.Longformer",
        "tests/variants/sparse/test_longformer.py",
        "far_key",
    ),
    Variant(
        "BigBird ITC",
        "window, random and global blocks, from a table",
        "Zaheer et al. 2020, arXiv:2007.14062",
        "jattn.variants.sparse.bigbird_mask",
        "tests/variants/sparse/test_bigbird.py",
        "bigbird_parts",
    ),
    Variant(
        "BigBird ETC",
        "window and random blocks, and extra global tokens",
        "Zaheer et al. 2020, arXiv:2007.14062",
        "jattn.variants.sparse.bigbird_etc_mask",
        "tests/variants/sparse/test_bigbird.py",
    ),
    Variant(
        "Blocked local",
        "own block and its neighbors",
        "Roy et al. 2021, arXiv:2003.05997",
        "jattn.masks.BlockedLocal",
        "tests/masks/test_blocks.py",
    ),
    Variant(
        "Tree of candidates",
        "each node sees the prefix and its ancestors (speculative decoding)",
        "Miao et al. 2023, arXiv:2305.09781",
        "jattn.variants.sparse.tree_mask",
        "tests/variants/sparse/test_layouts.py",
    ),
    Variant(
        "Block diffusion",
        "noisy blocks see themselves and the clean blocks before",
        "Arriola et al. 2025, arXiv:2503.09573",
        "jattn.masks.BlockDiffusion",
        "tests/masks/test_block_diffusion.py",
    ),
    Variant(
        "Shared prefix",
        "many continuations of a prefix that is kept and attended once: a merge of two partials",
        "Juravsky et al. 2024, arXiv:2402.05099",
        "jattn.variants.sparse.shared_prefix_attention",
        "tests/support/variant_cases/sparse.py",
    ),
    Variant(
        "Packed patterns",
        "any pattern in documents packed in one row, with positions that start again",
        "Krell et al. 2021, arXiv:2107.02027",
        "jattn.variants.sparse.positions_in_documents",
        "tests/variants/sparse/test_layouts.py",
    ),
)
