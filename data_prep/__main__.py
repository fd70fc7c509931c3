"""The command line: `python -m data_prep <sample-corpus | train-tokenizer | convert>`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from itt_composer.errors import errors_as_sentences

app = typer.Typer(
    help="Turn text into the token shards that training streams.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

Root = Annotated[Path, typer.Argument(help="Folder with <domain>/**/*.jsonl.")]
Out = Annotated[Path, typer.Option(help="Folder to make; appears only when it is complete.")]
Share = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of documents, by a hash of their text, to validate on."),
]
TextField = Annotated[str, typer.Option(help="Field of a line that holds the document's text.")]


@app.command()
def sample_corpus(
    out: Out,
    megabytes: Annotated[
        int, typer.Option(min=1, help="Text to collect, in 1,000,000 bytes.")
    ] = 12,
) -> None:
    """Collect real text from this Python installation, in RedPajama's form."""
    from data_prep.corpus import build_sample_corpus

    with errors_as_sentences():
        manifest = build_sample_corpus(out, megabytes)
        if manifest is None:
            _say_complete(out)
        else:
            _print_counts(f"Sample corpus in {out}", manifest["domains"])


@app.command()
def train_tokenizer(
    root: Root,
    out: Out,
    vocab_size: Annotated[int, typer.Option(min=1, help="Number of token ids.")] = 4096,
    validation_share: Share = 0.05,
    text_field: TextField = "text",
) -> None:
    """Train a LLaMA-style SentencePiece tokenizer on the training documents of ROOT."""
    from data_prep.tokenizer import train_tokenizer

    with errors_as_sentences():
        manifest = train_tokenizer(root, out, vocab_size, validation_share, text_field)
        if manifest is None:
            _say_complete(out)
        else:
            trained_on = manifest["trained_on"]
            typer.echo(
                f"tokenizer of {vocab_size:,} pieces in {out}, trained on "
                f"{trained_on['documents']:,} documents, {trained_on['utf8_bytes'] / 1e6:.1f} MB"
            )


@app.command()
def convert(
    root: Root,
    out: Out,
    tokenizer: Annotated[Path, typer.Option(help="SentencePiece .model file or its folder.")],
    seq_len: Annotated[int, typer.Option(min=1, help="Token ids per row.")],
    validation_share: Share = 0.05,
    text_field: TextField = "text",
) -> None:
    """Convert ROOT into MDS shards of fixed-length token rows, split into train and validation."""
    from data_prep.convert import convert, empty_streams
    from data_prep.progress import progress_of_bytes

    with errors_as_sentences():
        with progress_of_bytes("converting") as report:
            manifest = convert(root, out, tokenizer, seq_len, validation_share, text_field, report)
        if manifest is None:
            _say_complete(out)
            return
        for split, domains in manifest["splits"].items():
            _print_counts(f"{split} in {out}", domains)
        for stream in empty_streams(manifest):
            typer.echo(
                f"warning: {stream} has no rows, so the folder does not exist: "
                "add text, or change --validation-share or --seq-len",
                err=True,
            )


def _say_complete(out: Path) -> None:
    typer.echo(f"{out} already holds this output, complete: nothing to do")


def _print_counts(title: str, domains: dict[str, dict[str, int]]) -> None:
    """Print a table of documents, MB of UTF-8 text and, if there are any, tokens and rows."""
    table = Table(title=title, title_justify="left")
    columns = [key for key in next(iter(domains.values())) if key != "characters"]
    for header in ("domain", *columns):
        name = header.replace("utf8_bytes", "MB").replace("_", " ")
        table.add_column(name, justify="left" if header == "domain" else "right")
    for domain, counts in domains.items():
        table.add_row(domain, *(_cell(column, counts[column]) for column in columns))
    table.add_section()
    sums = {column: sum(counts[column] for counts in domains.values()) for column in columns}
    table.add_row("all", *(_cell(column, total) for column, total in sums.items()))
    Console().print(table)


def _cell(column: str, count: int) -> str:
    return f"{count / 1e6:.2f}" if column == "utf8_bytes" else f"{count:,}"


if __name__ == "__main__":
    app(prog_name="python -m data_prep")
