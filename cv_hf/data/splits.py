"""Which split is trained on, which one validates and which one tests; and what is held out where one is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cv_hf.errors import DataError, did_you_mean

ROLES = ("train", "validation", "test")
USUAL_NAMES = {
    "train": ("train", "training", "train2017", "train2014"),
    "validation": ("validation", "val", "valid", "dev", "val2017", "val2014"),
    "test": ("test", "testing", "test2017", "test2015"),
}
HELD_OUT = 0.15


def role_of(name: str) -> str | None:
    """The role that a split is usually named for, or None."""
    lower = name.lower()
    return next((role for role in ROLES if lower in USUAL_NAMES[role]), None)


def usual_split(names: Sequence[str], role: str) -> str | None:
    """The split that is named for a role, or None; of several, the one with the most usual name."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in USUAL_NAMES[role] if name in by_lower), None)


def check_split(name: str, names: Sequence[str], where: str = "data.splits") -> str:
    """Return `name`, which must be one of the splits.

    Raises:
        DataError: lists the splits.
    """
    if name not in names:
        near = did_you_mean(name, names)
        raise DataError(f"{where}: there is no split {name!r}.{near} Splits: {', '.join(names) or 'none'}.")
    return name


def choose_splits(
    names: Sequence[str], given: Mapping[str, str | int | float] | None = None
) -> tuple[dict[str, str], dict[str, int | float]]:
    """Decide the role of each split.

    Args:
        names: the splits of the source.
        given: the recipe's `data.splits`.

    Returns:
        {role: split name}, and {role: share or number per class} of what is to be held out of train.

    Raises:
        DataError: a split that is not there, that has two roles, or none that can be trained on.
    """
    given = dict(given or {})
    chosen = {
        role: check_split(name, names, f"data.splits.{role}") for role, name in given.items() if isinstance(name, str)
    }
    held_out = {role: part for role, part in given.items() if not isinstance(part, str)}
    free = [name for name in names if name not in chosen.values()]
    for role in ROLES:
        if role not in given and (usual := usual_split(free, role)) is not None:
            chosen[role] = usual
    if "train" not in chosen:
        if len(names) != 1 or "train" in given or chosen:
            raise DataError(
                f"no split to train on among: {', '.join(names) or 'none'}.\nName it: data.splits.train=NAME."
            )
        chosen["train"] = names[0]
    if len(set(chosen.values())) < len(chosen):
        raise DataError(
            f"data.splits: one split has two roles ({', '.join(f'{r}: {n}' for r, n in chosen.items())}).\n"
            "To hold samples out of train, give a share (0.15) or a number per class."
        )
    if "validation" not in chosen and "validation" not in held_out:
        held_out["validation"] = HELD_OUT
    return {role: chosen[role] for role in ROLES if role in chosen}, held_out


def hold_out(strata: Sequence[Any], parts: Mapping[str, int | float], seed: int) -> dict[str, list[int]]:
    """Divide sample indices into `parts` and the rest, stratified.

    Args:
        strata: one key per sample, None for one of no class; None throughout for samples that have no single class.
        parts: {name: share of each stratum (0 to 1), or number of samples of each (int)}.
        seed: the same seed gives the same parts on every machine.

    Returns:
        ascending indices of each part, and of what remains, as "train". A share takes round(share * n) of n samples,
        but at least 1 of each stratum that has enough, and never all of it.

    Raises:
        DataError: a stratum with too few samples for the number asked for.
    """
    random = np.random.RandomState(seed)  # its stream is frozen, unlike default_rng's
    keys = list(strata)
    single = all(key is None for key in keys)
    taken: dict[str, list[int]] = {name: [] for name in (*parts, "train")}
    for key, members in _by_stratum(keys):
        order = [members[position] for position in random.permutation(len(members))]
        for name, part in parts.items():
            number = (
                part if isinstance(part, int) else min(max(1, math.floor(part * len(members) + 0.5)), len(order) - 1)
            )
            if isinstance(part, int) and single:
                raise DataError(
                    f"data.splits.{name}: {part} per class, but samples have several labels; give a share, as 0.15."
                )
            if isinstance(part, int) and key is None:
                # Samples of no class, as images without objects: so many of them too, if there are.
                number = min(part, len(order) - 1)
            elif isinstance(part, int) and number >= len(order):
                raise DataError(
                    f"data.splits.{name}: {part} per class, but class {key} has {len(members)} samples, "
                    "and some must remain to train on."
                )
            taken[name] += order[: max(0, number)]
            order = order[max(0, number) :]
        taken["train"] += order
    return {name: sorted(indices) for name, indices in taken.items()}


def subset(strata: Sequence[Any], size: int, seed: int) -> list[int]:
    """Return ascending indices of `size` samples, in the strata's proportions, one of each at least if possible."""
    random = np.random.RandomState(seed)
    places = []
    for _, members in _by_stratum(list(strata)):
        order = random.permutation(len(members))
        places += [(rank / len(members), members[position]) for rank, position in enumerate(order)]
    return sorted(index for _, index in sorted(places)[:size])


def _by_stratum(keys: list[Any]) -> list[tuple[Any, list[int]]]:
    members: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    return (
        sorted(members.items(), key=lambda item: (str(type(item[0])), item[0]))
        if len(members) > 1
        else list(members.items())
    )
