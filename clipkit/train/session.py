"""What `clipkit train` is asked to do: start a run, resume one, or repeat one from its start."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clipkit.config import Config, parse_values
from clipkit.config.differences import find_differences
from clipkit.config.document import read_document
from clipkit.config.file import dump_config, load_config, load_run_config
from clipkit.config.plugins import loaded_plugins
from clipkit.config.problems import GONE
from clipkit.errors import CheckpointError, ConfigError
from clipkit.runs.checkpoint import read_meta
from clipkit.runs.folder import CONFIG, Run, check_free
from clipkit.runs.metrics import cut_metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """`run` is None for a new run; `checkpoint` is None at step 0; `facts` are those of the run to resume or repeat."""

    config: Config
    folder: Path
    run: Run | None = None
    checkpoint: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def check_free(self) -> None:
        """Refuse to start a new run in an existing folder."""
        if self.run is None:
            check_free(self.folder)

    @property
    def start(self) -> dict[str, Any]:
        return read_meta(self.checkpoint) if self.checkpoint is not None else {}

    @property
    def step(self) -> int:
        return int(self.start.get("step", 0))


def open_session(
    config_file: Path | None,
    sets: Sequence[str] = (),
    *,
    resume: str | None = None,
    rerun: str | None = None,
    hold: bool = False,
) -> Session:
    """Read the config and the run to resume or repeat, and refuse what is impossible; nothing is written yet.

    With `hold` a run to resume is locked from now on, so that no other process trains in it.
    """
    if resume and rerun:
        raise ConfigError(
            "`--resume` and `--rerun` exclude each other", "resume continues, rerun repeats from the start"
        )
    if rerun:
        return _rerun(Run.open(rerun), config_file, sets)
    if resume and resume != "auto":
        return _resume(Run.open(resume), config_file, sets, hold=hold)
    if config_file is None:
        raise ConfigError("no config was given", "give one: `clipkit train --config FILE`")
    config = _with_absolute_paths(load_config(config_file, sets))
    newest = _newest_run(config) if resume else None
    if newest is not None:
        log.info("resuming `%s`", newest.folder)
        return _resume(newest, config_file, sets, hold=hold)
    return Session(config, config.run.folder)


def _resume(run: Run, config_file: Path | None, sets: Sequence[str], *, hold: bool) -> Session:
    if hold:
        run.lock()
    config = _config_for(run, config_file, sets)
    checkpoint = run.newest_checkpoint()
    if checkpoint is None:
        log.warning("`%s` has no usable checkpoint: starting from step 0", run.folder)
    return Session(config, run.folder, run, checkpoint, run.facts())


def _rerun(run: Run, config_file: Path | None, sets: Sequence[str]) -> Session:
    """The same config, dataset version and number of steps, in a new folder beside that of the run."""
    config = _config_for(run, config_file, sets)
    folder = config.run.folder
    if folder == run.folder or not any(text.startswith(("run.dir=", "run.name=")) for text in sets):
        folder = _free_name(run.folder)
    kept = ("datasets", "num_samples", "total_steps", "minutes", "threads")
    return Session(config, folder, facts={key: value for key, value in run.facts().items() if key in kept})


def _config_for(run: Run, config_file: Path | None, sets: Sequence[str]) -> Config:
    """The config of the run, or of a file, with `sets`; refuses one that changes the model or the order of samples.

    A file loads its own plugins, which may have changed; without one they are those that the run recorded.
    """
    own, recorded = run.folder / CONFIG, run.facts().get("plugins", [])
    if config_file is None:
        config = load_run_config(own, sets, recorded=recorded, run_folder=run.folder)
    else:
        config = load_config(config_file, sets)
        if [asdict(plugin) for plugin in loaded_plugins(config.plugins)] != recorded:
            log.warning("the plugins have changed since the run began: training continues with the new ones")
    config = _with_absolute_paths(config)
    _compare(run, _values_of(run), config.model_dump(mode="json"))
    return config


def _values_of(run: Run) -> dict[str, Any]:
    """The values of the run's config, with the defaults of keys that are new, unless its plugins are not loaded."""
    values = read_document(run.config_text, source=str(run.folder / CONFIG)).values
    for section, _, key in (gone.partition(".") for gone in GONE):
        values.get(section, {}).pop(key, None)
    with suppress(ValidationError):
        values = _with_absolute_paths(parse_values(values)).model_dump(mode="json")
    return values


def _compare(run: Run, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Log every difference; refuse those that change the model or the order of samples."""
    differences = [
        difference for difference in find_differences(before, after) if difference.key not in ("run.dir", "run.name")
    ]
    refused = [difference for difference in differences if not difference.allowed]
    if refused:
        raise CheckpointError(
            f"the config differs from that of `{run.folder}` in its model or its order of samples\n"
            + "\n".join(f"  {difference}" for difference in refused),
            "train a new run with it (`--set run.name=…`), from the weights of this one with `--set model.init=…`",
        )
    for difference in differences:
        log.info("changed: %s", difference)


def _with_absolute_paths(config: Config) -> Config:
    """The config with absolute paths of datasets, so that the run can be resumed from any folder."""
    data = config.data
    sources = tuple(source.model_copy(update={"dataset": _absolute(source.dataset)}) for source in data.sources)
    evaluate = {
        name: section.model_copy(update={"dataset": _absolute(section.dataset)})
        for name, section in config.evaluate.items()
    }
    data = data.model_copy(update={"dataset": _absolute(data.dataset), "sources": sources})
    return config.model_copy(update={"data": data, "evaluate": evaluate})


def _absolute(uri: str | None) -> str | None:
    return uri if uri is None or "://" in uri else os.path.abspath(uri)


def _newest_run(config: Config) -> Run | None:
    """The run in the folder of the config, or the one of its name beside it that was trained last."""
    folder = config.run.folder
    if (folder / CONFIG).is_file():
        return Run.open(folder)
    if config.run.dir is not None or not folder.parent.is_dir():
        return None
    named = []
    for path in folder.parent.iterdir():
        if not path.name.startswith(".") and (path / CONFIG).is_file():
            document = read_document((path / CONFIG).read_text(encoding="utf-8"), source=str(path / CONFIG))
            if document.values.get("run", {}).get("name") == config.run.name:
                named.append(path)
    return Run.open(max(named, key=lambda path: (path / CONFIG).stat().st_mtime)) if named else None


def _free_name(folder: Path) -> Path:
    """`NAME-rerun`, or `NAME-rerun-2` and so on if that exists."""
    number = 1
    while True:
        path = folder.with_name(f"{folder.name}-rerun" + (f"-{number}" if number > 1 else ""))
        if not path.exists():
            return path
        number += 1


def begin(session: Session, facts: Mapping[str, Any]) -> tuple[Run, list[dict[str, Any]]]:
    """Make the run folder, or cut an existing one back to its checkpoint and write the new config into it.

    Returns the run, and the lines of `metrics.jsonl` after the checkpoint, which are removed.
    """
    config = dump_config(session.config)
    if session.run is None:
        return Run.create(session.folder, config=config, facts=facts), []
    run = session.run
    run.lock()
    run.remove_leftovers(after_step=session.step)
    cut = cut_metrics(run.folder, session.step)
    run.write_config(config)
    progress = session.start.get("progress", {})
    if progress.get("step") is not None:
        run.write_best(progress)
    return run, cut
