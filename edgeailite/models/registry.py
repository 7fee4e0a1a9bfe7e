"""One table of models, by name."""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from edgeailite._extras import needs_extra

__all__ = ["create_model", "list_models", "register_model"]

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_FAMILIES: dict[str, Callable[..., nn.Module]] = {}
_UNLISTED: set[str] = set()

# A width at the end of a name, "p" for the decimal point: _x1, _x0p25, _xp5
_WIDTH = re.compile(r"(?P<family>.+)_x(?P<whole>\d*)(?:p(?P<fraction>\d+))?")


def register_model(
    *names: str, family: str | None = None, aliases: Sequence[str] = ()
) -> Callable[[Builder], Builder]:
    """Enter a builder of models into the registry, as a decorator.

    Args:
        *names: Names to list it under.
        family: Set where the builder takes `width_mult`. Each of `names` is then this family's
            name and a width (``_x1``, ``_x0p25``, ``_xp5``; ``p`` is the decimal point), which
            becomes the builder's `width_mult`; other widths are accepted without being listed.
        aliases: Further names that are accepted without being listed.

    Returns:
        The decorator; it leaves the builder as it is.

    Raises:
        ValueError: A name is taken already, or does not belong to `family`.
    """

    def register(builder: Builder) -> Builder:
        for name in (*names, *aliases):
            if name in _BUILDERS:
                raise ValueError(f"A model named {name!r} is registered already; choose another.")
            if family is not None and _split_width(name)[0] != family:
                raise ValueError(
                    f"{name!r} is no name of the family {family!r}; such names look like "
                    f"'{family}_x1'."
                )
            _BUILDERS[name] = builder
        _UNLISTED.update(aliases)
        if family is not None:
            _FAMILIES[family] = builder
        return builder

    return register


def create_model(name: str, *, num_classes: int = 1000, **kwargs: Any) -> nn.Module:
    """Build a model with random weights.

    Args:
        name: A name of :func:`list_models`; for those that end in a width any other width as
            well (``mobilenetv1_x0p25``); ``torchvision/NAME`` for any model of torchvision; with
            timm installed, ``timm/NAME``.
        num_classes: Number of classes of the output.
        **kwargs: For the model: of this registry's families `strides` (of the five stages, such as
            ``(1, 1, 1, 2, 2)`` for small images), `width_mult` (multiplies the width in the name)
            and `activation`; for a model from elsewhere what its own constructor takes.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: There is no such model; the message has the nearest names.
        TypeError: The model takes no such option.
        ImportError: ``timm/NAME`` is asked for and timm is not installed.
    """
    if name.startswith("torchvision/"):
        return _from_torchvision(name.removeprefix("torchvision/"), num_classes, kwargs)
    if name.startswith("timm/"):
        return _from_timm(name.removeprefix("timm/"), num_classes, kwargs)
    family, width = _split_width(name)
    if family in _FAMILIES:
        width_mult = width * kwargs.pop("width_mult", 1.0)
        return _FAMILIES[family](num_classes=num_classes, width_mult=width_mult, **kwargs)
    if name not in _BUILDERS:
        raise _unknown(name, list_models())
    return _BUILDERS[name](num_classes=num_classes, **kwargs)


def list_models(contains: str = "") -> list[str]:
    """The registered names, sorted.

    Args:
        contains: Only names with this part.
    """
    return sorted(name for name in _BUILDERS if contains in name and name not in _UNLISTED)


def _split_width(name: str) -> tuple[str, float]:
    match = _WIDTH.fullmatch(name)
    if match is None or not (match["whole"] or match["fraction"]):
        return name, 1.0
    return match["family"], float(f"{match['whole'] or 0}.{match['fraction'] or 0}")


def _from_torchvision(name: str, num_classes: int, kwargs: dict[str, Any]) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models()
    if name not in known:
        raise _unknown(name, known, "torchvision/")
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **kwargs)


def _from_timm(name: str, num_classes: int, kwargs: dict[str, Any]) -> nn.Module:
    with needs_extra("timm", f"timm/{name}"):
        import timm

    if not timm.is_model(name):
        raise _unknown(name, timm.list_models(), "timm/")
    return timm.create_model(name, pretrained=False, num_classes=num_classes, **kwargs)


def _unknown(name: str, known: list[str], prefix: str = "") -> ValueError:
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"The nearest: {', '.join(prefix + n for n in nearest)}. " if nearest else ""
    return ValueError(
        f"There is no model {prefix + name!r}. {hint}list_models() names all; torchvision/NAME and "
        f"timm/NAME take theirs."
    )
