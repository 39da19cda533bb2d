"""Attention maps as one page for a browser or a notebook (`view`), and as figures for papers (`figures`)."""

from . import figures
from .bertviz import head_view, model_view
from .viewing import Page, view

__all__ = ["Page", "figures", "head_view", "model_view", "view"]
