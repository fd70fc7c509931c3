"""Collects what a user must know of a task's figure: cut requests, BOS after BOS, warnings."""

import contextlib
import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# Counted here instead, and reported once for a task.
OWN_COUNT = "Left truncation applied"


@dataclass
class Asked:
    """Counts over the requests of a task.

    Attributes:
        requests: likelihoods, rolling likelihoods and texts to generate.
        cut: requests whose first tokens the model had no room for.
        begin_with_bos: rolling texts whose BOS is predicted after another one.
        bos_nats: what that adds to each text's negative log-likelihood.
        most_generated: tokens that a text may have; None where that is lm-eval's number.
    """

    requests: int = 0
    cut: int = 0
    begin_with_bos: int = 0
    bos_nats: float = 0.0
    most_generated: int | None = None

    def notes(self, max_length: int, shots: int) -> list[str]:
        """Write a sentence for each of these that is not as one would expect.

        Args:
            max_length: tokens that the model takes.
            shots: examples before each question.
        """
        notes = []
        if self.cut:
            notes.append(
                f"{self.cut:,} of {self.requests:,} requests are longer than the model's "
                f"{max_length:,} tokens and lost their first ones, as in lm-eval"
                + f": these had no {shots} whole shots; shots_that_fit=true asks all with fewer"
                * bool(shots)
            )
        if self.most_generated is not None:
            notes.append(
                f"at most {self.most_generated:,} tokens are generated, half of what the model "
                "takes; lm-eval would refuse"
            )
        if self.begin_with_bos:
            notes.append(
                f"each of {self.begin_with_bos:,} texts begins with a BOS that is predicted after "
                f"another BOS, as in lm-eval: {self.bos_nats:.1f} nats per text in this figure do "
                "not belong to the text"
            )
        return notes


@contextlib.contextmanager
def harness_warnings() -> Iterator[list[str]]:
    """Collect lm-eval's warnings, each sentence once, instead of printing them."""
    collected: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())
            if text not in collected and not text.startswith(OWN_COUNT):
                collected.append(text)

    logger, collector = logging.getLogger("lm_eval"), Collector(logging.WARNING)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield collected
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagates


def questions_sha256(tasks: Iterable[Any]) -> str:
    """Hash the questions and answers that were asked, whatever stood before them.

    Args:
        tasks: leaf tasks of lm-eval, after `evaluate`.
    """
    digest = hashlib.sha256()
    for task in tasks:
        last = None
        for instance in task.instances:
            if instance.doc_id != last:
                last = instance.doc_id
                question = task.doc_to_text(instance.doc), task.doc_to_target(instance.doc)
                digest.update(repr(question).encode())
            if instance.request_type == "loglikelihood":
                digest.update(repr(instance.args[1]).encode())
    return digest.hexdigest()
