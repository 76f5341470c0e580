"""What may be changed for one image without training again: thresholds, least sizes, overlap, test-time augmentation.

    predictor --parameters_of--> {name: Parameter} --a user's values--> with_parameters --> another predictor

A bundle offers what its postprocessing functions and its window take; an argument that several heads take is offered
for each of them, as HEAD.ARGUMENT. The network stays the same.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cyto_dl.errors import ConfigError
from cyto_dl.inference.views import AUGMENTATIONS
from cyto_dl.model.utils.postprocessing import connected_components, instances, sigmoid_threshold

if TYPE_CHECKING:
    from cyto_dl.inference.predictor import Predictor

LARGEST_OVERLAP = 0.75  # a stack then takes 64 times the windows that it takes without
LARGEST_SIZE_PX = 2**31 - 1


@dataclass(frozen=True)
class Parameter:
    """A value that may be changed, and within which bounds.

    Args:
        name: How it is asked for.
        kind: "number", "integer", "numbers" (one or several, separated by commas in a text) or "text".
        meaning: In a sentence.
        default: What holds when nobody asks.
        minimum, maximum: Least and greatest value, None where there is no bound.
        is_open: The bounds themselves are not allowed.
        choices: The texts that are allowed; empty: any.
        num_values: How many "numbers" there must be; None: one or more.
    """

    name: str
    kind: str
    meaning: str
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    is_open: bool = False
    choices: tuple[str, ...] = ()
    num_values: int | None = None

    def read(self, value: Any) -> Any:
        """A user's value as the parameter's kind; numbers may come as text, which some protocols need.

        Raises:
            ConfigError: It is of another kind, or out of bounds; says what is accepted.
        """
        readers: dict[str, Callable[[Any], Any]] = {
            "number": _number,
            "integer": _integer,
            "numbers": _numbers,
            "text": _text,
        }
        try:
            found = readers[self.kind](value)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"{self.name}: {_shortened(value)} is not {self.accepted}.") from None
        values = found if isinstance(found, list) else [found]
        if not all(map(self._allows, values)) or self.num_values not in (None, len(values)):
            raise ConfigError(f"{self.name}: {_shortened(value)} is not {self.accepted}.")
        return found

    @property
    def accepted(self) -> str:
        """What is accepted, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        count = "one or more" if self.num_values is None else self.num_values
        kinds = {"number": "a number", "integer": "a whole number", "numbers": f"{count} numbers", "text": "a text"}
        return f"{kinds[self.kind]}{self._bounds}"

    @property
    def _bounds(self) -> str:
        if self.minimum is None:
            return ""
        if self.maximum is None:
            return f" above {self.minimum:g}" if self.is_open else f" of {self.minimum:g} or more"
        words = "between {} and {}, both excluded" if self.is_open else "from {} to {}"
        return " " + words.format(_plain(self.minimum), _plain(self.maximum))

    def described(self) -> dict[str, Any]:
        """As metadata tell it."""
        told: dict[str, Any] = {"type": self.kind, "meaning": self.meaning, "default": self.default}
        if self.minimum is not None or self.maximum is not None:
            told |= {"minimum": self.minimum, "maximum": self.maximum, "bounds_excluded": self.is_open}
        return told | ({"choices": list(self.choices)} if self.choices else {})

    def _allows(self, value: Any) -> bool:
        if self.kind == "text":
            return not self.choices or value in self.choices
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        return low < value < high if self.is_open else low <= value <= high


_OF_ARGUMENTS = {
    "threshold": Parameter("", "number", "Probability above which a pixel is foreground.", None, 0, 1, is_open=True),
    "foreground": Parameter(
        "", "number", "Probability above which a pixel belongs to an object.", None, 0, 1, is_open=True
    ),
    "seed": Parameter(
        "", "numbers", "Border distance above which a pixel belongs to an object's core; higher: more is split.",
        None, 0, 1, is_open=True,
    ),
    "min_size": Parameter("", "integer", "Objects of fewer pixels are left out.", None, 0, LARGEST_SIZE_PX),
    "min_seed": Parameter("", "integer", "Cores of fewer pixels split nothing off.", None, 0, LARGEST_SIZE_PX),
}  # fmt: skip
_ARGUMENTS_OF: Mapping[Any, tuple[str, ...]] = {
    sigmoid_threshold: ("threshold",),
    connected_components: ("threshold", "min_size"),
    instances: ("foreground", "seed", "min_size", "min_seed"),
}


def parameters_of(predictor: "Predictor") -> dict[str, Parameter]:
    """What may be changed about a predictor, by name; the defaults are what it does now."""
    offered = {}
    for name, (head, argument) in _arguments(predictor).items():
        default = _default(predictor.postprocess[head], argument)
        offered[name] = replace(_OF_ARGUMENTS[argument], name=name, default=default)
    window = predictor.window
    if window.roi_size is not None:
        meaning = "Least overlap of neighbouring windows, as a part of the window; more takes longer."
        offered["overlap"] = Parameter("overlap", "number", meaning, window.overlap, 0, LARGEST_OVERLAP)
    sides = [None] if window.roi_size is None else list(window.roi_size)[-2:]
    choices = ("none", *(each for each in AUGMENTATIONS if each != "rotations" or len(set(sides)) == 1))
    meaning = "Test-time augmentation: flips take 4 times as long, rotations 8 times."
    offered["augment"] = Parameter("augment", "text", meaning, window.augment or "none", choices=choices)
    return offered


def read_parameters(values: Mapping[str, Any], offered: Mapping[str, Parameter]) -> dict[str, Any]:
    """A user's values, checked.

    Raises:
        ConfigError: There is no such parameter, or its value is not accepted.
    """
    unknown = [name for name in values if name not in offered]
    if unknown:
        raise ConfigError(f"there is no parameter {_shortened(unknown[0])}; there are {', '.join(offered) or 'none'}.")
    return {name: offered[name].read(value) for name, value in values.items()}


def with_parameters(predictor: "Predictor", values: Mapping[str, Any]) -> "Predictor":
    """The predictor that does as the values say; the given one is not changed.

    Args:
        predictor: The model.
        values: By the names of `parameters_of`.

    Raises:
        ConfigError: There is no such parameter, or its value is not accepted.
    """
    if not values:
        return predictor
    checked = read_parameters(values, parameters_of(predictor))
    postprocess = dict(predictor.postprocess)
    for name, (head, argument) in _arguments(predictor).items():
        if name in checked:
            postprocess[head] = functools.partial(postprocess[head], **{argument: checked[name]})
    window = predictor.window
    if "overlap" in checked:
        window = replace(window, overlap=checked["overlap"])
    if "augment" in checked:
        window = replace(window, augment=None if checked["augment"] == "none" else checked["augment"])
    return replace(predictor, postprocess=postprocess, window=window)


def _arguments(predictor: "Predictor") -> dict[str, tuple[str, str]]:
    """The head and the argument that a parameter changes, by its name."""
    takers: dict[str, list[str]] = {}
    for head, function in predictor.postprocess.items():
        for argument in _ARGUMENTS_OF.get(_called(function), ()):
            takers.setdefault(argument, []).append(head)
    return {
        argument if len(heads) == 1 else f"{head}.{argument}": (head, argument)
        for argument, heads in takers.items()
        for head in heads
    }


def _called(function: Any) -> Any:
    """The function of a partial; a function of somebody's own may be an object that cannot be looked up."""
    inner = getattr(function, "func", function)
    return inner if inspect.isfunction(inner) else None


def _default(function: Any, argument: str) -> Any:
    given = getattr(function, "keywords", {}).get(argument)
    found = inspect.signature(_called(function)).parameters[argument].default if given is None else given
    if argument == "seed":
        return list(found) if isinstance(found, Sequence) else [found]
    return found


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    found = float(value)
    if not math.isfinite(found):
        raise ValueError
    return found


def _integer(value: Any) -> int:
    found = _number(value)
    if found != int(found):
        raise ValueError
    return int(found)


def _numbers(value: Any) -> list[float]:
    values = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError
    return [_number(each) for each in values]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _shortened(value: Any) -> str:
    """What a user wrote, for a message: not all of a megabyte."""
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:60]}..."
