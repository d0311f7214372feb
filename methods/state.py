"""Checks that a method saves all of its state: what changes in it and is missing from `state_dict`."""

from __future__ import annotations

import hashlib
import io
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from methods.base import Method

GIVEN = frozenset(("params", "seed", "shards", "extra_step"))  # the benchmark sets these at every start
PLAIN = (str, bytes, int, float, complex, type(None), Enum)
NO_STATE = (
    type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, property, classmethod,
    staticmethod,
)


def definer(cls: type, name: str) -> type:
    """Return the class that defines the function of this name which a class uses."""
    return next(base for base in cls.__mro__ if name in vars(base))


def half_defined(cls: type[Method]) -> str | None:
    """Return the fault of a class that saves its state without loading it, or the other way round; else None."""
    save, load = (definer(cls, name) for name in ("state_dict", "load_state_dict"))
    if save is load:
        return None
    late = "state_dict" if issubclass(save, load) else "load_state_dict"
    other = ({"state_dict", "load_state_dict"} - {late}).pop()
    return (
        f"{cls.__name__} defines {late} but takes {other} from {definer(cls, other).__name__}, so a resumed run would "
        f"not have what it needs. Define both in one class; what {late} adds, {other} must know."
    )


def held(method: Method, live: tuple[type, ...] = ()) -> dict[str, str]:
    """Return a digest of each attribute that a method's state functions do not cover.

    These are the attributes of the object, and of its classes below the one that defines `state_dict`, except those
    that the code of that class or of its bases mentions. Empty if the class says `stateless = True`.

    Args:
        method: after `start`.
        live: types of objects that show the current weights; they are not state.

    Returns:
        Attribute name -> digest of its value: tensors, numbers, texts, and containers and objects of them.
    """
    if method.stateless:
        return {}
    classes = type(method).__mro__
    owner = classes.index(definer(type(method), "state_dict"))
    known = set(GIVEN)
    if classes[owner] is not Method:
        for cls in classes[owner:]:
            known |= {name for value in vars(cls).values() for name in _mentioned(value)}
    below = [vars(cls) for cls in reversed(classes[:owner])]
    found = {name: value for names in below for name, value in names.items() if not name.startswith("__")}
    found |= vars(method)
    return {
        name: _digest(value, method, live)
        for name, value in found.items() if name not in known and not isinstance(value, NO_STATE)
    }


def unsaved(method: Method, before: Mapping[str, str], live: tuple[type, ...] = ()) -> str | None:
    """Return why a method's state must not be saved, and what to do; None if it may be saved.

    Args:
        method: after some steps.
        before: `held` right after `start`.
        live: as for `held`.
    """
    now = held(method, live)
    changed = [name for name, digest in now.items() if before.get(name) != digest] + [*before.keys() - now.keys()]
    if changed:
        cls = type(method).__name__
        things = ", ".join(f"{name} ({_described(getattr(method, name, None))})" for name in sorted(changed)[:5])
        return (
            f"The method {cls} cannot be saved: it holds what changed since it started and is in no state_dict, so a "
            f"resumed run would come to other numbers: {things}. Return it from state_dict and put it back in "
            "load_state_dict (examples/my_method.py has both), or say `stateless = True` in the class if no later step "
            "reads it."
        )
    return _unreadable(method)


def differences(saved: Mapping[str, Any], method: Method) -> list[str]:
    """Return the keys of a saved state that a method has not restored: its state now differs there.

    Args:
        saved: what `state_dict` returned at the save.
        method: after loading it.
    """
    now = method.state_dict()
    return [
        key for key in {**saved, **now}
        if key not in saved or key not in now or _digest(saved[key], method) != _digest(now[key], method)
    ]


def _unreadable(method: Method) -> str | None:
    """Return which part of a state could be written but not read again; None if all can be read."""
    state, cls = method.state_dict(), type(method).__name__
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        return f"{cls}.state_dict must return a dict with texts as keys, not {_described(state)}. See methods/base.py."
    for key, value in state.items():
        file = io.BytesIO()
        try:
            torch.save(torch.utils._pytree.tree_map(_emptied, value), file)
            torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        except Exception as error:  # pickle raises whatever an object does
            reason = str(error).strip().splitlines() or [type(error).__name__]
            return (
                f"{cls}.state_dict holds under {key!r} {_described(value)}, which could not be loaded again "
                f"({reason[0][:160]}). Save tensors, numbers, texts, and lists or dicts of them."
            )
    return None


def _emptied(leaf: Any) -> Any:
    """Return a tensor without its elements, which a test of the format does not need; anything else unchanged."""
    return leaf[:0].clone() if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf


def _mentioned(value: Any) -> Iterator[str]:
    """Yield the names that a function's code uses, including functions nested in it."""
    code = getattr(getattr(value, "__func__", getattr(value, "fget", value)), "__code__", None)
    todo = [code] if code else []
    while todo:
        code = todo.pop()
        yield from code.co_names
        todo += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _digest(value: Any, method: Method, live: tuple[type, ...] = ()) -> str:
    total = hashlib.blake2b(digest_size=16)
    seen: dict[int, Any] = {id(method): method}  # values are kept, so that no id is reused
    _feed(total.update, value, seen, live)
    return total.hexdigest()


def _feed(update: Callable[[Any], None], value: Any, seen: dict[int, Any], live: tuple[type, ...]) -> None:
    """Add a value and everything inside it to a digest."""
    update(type(value).__name__.encode() + b";")
    if isinstance(value, PLAIN):
        update(repr(value).encode(errors="surrogatepass"))
        return
    if isinstance(value, (*NO_STATE, *live)) or id(value) in seen:
        return
    seen[id(value)] = value
    inner: list[Any]
    if isinstance(value, Tensor) and value.layout == torch.strided:
        update(f"{value.dtype}{tuple(value.shape)}".encode())
        update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return
    if isinstance(value, torch.Generator):
        inner = [value.get_state()]
    elif isinstance(value, dict):
        inner = [part for pair in value.items() for part in pair] + [*getattr(value, "__dict__", {}).items()]
    elif isinstance(value, (list, tuple)):
        inner = [*value, *getattr(value, "__dict__", {}).items()]
    elif isinstance(value, (set, frozenset)):
        inner = sorted(map(repr, value))
    else:  # any other object: what pickle would save of it
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # an open file, an iterator, a lock
            return
        inner = [reduced] if isinstance(reduced, str) else [
            part if not isinstance(part, Iterator) else list(part) for part in reduced[1:]
        ]
    update(str(len(inner)).encode())
    for part in inner:
        _feed(update, part, seen, live)


def _described(value: Any) -> str:
    """Describe a value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (bool, int, float)):
        return f"now {value!r}"
    if isinstance(value, (dict, list, tuple, set)):
        tensors = sum(isinstance(part, Tensor) for part in (value.values() if isinstance(value, dict) else value))
        return f"{type(value).__name__} of {tensors or len(value)} {'tensors' if tensors else 'values'}"
    return f"an object of {type(value).__name__}"
