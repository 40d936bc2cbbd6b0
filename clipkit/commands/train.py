import typer


def register(app: typer.Typer) -> None:
    @app.command()
    def train() -> None:
        raise KeyboardInterrupt

    @app.command()
    def t2(a: int) -> None:
        print(a)
