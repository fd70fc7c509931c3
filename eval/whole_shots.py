"""Finds how many shots fit where the model has no room for all."""

from collections.abc import Sequence
from typing import Any

from lm_eval.evaluator_utils import get_sample_size

from eval.language_model import EvaluatedLM


def most_whole_shots(
    tasks: Sequence[Any], shots: int, seed: int, limit: float | None, lm: EvaluatedLM
) -> int:
    """Return the most examples that fit before every question that fits without any.

    Leaves the tasks set to that number; lm-eval gives the same figure with as many shots.

    Args:
        tasks: leaf tasks of lm-eval, with their data.
        shots: that were asked for.
        seed: of the examples that are drawn.
        limit: documents of each task, see `TaskSuite`.
        lm: whose tokenizer and length count.
    """

    def cut(number: int) -> int:
        requests = []
        for task in tasks:
            task.set_config("num_fewshot", number)
            task.set_fewshot_seed(seed)
            task.build_all_requests(limit=get_sample_size(task, limit), rank=0, world_size=1)
            requests += task.instances
        return lm.cut(requests)

    fitting, too_many = 0, shots + 1
    if cut(shots):
        too_long_alone, too_many = cut(0), shots
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            if cut(middle) <= too_long_alone:
                fitting = middle
            else:
                too_many = middle
    for task in tasks:
        task.set_config("num_fewshot", too_many - 1)
        task.set_fewshot_seed(seed)
    return too_many - 1
