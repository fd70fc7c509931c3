"""Text to token shards: what happens before training.

Commands: `convert`, `verify`, `stats`, `sample-corpus`, `train-tokenizer`.

convert.py            `convert`: the checklist
    domains.py        files of a corpus, its domains and their names
    parts.py          what a worker takes at a time
    budgets.py        how much is wanted; estimate.py: of how much there is
    local_engine.py   parts on the cores of this machine; workers.py: its processes
    spark_engine.py   parts on a cluster; spark_session.py, spark_shards.py
    conversion.py     one part: lines → documents → ids → rows
        documents.py, split.py, tokenizer.py, encoder.py, rows.py
    part_store.py     a part's shards, there as a whole or not at all
    state.py          what an unfinished conversion has done
    assembly.py       finished parts → finished streams
    rejects.py        lines that were left out
    output.py         a folder; remote.py: an object store
    progress.py       how far it is
convert_manifest.py   the manifest of `convert`; manifest.py: of every command
verify.py, shard_files.py, stats.py   reading the result again
corpus.py, docstrings.py   `sample-corpus`: real text from the running Python installation
tokenizer_training.py      `train-tokenizer`: a LLaMA-style SentencePiece model
    sentencepiece_process.py   its trainer, in a process of its own
"""

import itt_composer  # noqa: F401 - first: it prepares what `python -m` runs here
