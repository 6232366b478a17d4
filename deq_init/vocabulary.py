"""Words as integers, for models of text."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deq_init.errors import DataError

UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Vocabulary:
    """The words that a model knows; the first one, ``<unk>``, stands for all others.

    Attributes
    ----------
    words : tuple of str
        All different. The index of a word is its place.

    Examples
    --------
    >>> known = build("the cat and the dog".split(), min_count=2)
    >>> known.words
    ('<unk>', 'the')
    >>> known.encode(["the", "bird"])
    array([1, 0], dtype=int32)
    """

    words: tuple[str, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = {word: i for i, word in enumerate(self.words)}
        if self.words[:1] != (UNKNOWN,) or len(index) < len(self.words):
            raise DataError(
                f"expected different words of which the first is {UNKNOWN}, received "
                f"{len(self.words)} beginning with {self.words[:3]}. Make them with build()."
            )
        object.__setattr__(self, "_index", index)

    def __len__(self) -> int:
        """How many words there are."""
        return len(self.words)

    def encode(self, words: Sequence[str]) -> NDArray[np.int32]:
        """Return the indices of words, shape (words,)."""
        indices = (self._index.get(word, 0) for word in words)
        return np.fromiter(indices, np.int32, len(words))

    def decode(self, indices: Iterable[int]) -> list[str]:
        """Return the words at indices.

        Raises
        ------
        DataError
            For what is no index of a word.
        """
        return [self.words[self._index_of(i)] for i in indices]

    def _index_of(self, i: int) -> int:
        try:
            index = -1 if isinstance(i, bool) else operator.index(i)
        except TypeError:
            index = -1
        if not 0 <= index < len(self):
            raise DataError(
                f"expected indices as integers from 0 to {len(self) - 1}, received {i!r}. Pass "
                "what encode() returns."
            )
        return index


def build(words: Iterable[str], *, min_count: int = 1, size: int | None = None) -> Vocabulary:
    """Return the vocabulary of a training text, the most frequent words first.

    Parameters
    ----------
    words : iterable of str
        The text.
    min_count : int
        Words that occur less often are left out.
    size : int, optional
        Most words, ``<unk>`` among them; of equally frequent ones, the first in the order of
        strings are kept.

    Raises
    ------
    DataError
        If the size is no positive integer.
    """
    if size is not None and size < 1:
        raise DataError(
            f"expected room for one word at least, received size={size!r}. Pass e.g. size=10000."
        )
    counts = Counter(words)
    counts.pop(UNKNOWN, None)
    kept = sorted(
        (word for word in counts if counts[word] >= min_count), key=lambda w: (-counts[w], w)
    )
    return Vocabulary((UNKNOWN, *kept)[:size])
