"""The one definition of which transform runs when.

    {load, preprocess, augment}  |  one list  |  {train, valid, test, predict: list}   -> stages ->  Stages per split

load: file -> array. preprocess: deterministic, cached, travels with the model. augment: random, training patches only.
"""

import copy
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from monai.transforms import Compose, InvertibleTransform, MapTransform
from monai.transforms.traits import RandomizableTrait

from cyto_dl.config import instantiate
from cyto_dl.data.tables import SPLITS
from cyto_dl.data.transforms import ReadImaged, Transform, allowing_missing_keys
from cyto_dl.errors import ConfigError

STAGES = ("load", "preprocess", "augment")


class Stages(NamedTuple):
    """The transforms of one split, as objects."""

    load: tuple[Transform, ...]
    preprocess: tuple[Transform, ...]
    augment: tuple[Transform, ...]


def stages(transforms: Mapping[str, Sequence[Any]] | Sequence[Any], *, split: str) -> Stages:
    """The transforms that run on one split.

    Args:
        transforms: {load, preprocess, augment}; or one list, of which the random transforms are the augmentation and
            those up to the last `ReadImaged` the loading; or one such list per split. Items are objects, or mappings
            with a `_target_`.
        split: One of "train", "valid", "test", "predict". Only "train" is augmented, but for the random transforms that
            say `in_validation`: those run on validation images too.

    Raises:
        ConfigError: A key that is not known, a random transform where only deterministic ones may be.
    """
    if not isinstance(transforms, Mapping):
        found = _split_list(transforms, "data.transforms")
    elif set(transforms) <= set(STAGES):
        made = {stage: _objects(transforms.get(stage) or (), f"data.transforms.{stage}") for stage in STAGES}
        found = Stages(**made)
        for stage in ("load", "preprocess"):
            _refuse_random(made[stage], f"data.transforms.{stage}")
    elif set(transforms) <= set(SPLITS):
        if split not in transforms:
            raise ConfigError(f"data.transforms has no list for the split '{split}'; it has {', '.join(transforms)}.")
        found = _split_list(transforms[split], f"data.transforms.{split}")
        if split != "train":
            _refuse_random(found.augment, f"data.transforms.{split}")
    else:
        raise ConfigError(
            f"data.transforms has the keys {', '.join(map(str, transforms))}. It is one list, or a mapping with the "
            f"keys {', '.join(STAGES)}, or a mapping with the keys {', '.join(SPLITS)}."
        )
    if split == "train":
        return found
    kept = [transform for transform in found.augment if split == "valid" and getattr(transform, "in_validation", False)]
    return found._replace(augment=tuple(kept))


def made_targets(transforms: Mapping[str, Sequence[Any]] | Sequence[Any]) -> frozenset[str]:
    """The targets that augmentation makes of the source, such as `BlindSpotd`: a manifest may do without them."""
    per_split = isinstance(transforms, Mapping) and set(transforms) <= set(SPLITS)
    if per_split and "train" not in transforms:
        return frozenset()
    augment = stages(transforms, split="train").augment
    return frozenset(transform.target_key for transform in augment if hasattr(transform, "target_key"))


def readers(load: Sequence[Transform]) -> dict[str, ReadImaged]:
    """The reader of each key, among the transforms that load."""
    return {str(key): transform for transform in load if isinstance(transform, ReadImaged) for key in transform.keys}


def is_random(transform: Transform) -> bool:
    """Whether a transform, or one inside it, draws random numbers."""
    if type(transform) is Compose:  # its subclasses choose among their transforms at random
        return any(is_random(inner) for inner in transform.transforms)
    return isinstance(transform, RandomizableTrait)


def for_source(items: Sequence[Any], source_key: str) -> list[Any]:
    """The transforms that concern the source, for images without targets.

    Args:
        items: Objects, or mappings with a `_target_`.
        source_key: The key that is there.

    Returns:
        Items of the same kind. Those that concern only other keys are dropped; those that concern others too skip the
        missing ones.

    Raises:
        ConfigError: A transform concerns source and targets and cannot skip keys.
    """
    return _select(items, lambda keys, _: source_key in keys, lambda keys: set(keys) != {source_key})


def for_missing(items: Sequence[Any], missing: Collection[str]) -> list[Any]:
    """The transforms for a row that lacks some of its targets.

    Args:
        items: Objects, or mappings with a `_target_`.
        missing: The keys that are not there.

    Returns:
        Items of the same kind. Those that concern only missing keys are dropped; those that concern others too skip the
        missing ones.

    Raises:
        ConfigError: A transform concerns missing and other keys and cannot skip keys.
    """
    if not missing:
        return list(items)
    return _select(items, lambda keys, _: not set(keys) <= set(missing), lambda keys: not set(keys).isdisjoint(missing))


def for_targets(items: Sequence[Any], source_key: str) -> list[Any]:
    """The transforms of the targets, for comparing them with predictions in the geometry of the original image.

    What concerns the source too and can be inverted is undone on predictions, so it is not applied to targets.

    Args:
        items: Objects, or mappings with a `_target_`.
        source_key: The key that is not there.

    Returns:
        Items of the same kind; those that concern the source too skip it.
    """

    def concerns_targets(keys: Sequence[str], kind: type) -> bool:
        undone = source_key in keys and issubclass(kind, InvertibleTransform)
        return set(keys) != {source_key} and not undone

    return _select(items, concerns_targets, lambda keys: source_key in keys)


def _select(
    items: Sequence[Any], keep: Callable[[Sequence[str], type], bool], lenient: Callable[[Sequence[str]], bool]
) -> list[Any]:
    """The items whose keys are to be kept; those without keys (they see the whole row) are kept as they are."""
    selected = []
    for item in items:
        inner = _inner(item)
        keys = _keys(item)
        if inner is not None:
            is_plain = _kind(item) is Compose  # the others choose among theirs, some by weights: none may go
            selected.append(_with_inner(item, _select(inner, keep if is_plain else _always, lenient)))
        elif not keys:
            selected.append(item)
        elif keep(keys, _kind(item)):
            selected.append(_lenient(item) if lenient(keys) else item)
    return selected


def _always(keys: Sequence[str], kind: type) -> bool:
    return True


def _inner(item: Any) -> Sequence[Any] | None:
    """The transforms inside a Compose."""
    if isinstance(item, Mapping):
        return item.get("transforms") if issubclass(_kind(item), Compose) else None
    return item.transforms if isinstance(item, Compose) else None


def _with_inner(item: Any, inner: list[Any]) -> Any:
    if isinstance(item, Mapping):
        return {**item, "transforms": inner}
    made = copy.copy(item)
    made.transforms = tuple(inner)
    return made


def _keys(item: Any) -> tuple[str, ...]:
    keys = item.get("keys", ()) if isinstance(item, Mapping) else getattr(item, "keys", ())
    if callable(keys):  # a module's or a mapping's own method
        return ()
    return (keys,) if isinstance(keys, str) else tuple(keys)


def _kind(item: Any) -> type:
    """The class of an item; for a mapping, the class that it names."""
    if not isinstance(item, Mapping):
        return type(item)
    from hydra.utils import get_object

    try:
        kind = get_object(item["_target_"])
    except KeyError:
        raise ConfigError(f"A transform in data.transforms has no `_target_`: {dict(item)}.") from None
    except Exception as error:  # importing a module can fail in any way
        raise ConfigError(f"data.transforms names {item['_target_']}, which cannot be imported: {error}.") from error
    return kind if isinstance(kind, type) else type(kind)


def _lenient(item: Any) -> Any:
    kind = _kind(item)
    if isinstance(item, Mapping):
        able = "allow_missing_keys" in inspect.signature(kind).parameters
        changed: Any = {**item, "allow_missing_keys": True}
    else:
        able = isinstance(item, MapTransform) and hasattr(item, "allow_missing_keys")
        changed = allowing_missing_keys(item) if able else item
    if not able:
        raise ConfigError(
            f"The transform {kind.__name__} with the keys {list(_keys(item))} cannot leave a key out (it has no "
            "`allow_missing_keys`), but targets may be missing: in some rows, and always at predict time. "
            "Write it once per key in data.transforms."
        )
    return changed


def _split_list(items: Sequence[Any], where: str) -> Stages:
    """One list as stages: reading first, then what is deterministic, then what is random."""
    made = _objects(items, where)
    random = tuple(transform for transform in made if is_random(transform))
    fixed = [transform for transform in made if not is_random(transform)]
    num_load = max((index + 1 for index, transform in enumerate(fixed) if isinstance(transform, ReadImaged)), default=0)
    return Stages(tuple(fixed[:num_load]), tuple(fixed[num_load:]), random)


def _objects(items: Sequence[Any], where: str) -> tuple[Transform, ...]:
    made = []
    for index, item in enumerate(items):
        transform = instantiate(item, f"{where}[{index}]") if isinstance(item, Mapping) else item
        if not callable(transform):
            raise ConfigError(f"{where}[{index}] is not a transform but {transform!r}. It needs a `_target_`.")
        made.append(transform)
    return tuple(made)


def _refuse_random(transforms: Sequence[Transform], where: str) -> None:
    if random := [type(transform).__name__ for transform in transforms if is_random(transform)]:
        raise ConfigError(
            f"{where} holds random transforms ({', '.join(random)}), but it must be deterministic: it runs in every "
            "stage, is cached, and goes into the bundle. Move them to data.transforms.augment."
        )
