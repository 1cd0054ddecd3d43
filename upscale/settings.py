"""What settings are made of: the strict base class, the types of numbers, and how components are found by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Protocol, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

AUTO: Any = "auto"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Named = TypeVar("Named", bound=_Named)
Component = TypeVar("Component", bound="Section")
Class = TypeVar("Class")


def integral(value: Any) -> Any:
    """Accept 20.0e6 for a count: YAML has no other short way to write it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(integral), Field(ge=1)]
CountOrZero = Annotated[int, BeforeValidator(integral), Field(ge=0)]
if TYPE_CHECKING:
    Auto = NoReturn  # code computes with resolved configs, in which numbers have taken the place of `auto`
else:
    Auto = Literal["auto"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


def components(room: ModuleType, base: type[Component]) -> dict[str, type[Component]]:
    """The settings class of every component in a room, by the names that its field `kind` allows, sorted.

    Imports every file and folder of the room once; a subclass of `base` with a field `kind` is a component. Raises
    TypeError when two claim one name.
    """
    found: dict[str, type[Component]] = {}
    for settings in _subclasses_in(room, base):
        for kind in get_args(settings.model_fields["kind"].annotation) if "kind" in settings.model_fields else ():
            _add(found, kind, settings)
    return dict(sorted(found.items()))


def classes(room: ModuleType, base: type[Class]) -> dict[str, type[Class]]:
    """The subclasses of `base` in a room, by the name that their attribute `kind` gives, sorted.

    Imports every file and folder of the room once. Raises TypeError when two claim one name.
    """
    found: dict[str, type[Class]] = {}
    for component in _subclasses_in(room, base):
        if kind := vars(component).get("kind"):
            _add(found, kind, component)
    return dict(sorted(found.items()))


def instances(room: ModuleType, base: type[Named]) -> dict[str, Named]:
    """The instances of `base` that the files of a room hold as globals, by their attribute `name`, sorted.

    Imports every file and folder of the room once. Raises TypeError when two have one name.
    """
    found: dict[str, Named] = {}
    for module in modules(room):
        for value in vars(module).values():
            if isinstance(value, base) and found.setdefault(value.name, value) is not value:
                raise TypeError(
                    f"{module.__name__} defines {value.name!r}, and so does another file of {room.__name__}"
                )
    return dict(sorted(found.items()))


def modules(room: ModuleType) -> list[ModuleType]:
    """Every file and folder of a room, imported."""
    return [importlib.import_module(found.name) for found in pkgutil.iter_modules(room.__path__, room.__name__ + ".")]


def _subclasses_in(room: ModuleType, base: type[Class]) -> list[type[Class]]:
    """The subclasses of `base` that the files and folders of a room define."""
    places = {module.__name__ for module in modules(room)}

    def below(parent: type[Class]) -> Iterator[type[Class]]:
        for subclass in parent.__subclasses__():
            yield subclass
            yield from below(subclass)

    return [found for found in below(base) if found.__module__ in places]


def _add(found: dict[str, type], kind: str, component: type) -> None:
    if found.setdefault(kind, component) is not component:
        raise TypeError(f"{component.__qualname__} and {found[kind].__qualname__} are both called {kind!r}")
