"""Text to token shards: what happens before training, without torch.

errors.py      a user's mistake, as one sentence
manifest.py    an output folder is complete or absent; its manifest says what made it
split.py       train or validation, decided by a document's text alone
documents.py   reading `ROOT/<domain>/**/*.jsonl`
docstrings.py  a Python source, separated into code and docstrings
corpus.py      `sample-corpus`: real text from the running Python installation
tokenizer.py   `train-tokenizer`: a LLaMA-style SentencePiece model; loading one
convert.py     `convert`: jsonl to MDS shards of fixed-length token rows
    progress.py    how far a long command is
"""
