"""Numbers of the paper's authors, to be shown beside ours."""

from __future__ import annotations

from deq_init.experiments.report import markdown_table

SLIDES_SOURCE = "Agarwala & Schoenholz, slides of the talk at ICML 2022 (paper: arXiv 2207.09432)"

SLIDES_WIKITEXT103: dict[float, dict[str, tuple[float, float]]] = {
    0.1: {"goe": (68.1, 71.8), "orthogonal": (60.7, 162.7), "random": (56.8, 153.9)},
    0.3: {"goe": (66.1, 69.8), "orthogonal": (60.5, 173.4), "random": (56.3, 224.9)},
    1.0: {"goe": (66.3, 68.3), "orthogonal": (57.4, 112.1), "random": (55.6, 481.5)},
}
"""Perplexity of the DEQ-transformer on WikiText-103 by gain and family: least, mean over runs."""


def slides_table() -> str:
    """Return the slides' table in Markdown, with its source.

    Examples
    --------
    >>> print(slides_table().splitlines()[2])
    | 0.1  | 68.1 / 71.8 | 60.7 / 162.7 | 56.8 / 153.9 |
    """
    families = ("goe", "orthogonal", "random")
    lines = [
        [f"{gain:g}", *("{:.1f} / {:.1f}".format(*cells[family]) for family in families)]
        for gain, cells in SLIDES_WIKITEXT103.items()
    ]
    table = markdown_table(["gain", *families], lines)
    return f"{table}\n\nPerplexity on WikiText-103, least / mean over runs. {SLIDES_SOURCE}."
