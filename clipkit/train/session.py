"""What a call of `clipkit train` does: start a run, resume one, or repeat one from its start."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipkit.config import Config
from clipkit.config.differences import find_differences
from clipkit.config.file import dump_config, load_config, load_run_config, parse_config
from clipkit.config.plugins import loaded_plugins
from clipkit.errors import CheckpointError, ConfigError
from clipkit.runs.checkpoint import read_meta
from clipkit.runs.folder import CONFIG, Run, check_free
from clipkit.runs.metrics import cut_metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """`run` is None for a new one; `checkpoint` is None at step 0; `facts` are what an earlier run resolved."""

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
    """Work out what is asked for, and refuse what is impossible; nothing is written yet.

    With `hold` a run to resume is locked from now on, so that nobody else trains in it.
    """
    if resume and rerun:
        raise ConfigError(
            "`--resume` and `--rerun` exclude each other",
            "resume continues, rerun repeats from the start",
        )
    if rerun:
        return _rerun(Run.open(rerun), config_file, sets)
    if resume and resume != "auto":
        return _resume(Run.open(resume), config_file, sets, hold=hold)
    if config_file is None:
        raise ConfigError("no config was given", "give one: `clipkit train --config FILE`")
    config = load_config(config_file, sets)
    newest = _newest_run(config) if resume else None
    if newest is not None:
        log.info("resuming `%s`", newest.folder)
        return _resume(newest, config_file, sets, hold=hold)
    return Session(config, config.run.folder)


def _resume(run: Run, config_file: Path | None, sets: Sequence[str], *, hold: bool) -> Session:
    if hold:
        run.lock()
    before, config = _configs_of(run, config_file, sets)
    _compare(run, before, config)
    checkpoint = run.newest_checkpoint()
    if checkpoint is None:
        log.warning("`%s` has no usable checkpoint: starting from step 0", run.folder)
    return Session(config, run.folder, run, checkpoint, run.facts())


def _rerun(run: Run, config_file: Path | None, sets: Sequence[str]) -> Session:
    """The same config, dataset version and number of steps, in a new folder beside the run's."""
    before, config = _configs_of(run, config_file, sets)
    _compare(run, before, config)
    folder = config.run.folder
    if folder == run.folder or not any(text.startswith(("run.dir=", "run.name=")) for text in sets):
        folder = _free_name(run.folder)
    kept = ("datasets", "num_samples", "total_steps", "minutes", "threads")
    return Session(config, folder, facts={key: value for key, value in run.facts().items() if key in kept})


def _configs_of(run: Run, config_file: Path | None, sets: Sequence[str]) -> tuple[Config, Config]:
    """The run's own config, and the one to use now: a file's, or the run's with changes.

    A file brings its own plugins, which may have changed; without one they are those that the run recorded.
    """
    own, recorded = run.folder / CONFIG, run.facts().get("plugins", [])
    if config_file is None:
        before = load_run_config(own, recorded=recorded, run_folder=run.folder)
        return before, load_run_config(own, sets, recorded=recorded, run_folder=run.folder) if sets else before
    config = load_config(config_file, sets)
    plugins = loaded_plugins(config.plugins)
    if [asdict(plugin) for plugin in plugins] != recorded:
        log.warning("the plugins have changed since the run began: what follows is trained with the new ones")
    return parse_config(run.config_text, source=str(own), plugins=plugins), config


def _compare(run: Run, before: Config, after: Config) -> None:
    """Log every difference; refuse those that would change the model or the order of samples."""
    differences = [
        difference
        for difference in find_differences(before.model_dump(mode="json"), after.model_dump(mode="json"))
        if difference.key not in ("run.dir", "run.name")
    ]
    refused = [difference for difference in differences if not difference.allowed]
    if refused:
        raise CheckpointError(
            f"the config differs from that of `{run.folder}` in its model or its order of samples\n"
            + "\n".join(f"  {difference}" for difference in refused),
            "train a new run with it (`--set run.name=…`), from this one's weights with `--set model.init=…`",
        )
    for difference in differences:
        log.info("changed: %s", difference)


def _newest_run(config: Config) -> Run | None:
    """The run in the config's folder, or the one of that name beside it that was trained last."""
    folder = config.run.folder
    if (folder / CONFIG).is_file():
        return Run.open(folder)
    if config.run.dir is not None or not folder.parent.is_dir():
        return None
    named = []
    for path in folder.parent.iterdir():
        if not path.name.startswith(".") and (path / CONFIG).is_file():
            text = (path / CONFIG).read_text(encoding="utf-8")
            if parse_config(text, source=str(path / CONFIG)).run.name == config.run.name:
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
    """Make the run folder, or take the existing one back to its checkpoint, with the config as it is now.

    Gives with it the lines of `metrics.jsonl` that were later than the checkpoint, and are removed.
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
