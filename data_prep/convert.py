"""`convert`: jsonl to MDS shards of fixed-length token rows, one stream per domain and split.

inputs → parts → rows and shards, part by part, on every worker
       → what the parts left over, made into rows → indexes → manifest
"""

import errno
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.assembly import Stream, finish_streams, totals
from data_prep.budgets import Budgets, read_shares
from data_prep.conversion import Progress, Settings
from data_prep.documents import Fields
from data_prep.domains import MIXED, Corpus, find_corpus, not_read_sentence
from data_prep.estimate import Estimate, estimate, validation_threshold
from data_prep.local_engine import LocalEngine
from data_prep.manifest import MANIFEST, as_stored, fingerprint_files, is_inside
from data_prep.options import Options
from data_prep.output import LocalOutput, RemoteOutput, open_output
from data_prep.part_store import DonePart, write_synced
from data_prep.parts import Part, pieces_of, plan_parts
from data_prep.progress import conversion_progress
from data_prep.proven import encoder_for
from data_prep.rejects import RejectLimit, rejects_as_jsonl
from data_prep.rows import ShardOptions, check_storage, row_dtype, sync
from data_prep.split import SPLITS
from data_prep.state import State, check_unchanged, piece_sha256
from data_prep.tokenizer import Tokenizer, load_tokenizer
from data_prep.transformers_files import how_transformers_differs
from data_prep.workers import usable_cores, workers
from itt_composer.basics.errors import UserError

REJECTS = "rejects.jsonl"
TOKENIZER = "tokenizer"
logger = logging.getLogger(__name__)


def convert(options: Options) -> dict[str, Any] | None:
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
    tokenizer = load_tokenizer(
        options.tokenizer, options.bos_token, options.eos_token, options.special_tokens
    )
    check_storage(_shard_options(options, tokenizer))
    corpus = find_corpus(options.root, mixed=options.domain_field is not None)
    budgets, recipe = _recipe(options, tokenizer, corpus)
    finished = output.finished(recipe)
    if finished is not None:
        _check_inputs(finished, options, corpus, output.written())
        return None
    state = State(output.folder, output.name)
    state.open(recipe)
    with _closing(state, output):
        if output.finished(recipe) is not None:
            return None  # another process has just finished it
        output.begin(recipe, state)
        fields = Fields(options.text_field, options.domain_field, budgets.known_domains())
        threshold = _threshold(state, options, budgets, corpus, fields, tokenizer)
        settings = _settings(options, fields, tokenizer, threshold)
        spread = options.train_tokens is not None
        plan = plan_parts(options.root, corpus.sources, options.part_size, spread)
        parts, streams = _convert_parts(options, settings, plan, budgets, state, output)
        manifest = as_stored(recipe) | _report(plan, parts, streams, threshold)
        manifest["not_read"] = corpus.not_read
        if manifest["totals"]["train"]["rows"] == 0:
            state.discard()
            raise UserError(
                f"{options.root} fills no training row of {options.seq_len} tokens: "
                "lower --seq-len or --validation-share, raise --train-tokens, or add text"
            )
        for part in (part for done in parts.values() for part in done):
            check_unchanged(options.root, part, output.folder)  # since it was read
        _write_rest(manifest, settings, parts, state.folder)
        output.publish(manifest)
        return manifest


def _recipe(
    options: Options, tokenizer: Tokenizer, corpus: Corpus
) -> tuple[Budgets, dict[str, Any]]:
    """The budgets, and what the output follows from besides the input: changed, it is another."""
    shares = None
    if options.train_tokens is not None or options.validation_tokens is not None:
        shares = read_shares(options.shares, [d for d in corpus.sources if d != MIXED])
    elif options.shares is not None:
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
    encoder, reason = encoder_for(tokenizer, options.encoder)
    return budgets, {
        "command": "convert",
        "seq_len": options.seq_len,
        "dtype": row_dtype(tokenizer.vocab_size),
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "tokenizer": {
            "file": f"{TOKENIZER}/{tokenizer.file}",
            "sha256": tokenizer.sha256,
            "source_sha256": tokenizer.source_sha256,
        },
        "special_tokens": options.special_tokens,
        "text_field": options.text_field,
        "domain_field": options.domain_field,
        "validation_share": options.validation_share,
        "validation_tokens": options.validation_tokens,
        "train_tokens": options.train_tokens,
        "shares": shares,
        "encoder": encoder,
        "why_reference": reason,
        "part_size": options.part_size,
        "shard_size": options.shard_size,
        "compression": options.compression,
        "hashes": list(options.hashes),
        "engine": options.engine,
    }


def _threshold(
    state: State,
    options: Options,
    budgets: Budgets,
    corpus: Corpus,
    fields: Fields,
    tokenizer: Tokenizer,
) -> float:
    """Share of documents that is for validation: as asked, or as the validation budget needs."""
    if options.validation_tokens is None:
        return options.validation_share

    def compute() -> float:
        found: dict[str, Estimate] = {}
        for source, files in corpus.sources.items():
            found |= estimate(options.root, source, files, fields, tokenizer)
        return validation_threshold(found, budgets, options.seq_len, options.validation_share)

    return state.threshold(compute)


def _settings(options: Options, fields: Fields, tokenizer: Tokenizer, threshold: float) -> Settings:
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
    state: State,
    output: LocalOutput | RemoteOutput,
) -> tuple[dict[str, list[DonePart]], dict[str, dict[str, Stream]]]:
    limit = RejectLimit(options.max_reject_share if options.skip_bad_lines else None)
    if options.engine == "spark":
        from data_prep.spark_engine import run_spark

        size = sum(part.input_bytes for parts in plan.values() for part in parts)
        place = output.name if output.is_remote else output.folder
        with conversion_progress(lambda: size, Progress(0, 0, 0)) as on_progress:
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


def _as_text(plan: dict[str, list[Part]], size: int) -> int:
    """Bytes of text in so many bytes of the input, about."""
    parts = [part for planned in plan.values() for part in planned]
    text = sum(part.text_bytes for part in parts)
    return size * text // max(1, sum(part.input_bytes for part in parts))


def _report(
    plan: dict[str, list[Part]],
    parts: dict[str, list[DonePart]],
    streams: dict[str, dict[str, Stream]],
    threshold: float,
) -> dict[str, Any]:
    """What a manifest says about the result."""
    used = [part for done in parts.values() for part in done]
    files: dict[str, Any] = {}
    for part in used:
        files |= part.files
    for split in SPLITS:
        for stream in streams[split].values():
            files |= stream.files
    return {
        "validation_threshold": threshold,
        "inputs": _inputs(plan, used),
        "splits": {
            split: {domain: stream.counts.model_dump() for domain, stream in domains.items()}
            for split, domains in streams.items()
        },
        "totals": {
            split: totals([stream.counts for stream in domains.values()])
            for split, domains in streams.items()
        },
        "rejects": {
            _name(source): sum(len(part.record.rejects) for part in done)
            for source, done in parts.items()
        },
        "special_token_names": {
            _name(source): sum(part.record.special_tokens for part in done)
            for source, done in parts.items()
        },
        "cut_files": sorted(name for part in used for name in part.record.cut_files),
        "files": files,
    }


def _name(source: str) -> str:
    return "mixed" if source == MIXED else source


def _inputs(plan: dict[str, list[Part]], used: list[DonePart]) -> dict[str, dict[str, Any]]:
    """Size of every input file, and the SHA-256 of each of its pieces that was read."""
    inputs: dict[str, dict[str, Any]] = {}
    read = {
        (piece["file"], piece["start"]): piece["sha256"]
        for part in used
        for piece in part.record.inputs
    }
    pieces = [piece for parts in plan.values() for part in parts for piece in part.pieces]
    for piece in sorted(pieces, key=lambda piece: (piece.file, piece.start)):
        entry = inputs.setdefault(piece.file, {"bytes": piece.end, "sha256": []})
        entry["bytes"] = piece.end
        entry["sha256"].append(read.get((piece.file, piece.start)))
    return inputs


def _check_inputs(
    manifest: dict[str, Any], options: Options, corpus: Corpus, written: float
) -> None:
    """Refuse an output that was made of other files than those that are there now.

    As `make` does, a file is taken for unchanged that has its size and is older than the output;
    the others are read again.
    """
    root = options.root
    there = {p.relative_to(root).as_posix(): p for files in corpus.sources.values() for p in files}
    stored = manifest["inputs"]

    def is_changed(name: str) -> bool:
        if name not in there or name not in stored:
            return True
        stat = there[name].stat()
        if stat.st_size != stored[name]["bytes"]:
            return True
        pieces = pieces_of(name, stat.st_size, options.part_size)
        return stat.st_mtime >= written and any(
            known is not None and piece_sha256(root, piece) != known
            for piece, known in zip(pieces, stored[name]["sha256"], strict=True)
        )

    changed = next(filter(is_changed, sorted(there.keys() | stored.keys())), None)
    if changed:
        raise UserError(
            f"{options.out} was made of other inputs ({root / changed} differs): choose another "
            "--out or delete that folder"
        )


def _write_rest(
    manifest: dict[str, Any], settings: Settings, parts: dict[str, list[DonePart]], folder: Path
) -> None:
    """Write the tokenizer, the rejects and, last, the manifest that lists every file."""
    settings.tokenizer.save(folder / TOKENIZER)
    written = sorted((folder / TOKENIZER).iterdir())
    for path in (*written, folder / TOKENIZER):
        sync(path)
    records = [part.record for done in parts.values() for part in done]
    if any(record.rejects for record in records):
        write_synced(folder / REJECTS, rejects_as_jsonl(records))
        written.append(folder / REJECTS)
    manifest["files"] |= fingerprint_files(folder, written)
    manifest["files"] = dict(sorted(manifest["files"].items()))
    write_synced(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def warnings(manifest: dict[str, Any], root: Path) -> list[str]:
    """What the user should know of the result of `root`: too little text, files that are lost."""
    cut = [
        f"{name} could not be read to its end: what follows the line that {REJECTS} names is lost, "
        "however much it is"
        for name in manifest["cut_files"]
    ]
    not_read = not_read_sentence(root, manifest["not_read"])
    return [*_shortfalls(manifest), *cut, *([not_read] if not_read else [])]


def _shortfalls(manifest: dict[str, Any]) -> list[str]:
    """Say of each stream that has less than was asked for, or no rows, how much it has."""
    told = dict.fromkeys(_empty_streams(manifest), "has no rows")
    for split in SPLITS:
        tokens = manifest[f"{split}_tokens"]
        for domain, share in manifest["shares"].items() if tokens else ():
            asked = round(tokens * share / manifest["seq_len"]) * manifest["seq_len"]
            counts = manifest["splits"][split].get(domain, {"tokens": 0})
            if counts["tokens"] < asked:
                told[f"{split}/{domain}"] = f"has {counts['tokens']:,} of {asked:,} tokens"
    return [f"{stream} {what}" for stream, what in told.items()]


def _empty_streams(manifest: dict[str, Any]) -> list[str]:
    asked = SPLITS if manifest["validation_share"] > 0 else ("train",)
    return [
        f"{split}/{domain}"
        for split in asked
        for domain, counts in manifest["splits"][split].items()
        if counts["rows"] == 0
    ]


@contextmanager
def _closing(state: State, output: LocalOutput | RemoteOutput) -> Iterator[None]:
    """Let go of the state at the end; tell a full disk in a sentence."""
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
