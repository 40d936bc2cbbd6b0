"""The commands, one module each. Each has `register(app)` and imports heavy packages inside its functions."""

from collections.abc import Callable

import typer

from clipkit.commands import bench, cache, config, corpus, doctor, evaluate, info, ingest, init, sample, show, train

# In the order of `clipkit --help`.
COMMANDS: tuple[Callable[[typer.Typer], None], ...] = (
    ingest.register,
    info.register,
    show.register,
    corpus.register,
    cache.register,
    bench.register,
    init.register,
    train.register,
    evaluate.register,
    config.register,
    doctor.register,
    sample.register,
)
