"""Domains: the folders of a corpus, their names, and their shares of the paper's training set."""

from collections.abc import Iterator
from pathlib import Path

from itt_composer.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
UNREADABLE = (".jsonl.xz", ".jsonl.bz2", ".jsonl.lz4", ".jsonl.br", ".jsonl.zip")

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
# Folder names of RedPajama's releases → the paper's names.
REDPAJAMA_NAMES = {
    "common_crawl": "cc",
    "commoncrawl": "cc",
    "books": "book",
    "wikipedia": "wiki",
    "stack_exchange": "stackexchange",
}


def domain_name(folder_name: str) -> str:
    """The paper's name of a RedPajama folder; any other name is its own."""
    return REDPAJAMA_NAMES.get(folder_name, folder_name)


def find_domains(root: Path) -> dict[str, list[Path]]:
    """List the files of every domain, in sorted order; hidden files and folders are ignored.

    Raises:
        UserError: `root` is missing, has no domain folders or has files outside of them; a
            domain has no files; two folders are the same domain.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give one that holds a folder per domain")
    if strays := sorted(path for path in root.iterdir() if path.name.endswith(SUFFIXES)):
        raise UserError(f"{strays[0]} lies outside a domain: move it into a folder of its own")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise UserError(f"{root} has no domain folders: put the .jsonl files into {root}/<domain>")
    domains: dict[str, list[Path]] = {}
    for folder in folders:
        name = domain_name(folder.name)
        if name in domains:
            first = domains[name][0].relative_to(root).parts[0]
            raise UserError(
                f"{root / first} and {folder} are both the domain {name}: put them into one folder"
            )
        domains[name] = _files(folder)
    return dict(sorted(domains.items()))


def _walk(folder: Path, above: set[Path]) -> Iterator[Path]:
    """Files below a folder, links followed, but not one that leads back to a folder above it."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, above | {real})
        elif path.is_file():
            yield path


def _files(folder: Path) -> list[Path]:
    files = []
    for path in _walk(folder, set()):
        if path.name.endswith(UNREADABLE):
            raise UserError(f"{path} is compressed in a way that is not read: make it .gz or .zst")
        if path.name.endswith(SUFFIXES):
            files.append(path)
    files.sort()
    if not files:
        raise UserError(
            f"domain {folder} has no {', '.join(SUFFIXES)} files: add some or remove the folder"
        )
    return files
