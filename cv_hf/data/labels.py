"""The label contract: source id -> contiguous id -> name, the same for every reader, metric, picture and export."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cv_hf.config import BoundedComposer
from cv_hf.errors import DataError, did_you_mean, printable

Source = int | str | bool

# What masks of two values show where nothing names them.
BINARY = ("background", "foreground")
# Lines of a palette: CamVid's label_colors.txt, "64 128 64 Animal", and CVAT's labelmap.txt, "animal:64,128,64::".
_COLOUR_FIRST = re.compile(r"(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)[\s,]+(?P<name>\S.*)")
_NAME_FIRST = re.compile(r"(?P<name>[^#:][^:]*):(?P<r>\d+),(?P<g>\d+),(?P<b>\d+)(:.*)?")


@dataclass(frozen=True)
class LabelMap:
    """The classes of a dataset, in the order of their contiguous ids.

    Attributes:
        names: the name of each contiguous id, all different.
        sources: the value that stands for it in the data (an int, str or bool, all of one type and all different), or
            None where the data has no value for that class (a dataset with fewer classes than the model).
        ignore_index: the source value that means "no label", if there is one.
        things: the names of the countable classes, all others being stuff; None where the data does not tell.
        whose: what an error calls the map.
    """

    names: tuple[str, ...]
    sources: tuple[Source | None, ...]
    ignore_index: int | None = None
    things: tuple[str, ...] | None = None
    whose: str = field(default="the label map", compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "sources", tuple(self.sources))
        if len(self.names) != len(self.sources):
            raise DataError(f"{len(self.names)} label names for {len(self.sources)} labels.")
        for name in _repeated(self.names):
            raise DataError(f"two labels have the name {_short(repr(name))}; label names must be different.")
        if self.things is not None:
            object.__setattr__(self, "things", tuple(self.things))
            for name in set(self.things) - set(self.names):
                raise DataError(
                    f"{name!r} cannot be countable: it is none of the labels.{did_you_mean(name, self.names)}"
                )
        present = [source for source in self.sources if source is not None]
        if len({type(source) for source in present}) > 1:
            raise DataError(f"the labels are of several types: {shortened(present)}; use either numbers or text.")
        for source in _repeated(present):
            raise DataError(f"the label {_short(repr(source))} stands twice in the label map.")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def _ids(self) -> dict[Source, int]:
        return {source: index for index, source in enumerate(self.sources) if source is not None}

    def encode(self, source: Source) -> int:
        """Return the contiguous id of a label as it stands in the data.

        Raises:
            DataError: the label is not in the map.
        """
        index = self._ids.get(source)
        # True == 1 in Python, so that a boolean would be found among numbers.
        if index is None or isinstance(source, bool) != isinstance(self.sources[index], bool):
            raise self.unknown(source)
        return index

    def unknown(self, label: object) -> DataError:
        """The error for a label that the map does not have."""
        near = did_you_mean(label, self.names) if isinstance(label, str) else ""
        # A data set with numbers for labels is only understood with the numbers beside the names.
        plain = all(isinstance(source, str) or source is None for source in self.sources)
        known = self.names if plain or isinstance(label, str) else self._with_sources()
        return DataError(f"label {_short(repr(label))} is not in {self.whose} ({shortened(known, quote=False)}).{near}")

    def _with_sources(self) -> list[str]:
        pairs = zip(self.sources, self.names, strict=True)
        return [name if str(source) == name else f"{source}: {name}" for source, name in pairs if source is not None]

    def with_sources_of(self, data: LabelMap) -> LabelMap:
        """The same ids and names for another dataset, whose own map is `data`.

        Classes are matched by name. Labels without names of their own (numbers in both, or text that this map has
        as source ids) are matched by source id, and the two of masks that nothing names by their order.
        """
        own, ids = self._ids, self.label2id
        nameless = all(name == str(source) for source, name in zip(data.sources, data.names, strict=True))
        unnamed = not any(name in ids for name in data.names)
        if nameless and (unnamed or all(source in own for source in data.sources)):
            found = {own[source]: source for source in data.sources if source in own}
        elif data.names == BINARY and len(self) == 2 and any(name not in ids for name in BINARY):
            found = dict(enumerate(data.sources))
        else:
            pairs = zip(data.names, data.sources, strict=True)
            found = {ids[name]: source for name, source in pairs if name in ids}
        sources = tuple(found.get(index) for index in range(len(self)))
        return LabelMap(self.names, sources, data.ignore_index, self.things, "the labels of the model")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` gives back an equal map, 1 and "1" still told apart."""
        values = {"names": list(self.names), "sources": list(self.sources), "ignore_index": self.ignore_index}
        return values if self.things is None else {**values, "things": list(self.things)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelMap:
        """The map of `to_dict`; DataError where the values are none of a map."""
        text, plain = (str,), (str, int, bool, type(None))
        for key, kinds in (("names", text), ("sources", plain), ("things", text)) if isinstance(values, dict) else ():
            listed = values.get(key, [] if key == "things" else None)
            if not (isinstance(listed, list) and all(isinstance(each, kinds) for each in listed)):
                raise DataError(f"labels: {key} is no list of {'names' if kinds is text else 'values'}.")
        if not isinstance(values, dict) or not isinstance(values.get("ignore_index"), (int, type(None))):
            raise DataError("labels: they are no map of names and values.")
        things = values.get("things")
        return cls(tuple(values["names"]), tuple(values["sources"]), values.get("ignore_index"), things)


def from_class_names(names: Sequence[str], ignore_index: int | None = None) -> LabelMap:
    """The map of a ClassLabel feature: source ids 0, 1, ... in the order of its names."""
    return LabelMap(tuple(names), tuple(range(len(names))), ignore_index)


def from_values(values: Iterable[Source], ignore_index: int | None = None) -> LabelMap:
    """The map of the values seen in the data: text in alphabetical order, numbers in theirs, false before true.

    A label's name is its value as text.

    Raises:
        DataError: values of several types.
    """
    seen = {(type(value), value) for value in values if value != ignore_index or isinstance(value, bool)}
    if len({kind for kind, _ in seen}) > 1:
        raise DataError(f"the labels are of several types: {shortened([value for _, value in seen])}; use one type.")
    sources = sorted(value for _, value in seen)
    return LabelMap(tuple(str(source) for source in sources), tuple(sources), ignore_index)


def from_recipe(
    labels: list[str] | str | dict[int | str, str],
    *,
    folder: Path | None = None,
    class_names: Sequence[str] | None = None,
    class_sources: Sequence[Source] | None = None,
    kind: type = str,
    ignore_index: int | None = None,
) -> LabelMap:
    """The map that the recipe's `data.labels` gives.

    Args:
        labels: the names; or {source id: name}; or a file of them, .txt (one name per line), .json or .yaml.
        folder: where a file is also looked for.
        class_names: the names that the data has for its ids, if it has names (ClassLabel, COCO's categories).
        class_sources: these ids; None: 0, 1, ...
        kind: what a label in the data is: int, str or bool.

    A list orders the classes: text labels are its names; numbers are positions in it, from 0 (for others, write
    {id: name}). Where the data has names, names of the list are looked up among them, and if it has none of them, the
    list renames all of the classes.

    Raises:
        DataError: a file that cannot be read, or labels that do not fit those of the data.
    """
    if isinstance(labels, str):
        labels = _read(labels, folder)
    ids: Sequence[Source] = class_sources or range(len(class_names or ()))
    known = dict(zip(class_names or (), ids, strict=True))
    if isinstance(labels, dict):
        sources = [known[source] if source in known else _as(kind, source) for source in labels]
        return LabelMap(tuple(str(name) for name in labels.values()), tuple(sources), ignore_index)
    names = tuple(str(name) for name in labels)
    if class_names is not None:
        if any(name in known for name in names):
            for name in names:
                if name not in known:
                    near = did_you_mean(name, known)
                    raise DataError(
                        f"data.labels: the data has no class {name!r} ({shortened(class_names, False)}).{near}"
                    )
            return LabelMap(names, tuple(known[name] for name in names), ignore_index)
        if len(names) != len(class_names):
            raise DataError(
                f"data.labels has {len(names)} names for the {len(class_names)} classes of the data "
                f"({shortened(class_names, quote=False)})."
            )
        return LabelMap(names, tuple(ids), ignore_index)
    if kind is bool and len(names) != 2:
        raise DataError(f"data.labels has {len(names)} names for the labels false and true.")
    sources = names if kind is str else (False, True) if kind is bool else tuple(range(len(names)))
    return LabelMap(names, sources, ignore_index)


def read_values(name: str, folder: Path | None = None) -> list[str] | dict[int | str, str]:
    """The names of a mask's values in a file.

    Args:
        name: as `from_recipe` takes a file; or a palette: a CSV of name, r, g, b, or of pixel value and class; lines of
            `r g b name` or of `name:r,g,b`; or JSON or YAML {name: [r, g, b]}.
        folder: where it is also looked for.

    Returns:
        names in the order of their values; or {value: name}, where a colour is text, "#rrggbb".

    Raises:
        DataError: a file that cannot be read.
    """
    if name.lower().endswith(".csv"):
        return _read_csv(name, folder)
    values = _read(name, folder)
    if isinstance(values, list):
        lines = [line for line in map(str, values) if not line.startswith("#")]
        for pattern in (_COLOUR_FIRST, _NAME_FIRST):
            found = [pattern.fullmatch(line) for line in lines]
            if found and all(found):
                return _palette(((line["name"], (line["r"], line["g"], line["b"])) for line in found if line), name)
    elif all(isinstance(value, list) for value in values.values()):
        return _palette(values.items(), name)
    return values


def _read_csv(name: str, folder: Path | None) -> list[str] | dict[int | str, str]:
    lines = _text(name, folder).splitlines()
    separator = max(",;\t", key=lines[0].count) if lines else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator) if any(row)]
    header = [cell.lower() for cell in rows[0]] if rows else []
    try:
        if {"r", "g", "b"} <= set(header):
            places = [header.index(channel) for channel in "rgb"]
            named = next(place for place in range(len(header)) if place not in places)
            return _palette(((row[named], [row[place] for place in places]) for row in rows[1:]), name)
        if len(header) == 2:
            # Without a header the first row is one like the others.
            return {int(value): label for value, label in rows[0 if header[0].isdecimal() else 1 :]}
    except (IndexError, StopIteration, ValueError):
        pass
    raise DataError(f"data.labels: {name} is no palette: its columns must be name, r, g, b; or pixel value, class.")


def _palette(pairs: Iterable[tuple[Any, Sequence[Any]]], file: str) -> dict[int | str, str]:
    """{"#rrggbb": name} of pairs of a name and its red, green and blue, 0 to 255."""
    found: dict[int | str, str] = {}
    for name, channels in pairs:
        try:
            colour = "#" + bytes(map(int, channels)).hex()
        except (TypeError, ValueError):
            colour = ""
        if len(colour) != 7:
            raise DataError(f"data.labels: {file}: {name!r} has no colour of three numbers from 0 to 255.")
        if colour in found:
            raise DataError(f"data.labels: {file}: {found[colour]!r} and {name!r} have the same colour.")
        found[colour] = str(name)
    return found


def _as(kind: type, source: int | str) -> Source:
    if kind is str:
        return str(source)
    text = str(source).strip().lower()
    if kind is bool:
        if text not in ("false", "true", "0", "1"):
            raise DataError(f"data.labels: {source!r} is neither true nor false, as the labels of the data are.")
        return text in ("true", "1")
    try:
        return int(text)
    except ValueError:
        raise DataError(f"data.labels: {source!r} is not a number, as the labels of the data are.") from None


class _Loader(BoundedComposer, yaml.SafeLoader):
    pass


def _read(name: str, folder: Path | None) -> list[str] | dict[int | str, str]:
    text, suffix = _text(name, folder), Path(name).suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        values = json.loads(text) if suffix == ".json" else yaml.load(text, Loader=_Loader)
    except (ValueError, LookupError, AttributeError, TypeError, yaml.YAMLError, RecursionError):  # "!!int" of no number
        raise DataError(f"data.labels: {name} is not valid {suffix[1:].upper()}.") from None
    if not isinstance(values, (list, dict)) or not values:
        raise DataError(f"data.labels: {name} must hold a list of names, or {{id: name}}.")
    return values


def _text(name: str, folder: Path | None) -> str:
    path = Path(name)
    if not path.is_file() and folder is not None:
        path = folder / name
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise DataError(f"data.labels: the file {name} cannot be read (a .txt, .json or .yaml in UTF-8).") from None


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


def shortened(values: Sequence[Any], quote: bool = True) -> str:
    """The first ten of some values, for a message."""
    shown = [_short(repr(value)) if quote else _short(printable(value)) for value in list(values)[:10]]
    return ", ".join(shown) + (", ..." if len(values) > 10 else "")
