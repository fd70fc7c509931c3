"""Text to token shards: what happens before training.

Commands: `convert`, `verify`, `stats`, `sample-corpus`, `train-tokenizer`.

convert.py            `convert`: the checklist; options.py: what it is asked for
    domains.py        files of a corpus, its domains and their names
    part_plan.py      what a worker takes at a time
    budgets.py        how much is wanted; token_estimate.py: of how much there is
    local_engine.py   converts parts on the cores of this machine; workers.py: its processes
    spark_engine.py   converts parts on a cluster; spark_session.py, spark_shards.py
    part_rows.py      one part: lines → documents → ids → rows
        documents.py, document_split.py, tokenizer.py, encoder_choice.py, encoder.py
    part_shards.py    a part's shards, there as a whole or not at all; shard_writing.py
    part_record.py    what became of a part
    finished_streams.py        finished parts → finished streams
    unfinished_conversion.py   what is done so far, kept beside the output
    rejects.py        lines that were left out
    output.py         where it goes: local_output.py, a folder; remote_output.py, an object store
    conversion_result.py       the manifest and the warnings
    progress.py       how far it is
verify.py, shard_checks.py, stats.py   read the result again
sample_corpus.py, docstrings.py   `sample-corpus`: real text from the running Python installation
tokenizer_training.py      `train-tokenizer`: a LLaMA-style SentencePiece model
    sentencepiece_process.py   its trainer, in a process of its own
complete_folder.py    output of `sample-corpus` and `train-tokenizer`, complete or absent
durable_files.py      files that survive a power cut

The manifest and the index of shards are classes in `itt_composer.data`; a tokenizer's folder as
transformers reads it is made in `itt_composer.models.tokenizer_json`.
"""

import itt_composer  # noqa: F401 - first: it prepares what `python -m` runs here
