"""The command line: `cv-hf COMMAND`. Each command walks the same functions as the Python API.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cv_hf import __version__
from cv_hf.errors import CvHfError, DataError, OutputClosed, RecipeError, printable, printable_output


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code (0 done, 1 a check failed, 2 wrong input, 3 the Hub failed, 130 stopped).

    141, silently, where whoever read its output ended first.
    """
    try:
        with printable_output():
            code = _run(argv)
            sys.stdout.flush()
            return code
    except OutputClosed:
        # Python writes what is left at its end, and would tell that this failed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parse(argv)
    try:
        arguments.run(arguments)
    except CvHfError as error:
        print(f"cv-hf: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            # Of a file that is open already the system does not say which.
            where = f"{printable(error.filename)}: " if error.filename else ""
            print(f"cv-hf: {where}{error.strerror}. Make room, and start again.", file=sys.stderr)
            return 2
        # A file of the command line's that cannot be read or written; anything else is not the user's to mend.
        if error.filename is None:
            raise
        print(f"cv-hf: {printable(error.filename)}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cv-hf: interrupted.", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse ends a list of words at the first option: `train RECIPE --resume key=value` leaves the last one over.
    words = next((vars(arguments)[name] for name in ("overrides", "images") if name in arguments), None)
    if rest and (words is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        words.extend(rest)
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cv-hf",
        description="Fine-tune vision models from the Hugging Face Hub.",
        epilog="`cv-hf COMMAND --help` explains one command. DATA is a Hub id, a folder or a file.",
    )
    parser.add_argument("--version", action="version", version=f"cv_hf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    init = commands.add_parser("init", help="write a starter recipe from what the data shows")
    init.add_argument("data", metavar="DATA")
    init.add_argument("--out", metavar="RECIPE", help="the file to write (default: recipe.yaml)", default="recipe.yaml")
    init.add_argument("--task", help="the task, where the data does not tell")
    init.add_argument("--model", help="the model to start from (default: the task's)")
    _add_data_options(init)
    init.set_defaults(run=_init)

    train = commands.add_parser("train", help="fine-tune a model as a recipe says")
    train.add_argument("recipe", metavar="RECIPE")
    train.add_argument("overrides", metavar="key=value", nargs="*", help="as in train.batch_size=8")
    train.add_argument("--run-dir", metavar="DIR", help="where everything is written (default: runs/NAME)")
    train.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint")
    train.add_argument("--dry-run", action="store_true", help="only check data, model, memory, disk and the Hub first")
    train.add_argument("--nproc", metavar="N", type=_count, help="processes, one per device")
    train.set_defaults(run=_train)

    bench = commands.add_parser("bench", help="measure how fast a recipe is here, and what holds it back")
    bench.add_argument("recipe", metavar="RECIPE")
    bench.add_argument("overrides", metavar="key=value", nargs="*", help="as in train.batch_size=8")
    bench.add_argument("--seconds", metavar="S", type=_seconds, default=10.0, help="for each part (default: 10)")
    bench.add_argument("--json", metavar="FILE", help="write every number there; - for standard output")
    bench.set_defaults(run=_bench)

    evaluate = commands.add_parser("eval", help="score a trained model on a dataset")
    evaluate.add_argument("model", metavar="MODEL", help="a Hub id, a run directory or its model/")
    evaluate.add_argument("--data", metavar="DATA", required=True)
    evaluate.add_argument("--split", metavar="S", help="default: test, else validation, else the only one")
    evaluate.add_argument("--json", metavar="FILE", help="write every number there; - for standard output")
    evaluate.add_argument("--task", help="the task of a model that cv_hf did not train")
    evaluate.add_argument("--batch-size", metavar="N", type=_count, default=16)
    evaluate.add_argument("--trust-remote-code", action="store_true", help="run code that the model brings")
    _add_data_options(evaluate)
    evaluate.set_defaults(run=_eval)

    predict = commands.add_parser("predict", help="predict images; writes pictures and predictions.json")
    predict.add_argument("model", metavar="MODEL", help="a Hub id, a run directory or its model/")
    predict.add_argument("images", metavar="IMAGE|DIR", nargs="+")
    predict.add_argument("--out", metavar="DIR", default="predictions", help="default: predictions")
    predict.add_argument(
        "--threshold", metavar="T", type=float, help="the least score of a box or mask (default: its own)"
    )
    predict.add_argument("--subtask", help="semantic, instance or panoptic, of a model that does all three")
    predict.add_argument("--task", help="the task of a model that cv_hf did not train")
    predict.add_argument("--trust-remote-code", action="store_true", help="run code that the model brings")
    predict.set_defaults(run=_predict)

    verify = commands.add_parser("verify", help="compare pipeline() in a clean process with what evaluation measured")
    verify.add_argument("model", metavar="MODEL", help="a Hub id, a run directory or its model/")
    verify.add_argument("--data", metavar="DATA", required=True)
    verify.add_argument("--split", metavar="S", help="default: test, else validation, else the only one")
    verify.add_argument("--limit", metavar="N", type=_count, help="so many images only")
    verify.add_argument("--task", help="the task of a model that cv_hf did not train")
    verify.add_argument("--trust-remote-code", action="store_true", help="run code that the model brings")
    _add_data_options(verify)
    verify.set_defaults(run=_verify)

    check = commands.add_parser(
        "check",
        help="report what is wrong in a dataset; exit code 1 if anything is lost or false",
        description="Read a whole dataset and report errors (something is lost, or a score would be false), warnings "
        "(all is used, though perhaps not as it was meant) and notes. docs/findings.md lists all codes.",
        epilog="Exit codes: 0 no errors; 1 errors, or with --strict warnings; notes never count; 2 the dataset cannot "
        "be read at all. They are those of DATA, whether or not --fix wrote a copy.",
    )
    check.add_argument("data", metavar="DATA")
    check.add_argument("--task", help="the task, where the data does not tell")
    check.add_argument("--strict", action="store_true", help="exit code 1 for warnings too")
    check.add_argument("--json", metavar="FILE", help="write the findings there; - for standard output")
    check.add_argument("--html", metavar="FILE", help="write a page with pictures of the findings")
    check.add_argument("--fix", metavar="OUT", help="write a repaired copy there; DATA is never touched")
    _add_data_options(check)
    check.set_defaults(run=_check)

    push = commands.add_parser("push", help="push a finished run to the Hub")
    push.add_argument("run_dir", metavar="RUN_DIR")
    push.add_argument("repo_id", metavar="REPO_ID")
    push.add_argument("--private", action="store_true")
    push.set_defaults(run=_push)

    recipes = commands.add_parser("recipes", help="list, show or copy the recipes that come with cv_hf")
    which = recipes.add_subparsers(metavar="list|show|copy")
    recipes.set_defaults(run=_recipes_list)
    which.add_parser("list", help="name, task, model and dataset of each").set_defaults(run=_recipes_list)
    show = which.add_parser("show", help="print one")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(run=_recipes_show)
    copy = which.add_parser("copy", help="copy one, to edit")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("dest", metavar="DEST", nargs="?", default=".")
    copy.set_defaults(run=_recipes_copy)

    models = commands.add_parser("models", help="the support matrix: which model families pass which checks")
    models.add_argument("--markdown", action="store_true", help="in the short form of the README")
    models.set_defaults(run=_models)

    env = commands.add_parser("env", help="versions and devices, for a bug report")
    env.set_defaults(run=_env)
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"should be at least 1 (got {text})")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"should be more than 0 (got {text})")
    return seconds


# What argparse says of a text that is no number.
_count.__name__, _seconds.__name__ = "int", "float"


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        metavar="F",
        help="hub, imagefolder, coco, voc, yolo, masks, panoptic or parquet, where it is not detected rightly",
    )
    parser.add_argument(
        "overrides", metavar="data.key=value", nargs="*", help="what a recipe would say, as data.columns.label=breed"
    )


def _init(arguments: argparse.Namespace) -> None:
    from cv_hf.environment import importing, quiet

    with importing():
        from cv_hf.config import load_section
        from cv_hf.starter import write_starter

    quiet()
    data = load_section({"id": arguments.data, "format": arguments.format}, arguments.overrides)
    write_starter(data, Path(arguments.out), task=arguments.task, model=arguments.model)
    print(f"wrote {arguments.out}. Next: cv-hf train {arguments.out}")


def _train(arguments: argparse.Namespace) -> None:
    overrides = list(arguments.overrides)
    if arguments.run_dir:
        overrides.append(f"run_dir={json.dumps(arguments.run_dir)}")
    if arguments.nproc and arguments.nproc > 1 and "WORLD_SIZE" not in os.environ:
        from cv_hf.launch import launch

        flags = [*["--resume"] * arguments.resume, *["--dry-run"] * arguments.dry_run]
        code = launch(arguments.nproc, ["train", arguments.recipe, *overrides, *flags])
        raise SystemExit(code)
    from cv_hf.environment import importing, quiet

    with importing():
        from cv_hf.finetuning import dry_run, finetune

    if "RANK" not in os.environ or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # What a scheduler sends before it kills. Of several processes torchrun is the one to stop the others, and
        # `--nproc` sends them SIGINT, unless they are of a background job, which ignores it.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    quiet()
    if arguments.dry_run:
        dry_run(arguments.recipe, overrides, resume=arguments.resume)
        return
    run = finetune(arguments.recipe, overrides, resume=arguments.resume)
    if int(os.environ.get("RANK", 0)):
        return
    _print_scores({name: run.metrics[name] for name in ("validation", "test") if name in run.metrics})
    print(f"\nthe model is {run.model}, its numbers are in {run.folder / 'metrics.json'}")
    if run.url:
        print(f"pushed to {run.url}")
    print("Next:")
    print(f"  cv-hf predict {run.folder} IMAGE|DIR")
    print(f"  {_verify_command(run.folder)}")
    if not run.url:
        print(f"  cv-hf push {run.folder} USER/NAME")


def _bench(arguments: argparse.Namespace) -> None:
    from cv_hf.environment import importing, quiet

    with importing():
        from cv_hf.bench import bench, lines

    quiet()
    _check_can_write(arguments.json)
    found = bench(arguments.recipe, arguments.overrides, seconds=arguments.seconds)
    text = json.dumps(found, indent=2)
    print(text if arguments.json == "-" else "\n".join(lines(found)))
    if arguments.json and arguments.json != "-":
        _write(arguments.json, text)


def _verify_command(folder: Path) -> str:
    """The command that verifies a run on the data of its recipe."""
    from cv_hf.config import load_recipe

    data = load_recipe(folder / "recipe.yaml").data
    said = data.model_dump(mode="json", exclude_defaults=True, exclude={"id", "splits", "max_samples", "on_bad_sample"})
    words = ["cv-hf", "verify", str(folder), "--data", data.id]
    test = (data.splits or {}).get("test")
    words += ["--split", test] if isinstance(test, str) else []
    return shlex.join([*words, *(f"data.{key}={json.dumps(value)}" for key, value in said.items())])


def _eval(arguments: argparse.Namespace) -> None:
    from cv_hf.environment import importing, quiet

    with importing():
        from cv_hf.config import load_section
        from cv_hf.inference import evaluate_model, load_trained

    quiet()
    _check_can_write(arguments.json)
    data = load_section({"id": arguments.data, "format": arguments.format}, arguments.overrides)
    trained = load_trained(arguments.model, arguments.task, trust_remote_code=arguments.trust_remote_code)
    # With --json - the numbers have standard output to themselves.
    aside = sys.stderr if arguments.json == "-" else sys.stdout
    metrics = evaluate_model(
        trained,
        data,
        split=arguments.split,
        batch_size=arguments.batch_size,
        echo=lambda line: print(line, file=aside, flush=True),
    )
    text = json.dumps(metrics, indent=2)
    if arguments.json == "-":
        print(text)
        return
    _print_scores({arguments.split or arguments.data: metrics})
    if arguments.json:
        _write(arguments.json, text)


def _predict(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from cv_hf.environment import importing, quiet

    with importing():
        from cv_hf.inference import load_trained, predict_files

    quiet()
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise RecipeError(f"--threshold: {arguments.threshold:g} is no score; scores go from 0 to 1.")
    out = Path(arguments.out)
    trained = load_trained(arguments.model, arguments.task, trust_remote_code=arguments.trust_remote_code)
    if arguments.subtask is not None:
        if arguments.subtask not in trained.task.subtasks:
            known = ", ".join(trained.task.subtasks) or "none"
            raise RecipeError(f"--subtask: a model of {trained.task.name} has no {arguments.subtask}, only {known}.")
        trained = replace(trained, arguments={**trained.arguments, "subtask": arguments.subtask})
    if arguments.threshold is not None:
        semantic = trained.arguments.get("subtask") == "semantic"
        if semantic or "threshold" not in trained.task.complete:
            what = "a semantic map" if semantic else trained.task.name
            raise RecipeError(f"--threshold: {what} leaves nothing out by its score. Leave the option out.")
        trained = replace(trained, arguments={**trained.arguments, "threshold": arguments.threshold})
    answers = predict_files(trained, arguments.images, out)
    for file, answer in answers.items():
        # A class of a semantic map has no score.
        found = sorted(answer.get("prediction", ()), key=lambda one: -(one["score"] or 0))
        words = ", ".join(
            one["label"][:60] if one["score"] is None else f"{one['label'][:60]} {one['score']:.2f}"
            for one in found[:3]
        )
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        print(f"{printable(file)}: {answer.get('error') or printable(words + more or 'nothing found')}")
    lost = [printable(file) for file, answer in answers.items() if "error" in answer]
    if len(lost) == len(answers):
        raise DataError(f"none of {len(lost)} image(s) can be read; {out}/predictions.json says why.")
    print(f"wrote {out}/predictions.json and pictures of {len(answers) - len(lost)} of {len(answers)} image(s)")
    if lost:
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        print(f"{len(lost)} cannot be read: {', '.join(lost[:5])}{more}")


def _verify(arguments: argparse.Namespace) -> None:
    from cv_hf.environment import importing, quiet

    with importing():
        from cv_hf.config import load_section
        from cv_hf.verify import failure, verify

    quiet()
    data = load_section({"id": arguments.data, "format": arguments.format}, arguments.overrides)
    verdict = verify(
        arguments.model,
        data,
        split=arguments.split,
        limit=arguments.limit,
        task=arguments.task,
        trust_remote_code=arguments.trust_remote_code,
    )
    for line in verdict.lines():
        print(line)
    if not verdict.passed:
        raise failure(verdict, arguments.model)


def _check(arguments: argparse.Namespace) -> None:
    from cv_hf.environment import importing, quiet

    with importing():
        from cv_hf.config import load_section
        from cv_hf.data import check, repair
        from cv_hf.errors import CheckFailed
        from cv_hf.publish.findings_page import write_findings
        from cv_hf.starter import task_of

    quiet()
    _check_can_write(arguments.json, arguments.html)
    data = load_section({"id": arguments.data, "format": arguments.format}, arguments.overrides)
    aside = sys.stderr if arguments.json == "-" else sys.stdout

    def echo(line: str) -> None:
        print(line, file=aside, flush=True)

    if arguments.fix:
        repair.check_out(arguments.fix, data)
    diagnosis = check(data, task_of(data, arguments.task, echo), echo=echo)
    text = json.dumps(diagnosis.to_dict(), indent=2)
    if arguments.json == "-":
        print(text)
    elif arguments.json:
        _write(arguments.json, text)
    if arguments.html:
        write_findings(diagnosis, Path(arguments.html))
        echo(f"wrote {arguments.html}")
    if arguments.fix:
        repair.repair(diagnosis, Path(arguments.fix), echo)
    counts = diagnosis.findings.by_severity()
    shown = ", ".join(f"{number} {name}{'s' * (number != 1)}" for name, number in counts.items() if number)
    if counts["error"] or (arguments.strict and counts["warning"]):
        raise CheckFailed(f"{arguments.data}: {shown}.")
    echo(shown or "nothing found")


def _check_can_write(*files: str | None) -> None:
    """Refuse before the work what could not be written after it."""
    for file in files:
        if file is None or file == "-":
            continue
        path = Path(file).absolute()
        there = next(place for place in (path, *path.parents) if place.exists())
        wrong = path.is_dir() or (there != path and not there.is_dir())
        if wrong or not os.access(there, os.W_OK):
            raise CvHfError(f"{file}: cannot be written. Name a file in a folder that you may write to.")


def _write(file: str, text: str) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(text + "\n", encoding="utf-8")


def _push(arguments: argparse.Namespace) -> None:
    from cv_hf.environment import importing, quiet

    with importing():
        from cv_hf import publish

    quiet()
    print(f"pushed to {publish.push(Path(arguments.run_dir), arguments.repo_id, private=arguments.private)}")


def _recipes_list(arguments: argparse.Namespace) -> None:
    from cv_hf.recipes import describe

    rows = describe()
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())


def _recipes_show(arguments: argparse.Namespace) -> None:
    from cv_hf.recipes import find

    print(find(arguments.name).read_text(encoding="utf-8"), end="")


def _recipes_copy(arguments: argparse.Namespace) -> None:
    from cv_hf.recipes import copy

    print(f"copied to {copy(arguments.name, Path(arguments.dest))}")


def _models(arguments: argparse.Namespace) -> None:
    from cv_hf.environment import importing, quiet

    with importing():
        from cv_hf import support

    quiet()
    print((support.markdown if arguments.markdown else support.table)(support.rows()))


def _env(arguments: argparse.Namespace) -> None:
    from cv_hf.environment import report

    for name, value in report().items():
        print(f"{name}: {value}")


def _print_scores(splits: dict[str, dict]) -> None:
    for split, metrics in splits.items():
        scores = {name: value for name, value in metrics.items() if isinstance(value, float)}
        print(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))


if __name__ == "__main__":
    sys.exit(main())
