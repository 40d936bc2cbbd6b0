"""The commands, a module a family. Each has `register(app)` and imports what is heavy inside its functions."""

from collections.abc import Callable

import typer

from clipkit.commands import config, doctor, info, ingest, sample, train

COMMANDS: tuple[Callable[[typer.Typer], None], ...] = (ingest.register, train.register, sample.register, config.register, doctor.register, info.register)
