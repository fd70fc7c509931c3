"""SentencePiece's trainer in a process of its own, because some text makes it end its process.

    python -m data_prep.sentencepiece_process SETTINGS <lines >model

Prints the model; or why there is none, with exit code 2.
"""

import io
import json
import signal
import sys

import sentencepiece

from itt_composer.basics.startup import end_with_parent

REFUSED = 2


def main() -> int:
    """Train on the lines of stdin, UTF-8, by the settings in the first argument."""
    end_with_parent(signal.SIGKILL)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line.removesuffix(b"\n").decode() for line in sys.stdin.buffer),
            model_writer=model,
            **json.loads(sys.argv[1]),
        )
    except RuntimeError as error:  # the vocabulary is too large or too small for the text
        sys.stdout.write(str(error))
        return REFUSED
    sys.stdout.buffer.write(model.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
