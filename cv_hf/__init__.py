"""Fine-tune vision models from the Hugging Face Hub.

    import cv_hf

    run = cv_hf.finetune("recipe.yaml", ["train.num_train_epochs=3"])
    print(run.metrics["test"]["accuracy"])

Names are imported when they are first used, so `import cv_hf` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cv_hf.config import Recipe, load_recipe
    from cv_hf.errors import CvHfError
    from cv_hf.finetuning import Run, finetune
    from cv_hf.inference import evaluate_model, load_trained, predict_files
    from cv_hf.models.neighborhood import enable_dinat
    from cv_hf.publish import push

_HOMES = {
    "CvHfError": "cv_hf.errors",
    "Recipe": "cv_hf.config",
    "Run": "cv_hf.finetuning",
    "enable_dinat": "cv_hf.models.neighborhood",
    "evaluate_model": "cv_hf.inference",
    "finetune": "cv_hf.finetuning",
    "load_recipe": "cv_hf.config",
    "load_trained": "cv_hf.inference",
    "predict_files": "cv_hf.inference",
    "push": "cv_hf.publish",
}

__all__ = [
    "CvHfError",
    "Recipe",
    "Run",
    "enable_dinat",
    "evaluate_model",
    "finetune",
    "load_recipe",
    "load_trained",
    "predict_files",
    "push",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
