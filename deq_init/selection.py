"""Which weights of a whole model to initialize, how, and the summary of what was done.

The adapters list a model's weights by name; what is chosen, checked and reported is decided here,
before any of them is changed.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from deq_init import draws, families, scale
from deq_init import plan as plans
from deq_init.errors import DeqInitError, DTypeError, SelectionError, ShapeError

Where = str | Sequence[str] | Mapping[str, Mapping[str, Any]] | Callable[[str, Any], bool] | None
"""Name patterns, a mapping from patterns to options of their own, a predicate, or None."""

_AXES = ("batch_axes", "in_axes", "out_axes")
_OPTIONS = ("family", *scale.KINDS, "blocks", "determinant", *_AXES)
_UNKNOWN = "name it in where= with batch_axes=, in_axes= or out_axes="


_ADAPTER = re.compile(r"(^|[./])(lora|ia3|vera|hada|lokr|oft|boft)_", re.IGNORECASE)


@dataclass(frozen=True)
class Weight:
    """One weight of a model, as an adapter lists it.

    Attributes
    ----------
    name : str
        Its full name in the model.
    shape : tuple of int
        Its shape.
    dtype : str
        Name of its dtype.
    value : object
        The framework's own object, for predicates.
    special : str
        Why it is left alone unless it is asked for by name, e.g. "embedding"; "" if it is not.
    hint : str
        What its note shall say if no blocks are asked for, e.g. "fuses 3 matrices: blocks=3".
    known : mapping
        Axes and blocks that its layer is known to have, e.g. ``{"batch_axes": 0}``. They hold
        unless axes are named.
    unknown : str
        Why it is not known what its more than two axes are: it is left alone unless they are
        named. "" if it is known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    value: Any
    special: str = ""
    hint: str = ""
    known: Mapping[str, Any] = field(default_factory=dict)
    unknown: str = ""


@dataclass(frozen=True)
class Request:
    """What to do with one weight: a plan, or None to leave it alone, and a note that says why."""

    weight: Weight
    plan: plans.Plan | None
    note: str


@dataclass(frozen=True)
class Entry:
    """One row of a summary.

    Attributes
    ----------
    name : str
        The weight's name.
    shape : tuple of int
        Its shape.
    dtype : str
        Name of its dtype.
    action : {"set", "left"}
        Whether it was initialized.
    note : str
        With what, or why not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    action: Literal["set", "left"]
    note: str


@dataclass(frozen=True)
class Summary:
    """What was set and what was left alone, in the order of the model's weights.

    Examples
    --------
    >>> print(Summary((Entry("w", (4, 4), "float32", "set", "goe, gain 0.4"),
    ...                Entry("b", (4,), "float32", "left", "fewer than two axes"))))
    weight  shape   dtype    action  note
    w       (4, 4)  float32  set     goe, gain 0.4
    b       (4,)    float32  left    fewer than two axes
    1 weight set, 1 left alone
    """

    entries: tuple[Entry, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weights that were set."""
        return tuple(entry.name for entry in self.entries if entry.action == "set")

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data, JSON-serialisable."""
        return {"entries": [{**vars(entry), "shape": list(entry.shape)} for entry in self.entries]}

    def __str__(self) -> str:
        rows = [("weight", "shape", "dtype", "action", "note")]
        rows += [(e.name, str(e.shape), e.dtype, e.action, e.note) for e in self.entries]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        count = len(self.names)
        total = f"{count} weight{'s' * (count != 1)} set, {len(self.entries) - count} left alone"
        return "\n".join([*lines, total])


def requests(
    weights: Sequence[Weight], layout: plans.Layout, where: Where, options: Mapping[str, Any]
) -> list[Request]:
    """Return what to do with each weight: everything is checked before any is changed.

    Parameters
    ----------
    weights : sequence of Weight
        All weights of the model.
    layout : {"out_in", "in_out"}
        How the framework's arrays hold W, see :mod:`deq_init.axes`.
    where : str, sequence of str, mapping, callable or None
        Shell patterns (``*``, ``?``, ``[...]``) that full names are matched against; or a mapping
        from patterns to options that differ for them, where the first match counts; or
        ``where(name, weight) -> bool``. None takes every weight that the family can be, other
        than special ones.
    options : mapping
        ``family``, ``gain``, ``spectral_norm``, ``spectral_radius``, ``blocks``, ``determinant``;
        of a pattern's own also ``batch_axes``, ``in_axes``, ``out_axes``.

    Raises
    ------
    SelectionError
        If nothing is selected, a pattern matches no name, or two names have the same hash.
    FamilyError, ShapeError, ScaleError, DTypeError
        For a weight that was selected and cannot be what was asked for, with its name.
    """
    choose = _chooser([weight.name for weight in weights], where)
    default = {"gain": scale.UNIT_GAIN, **options}
    families.get(default["family"])
    scale.resolve(*(default.get(kind) for kind in scale.KINDS))
    lenient = where is None
    result = [_request(weight, layout, choose(weight), default, lenient) for weight in weights]
    if not any(request.plan for request in result):
        reasons = "; ".join(f"{r.weight.name} {r.weight.shape}: {r.note}" for r in result[:5])
        raise SelectionError(
            f"expected a model with a weight to initialize, received one of {len(result)} weights "
            f"of which none was selected{f' ({reasons})' * bool(reasons)}. "
            "Pass where= with the names of those that are meant."
        )
    _require_own_keys([request.weight.name for request in result if request.plan])
    return result


def _require_own_keys(names: Sequence[str]) -> None:
    """Raise SelectionError if two names have one hash: their matrices would be the same."""
    first: dict[tuple[int, int], str] = {}
    for name in names:
        other = first.setdefault(name_words(name), name)
        if other != name:
            raise SelectionError(
                f"expected names with hashes of their own, received {other!r} and {name!r}, whose "
                "hashes are equal: one seed would give both the same matrix. Rename one of them, "
                "or initialize it in a call of its own with another seed."
            )


def name_words(name: str) -> tuple[int, int]:
    """Return the 64-bit hash of a weight's name, as two words of 32 bits.

    It is BLAKE2b of the name in UTF-8 with a digest of 8 bytes, big-endian. The key of a weight is
    the model's key with the first word folded in, and then the second.

    Examples
    --------
    >>> name_words("layer.weight")
    (2883143293, 225284859)
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")


def seed_of(seed: int, name: str) -> int:
    """Return the seed of one weight of a model: its name's hash folded into the model's seed.

    It does not depend on the other weights, nor on their order.

    Parameters
    ----------
    seed : int
        The model's seed, in [0, 2**64).
    name : str
        The weight's full name, see :func:`name_words`.
    """
    key = draws.key_from_seed(seed)
    for word in name_words(name):
        key = draws.fold_in(key, word)
    return key[0] << 32 | key[1]


def is_adapter(name: str) -> bool:
    """Return whether a weight's name is that of a low-rank adapter, which starts as it has to.

    Examples
    --------
    >>> is_adapter("q_proj.lora_B.default.weight"), is_adapter("flora.weight")
    (True, False)
    """
    return _ADAPTER.search(name) is not None


def distinct(names: Iterable[str]) -> list[str]:
    """Return the names, with ``_2``, ``_3``, ... appended to those that were there before.

    Examples
    --------
    >>> distinct(["a/w", "a/w", "b"])
    ['a/w', 'a/w_2', 'b']
    """
    taken: set[str] = set()
    result = []
    for name in names:
        own, count = name, 1
        while own in taken:
            count += 1
            own = f"{name}_{count}"
        taken.add(own)
        result.append(own)
    return result


def summarize(result: Sequence[Request]) -> Summary:
    """Return the summary of requests that were met."""
    return Summary(
        tuple(
            Entry(
                r.weight.name,
                r.weight.shape,
                r.weight.dtype,
                "left" if r.plan is None else "set",
                r.note,
            )
            for r in result
        )
    )


def _chooser(names: Sequence[str], where: Where) -> Callable[[Weight], Mapping[str, Any] | None]:
    """Return a function from a weight to its own options, or to None if it is not selected."""
    if where is None:
        return lambda weight: None if weight.special else {}
    if callable(where):
        return lambda weight: {} if where(weight.name, weight.value) else None
    patterns = _patterns(names, where)

    def choose(weight: Weight) -> Mapping[str, Any] | None:
        matches = (own for pattern, own in patterns.items() if fnmatchcase(weight.name, pattern))
        return next(matches, None)

    return choose


def _patterns(names: Sequence[str], where: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return patterns and their options, each of which matches a name."""
    patterns = where
    if isinstance(where, str):
        patterns = {where: {}}
    elif isinstance(where, (list, tuple, set, frozenset)):
        patterns = {pattern: {} for pattern in where}
    if not isinstance(patterns, Mapping) or not all(
        isinstance(pattern, str) and isinstance(own, Mapping) for pattern, own in patterns.items()
    ):
        raise SelectionError(
            "expected where as name patterns, a mapping from patterns to options, or a function "
            f"of name and weight, received {where!r}. Pass e.g. where='*.recurrent.weight'."
        )
    for pattern, own in patterns.items():
        unknown = sorted(set(own) - set(_OPTIONS))
        if unknown:
            raise SelectionError(
                f"expected options out of {', '.join(_OPTIONS)} for {pattern!r}, received "
                f"{', '.join(map(repr, unknown))}. Leave out the others."
            )
        if not any(fnmatchcase(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or list(names[:3])
            raise SelectionError(
                f"expected a pattern that matches the name of a weight, received {pattern!r}. "
                f"Names here are like {', '.join(map(repr, close))}; * stands for any characters."
            )
    return patterns


def _request(
    weight: Weight,
    layout: plans.Layout,
    own: Mapping[str, Any] | None,
    default: Mapping[str, Any],
    lenient: bool,
) -> Request:
    """Return what to do with one weight; ``lenient`` leaves one alone that the family cannot be."""
    if own is None:
        return Request(weight, None, weight.special if lenient else "not selected")
    options = dict(default)
    if any(kind in own for kind in scale.KINDS):
        for kind in scale.KINDS:
            options.pop(kind, None)
    options.update(own)
    options = _with_known(options, weight)
    hint = f" ({weight.hint})" if weight.hint and options.get("blocks") is None else ""
    try:
        if weight.unknown and not _says_axes(options):
            raise ShapeError(
                f"expected a weight whose axes are known or named, received one of shape "
                f"{weight.shape}: {weight.unknown}. Pass e.g. where={{{weight.name!r}: "
                "{'batch_axes': 0}} for a stack of matrices, or in_axes or out_axes."
            )
        target = scale.resolve(*(options.get(kind) for kind in scale.KINDS))
        plans.compute_dtype(weight.dtype)
        plan = plans.plan(
            options["family"],
            weight.shape,
            layout,
            target,
            options.get("blocks"),
            options.get("determinant"),
            *(options.get(name) for name in _AXES),
        ).for_dtype(weight.dtype)
    except (ShapeError, DTypeError) as error:
        if lenient:
            return Request(weight, None, _reason(weight, error) + hint)
        raise type(error)(f"{weight.name}: {error}") from None
    except DeqInitError as error:
        raise type(error)(f"{weight.name}: {error}") from None
    note = f"{plan.family.name}, {target.kind.replace('_', ' ')} {target.value:g}, {_taken(plan)}"
    if plan.determinant is not None:
        note += f", determinant {plan.determinant}"
    return Request(weight, plan, note + hint)


def _says_axes(options: Mapping[str, Any]) -> bool:
    """Return whether options say which axes are what: blocks along a stated axis do."""
    named = any(options.get(name) is not None for name in _AXES)
    return named or isinstance(options.get("blocks"), (tuple, list))


def _with_known(options: Mapping[str, Any], weight: Weight) -> dict[str, Any]:
    """Return the options with what the weight's layer is known to be, unless axes are named."""
    if any(options.get(name) is not None for name in _AXES):
        return dict(options)
    result = dict(options)
    for name, value in weight.known.items():
        if result.get(name) is None:
            result[name] = value
    blocks, batch = result.get("blocks"), weight.known.get("batch_axes")
    # Blocks of one slice each, along the axis of a stack, are its slices.
    if batch is not None and isinstance(blocks, (tuple, list)) and len(blocks) == 2:
        axes = (batch,) if isinstance(batch, int) else tuple(batch)
        rank, (count, along) = len(weight.shape), blocks
        if along in axes or along in [axis - rank for axis in axes]:
            result["blocks"] = None if weight.shape[along] == count else blocks
    return result


def _taken(plan: plans.Plan) -> str:
    """Say which matrices an array was taken for."""
    outputs = plan.rows if plan.view.layout == "out_in" else plan.columns
    text = f"{outputs} x {plan.fan_in}"
    if plan.blocks is not None:
        text = f"{plan.blocks} blocks of {text} along axis {plan.axis}"
    return f"{plan.view.count} of {text}" if plan.view.batch else text


def _reason(weight: Weight, error: DeqInitError) -> str:
    """Say in a few words why a weight was left alone."""
    if isinstance(error, DTypeError):
        return "not a real floating dtype"
    if len(weight.shape) < 2:
        return "fewer than two axes"
    if weight.unknown:
        return f"{weight.unknown}: {_UNKNOWN}"
    return "not a shape that the family or scale is defined for"
