"""What `convert` is asked for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What `convert` is asked for.

    Attributes:
        root: folder with a folder per domain, or with any files whose lines name their domain.
        out: folder or URL of an object store.
        tokenizer: file, folder or hub name.
        seq_len: ids per row.
        text_field: field of a line that holds the document.
        domain_field: field of a line that names its domain, or None where the folder does.
        validation_share: share of documents, by a hash of their text, for validation; with
            `validation_tokens` the largest share that may be taken.
        validation_tokens, train_tokens: budgets over all domains, or None for everything.
        shares: YAML file that divides the budgets; None for the paper's shares.
        workers: processes; None for one per core, fewer for little text.
        encoder: "fast" where it is proven for the tokenizer, or "reference".
        skip_bad_lines: reject bad lines; else stop at the first.
        max_reject_share: most lines that may be rejected.
        bos_token, eos_token: tokens around a document; None for the tokenizer's own.
        special_tokens: "text" or "token", what the name of a special token in a document is.
        part_size, shard_size: bytes.
        compression: of shards, or None.
        hashes: in the index of a stream.
        work_dir: for an `out` in an object store, where the unfinished conversion is kept.
        engine: "local", or "spark" for a cluster.
        master: address of the Spark cluster; None for what Spark is configured with.
    """

    root: Path
    out: str
    tokenizer: str
    seq_len: int
    text_field: str = "text"
    domain_field: str | None = None
    validation_share: float = 0.05
    validation_tokens: int | None = None
    train_tokens: int | None = None
    shares: Path | None = None
    workers: int | None = None
    encoder: str = "fast"
    skip_bad_lines: bool = False
    max_reject_share: float = 0.01
    bos_token: str | None = None
    eos_token: str | None = None
    special_tokens: str = "text"
    part_size: int = 1 << 26
    shard_size: int = 1 << 26
    compression: str | None = None
    hashes: tuple[str, ...] = ("sha256",)
    work_dir: Path | None = None
    engine: str = "local"
    master: str | None = None
