"""The command line: `python -m data_prep COMMAND`; see `--help`."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from itt_composer.basics.errors import errors_as_sentences
from itt_composer.basics.tables import Table

if TYPE_CHECKING:
    from data_prep.options import Options
    from data_prep.stats import Stats


app = typer.Typer(
    help="Turn text into the token shards that training streams.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

Root = Annotated[Path, typer.Argument(help="Folder with <domain>/**/*.jsonl, .json, .gz, .zst.")]
Out = Annotated[Path, typer.Option(help="Folder to make; appears only when it is complete.")]
Share = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of documents, by a hash of their text, to validate on."),
]
TextField = Annotated[str, typer.Option(help="Field of a line that holds the document's text.")]
DomainField = Annotated[
    str | None,
    typer.Option(
        help="Field of a line that names its domain, like meta.redpajama_set_name.",
        show_default="the folder",
    ),
]

Folder = Annotated[str, typer.Argument(help="Folder that convert wrote.", metavar="OUT")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command()
def sample_corpus(
    out: Out,
    megabytes: Annotated[
        int, typer.Option(min=1, help="Text to collect, in 1,000,000 bytes.")
    ] = 12,
) -> None:
    """Collect real text from this Python installation, in RedPajama's form."""
    from data_prep.sample_corpus import build_sample_corpus

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
    domain_field: DomainField = None,
) -> None:
    """Train a LLaMA-style SentencePiece tokenizer on the training documents of ROOT."""
    from data_prep.documents import Fields
    from data_prep.tokenizer_training import train_sentencepiece, training_warnings

    with errors_as_sentences():
        fields = Fields(text_field, domain_field)
        manifest = train_sentencepiece(root, out, vocab_size, validation_share, fields)
        if manifest is None:
            _say_complete(out)
        else:
            trained_on = manifest["trained_on"]
            typer.echo(
                f"tokenizer of {vocab_size:,} pieces in {out}, trained on "
                f"{trained_on['documents']:,} documents, {trained_on['utf8_bytes'] / 1e6:.1f} MB"
            )
            for warning in training_warnings(manifest, root):
                typer.echo(f"warning: {warning}", err=True)


def _token_count(text: str) -> int:
    from data_prep.budgets import parse_count

    try:
        return parse_count(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _byte_count(text: str) -> int:
    from data_prep.shard_writing import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Target = Annotated[
    str, typer.Option(help="Folder to make, or a URL: s3://, gs://, oci://, azure://.")
]
TokenizerSource = Annotated[
    str, typer.Option(help="SentencePiece .model, tokenizer.json, their folder, or a hub name.")
]
SeqLen = Annotated[int, typer.Option(min=1, help="Token ids per row.")]
Processes = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processes to use.", show_default="one per core, fewer for little text"
    ),
]
LargestShare = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Share of documents, by a hash of their text, to validate on; with "
        "--validation-tokens the most that may be taken.",
    ),
]
ValidationTokens = Annotated[
    int | None,
    typer.Option(parser=_token_count, metavar="TOKENS", help="Tokens to validate on, like 2M."),
]
TrainTokens = Annotated[
    int | None,
    typer.Option(
        parser=_token_count,
        metavar="TOKENS",
        help="Tokens to train on, like 50B.",
        show_default="all",
    ),
]
Shares = Annotated[
    Path | None,
    typer.Option(help="YAML of the domains' shares of both.", show_default="the paper's"),
]
EncoderOption = Annotated[
    Literal["fast", "reference"],
    typer.Option(
        help="fast is gigatoken where it is proven, compared with the reference; or the reference."
    ),
]
BadLines = Annotated[
    Literal["stop", "skip"], typer.Option(help="Stop, or list it in rejects.jsonl and go on.")
]
RejectShare = Annotated[
    float, typer.Option(min=0, max=1, help="Share of bad lines at which to stop after all.")
]
BosToken = Annotated[
    str | None,
    typer.Option(help='Token before a document, or "none".', show_default="the tokenizer's"),
]
EosToken = Annotated[
    str | None, typer.Option(help="Token after a document.", show_default="the tokenizer's")
]
NamesInText = Annotated[
    Literal["text", "token"],
    typer.Option(help="What the name of a special token, such as </s>, is in a document."),
]
PartSize = Annotated[
    int,
    typer.Option(parser=_byte_count, metavar="SIZE", help="Text that a worker takes at a time."),
]
ShardSize = Annotated[
    int, typer.Option(parser=_byte_count, metavar="SIZE", help="Most bytes of a shard.")
]
Compression = Annotated[
    str | None, typer.Option(help="Of the shards, like zstd or zstd:9.", show_default="none")
]
Hashes = Annotated[
    str,
    typer.Option(help="Hashes besides sha256, separated by commas.", show_default="none"),
]
WorkDir = Annotated[
    Path | None,
    typer.Option(
        help="For a URL: where the unfinished conversion is kept.",
        show_default="a hidden folder here",
    ),
]
EngineOption = Annotated[
    Literal["local", "spark"],
    typer.Option(help="This machine, or a Spark cluster (extra `spark`)."),
]
Master = Annotated[
    str | None,
    typer.Option(help="Spark's master, like local[2].", show_default="Spark's configuration"),
]


@app.command()
def convert(
    root: Root,
    out: Target,
    tokenizer: TokenizerSource,
    seq_len: SeqLen,
    workers: Processes = None,
    text_field: TextField = "text",
    domain_field: DomainField = None,
    validation_share: LargestShare = 0.05,
    validation_tokens: ValidationTokens = None,
    train_tokens: TrainTokens = None,
    shares: Shares = None,
    encoder: EncoderOption = "fast",
    on_bad_line: BadLines = "stop",
    max_reject_share: RejectShare = 0.01,
    bos_token: BosToken = None,
    eos_token: EosToken = None,
    special_tokens: NamesInText = "text",
    part_size: PartSize = "64mb",  # type: ignore[assignment]
    shard_size: ShardSize = "64mb",  # type: ignore[assignment]
    compression: Compression = None,
    hashes: Hashes = "",
    work_dir: WorkDir = None,
    engine: EngineOption = "local",
    master: Master = None,
) -> None:
    """Convert ROOT into MDS shards of fixed-length token rows, split into train and validation."""
    from data_prep.options import Options

    _log_to_stderr()
    options = Options(
        root=root,
        out=out,
        tokenizer=tokenizer,
        seq_len=seq_len,
        text_field=text_field,
        domain_field=domain_field,
        validation_share=validation_share,
        validation_tokens=validation_tokens,
        train_tokens=train_tokens,
        shares=shares,
        workers=workers,
        encoder=encoder,
        skip_bad_lines=on_bad_line == "skip",
        max_reject_share=max_reject_share,
        bos_token=bos_token,
        eos_token=eos_token,
        special_tokens=special_tokens,
        part_size=part_size,
        shard_size=shard_size,
        compression=compression,
        hashes=tuple(sorted({"sha256", *filter(None, hashes.split(","))})),
        work_dir=work_dir,
        engine=engine,
        master=master,
    )
    with errors_as_sentences():
        _convert(options)


def _convert(options: "Options") -> None:
    from data_prep import convert as conversion
    from data_prep.conversion_result import warnings
    from data_prep.stats import stats_of

    try:
        manifest = conversion.convert_corpus(options)
    except KeyboardInterrupt:
        kept = "what is done is kept, the same command goes on from there"
        again = "Spark keeps nothing of it, the same command starts again"
        typer.echo(f"stopped: {again if options.engine == 'spark' else kept}", err=True)
        raise typer.Exit(130) from None
    if manifest is None:
        _say_complete(options.out)
        return
    _print_stats(stats_of(manifest))
    for warning in warnings(manifest, options.root):
        typer.echo(f"warning: {warning}", err=True)


@app.command()
def verify(
    out: Folder,
    as_json: Json = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Shards to read at a time; the usable cores unless given."),
    ] = None,
) -> None:
    """Re-read every shard of OUT and name each file that is damaged."""
    from data_prep.verify import progress_bar, verify_folder
    from data_prep.workers import usable_cores

    with errors_as_sentences():
        with progress_bar() as on_progress:
            report = verify_folder(out, workers or usable_cores(), on_progress)
        if as_json:
            typer.echo(json.dumps(report.as_json(), indent=1))
        else:
            for file, problem in report.problems:
                typer.echo(f"damaged: {file}: {problem}")
            typer.echo(report.as_line())
        if not report.ok:
            raise typer.Exit(1)


@app.command()
def stats(out: Folder, as_json: Json = False) -> None:
    """Count the documents, rows and tokens of OUT by domain and split."""
    from data_prep.stats import count_shards

    with errors_as_sentences():
        found = count_shards(out)
        if as_json:
            typer.echo(found.model_dump_json(indent=1))
            return
        _print_stats(found)


def _print_stats(found: "Stats") -> None:
    from data_prep.stats import notes, tables_of_stats

    for table in tables_of_stats(found):
        table.print(Console())
    for line in notes(found):
        typer.echo(line)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("data_prep")
    logger.handlers[:] = [handler]  # stderr may differ from an earlier call's
    logger.setLevel(logging.INFO)


def _say_complete(out: Path | str) -> None:
    typer.echo(f"{out} already holds this output, complete: nothing to do")


def _print_counts(title: str, domains: dict[str, dict[str, int]]) -> None:
    """Print a table of documents and MB of UTF-8 text."""
    table = Table(title, ["domain", "documents", "MB"])
    counted = [
        (name, counts["documents"], counts["utf8_bytes"]) for name, counts in domains.items()
    ]
    _, documents, sizes = zip(*counted, strict=True)
    for name, count, size in [*counted, ("all", sum(documents), sum(sizes))]:
        table.rows.append([name, f"{count:,}", f"{size / 1e6:.2f}"])
    table.print(Console())


if __name__ == "__main__":
    app(prog_name="python -m data_prep")
