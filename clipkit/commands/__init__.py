"""The commands, a module a family. Each has `register(app)` and imports what is heavy inside its functions."""

from collections.abc import Callable

import typer

from clipkit.commands import bench, cache, config, corpus, doctor, evaluate, info, ingest, sample, show, train

# In the order of `clipkit --help`, which is that of the work.
COMMANDS: tuple[Callable[[typer.Typer], None], ...] = (
    ingest.register,
    info.register,
    show.register,
    corpus.register,
    cache.register,
    bench.register,
    train.register,
    evaluate.register,
    config.register,
    doctor.register,
    sample.register,
)
