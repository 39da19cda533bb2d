"""Pictures of attention: `view`, one page for a browser or a notebook, and figures for papers."""

from .viewing import Page, view

__all__ = ["Page", "view"]
