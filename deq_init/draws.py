r"""The standard normals :math:`g` that every family is made from.

One integer seed gives the same field of normals in every backend. Entry number ``c`` of an array,
counted in row-major order, is a function of the seed and ``c`` alone:

1. the seed's high and low 32-bit words are the Threefry key, the counter's are its input;
2. Threefry-2x32 with 20 rounds gives two words ``(a, b)``;
3. the top 23 bits of ``a ^ b`` (float32), or the top 52 of ``a`` followed by ``b`` (float64), are
   a number :math:`k`, and :math:`u = -1 + \epsilon + 2^{2-p} k` is uniform on (-1, 1), where the
   significand has p bits and :math:`\epsilon = 2^{-p}` keeps the ends out (p = 24, 53);
4. :math:`g = \sqrt2\,\mathrm{erf}^{-1}(u)`, computed in float64 and rounded once.

This is bit for bit how ``jax.random.bits(jax.random.key(seed), shape)`` lays its words out with
``jax_threefry_partitionable=True``, so that the normals equal ``jax.random.normal(key, shape)`` up
to the rounding of the inverse error function.

References
----------
Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011.
"""

from __future__ import annotations

import operator
import secrets
from typing import Any

from deq_init._protocol import Array, WordPrimitives
from deq_init.errors import SeedError

Key = tuple[int, int]

_MASK = 0xFFFFFFFF
_PARITY = 0x1BD11BDA
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


class _Integers:
    """Words as Python integers: the arithmetic of single keys."""

    def wrap(self, words: int) -> int:
        return words & _MASK

    def rotate_left(self, words: int, bits: int) -> int:
        words &= _MASK
        return (words << bits | words >> (32 - bits)) & _MASK


def key_from_seed(seed: Any) -> Key:
    """Return the Threefry key of an integer seed: its high and low 32-bit words.

    Parameters
    ----------
    seed : int or None
        An integer in [0, 2**64). ``None`` draws 64 bits from the operating system.

    Returns
    -------
    (int, int)
        Equal to ``jax.random.key_data(jax.random.key(seed))`` for seeds below 2**32, and with
        ``jax_enable_x64`` for all of them.

    Raises
    ------
    SeedError
        If the seed is not an integer in the range.

    Examples
    --------
    >>> key_from_seed(7)
    (0, 7)
    >>> key_from_seed(2**32 + 5)
    (1, 5)
    """
    if seed is None:
        seed = secrets.randbits(64)
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if not is_number(seed) or not 0 <= value < 2**64:
        raise SeedError(
            f"expected seed to be an integer in [0, 2**64) or None, received {seed!r}. "
            "Pass a non-negative integer, None for fresh entropy, or a generator of the kind that "
            "the adapter's documentation names."
        )
    return value >> 32, value & _MASK


def is_number(value: Any) -> bool:
    """Return whether a value may be one real number: no bool, text, bytes, or array with axes."""
    if isinstance(value, (int, float, str, bytes, bytearray)):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    kind = str(getattr(value, "dtype", ""))
    if "bool" in kind or "complex" in kind:
        return False
    return tuple(getattr(value, "shape", ())) == ()


def fold_in(key: Key, index: int) -> Key:
    """Return the key of sub-stream ``index``, as ``jax.random.fold_in`` does.

    Parameters
    ----------
    key : (int, int)
        A Threefry key.
    index : int
        Which sub-stream, in [0, 2**32).

    Examples
    --------
    >>> fold_in((0, 0), 1)
    (928981903, 3453687069)
    """
    return threefry2x32(_Integers(), key, 0, index)


def threefry2x32(xp: Any, key: Any, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Return the Threefry-2x32 block of 20 rounds for each pair of counter words.

    Parameters
    ----------
    xp : WordPrimitives
        The backend's arithmetic.
    key : (int, int)
        Two 32-bit words; or two arrays of words that wrap by themselves, a key for each counter.
    x0, x1 : arrays of words
        High and low words of the counters, same shape.

    Returns
    -------
    (array, array)
        Two arrays of words of that shape.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x0 = xp.wrap(x0 + schedule[0])
    x1 = xp.wrap(x1 + schedule[1])
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 += x1
            x0 = xp.wrap(x0)
            x1 = xp.rotate_left(x1, rotation)
            x1 ^= x0
        x0 += schedule[(group + 1) % 3]
        word = schedule[(group + 2) % 3] + (group + 1)
        x1 += word & _MASK if isinstance(word, int) else word
        x0, x1 = xp.wrap(x0), xp.wrap(x1)
    return x0, x1


def normals(
    xp: WordPrimitives, key: Key, rows: range, columns: range, stride: int, dtype: str
) -> Array:
    """Return the standard normals of a rectangle of the field.

    Parameters
    ----------
    xp : WordPrimitives
        The backend's arithmetic.
    key : (int, int)
        Threefry key, see :func:`key_from_seed`.
    rows, columns : range
        Which entries, of step 1.
    stride : int
        Columns of the whole field: entry (i, j) has counter i · stride + j.
    dtype : {"float32", "float64"}
        float32 reads 23 random bits an entry, float64 52: the two are different draws.

    Returns
    -------
    array, shape (len(rows), len(columns))
    """
    a, b = threefry2x32(xp, key, *xp.counters(rows, columns, stride))
    if dtype == "float64":
        k, bits = xp.to_float64(a), 53
        k *= 2.0**20
        k += xp.to_float64(xp.shift_right(b, 12))
    else:
        a ^= b
        k, bits = xp.to_float64(xp.shift_right(a, 9)), 24
    k *= 2.0 ** (2 - bits)
    k -= 1 - 2.0**-bits
    return xp.cast(xp.normal_quantile(k, bits), dtype)


def block_key(key: Key, index: tuple[int, ...]) -> Key:
    """Return the key of one matrix of an array: the numbers of its index folded in, in turn."""
    for number in index:
        key = fold_in(key, number)
    return key
