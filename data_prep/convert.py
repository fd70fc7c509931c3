"""`convert`: jsonl to MDS shards of fixed-length token rows, one stream per domain and split.

inputs → parts → rows and shards, part by part, on every worker
       → what the parts left over, made into rows → indexes → manifest
"""

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.budgets import Budgets, read_shares
from data_prep.complete_folder import fingerprints, is_inside
from data_prep.conversion_result import REJECTS, manifest_of
from data_prep.documents import Fields
from data_prep.domains import MIXED, Corpus, find_corpus
from data_prep.durable_files import sync, write_synced
from data_prep.encoder_choice import encoder_for
from data_prep.finished_streams import Stream, finish_streams
from data_prep.local_engine import LocalEngine
from data_prep.options import Options
from data_prep.output import Output, open_output
from data_prep.part_plan import Part, pieces_of, plan_parts
from data_prep.part_record import DonePart
from data_prep.part_rows import PartProgress, Settings
from data_prep.progress import conversion_progress
from data_prep.rejects import RejectLimit, rejects_as_jsonl
from data_prep.shard_writing import ShardOptions, check_storage, row_dtype
from data_prep.token_estimate import Estimate, estimate, validation_threshold
from data_prep.tokenizer import Tokenizer, load_corpus_tokenizer
from data_prep.unfinished_conversion import UnfinishedConversion, check_unchanged, piece_sha256
from data_prep.workers import usable_cores, workers
from itt_composer.basics.errors import UserError
from itt_composer.data.manifest import MANIFEST, Manifest, ShardSettings, TokenizerOrigin
from itt_composer.models.tokenizer_json import how_transformers_differs

TOKENIZER_FOLDER = "tokenizer"
HOW_TO_INSTALL_SPARK = "pip install -e '.[spark]'"
logger = logging.getLogger(__name__)


def convert_corpus(options: Options) -> Manifest | None:
    """Convert the documents below `root` into `out/{train,validation}/<domain>` MDS streams.

    Returns:
        The manifest, or None when `out` already held this output.

    Raises:
        UserError: bad input, no training rows, `out` holds something else, or the disk is full;
            what is done is kept, and the same call goes on from there.
    """
    output = open_output(options.out, options.work_dir)
    if is_inside(output.folder, options.root):
        raise UserError(
            f"--out {options.out} lies inside the input {options.root}: choose a folder outside it"
        )
    tokenizer = load_corpus_tokenizer(
        options.tokenizer, options.bos_token, options.eos_token, options.special_tokens
    )
    check_storage(_shard_options(options, tokenizer))
    corpus = find_corpus(options.root, mixed=options.domain_field is not None)
    budgets = _budgets(options, corpus)
    made_by = _shard_settings(options, tokenizer, corpus)
    finished = output.finished(made_by)
    if finished is not None:
        _check_inputs(finished, options, corpus, output.written())
        return None
    state = UnfinishedConversion(output.folder, output.name)
    state.open(made_by)
    with _closing(state, output):
        if output.finished(made_by) is not None:
            return None  # another process has just finished it
        output.begin(made_by, state)
        fields = Fields(options.text_field, options.domain_field, budgets.known_domains())
        threshold = _threshold(state, options, budgets, corpus, fields, tokenizer)
        settings = _worker_settings(options, fields, tokenizer, threshold)
        spread = options.train_tokens is not None
        plan = plan_parts(options.root, corpus.sources, options.part_size, spread)
        parts, streams = _convert_parts(options, settings, plan, budgets, state, output)
        manifest = manifest_of(made_by, plan, parts, streams, threshold, corpus.not_read)
        if manifest.totals["train"].rows == 0:
            state.discard()
            raise UserError(
                f"{options.root} fills no training row of {options.seq_len} tokens: "
                "lower --seq-len or --validation-share, raise --train-tokens, or add text"
            )
        for part in (part for done in parts.values() for part in done):
            check_unchanged(options.root, part, output.folder)  # since it was read
        manifest = _write_rest(manifest, settings, parts, state.folder)
        output.publish(manifest)
        return manifest


def _shares(options: Options, corpus: Corpus) -> dict[str, float] | None:
    """Read the shares that divide the budgets; None without budgets."""
    if options.train_tokens is None and options.validation_tokens is None:
        return None
    return read_shares(options.shares, [d for d in corpus.sources if d != MIXED])


def _budgets(options: Options, corpus: Corpus) -> Budgets:
    """Work out how many rows are wanted; refuse options that do not go together."""
    shares = _shares(options, corpus)
    if shares is None and options.shares is not None:
        raise UserError("--shares divides --train-tokens or --validation-tokens: give one of them")
    if options.master is not None and options.engine != "spark":
        raise UserError("--master is for --engine spark: give that, or leave it out")
    budgets = Budgets.of(
        options.train_tokens, options.validation_tokens, shares or {}, options.seq_len
    )
    if options.train_tokens is not None and not any(budgets.rows["train"].values()):
        raise UserError(
            f"--train-tokens {options.train_tokens} is less than one row of {options.seq_len} "
            "tokens for any domain: raise it or lower --seq-len"
        )
    return budgets


def _shard_settings(options: Options, tokenizer: Tokenizer, corpus: Corpus) -> ShardSettings:
    """Collect what the output depends on besides the input."""
    encoder, reason = encoder_for(tokenizer, options.encoder)
    return ShardSettings(
        seq_len=options.seq_len,
        dtype=row_dtype(tokenizer.vocab_size),
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        tokenizer=TokenizerOrigin(
            file=f"{TOKENIZER_FOLDER}/{tokenizer.file}",
            sha256=tokenizer.sha256,
            source_sha256=tokenizer.source_sha256,
        ),
        special_tokens=options.special_tokens,  # type: ignore[arg-type]
        text_field=options.text_field,
        domain_field=options.domain_field,
        validation_share=options.validation_share,
        validation_tokens=options.validation_tokens,
        train_tokens=options.train_tokens,
        shares=_shares(options, corpus),
        encoder=encoder,
        why_reference=reason,
        part_size=options.part_size,
        shard_size=options.shard_size,
        compression=options.compression,
        hashes=list(options.hashes),
        engine=options.engine,
    )


def _threshold(
    state: UnfinishedConversion,
    options: Options,
    budgets: Budgets,
    corpus: Corpus,
    fields: Fields,
    tokenizer: Tokenizer,
) -> float:
    """Return the share of documents for validation: as asked, or as the validation budget needs."""
    if options.validation_tokens is None:
        return options.validation_share

    def compute() -> float:
        found: dict[str, Estimate] = {}
        for source, files in corpus.sources.items():
            found |= estimate(options.root, source, files, fields, tokenizer)
        return validation_threshold(found, budgets, options.seq_len, options.validation_share)

    return state.threshold(compute)


def _worker_settings(
    options: Options, fields: Fields, tokenizer: Tokenizer, threshold: float
) -> Settings:
    encoder, reason = encoder_for(tokenizer, options.encoder)
    if reason is not None:
        logger.info("gigatoken is not proven for %s: the reference encodes, more slowly", reason)
    if tokenizer.kind == "sentencepiece":
        difference = how_transformers_differs(tokenizer.content)
        if difference is not None:
            logger.warning(
                "in transformers, and so in generate and eval, a few texts have other ids than in "
                "these rows, as %s; a tokenizer.json has the same in both",
                difference,
            )
    return Settings(
        root=options.root,
        fields=fields,
        validation_share=threshold,
        tokenizer=tokenizer,
        encoder=encoder,
        skip_bad_lines=options.skip_bad_lines,
        shards=_shard_options(options, tokenizer),
    )


def _shard_options(options: Options, tokenizer: Tokenizer) -> ShardOptions:
    return ShardOptions(
        seq_len=options.seq_len,
        dtype=row_dtype(tokenizer.vocab_size),
        size_limit=options.shard_size,
        compression=options.compression,
        hashes=options.hashes,
    )


def _convert_parts(
    options: Options,
    settings: Settings,
    plan: dict[str, list[Part]],
    budgets: Budgets,
    state: UnfinishedConversion,
    output: Output,
) -> tuple[dict[str, list[DonePart]], dict[str, dict[str, Stream]]]:
    limit = RejectLimit(options.max_reject_share if options.skip_bad_lines else None)
    if options.engine == "spark":
        run_spark = _spark_engine()
        size = sum(part.input_bytes for parts in plan.values() for part in parts)
        place = output.name if output.is_remote else output.folder
        with conversion_progress(lambda: size, PartProgress(0, 0, 0)) as on_progress:
            return run_spark(plan, settings, budgets, limit, place, options.master, on_progress)
    engine = LocalEngine(plan, settings, budgets, state, output, limit)
    size = engine.total_bytes
    count = options.workers or min(usable_cores(), -(-_as_text(plan, size) // options.part_size))
    with (
        conversion_progress(lambda: engine.total_bytes, engine.done_before()) as on_progress,
        workers(max(1, count), on_progress) as running,
    ):
        parts = engine.run(running)
        return parts, finish_streams(parts, settings.shards, budgets, state, running)


def _spark_engine() -> Callable[..., Any]:
    """Import the function that converts parts on Spark, which is an optional dependency."""
    try:
        from data_prep.spark_engine import run_spark
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pyspark", "py4j"):
            raise
        raise UserError(f"PySpark is not installed: run `{HOW_TO_INSTALL_SPARK}`") from error
    return run_spark


def _as_text(plan: dict[str, list[Part]], size: int) -> int:
    """Estimate the bytes of text in this many bytes of the input."""
    parts = [part for planned in plan.values() for part in planned]
    text = sum(part.text_bytes for part in parts)
    return size * text // max(1, sum(part.input_bytes for part in parts))


def _check_inputs(manifest: Manifest, options: Options, corpus: Corpus, written: float) -> None:
    """Refuse an output that was made of other files than those that are there now.

    As `make` does, a file is taken for unchanged that has its size and is older than the output;
    the others are read again.
    """
    root = options.root
    there = {p.relative_to(root).as_posix(): p for files in corpus.sources.values() for p in files}
    stored = manifest.inputs

    def is_changed(name: str) -> bool:
        if name not in there or name not in stored:
            return True
        stat = there[name].stat()
        if stat.st_size != stored[name].bytes:
            return True
        pieces = pieces_of(name, stat.st_size, options.part_size)
        return stat.st_mtime >= written and any(
            known is not None and piece_sha256(root, piece) != known
            for piece, known in zip(pieces, stored[name].sha256, strict=True)
        )

    changed = next(filter(is_changed, sorted(there.keys() | stored.keys())), None)
    if changed:
        raise UserError(
            f"{options.out} was made of other inputs ({root / changed} differs): choose another "
            "--out or delete that folder"
        )


def _write_rest(
    manifest: Manifest, settings: Settings, parts: dict[str, list[DonePart]], folder: Path
) -> Manifest:
    """Write the tokenizer, the rejects and, last, the manifest that lists every file."""
    settings.tokenizer.save(folder / TOKENIZER_FOLDER)
    written = sorted((folder / TOKENIZER_FOLDER).iterdir())
    for path in (*written, folder / TOKENIZER_FOLDER):
        sync(path)
    records = [part.record for done in parts.values() for part in done]
    if any(record.rejects for record in records):
        write_synced(folder / REJECTS, rejects_as_jsonl(records))
        written.append(folder / REJECTS)
    files = manifest.files | fingerprints(folder, written)
    complete = manifest.model_copy(update={"files": dict(sorted(files.items()))})
    write_synced(folder / MANIFEST, complete.to_json())
    return complete


@contextmanager
def _closing(state: UnfinishedConversion, output: Output) -> Iterator[None]:
    """Release the unfinished conversion at the end; report a full disk in one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full and {output.name} is not finished: free space and run the same "
                "command again to go on"
            ) from error
        raise
    finally:
        state.close()
