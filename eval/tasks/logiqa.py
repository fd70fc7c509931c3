"""LogiQA's documents from its authors' text files, as the dataset script of the hub makes them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import DatasetDict

FILES = {"train": "Train.txt", "validation": "Eval.txt", "test": "Test.txt"}
BEFORE_OPTIONS = 3  # lines of a record: label, context, question
PREFIX = len("A.")


def load(source: str, **_: Any) -> "DatasetDict":
    """Download and parse the three splits.

    Args:
        source: address (or folder) of the files.

    Raises:
        ValueError: a record without options.
    """
    from datasets import Dataset, DatasetDict, load_dataset

    addresses = {split: f"{source}/{file}" for split, file in FILES.items()}
    texts = load_dataset("text", data_files=addresses, sample_by="document")
    return DatasetDict(
        {split: Dataset.from_list(parse(texts[split]["text"][0])) for split in texts}
    )


def parse(text: str) -> list[dict[str, Any]]:
    """Records with a blank line between them, as documents with the columns of the hub.

    Raises:
        ValueError: a record without options.
    """
    documents = []
    for number, record in enumerate(text.strip().split("\n\n"), 1):
        lines = record.strip("\n").split("\n")
        if len(lines) <= BEFORE_OPTIONS:
            raise ValueError(f"LogiQA's record {number} has {len(lines)} lines, so no options")
        label, context, question, *options = lines
        documents.append(
            {
                "label": label.strip(),
                "context": _spaced(context),
                "question": _spaced(question),
                "options": [_spaced(option[PREFIX:]) for option in options],
            }
        )
    return documents


def _spaced(text: str) -> str:
    """A space behind each full stop, as in the hub's script."""
    return text.replace(".", ". ").strip()
