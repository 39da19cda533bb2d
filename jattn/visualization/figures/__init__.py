"""Figures of attention for papers, drawn by Matplotlib: heads, a map, a plan, offsets, an embedding, an alignment."""
