"""The recipes that come with cv_hf; a wheel carries them inside the package, a checkout beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from cv_hf.errors import RecipeError, did_you_mean

_ABOVE_TABLE = """\
<!-- Written by `python -m cv_hf.recipes`. -->
# Recipes

    cv-hf recipes copy NAME    # then edit it
    cv-hf train NAME.yaml

Each opens with its own command, the licences of its model and dataset, and the dataset's columns and splits.

How they are checked: `tests/test_recipes.py` runs every file below, unmodified, for two steps. A tiny random model of
the same architecture and a tiny dataset with the same columns and splits stand in for the real ones. Ids, columns and
licences are those of the Hub's public pages; no recipe has been trained to its end on the real data yet.

`open_recipe.py` is the same road as a script, with every step in the open.

| Recipe | Task | Model | Dataset |
|---|---|---|---|"""


def folder() -> Path:
    """Where the recipes are."""
    inside = Path(__file__).parent / "_recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def names() -> dict[str, Path]:
    """Recipe files by name, `task_folder/stem`."""
    return {path.relative_to(folder()).with_suffix("").as_posix(): path for path in sorted(folder().glob("*/*.yaml"))}


def describe() -> list[tuple[str, str, str, str]]:
    """(name, task, model, dataset) of each recipe."""
    rows = []
    for name, path in names().items():
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows.append((name, values["task"], values["model"]["id"], values["data"]["id"]))
    return rows


def table() -> str:
    """The text of recipes/README.md: `python -m cv_hf.recipes > recipes/README.md`."""
    rows = [
        f"| [{name}]({name}.yaml) | {task} | [{model}](https://huggingface.co/{model}) "
        f"| [{data}](https://huggingface.co/datasets/{data}) |"
        for name, task, model, data in describe()
    ]
    return "\n".join([_ABOVE_TABLE, *rows])


def find(name: str) -> Path:
    """The file of a recipe, by its whole name or its last part; also `open_recipe`, the script.

    Raises:
        RecipeError: no recipe of that name, or several.
    """
    if name.removesuffix(".py") == "open_recipe":
        return folder() / "open_recipe.py"
    wanted = name.removesuffix(".yaml")
    known = names()
    found = [path for full, path in known.items() if wanted in (full, full.split("/")[-1])]
    if len(found) != 1:
        near = did_you_mean(wanted, [*known, *(full.split("/")[-1] for full in known)])
        raise RecipeError(
            f"{'several recipes' if found else 'no recipe'} named {name!r}.{near or ' See cv-hf recipes list.'}"
        )
    return found[0]


def copy(name: str, destination: Path) -> Path:
    """Copy a recipe to a folder or a file name; an existing file is never overwritten.

    Raises:
        RecipeError: no such recipe, or the file is there already.
    """
    source = find(name)
    target = destination / source.name if destination.is_dir() or not destination.suffix else destination
    if target.exists():
        raise RecipeError(f"{target}: is there already. Name another file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


if __name__ == "__main__":
    print(table())
