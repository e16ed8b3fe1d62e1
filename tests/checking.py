"""What checks annotations in the tests: jaxtyping with beartype where there are shapes, beartype alone elsewhere.

jaxtyping binds the arguments of each call to their names and checks them twice. Only shapes need that.
"""

import functools
import inspect
import types
import typing

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, config

check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError))
"""An int may stand for a float, as in Python."""

jaxtyped = jaxtyping.jaxtyped


def checked(fn=None, **options):
    """`jaxtyping.jaxtyped`, but a function without shapes is checked by beartype alone."""
    if fn is None:
        return functools.partial(checked, **options)
    if not isinstance(fn, types.FunctionType) or inspect.isgeneratorfunction(fn):
        return jaxtyped(fn, **options)
    hints = {name: resolved(hint, fn) for name, hint in fn.__annotations__.items()}
    if any(map(shaped, hints.values())):
        return jaxtyped(fn, **options)
    twin = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
    twin.__kwdefaults__, twin.__annotations__, twin.__qualname__ = fn.__kwdefaults__, hints, fn.__qualname__
    twin.__module__ = fn.__module__
    typed = check(twin)

    @functools.wraps(fn)
    def call(*args, **kwargs):
        return fn(*args, **kwargs) if config.jaxtyping_disable else typed(*args, **kwargs)

    return call


def resolved(hint, fn):
    """An annotation as an object; `Any` if it names what is not there at run time, as jaxtyping does."""

    def holder(value): ...

    holder.__annotations__ = {"value": hint}
    try:
        return typing.get_type_hints(holder, fn.__globals__, include_extras=True)["value"]
    except Exception:
        return typing.Any


def shaped(hint) -> bool:
    """Whether an annotation has a shape in it."""
    return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or any(map(shaped, typing.get_args(hint)))
