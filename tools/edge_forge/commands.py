"""What the commands do with a recipe's plan: open the recipe, run its steps, print and write the results.

Everything that differs between kinds of recipes is asked of the recipe's `Kind` (`edge_forge.kinds`).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.base.errors import ConfigError, EdgeError, UsageError
from edge_forge import trials
from edge_forge.data.knowledge_files import EXACT_SETS
from edge_forge.kinds import registry
from edge_forge.kinds.api import Figures, Kind, RecipePlan
from edge_forge.plan.cache import Cache, write_json
from edge_forge.progress import Progress, size
from edge_forge.recipe import schema
from edge_forge.report import blocks, diagnosis_report, first_request, forgetting_report
from edge_forge.sweep import space as spaces
from edge_forge.train.methods import METHODS
from edge_forge.train.settings import NAMES

_STEM_CHARACTERS = 120


class Opened(NamedTuple):
    """A recipe's kind, its plan and its file."""

    kind: Kind
    plan: RecipePlan
    file: Path


def open_plan(arguments: argparse.Namespace, path: Path | None = None, progress: Progress | None = None) -> Opened:
    """The plan of the recipe that the arguments name, by the kind of its task. Raises ConfigError."""
    place: Path = path or arguments.recipe
    file = place / "recipe.toml" if place.is_dir() else place
    overlay = [*arguments.overlay, *_asked(arguments)]
    document = schema.overlaid(schema.read(file), overlay)
    kind = registry.kind_of(document)
    with lines_named(file, overlay):
        recipe = kind.recipe.parse(document, str(file), os.environ)
    progress = progress or Progress(quiet=arguments.quiet)
    for key, remedy in schema.idle_keys(document):
        progress.warn(f"{file}: {key} has no effect any more ({remedy})")
    cache = Cache(arguments.build or project_root(file) / "build", progress)
    return Opened(kind, kind.plan(recipe, file.resolve().parent, cache, progress), file)


def _asked(arguments: argparse.Namespace) -> Iterator[str]:
    """The options that name questions, as keys of [diagnose]; a file is named from where the user stands."""
    for key in ("similarity", "text", "pairs"):
        named = getattr(arguments, key, None)
        if named is not None:
            yield f"diagnose.{key}={json.dumps(str(named.expanduser().absolute()))}"
    if exact := getattr(arguments, "exact", None):
        sets = [one if one in EXACT_SETS else str(Path(one).expanduser().absolute()) for one in exact]
        yield f"diagnose.exact={json.dumps(sets)}"
    if earlier := getattr(arguments, "earlier", None):
        yield f"diagnose.earlier={json.dumps([str(one.expanduser().absolute()) for one in earlier])}"


@contextlib.contextmanager
def lines_named(file: Path, overlay: Sequence[str] = ()) -> Iterator[None]:
    """Errors about a key of the recipe get the file and the line that the key stands on, or the --set of `overlay`."""
    try:
        yield
    except ConfigError as error:
        raise schema.with_line(error, file, overlay)  # noqa: B904 - the same error


def project_root(recipe_file: Path) -> Path:
    """The nearest folder above a recipe with a pyproject.toml or .git, else the recipe's own folder."""
    folder = recipe_file.resolve().parent
    for candidate in (folder, *folder.parents):
        if (candidate / "pyproject.toml").is_file() or (candidate / ".git").exists():
            return candidate
    return folder


def step(arguments: argparse.Namespace) -> int:
    """`edge-forge train | evaluate | export | quantize | package`: run the plan up to one step."""
    _, plan, file = open_plan(arguments)
    with lines_named(file, arguments.overlay), plan.steps.cache.locked():
        result = plan.result(arguments.verb)
    if arguments.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        print_table(("what", "value"), [[key, str(value)] for key, value in result.items()])
    return 0


class _Built(NamedTuple):
    """What a build made of one recipe: its figures, and the report's files (Markdown, HTML)."""

    opened: Opened
    figures: Figures
    report: tuple[Path, Path]


def build(arguments: argparse.Namespace) -> int:
    """`edge-forge build`: all steps of each recipe, and its report."""
    opened = _opened_together(arguments)
    first = opened[0][0].plan
    cache = first.steps.cache
    with cache.locked():
        if arguments.together > 1:
            _train_together(opened, arguments.together)
        made = [_built(*one) for one in opened]
        cache.collect(time.time())
    shipped = {one["file"]: one for found in made for one in found.figures["packages"]}
    packages = [cache.root / "packages" / name for name in shipped]
    result = {
        "packages": [str(path) for path in packages],
        "trust_root": str(first.signer.keys.root_file),
        "signing_key": first.signer.key_as_dict(),
        "report": [str(path) for found in made for path in found.report],
    }
    if arguments.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
        return 0
    print_table(
        ("package", "what", "size"),
        [[str(path), one["what"], size(one["size_bytes"])]
         for path, one in zip(packages, shipped.values(), strict=True)],
    )  # fmt: skip
    print(f"signed by   {first.signer.key_named}")
    print(f"trust root  {first.signer.keys.root_file}")
    for found in made:
        print(f"report      {found.report[1]}")
        for line in found.opened.kind.report.score_lines(found.figures):
            print(line)
    if arguments.no_trial:
        print("not tried   --no-trial: whether a device takes these packages is not known")
    print(
        "install     edge-agent install PACKAGE, on the device or with --config (the base's first, then the adapter's)"
    )
    if not arguments.overlay:  # the demo builds a recipe as it stands
        print(f"\nTo serve it here until Ctrl-C, and to ask it from another terminal:\n"
              f"  {first_request.serve_line(list(dict.fromkeys(arguments.recipe)), cache.root)}")  # fmt: skip
        for found in made:
            question = found.opened.kind.question(found.opened.plan.training.data)
            print(f"  {first_request.ask_line(cache.root, found.figures['packages'], question)}")
    return 0


_WithOverlay = tuple[Opened, Sequence[str]]
"""A recipe's plan, and the settings that were given for it on the command line."""


def _opened_together(arguments: argparse.Namespace) -> list[_WithOverlay]:
    """The plans of all named recipes. Raises UsageError where they are not of one build folder."""
    progress = Progress(quiet=arguments.quiet)
    places = {place: (place.parent if place.name == "recipe.toml" else place).name for place in arguments.recipe}
    opened: list[_WithOverlay] = []
    for place, name in places.items():
        overlay = overlay_of(name, arguments.overlay, set(places.values()))
        own = argparse.Namespace(**{**vars(arguments), "overlay": overlay})
        opened.append((open_plan(own, place, progress.named(name) if len(places) > 1 else progress), overlay))
    if len({one.plan.steps.cache.root.absolute() for one, _ in opened}) > 1:
        raise UsageError("the recipes are of several projects, each with its build folder", "build", "name --build DIR")
    if arguments.no_trial:
        for one, _ in opened:
            one.plan.signer.hand_out_untried()
    return opened


def overlay_of(name: str, overlay: Sequence[str], names: Collection[str]) -> list[str]:
    """Of the settings `overlay` those that are for the recipe in the folder `name`: 'KEY=VALUE' is for all of `names`,
    'NAME:KEY=VALUE' for one. Raises UsageError for another NAME."""
    found = []
    for setting in overlay:
        whose, colon, rest = setting.partition(":")
        if not colon or "=" in whose:
            found.append(setting)
        elif whose not in names:
            raise UsageError(f"{whose} is none of the recipes", f"--set {setting}", f"name one of {', '.join(names)}")
        elif whose == name:
            found.append(rest)
    return found


def _train_together(opened: Sequence[_WithOverlay], together: int) -> None:
    """Run the trainings of the plans, so many at a time; what is wrong with any is raised before."""
    different: dict[str, _WithOverlay] = {}
    for one, overlay in opened:
        with lines_named(one.file, overlay):
            one.plan.prepare()
            _ = one.plan.signer.keys
        # Two that would make the same result would write into one folder; the second one finds it made.
        training = one.plan.training
        recipe: Any = one.plan.recipe
        made_of = (training.data_step.digests(), training.base.base_id, recipe.training)
        different.setdefault(repr(made_of), (one, overlay))

    def train(one: Opened, overlay: Sequence[str]) -> None:
        with lines_named(one.file, overlay):
            _ = one.plan.training.trained

    with ThreadPoolExecutor(together, "train") as pool:
        for done in [pool.submit(train, *one) for one in different.values()]:
            done.result()


def _built(one: Opened, overlay: Sequence[str]) -> _Built:
    kind, plan, file = one
    cache = plan.steps.cache
    with lines_named(file, overlay):
        figures = make(plan)
    figures["recipe"] = {**figures["recipe"], "file": str(file.resolve())}
    stem = report_stem(cache.root / "reports", plan.recipe.name, file.resolve())
    return _Built(one, figures, write_report(cache, stem, figures, kind.report.report(figures)))


def make(plan: RecipePlan, ship: bool = True) -> dict[str, Any]:
    """Run every step (without `ship`: up to the measured variants); returns the figures."""
    plan.prepare()
    if ship:
        plan.signer.keys  # noqa: B018 - a missing key is said before anything long begins
    return plan.figures(ship)


def compare(arguments: argparse.Namespace) -> int:
    """`edge-forge compare`: build every recipe in every wanted way, then print, write and draw them side by side."""
    opened = [
        with_method(one, wanted)
        for one in _of_one_kind([open_plan(arguments, path) for path in arguments.recipe])
        for wanted in (methods(arguments.methods) if arguments.methods else [""])
    ]
    if len(opened) < 2:
        raise UsageError("there is only one thing to compare", "compare", "name two recipes, or --methods lora,full")
    parts, cache = opened[0].kind.report, opened[0].plan.steps.cache
    made: dict[str, Figures] = {}
    plans: dict[str, RecipePlan] = {}
    names = list(unique([title(one.plan.recipe) for one in opened]))
    with cache.locked():
        for _, plan, file in opened:
            with lines_named(file, arguments.overlay):
                _ = plan.training.questions  # what cannot be asked is said before anything long begins
        for (kind, plan, file), name in zip(opened, names, strict=True):
            plan.steps.progress.say(f"== {name} ==")
            with lines_named(file, arguments.overlay):
                made[name], plans[name] = _compared(kind, plan, arguments)
                made[name] = {**made[name], "kept": plans[name].training.kept}
        runs = opened[0].kind.side_by_side(plans, made)
        kept = {name: one["kept"] for name, one in runs.items()}
        stem = joined_stem("compare", [one.plan.recipe.name for one in opened])
        content = [*parts.comparison(runs), *forgetting_report.comparison(kept)]
        written = write_report(cache, stem, runs, content)
        advice = parts.recommendation(runs).replace("**", "").replace("`", "")
    if arguments.json:
        told = {"runs": runs, "recommendation": advice, "report": [str(path) for path in written]}
        print(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        forgotten = [forgetting_report.table(kept)] if any(kept.values()) else []
        for table in (*parts.comparison_tables(runs), *forgotten):
            print_table(table.columns, table.rows)
            print()
        if advice:
            print(f"{advice}\n")
        print(f"report: {written[1]}")
    return 0


def _compared(kind: Kind, plan: RecipePlan, arguments: argparse.Namespace) -> tuple[Figures, RecipePlan]:
    """(figures, plan) of one run of a comparison: at its best step size and over seeds, where that is wanted."""
    steps = plan.steps

    def replan(recipe: Any) -> RecipePlan:
        return kind.plan(recipe, steps.recipe_dir, steps.cache, steps.progress)

    tried: list[dict[str, Any]] = []
    if arguments.step_sizes:
        plan.prepare()
        recipe, tried = trials.best_step_size(plan.recipe, replan, trials.factors(arguments.step_sizes))
        plan = replan(recipe)
    figures = make(plan, ship=False)
    if arguments.seeds > 1 or tried:
        figures["seeds"] = trials.over_seeds(plan.recipe, replan, arguments.seeds)
        figures["step_sizes"] = tried
        weights = plan.training.weights_diagnosed.facts["weights"]
        figures["intruders"] = sum(len(one["intruders"]) for one in weights)
    return figures, plan


def diagnose(arguments: argparse.Namespace) -> int:
    """`edge-forge diagnose`: what training did to the weights of a recipe, by its method, or by several or more ranks,
    and to what the base knew, where the recipe or an option names questions.

    Where a run has more intruders, or forgot more, than the recipe takes, it says so, or fails.
    """
    opened = _diagnosed(arguments)
    cache = next(iter(opened.values())).plan.steps.cache
    found: dict[str, Mapping[str, Any]] = {}
    with cache.locked():
        for name, (_, plan, file) in opened.items():
            plan.steps.progress.say(f"== {name} ==")
            with lines_named(file, arguments.overlay):
                _ = plan.training.questions  # before a head is trained beside the tracing of its base
                plan.prepare()
                found[name] = plan.diagnosis()
        section = next(iter(opened.values())).plan.recipe.diagnose
        content = diagnosis_report.blocks_of(found, section.cosine)
        stem = "diagnose-" + next(iter(opened.values())).plan.recipe.name
        written = write_report(cache, stem, found, content)
    if arguments.json:
        print(json.dumps({"runs": found, "report": [str(path) for path in written]}, indent=1, ensure_ascii=False))
    else:
        kept = {name: one["kept"] for name, one in found.items()}
        for table in (diagnosis_report.table(found), *([forgetting_report.table(kept)] if any(kept.values()) else ())):
            print_table(table.columns, table.rows)
            print()
        print(f"report: {written[1]}")
    _judge(found, section, next(iter(opened.values())).plan.steps.progress)
    return 0


def _judge(found: Mapping[str, Mapping[str, Any]], section: Any, progress: Progress) -> None:
    """Warn of more intruders, or more that is forgotten, than the recipe takes; or raise EdgeError, as it says."""
    kept = {name: one["kept"] for name, one in found.items()}
    intruders = diagnosis_report.beyond(found, section.most)
    forgotten = forgetting_report.beyond(kept, section.forgotten)
    if section.beyond == "fail" and (intruders or forgotten):
        keys = " or ".join(["diagnose.most"] * bool(intruders) + ["diagnose.forgotten"] * bool(forgotten))
        raise EdgeError(
            "; ".join(filter(None, (intruders, forgotten))), "diagnose",
            f"see the report for what scaling intruders down costs and brings, or raise {keys}",
        )  # fmt: skip
    for sentence in filter(None, (intruders, forgotten)):
        progress.warn(sentence)


def _diagnosed(arguments: argparse.Namespace) -> dict[str, Opened]:
    """The plans of the runs by name: by each of --methods, by each of --ranks, or as the recipe stands."""
    opened = open_plan(arguments)
    recipe: Any = opened.plan.recipe
    if arguments.ranks:
        found = {}
        for rank in _ranks(arguments.ranks, recipe.training.method):
            values = spaces.with_alpha({spaces.RANK: str(rank)}, recipe.training)
            overlay = [*arguments.overlay, *(f"{key}={text}" for key, text in values.items())]
            try:
                one = open_plan(argparse.Namespace(**{**vars(arguments), "overlay": overlay}))
            except ConfigError as error:
                if error.where in {f"--set {key}" for key in values}:
                    raise ConfigError(error.what, f"--ranks {rank}", error.remedy) from error
                raise
            found[f"{title(one.plan.recipe)} rank {rank}"] = one
        return found
    wanted = [with_method(opened, one) for one in methods(arguments.methods)] if arguments.methods else [opened]
    return dict(zip(unique([title(one.plan.recipe) for one in wanted]), wanted, strict=True))


def _ranks(text: str, method: str) -> list[int]:
    """The argument of --ranks, each once. Raises UsageError, also for a method that has no rank."""
    if not METHODS[method].trains_adapter:
        raise UsageError(f"method {method} trains no adapter, so it has no rank", "--ranks", "leave the option out")
    parts = [one.strip() for one in text.split(",")]
    if not all(one.isdecimal() and int(one) > 0 for one in parts):
        raise UsageError(f"{text!r} are no ranks", "--ranks", "write whole numbers above 0, as 1,8,16")
    return list(dict.fromkeys(map(int, parts)))


def joined_stem(what: str, names: Sequence[str]) -> str:
    """The name of a report on several recipes; of many or long names it is cut, since file systems take 255 bytes."""
    stem = f"{what}-" + "-".join(dict.fromkeys(names))
    if len(stem) <= _STEM_CHARACTERS:
        return stem
    return f"{stem[:_STEM_CHARACTERS]}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"


def report_stem(folder: Path, name: str, file: Path) -> str:
    """What the report files of the recipe `file` are called: as the recipe, `name`.

    Recipes of one project share its build folder. Where another recipe, which is still there, has the report of that
    name, a digest of the file's path is added, so that neither overwrites the other's.
    """
    try:
        held = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        owner = Path(held["recipe"]["file"])
    except (OSError, ValueError, KeyError, TypeError):
        return name
    if owner == file or not owner.is_file():
        return name
    return f"{name}-{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def write_report(
    cache: Cache, stem: str, figures: Mapping[str, Any], content: Sequence[blocks.Block]
) -> tuple[Path, Path]:
    """Write the figures as JSON, and the report; returns the report's files (Markdown, HTML)."""
    folder = cache.root / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{stem}.json", figures)
    return blocks.write(folder, stem, content)


def _of_one_kind(opened: Sequence[Opened]) -> Sequence[Opened]:
    """The same plans. Raises UsageError where they are of different kinds."""
    by_kind: dict[str, list[str]] = {}
    for kind, plan, _ in opened:
        by_kind.setdefault(kind.name, []).append(plan.recipe.name)
    if len(by_kind) > 1:
        said = [f"{', '.join(names)} {kind}" for kind, names in sorted(by_kind.items(), reverse=True)]
        raise UsageError(
            f"{' and '.join(said)}: they have no score in common", "compare", "compare recipes of one kind"
        )
    return opened


def methods(text: str) -> list[str]:
    """The argument of --methods: METHOD or METHOD:PRESET, separated by commas. Raises UsageError."""
    wanted = [one.strip() for one in text.split(",")]
    for one in wanted:
        name, _, preset = one.partition(":")
        if name not in METHODS or (preset and preset not in NAMES):
            raise UsageError(
                f"{one!r} is no method", "--methods",
                f"use {', '.join(METHODS)}, each also with a preset ({', '.join(NAMES)}) as in lora:B",
            )  # fmt: skip
    return wanted


def with_method(opened: Opened, wanted: str) -> Opened:
    """The plan with another method or preset; '' leaves the recipe as it is. Raises UsageError, ConfigError.

    Which of the recipe's values stay is the kind's to say (`RecipeParts.with_method`).
    """
    kind, plan, file = opened
    recipe: Any = plan.recipe
    name, _, preset = wanted.partition(":")
    if not wanted or (name == recipe.training.method and not preset):
        return opened
    changed = kind.recipe.with_method(recipe, name, preset)
    steps = plan.steps
    return Opened(kind, kind.plan(changed, steps.recipe_dir, steps.cache, steps.progress), file)


def title(recipe: Any) -> str:
    """How a run is named beside others: recipe, method, and the preset unless it is the usual one."""
    training = recipe.training
    return f"{recipe.name} {training.method}{'' if training.preset == 'best' else ':' + training.preset}"


def unique(names: Sequence[str]) -> Iterator[str]:
    """The names, a number added where one comes again."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on standard output; columns of numbers stand to the right."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    place = [str.rjust if right else str.ljust for right in blocks.numeric(blocks.Table(columns, rows))]
    for row in (columns, *rows):
        print("  ".join(put(cell, width) for put, cell, width in zip(place, row, widths, strict=True)).rstrip())
