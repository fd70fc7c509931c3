"""A corpus: which of its files hold documents, and of which domain.

The folders directly below the root are the domains; or all files are one source, and each line
names its domain in a field.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from itt_composer.basics.errors import UserError
from itt_composer.data.manifest import MANIFEST

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
SUFFIXES = tuple(f"{kind}{end}" for kind in (".jsonl", ".json") for end in ("", *COMPRESSIONS))
READ = ".jsonl and .json files, plain, .gz or .zst"
# Files of these kinds may hold documents that are not read, so they stop a run; others are listed.
UNREADABLE = {
    *(".txt", ".csv", ".tsv", ".xml", ".html", ".warc", ".ndjson", ".jsonlines", ".jl"),
    *(".parquet", ".arrow", ".feather", ".orc", ".avro", ".tfrecord", ".msgpack", ".pkl", ".npy"),
    *(*COMPRESSIONS, ".xz", ".bz2", ".lz4", ".br", ".lzma", ".snappy", ".zip", ".tar", ".tgz"),
    *(".7z", ".part", ".partial", ".incomplete", ".crdownload", ".tmp"),
}
# The source of lines that name their domain. No domain has this name, for hidden folders are
# ignored and lines may not name one.
MIXED = ".mixed"

# Section 4.1 of the paper through the Sheared-LLaMA recipe; the same as yamls/data/redpajama.yaml.
PAPER_SHARES = {
    "cc": 0.67,
    "c4": 0.15,
    "github": 0.045,
    "book": 0.045,
    "wiki": 0.045,
    "arxiv": 0.025,
    "stackexchange": 0.02,
}
# Folder names of RedPajama's releases, and SlimPajama's names of sets → the paper's names.
REDPAJAMA_NAMES = {
    "common_crawl": "cc",
    "commoncrawl": "cc",
    "books": "book",
    "wikipedia": "wiki",
    "stack_exchange": "stackexchange",
    "RedPajamaCommonCrawl": "cc",
    "RedPajamaC4": "c4",
    "RedPajamaGithub": "github",
    "RedPajamaBook": "book",
    "RedPajamaWikipedia": "wiki",
    "RedPajamaArXiv": "arxiv",
    "RedPajamaStackExchange": "stackexchange",
}


@dataclass(frozen=True)
class Corpus:
    """What lies below a root; hidden files and folders are ignored.

    Attributes:
        root: the folder.
        sources: files with documents, in sorted order, by domain; all of them are `MIXED` where
            the lines name their domain.
        not_read: other files, which hold no documents by their names, as paths below the root.
    """

    root: Path
    sources: dict[str, list[Path]]
    not_read: list[str]


def domain_name(name: str) -> str:
    """Return the paper's name for a domain of RedPajama or SlimPajama; others stay as they are."""
    return REDPAJAMA_NAMES.get(name, name)


def compression_of(path: Path) -> str | None:
    """Return the compression that a file's name stands for: "gzip", "zstd" or None."""
    return COMPRESSIONS.get(path.suffix.lower())


def is_text(name: str) -> bool:
    """Return whether a name can be written as UTF-8, without half of a surrogate pair."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_corpus(root: Path, mixed: bool = False) -> Corpus:
    """Find the files of a corpus.

    Args:
        root: the folder.
        mixed: lines name their domain, so the folders do not matter; else every folder directly
            below the root is a domain.

    Raises:
        UserError: `root` is missing, has no documents, or has files that may hold documents and
            are not read; documents outside of a domain's folder, a domain without any, or two
            folders of one domain.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give one that holds a folder per domain")
    files, others = _sorted_out(root)
    if mixed:
        if not files:
            raise UserError(f"{root} has no {READ}")
        return Corpus(root, {MIXED: files}, others)
    if strays := [path for path in files if path.parent == root]:
        raise UserError(f"{strays[0]} lies outside a domain: move it into a folder of its own")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise UserError(f"{root} has no domain folders: put the .jsonl files into {root}/<domain>")
    below: dict[str, list[Path]] = {}
    for path in files:
        below.setdefault(path.relative_to(root).parts[0], []).append(path)
    sources: dict[str, list[Path]] = {}
    for folder in folders:
        name = domain_name(folder.name)
        if name in sources:
            first = sources[name][0].relative_to(root).parts[0]
            raise UserError(
                f"{root / first} and {folder} are both the domain {name}: put them into one folder"
            )
        if folder.name not in below:
            raise UserError(f"domain {folder} has no {READ}: add some or remove the folder")
        sources[name] = below[folder.name]
    return Corpus(root, dict(sorted(sources.items())), others)


def not_read_sentence(root: Path, names: list[str]) -> str | None:
    """Say which files of a corpus were passed over; None if there were none."""
    if not names:
        return None
    kinds = Counter(Path(name).suffix or "without a suffix" for name in names)
    count = "1 file" if len(names) == 1 else f"{len(names):,} files"
    listed = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common(5))
    return (
        f"{count} below {root} ({listed}; the first is {names[0]}) "
        f"{'is' if len(names) == 1 else 'are'} not read, for documents lie in {READ}"
    )


def _sorted_out(root: Path) -> tuple[list[Path], list[str]]:
    """Separate files with documents from other files; refuse others that may hold documents."""
    files, others = [], []
    for path in sorted(_walk(root, set())):
        name = path.name.lower()
        if path == root / MANIFEST:  # of `sample-corpus`
            continue
        if not is_text(below := path.relative_to(root).as_posix()):
            raise UserError(f"{below!a} below {root} has a name that is not UTF-8: rename it")
        if not path.exists():
            raise UserError(f"{path} is a link to nothing: mend or remove it")
        if name.endswith(SUFFIXES):
            if not path.is_file():
                raise UserError(f"{path} is not a regular file: remove it or write it as one")
            files.append(path)
        elif Path(name).suffix in UNREADABLE:
            raise UserError(
                f"{path} is of a kind that is not read: make it one of the {READ}, or move it out "
                f"of {root}"
            )
        else:
            others.append(below)
    return files, others


def _walk(folder: Path, above: set[Path]) -> Iterator[Path]:
    """Yield the files below a folder; follow links, except those that lead back up."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, above | {real})
        else:
            yield path
