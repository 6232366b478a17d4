"""Numbers of the paper's authors, to be shown beside ours."""

from __future__ import annotations

SLIDES_SOURCE = "Agarwala & Schoenholz, slides of the talk at ICML 2022 (paper: arXiv 2207.09432)"

SLIDES_WIKITEXT103: dict[float, dict[str, tuple[float, float]]] = {
    0.1: {"goe": (68.1, 71.8), "orthogonal": (60.7, 162.7), "random": (56.8, 153.9)},
    0.3: {"goe": (66.1, 69.8), "orthogonal": (60.5, 173.4), "random": (56.3, 224.9)},
    1.0: {"goe": (66.3, 68.3), "orthogonal": (57.4, 112.1), "random": (55.6, 481.5)},
}
"""Perplexity of the DEQ-transformer on WikiText-103 by gain and family: least, mean over runs."""
