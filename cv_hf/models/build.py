"""Load a pretrained model and its image processor, with the head that the task needs."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel

from cv_hf.config import ModelConfig
from cv_hf.errors import CvHfError, HubError, ModelError, causes, did_you_mean
from cv_hf.http import asked_to_wait, damaged, limited_client
from cv_hf.models import detection, norms, oneformer, segmentation
from cv_hf.models.image_size import change_image_size
from cv_hf.models.neighborhood import enable_dinat
from cv_hf.models.parts import output_parameters, outside_backbone

_LABELS = {"labels", "mask_labels", "class_labels"}
# Types that Transformers has for pretraining only, and the type that its encoder is.
_ENCODER_TYPES = {"vit_mae": "vit"}
_FROM_DATA = ("num_labels", "id2label", "label2id")
# huggingface_hub's HTTP client has changed (requests, httpx, ...); its base error stands behind the Hub's own.
_ClientError = HfHubHTTPError.__bases__[0]
# Counters, tables of indices and what only masked pretraining reads: computed or unused, so not a loss when missing.
_DISPENSABLE = re.compile(r"num_batches_tracked$|relative_position_index$|mask_token$")
# The weight of each class in the loss: follows from the configuration, and is made anew with it.
_CONSTANT = re.compile(r"^criterion\.empty_weight$")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the tensors: which of the model's are new, how many were reused, which of the checkpoint's not.

    `notes` says what was changed beside the weights, a line each.
    """

    new: list[str]
    reused: int
    unused: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as lines to print."""
        lines = [f"reused from the checkpoint: {self.reused} tensors"]
        if self.new:
            lines.append(f"new, to be trained: {_some(self.new)}")
        if self.unused:
            lines.append(f"in the checkpoint, not used here: {_some(self.unused)}")
        return lines + self.notes


class Built(NamedTuple):
    """A model (float32, in evaluation mode), its image processor, and where they came from.

    `commit` is the Hub commit that `model.id` and `model.revision` resolved to, None for a folder.
    """

    model: PreTrainedModel
    processor: Any
    report: LoadReport
    commit: str | None


def build_model(model: ModelConfig, auto_class: str | Sequence[str], fields: Mapping[str, Any]) -> Built:
    """Load the checkpoint that a recipe names.

    Args:
        model: the recipe's model section.
        auto_class: the Transformers Auto class of the task, for instance "AutoModelForImageClassification", or several
            whose models do, the preferred first.
        fields: what the task sets in the model's configuration, for instance id2label and label2id; and `things`, the
            names of the countable classes, which OneFormer's processor keeps.

    Raises:
        ModelError: no such model, one of another task, one that cannot be trained, or weights that do not fit it.
        HubError: the Hub could not be reached or failed.
    """
    enable_dinat()
    with _readable_errors(model):
        return _build(model, auto_class, fields)


def check_is_there(model: ModelConfig) -> None:
    """Refuse what is no model, in the words of `build_model`."""
    with _readable_errors(model):
        _commit(model)


def _build(model: ModelConfig, auto_class: str | Sequence[str], fields: Mapping[str, Any]) -> Built:
    things = fields.get("things")
    fields = {name: value for name, value in fields.items() if name != "things"}
    auto_classes = [auto_class] if isinstance(auto_class, str) else list(auto_class)
    commit = _commit(model)
    source = {"revision": commit or model.revision, "trust_remote_code": model.trust_remote_code}
    config = _encoder_config(AutoConfig.from_pretrained(model.id, **source))
    loader, auto_class = _model_class(model, config, auto_classes)
    _fetch(model, commit)
    is_prompted = config.model_type == "oneformer"
    processor = AutoImageProcessor.from_pretrained(
        model.id, **source, **(oneformer.NO_CLASS_FILE if is_prompted else {})
    )
    is_detector = auto_class == "AutoModelForObjectDetection"
    is_segmenter = auto_class.endswith("Segmentation")
    if is_detector:
        detection.check_processor(processor, config, model.id)
        detection.set_as_trained(config, model.config)
    elif is_segmenter:
        segmentation.set_as_trained(config, model.config)
    original = copy.deepcopy(config)
    _apply(config, model.config, fields)
    if is_segmenter:
        segmentation.set_classes(loader, config, model.id)
    load = partial(
        loader.from_pretrained,
        model.id,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
        output_loading_info=True,
        dtype=torch.float32,
        **source,
    )
    with _quiet():
        loaded, info = load(config=config)
        is_two_stage = detection.is_two_stage(config) and detection.is_two_stage(original)
        scorer = detection.first_stage_scorer(load(config=original)[0]) if is_two_stage else None
    if not all(isinstance(name, (str, int)) for name in _labels(loaded.config).values()):
        raise ModelError(f"{model.id}: the names of its classes (id2label in config.json) are not text.")
    outputs = output_parameters(loaded)
    if "id2label" in fields and not outputs:
        raise ModelError(f"{model.id}: {type(loaded).__name__} has no output layer of one value per class to replace.")
    report = _check(loaded, info, model.id, outputs | outside_backbone(loaded))
    if len(_labels(original)) == loaded.config.num_labels and _labels(original) != _labels(loaded.config):
        report = _renew(loaded, outputs, report)
    if is_detector or config.model_type == "rf_detr":
        detection.initialize_outputs(loaded, outputs & set(report.new))
        if scorer is not None:
            detection.restore_first_stage_scorer(loaded, scorer)
    if is_segmenter:
        semantic = segmentation.SEMANTIC in auto_classes
        subtasks = ("semantic",) if semantic else ("panoptic", "instance")
        processor, notes = segmentation.whole_image(processor, loaded, subtasks, model.id)
        report = dataclasses.replace(report, notes=notes)
    if model.image_size is not None:
        loaded, processor = change_image_size(loaded, processor, model.image_size)
    if is_detector or config.model_type == "rf_detr":
        detection.check_made_sizes(processor, loaded.config, model.id)
    if is_detector:
        detection.mend(loaded)
    elif is_segmenter:
        segmentation.mend(loaded)
    _follow_statistics(loaded)
    norms.mend(loaded)
    if is_prompted:
        processor = oneformer.prompted(processor, loaded, model.id, things, **source)
    return Built(loaded, processor, report, commit)


def _follow_statistics(model: PreTrainedModel) -> None:
    """Let running statistics follow many batches, in place; predictions stay as they are.

    Transformers' MobileNetV1, MobileNetV2 and EfficientNet have TensorFlow's decay (0.997, 0.99) where PyTorch takes 1
    minus that, so that evaluation would use the statistics of the last batch alone. PyTorch's default instead, since a
    new head learns them in a few hundred steps.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and (module.momentum or 0) > 0.5:
            module.momentum = 0.1


def _encoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    if config.model_type not in _ENCODER_TYPES:
        return config
    encoder = AutoConfig.for_model(_ENCODER_TYPES[config.model_type])
    known = encoder.to_dict().keys() - {"model_type", "architectures"}
    return type(encoder).from_dict({name: value for name, value in config.to_dict().items() if name in known})


def _model_class(model: ModelConfig, config: PreTrainedConfig, auto_classes: Sequence[str]) -> tuple[Any, str]:
    """Return the class to load, the checkpoint's own among those of the task that train, and its Auto class."""
    autos = {name: getattr(transformers, name) for name in auto_classes}
    for name, auto in autos.items():
        if model.trust_remote_code and name in getattr(config, "auto_map", {}):
            return auto, name
    detection.refuse_untrainable(config, model.id)
    segmentation.refuse_untrainable(config, model.id)
    found: dict[Any, str] = {}
    for name, auto in autos.items():
        classes = auto._model_mapping.get(type(config), ())
        found.update((cls, name) for cls in (classes if isinstance(classes, (list, tuple)) else (classes,)))
    if not found:
        known = sorted({known.model_type for auto in autos.values() for known in auto._model_mapping})
        some = [name for name in ("vit", "swin", "convnextv2", "resnet", "timm_wrapper") if name in known] or known[:5]
        head = auto_classes[0].removeprefix("AutoModelFor")
        raise ModelError(
            f"{model.id} is a {config.model_type} model, which has no {head} head.\n"
            f"Those that have one: {', '.join(some)} and {len(known) - len(some)} more."
        )
    # DeiT's and LeViT's "WithTeacher" classes take no labels: their second head is for inference only.
    trainable = [cls for cls in found if _LABELS & inspect.signature(cls.forward).parameters.keys()]
    if not trainable:
        cls = next(iter(found))
        raise ModelError(
            f"{model.id}: {cls.__name__} cannot be trained: its forward() takes no labels and returns no loss."
        )
    own = next((cls for cls in trainable if cls.__name__ in (config.architectures or ())), trainable[0])
    return own, found[own]


def _apply(config: PreTrainedConfig, overrides: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    if "id2label" in fields:
        # Most configurations count id2label; PvtConfig has a number of its own.
        config.num_labels = len(fields["id2label"])
    for name, value in fields.items():
        setattr(config, name, value)
    # timm's exporter repeats the number of classes here, and its wrapper then passes it twice.
    (getattr(config, "model_args", None) or {}).pop("num_classes", None)
    for stale in ("label_names", "label_descriptions"):
        # timm's own copies of the labels, which would win over id2label when the configuration is saved.
        if hasattr(config, stale):
            delattr(config, stale)
    for name in overrides:
        if name in fields or name in _FROM_DATA:
            raise ModelError(f"model.config.{name} follows from the data; set data.labels instead.")
        if name == "image_size":
            raise ModelError("model.config.image_size: write model.image_size, which resizes the positions as well.")
    _override(config, overrides, "model.config")


def _override(config: PreTrainedConfig, overrides: Mapping[str, Any], where: str) -> None:
    known = {name for name in config.to_dict() if not name.startswith("_")} | set(config.attribute_map)
    for name, value in overrides.items():
        if name not in known:
            raise ModelError(f"{where}.{name} is not a field of {type(config).__name__}.{did_you_mean(name, known)}")
        current = getattr(config, name)
        if isinstance(current, PreTrainedConfig) and isinstance(value, Mapping):
            _override(current, value, f"{where}.{name}")
            continue
        if isinstance(current, Mapping) and isinstance(value, Mapping):
            value = {**current, **value}
        try:
            setattr(config, name, value)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise ModelError(f"{where}.{name}: {_line(error, -1)}") from None


def _check(model: PreTrainedModel, info: Mapping[str, Any], name: str, head: set[str]) -> LoadReport:
    """Report what was loaded, or raise ModelError when more than the head is missing."""
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    new = {key for key in set(info["missing_keys"]) | mismatched if not _CONSTANT.search(key)}
    modules = {key.rpartition(".")[0] for key in head}  # the buffers of the head's modules are named by these
    lost = sorted(key for key in new - head if key.rpartition(".")[0] not in modules and not _DISPENSABLE.search(key))
    if lost:
        raise ModelError(
            f"{name}: backbone weights failed to load: {len(lost)} tensors, e.g. {_some(lost)}.\n"
            f"The checkpoint is damaged, or not one of {type(model).__name__}."
        )
    return LoadReport(
        new=sorted(new),
        reused=len(model.state_dict()) - len(new),
        unused=sorted(set(info["unexpected_keys"]) - mismatched),
    )


def _renew(model: PreTrainedModel, outputs: set[str], report: LoadReport) -> LoadReport:
    """Initialize the output layers anew: they fit by chance, but were trained for other labels."""
    renewed = outputs - set(report.new)
    for name in renewed:
        model.get_parameter(name)._is_hf_initialized = False
    with torch.no_grad():
        for module in {name.rpartition(".")[0] for name in renewed}:
            model._init_weights(model.get_submodule(module))
    return dataclasses.replace(report, new=sorted({*report.new, *renewed}), reused=report.reused - len(renewed))


def _labels(config: PreTrainedConfig) -> dict[int, str]:
    return dict(config.id2label or {})


def _some(names: list[str], count: int = 4) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _commit(model: ModelConfig) -> str | None:
    """Return the Hub commit of the checkpoint, None for a folder."""
    if Path(model.id).is_dir():
        if not (Path(model.id) / "config.json").is_file():
            raise ModelError(f"model.id: the folder {model.id} holds no model (no config.json).")
        return None
    config = _download(model.id, "config.json", model.revision)
    if config is None:
        raise ModelError(f"model.id: {model.id} on the Hub holds no Transformers model (no config.json).")
    return config.parent.name


def _fetch(model: ModelConfig, commit: str | None) -> None:
    """Bring weights and processor from the Hub into its cache; of a folder, only see that the weights are there.

    from_pretrained would fetch them as well, but takes a file that the Hub fails to send for one that it lacks, and
    has a service convert a pickle checkpoint, which opens a pull request with the result.
    """
    weights = (transformers.utils.SAFE_WEIGHTS_NAME, transformers.utils.SAFE_WEIGHTS_INDEX_NAME)
    if commit is None:
        found = any((Path(model.id) / name).is_file() for name in weights)
        mend = "load it once with use_safetensors=False where you trust it, and save_pretrained() it"
    else:
        _download(model.id, transformers.utils.IMAGE_PROCESSOR_NAME, commit)
        fetched = next((path for name in weights if (path := _download(model.id, name, commit))), None)
        found = fetched is not None
        mend = (
            "https://huggingface.co/spaces/safetensors/convert opens a pull request with one; "
            "then set model.revision to refs/pr/NUMBER"
        )
        shards = _shards(fetched) if fetched is not None and fetched.suffix == ".json" else []
        files = [fetched, *(_download(model.id, name, commit) for name in shards)]
        # Weights that a few bytes are wrong of load like others.
        if (file := damaged(path for path in files if path is not None)) is not None:
            raise _not_the_hubs(model, file)
    if not found:
        raise ModelError(
            f"{model.id} has no model.safetensors; pickle files can run code and are not read.\nConvert it: {mend}."
        )


def _shards(index: Path) -> list[str]:
    """The names of the files that an index of weights lists."""
    return sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})


def _download(repo_id: str, name: str, revision: str | None) -> Path | None:
    try:
        return Path(huggingface_hub.hf_hub_download(repo_id, name, revision=revision))
    except LocalEntryNotFoundError:
        # Offline, the cache may still know that the repository lacks the file.
        known = huggingface_hub.try_to_load_from_cache(repo_id, name, revision=revision)
        if known is huggingface_hub._CACHED_NO_EXIST:
            return None
        raise
    except EntryNotFoundError:
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Transformers' table of what was loaded: the LoadReport says it in two lines."""
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    # A filter, because a raised level makes Transformers check tensor-parallel plans, and warn of them.
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextmanager
def _readable_errors(model: ModelConfig) -> Iterator[None]:
    try:
        with limited_client():
            yield
    except CvHfError:
        raise
    except Exception as error:
        chain = causes(error)
        readable = _hub_error(model, chain) or _damaged(model) or _model_error(model, chain)
        if readable is None:
            # Configurations are code's arguments, and a wrong one fails wherever it is used.
            named = type(chain[0]).__name__
            raise ModelError(f"{model.id} cannot be loaded: {named}: {_line(chain[0], -1)}") from error
        raise readable from None


def _not_the_hubs(model: ModelConfig, file: Path) -> HubError:
    return HubError(
        f"{model.id}: the cached file {file} is damaged: it is not what the Hub has.\n"
        f"Nothing else is lost. Delete it and run the command again: {shlex.join(['rm', str(file)])}"
    )


def _damaged(model: ModelConfig) -> CvHfError | None:
    """Which file is to blame where a model cannot be read: one of the cache that is damaged, or weights of a folder."""
    folder = Path(model.id)
    if not folder.is_dir():
        commit = huggingface_hub.try_to_load_from_cache(model.id, "config.json", revision=model.revision)
        file = damaged(Path(commit).parent.rglob("*")) if isinstance(commit, str) else None
        return None if file is None else _not_the_hubs(model, file)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as weights:
                weights.keys()
        except (SafetensorError, OSError) as error:
            return ModelError(f"{path} is damaged ({_line(error, 0)}).\nTake it once more from where it came.")
    return None


def _hub_error(model: ModelConfig, chain: list[BaseException]) -> CvHfError | None:
    """Return what to tell when the Hub refused or failed, None when it is not about the Hub."""

    def found(*types: type[BaseException]) -> BaseException | None:
        return next((error for error in chain if isinstance(error, types)), None)

    at = f"{model.id} at revision {model.revision}" if model.revision else model.id
    if found(HFValidationError):
        return ModelError(f"model.id: {model.id!r} is neither a folder here nor a Hub id (user/name).")
    if found(GatedRepoError):
        return ModelError(
            f"{model.id} is gated: accept its terms at https://huggingface.co/{model.id}, then set HF_TOKEN."
        )
    if found(RevisionNotFoundError):
        return ModelError(f"{model.id} has no revision {model.revision!r} (model.revision: branch, tag or commit).")
    if found(RepositoryNotFoundError):
        return ModelError(
            f"model.id: {model.id!r} is neither a folder here nor a model on the Hub that you may read.\n"
            "If it is private, set HF_TOKEN or run `hf auth login`."
        )
    if found(OfflineModeIsEnabled, LocalEntryNotFoundError) and huggingface_hub.is_offline_mode():
        return ModelError(f"{at} is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it.")
    refused = found(HfHubHTTPError)
    status = getattr(getattr(refused, "response", None), "status_code", None)
    if status in (401, 403):
        return ModelError(f"{model.id}: the Hub refused access ({status}). Check HF_TOKEN.")
    cut_short = any("Consistency check failed" in str(error) for error in chain)
    if not isinstance(refused, EntryNotFoundError) and (
        refused or cut_short or found(_ClientError, LocalEntryNotFoundError, ConnectionError, TimeoutError)
    ):
        wait = asked_to_wait(refused.response) if status else 0
        why = f"status {status}" if status else "a file ended too early" if cut_short else "no connection"
        why += f", and it asks to wait {wait:g} s" if wait else ""
        return HubError(
            f"{at} is no folder here and could not be fetched from the Hub ({why}). Nothing is lost; run the command "
            "again."
        )
    return None


def _model_error(model: ModelConfig, chain: list[BaseException]) -> CvHfError | None:
    text = str(chain[0])
    if "trust_remote_code" in text:
        return ModelError(
            f"{model.id} brings its own code, which is not run by default.\n"
            "Read it, and set model.trust_remote_code: true if you trust it."
        )
    if "preprocessor_config.json" in text or "image processor" in text:
        return ModelError(
            f"{model.id} has no preprocessor_config.json, so how its images are prepared is not known.\n"
            "Copy that file from the model it was made from."
        )
    if isinstance(chain[0], (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, SafetensorError)):
        return ModelError(f"{model.id} cannot be loaded: {_line(chain[0], 0)}")
    return None


def _line(error: BaseException, place: int) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[place] if lines else type(error).__name__)[:300]
