"""Gives lm-eval a model: its own `HFLM`, with likelihoods that compute shared prefixes once.

Prompts and truncation are the harness's, tokens those of training documents. Every rank is given
all requests, computes its share of the batches and receives the results of the others, so that
few-shot examples, and with them the results, are the same on any number of ranks.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from accelerate.utils.memory import clear_device_cache
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from eval import ranks
from eval.document_tokens import DocumentTokens
from eval.task_notes import Asked
from itt_composer.basics.errors import UserError
from itt_composer.models.likelihood_batches import TOKENS_PER_BATCH, plan, share_out
from itt_composer.models.likelihoods import Likelihood, Scorer, is_too_large
from itt_composer.models.overflow import OverflowInLogitsError, RefuseOverflow
from itt_composer.models.tokenizer import documents_ids
from itt_composer.runs.loading import why_no_numbers

# Work done and in all, in any unit.
OnRequests = Callable[[int, int], None]


class EvaluatedLM(DocumentTokens):
    """A model and its tokenizer, as lm-eval asks them.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: its own.
        on_progress: called after each batch.

    Attributes:
        requests_per_batch: None fits batches to the number of tokens and the memory.
        task: that is being asked, for messages.
        asked: counts over what was asked; the reader resets them.

    Raises:
        UserError: from every method that asks the model: it computes NaN or infinity.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        on_progress: OnRequests = lambda done, total: None,
    ):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1)  # type: ignore[arg-type]
        self.on_progress = on_progress
        self.requests_per_batch: int | None = None
        self.task = "a task"
        self.asked = Asked()
        self._scorer = Scorer(model)
        self._can_share = all(ranks.gather(self._scorer.can_share()))  # plans are of all ranks
        self._tokens_per_batch = TOKENS_PER_BATCH.get(model.device.type, TOKENS_PER_BATCH["cpu"])

    @property
    def max_gen_toks(self) -> int:
        """The harness's number, but at most half of what the model takes."""
        return min(super().max_gen_toks, self.max_length // 2)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[Likelihood]:
        """Return the likelihoods of (context, continuation) texts."""
        tokenized = self._tokenized(requests)
        self.asked.requests += len(requests)
        self.asked.cut += self._too_long(tokenized)
        return self._loglikelihood_tokens([(("", ""), *pair) for pair in tokenized])

    def _tokenized(self, requests: Sequence[Instance]) -> list[tuple[list[int], list[int]]]:
        """Return the tokens of contexts and continuations."""
        pairs = [_with_spaces_moved(*request.args) for request in requests]
        texts = {text for context, rest in pairs if context for text in (context, context + rest)}
        ids = self._encode_all(texts)
        tokenized = []
        for context, rest in pairs:
            if context:
                own = ids[context]
                tokenized.append((own, ids[context + rest][len(own) :]))
            else:
                own = self.tok_encode(rest, add_special_tokens=False)
                start = [] if own[0] == self.prefix_token_id else [self.prefix_token_id]
                tokens = [*start, *own]
                tokenized.append((tokens[:1], tokens[1:]))
        return tokenized

    def _too_long(self, tokenized: Iterable[tuple[list[int], list[int]]]) -> int:
        """Count the contexts that `plan` cuts."""
        return sum(len(context) + len(rest) > self.max_length + 1 for context, rest in tokenized)

    def cut(self, requests: Sequence[Instance]) -> int:
        """Count the requests that would lose their first tokens, as the model takes too few."""
        scored = [one for one in requests if one.request_type == "loglikelihood"]
        generated = [one for one in requests if one.request_type == "generate_until"]
        return self._too_long(self._tokenized(scored)) + sum(
            length > self._room(request)
            for length, request in zip(self._lengths(generated), generated, strict=True)
        )

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Likelihood]:
        batches = plan(
            [(context, continuation) for _, context, continuation in requests],
            self.max_length,
            self.requests_per_batch,
            self._tokens_per_batch,
            self._can_share,
            can_pad=not self._scorer.looks_ahead,
            task=self.task,
        )
        own = share_out([batch.cost for batch in batches], ranks.world_size())[ranks.rank()]
        likelihoods: dict[int, Likelihood] = {}
        for place in self._reported(own, [batches[place].cost for place in own]):
            found = self._scorer.score(batches[place])
            likelihoods.update(found)
            if any(math.isnan(value) for value, _ in found.values()):
                break  # of no use, on all ranks alike
        known = _joined(likelihoods)
        self._refuse_nan(any(math.isnan(value) for value, _ in known.values()))
        return [known[index] for index in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihoods of whole texts, computed window by window.

        Where a tokenizer begins with BOS, that is predicted after another BOS, as in the harness.
        """
        bos = self.prefix_token_id
        starts = [self.tok_encode(request.args[0][:1])[:1] for request in requests]
        self.asked.requests += len(requests)
        self.asked.begin_with_bos += starts.count([bos])
        if [bos] in starts:
            ((value, _),) = self._loglikelihood_tokens([(("", ""), [bos], [bos])])
            self.asked.bos_nats = -value
        self.batch_size_per_gpu = self.requests_per_batch or len(requests)
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue prompts greedily, or as the task samples."""
        rooms = [self._room(request) for request in requests]
        if min(rooms) <= 0:
            raise UserError(
                f"{self.task}: {self.max_length - min(rooms):,} tokens are to be generated, but "
                f"the model takes {self.max_length:,}: leave the task out (tasks.NAME=null) or "
                "evaluate a model that takes more"
            )
        whole = self._lengths(requests)
        self.asked.requests += len(requests)
        self.asked.cut += sum(length > room for length, room in zip(whole, rooms, strict=True))
        if (
            self.max_gen_toks < super().max_gen_toks
            and self.max_length - self.max_gen_toks in rooms
        ):
            self.asked.most_generated = self.max_gen_toks
        lengths = list(map(min, whole, rooms))
        batches = list(self._batches_to_generate(lengths))
        costs = [len(batch) * lengths[batch[0]] for batch in batches]
        own = share_out(costs, ranks.world_size())[ranks.rank()]
        texts: dict[int, str | None] = {}
        for place in self._reported(own, [costs[place] for place in own]):
            try:
                texts.update(self._generate(batches[place], requests))
            except OverflowInLogitsError:
                texts.update(dict.fromkeys(batches[place]))
                break
        known = _joined(texts)
        self._refuse_nan(None in known.values())
        return [known[index] for index in range(len(requests))]

    def _lengths(self, requests: Sequence[Instance]) -> list[int]:
        """Return the number of tokens of each prompt."""
        ids = self._encode_all({request.args[0] for request in requests})
        return [len(ids[request.args[0]]) for request in requests]

    def _room(self, request: Instance) -> int:
        """Return how many tokens of a prompt have room beside those to be generated."""
        generated = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
        return self.max_length - int(generated)

    def _refuse_nan(self, is_there: bool) -> None:
        """End the task on every rank, though only one of them may have computed NaN."""
        if is_there:
            raise UserError(
                f"{self.task}: the model computes NaN or infinity, so there is no score; "
                f"{why_no_numbers(self.model)}"
            )

    def _batches_to_generate(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield batches of requests by their places, the longest first."""
        places = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
        while places:
            size = self.requests_per_batch or max(
                1, self._tokens_per_batch // (lengths[places[0]] + self.max_gen_toks)
            )
            alike = places[:size]
            if self._scorer.looks_ahead:  # at padding, too
                alike = [place for place in alike if lengths[place] == lengths[alike[0]]]
            yield alike
            places = places[len(alike) :]

    def _generate(self, places: list[int], requests: Sequence[Instance]) -> dict[int, str]:
        """Generate for one batch; halve it where it does not fit the memory."""
        self.batch_size_per_gpu = len(places)
        try:
            texts = super().generate_until([requests[place] for place in places], disable_tqdm=True)
            return dict(zip(places, texts, strict=True))
        except (RuntimeError, MemoryError) as error:
            if len(places) == 1 or not is_too_large(error):
                raise
        clear_device_cache(garbage_collection=True)
        middle = len(places) // 2
        first, second = places[:middle], places[middle:]
        return {**self._generate(first, requests), **self._generate(second, requests)}

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        """Generate as the harness does, but stop at an overflow; use no cache with look-ahead."""
        generation_kwargs["logits_processor"] = LogitsProcessorList([RefuseOverflow()])
        generation_kwargs["remove_invalid_values"] = False
        if not self._scorer.looks_ahead:
            return super()._model_generate(context, max_length, stop, **generation_kwargs)
        criteria = stop_sequences_criteria(self.tokenizer, stop, context.shape[1], context.shape[0])
        if not generation_kwargs.get("temperature") or not generation_kwargs.get("do_sample"):
            generation_kwargs["do_sample"] = False
            generation_kwargs.pop("temperature", None)
        return self.model.generate(
            input_ids=context,
            max_length=max_length,
            stopping_criteria=criteria,
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=False,
            **generation_kwargs,
        )

    def _encode_all(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Return the ids of each text, as `tok_encode` gives them; many use several cores."""
        texts = list(texts)
        if self.add_bos_token is not None:
            return {text: self.tok_encode(text) for text in texts}
        return dict(zip(texts, documents_ids(self.tokenizer, texts), strict=True))

    def _reported(self, places: Sequence[int], costs: Sequence[int]) -> Iterator[int]:
        """Yield each place in turn, and report progress after it."""
        done, total = 0, sum(costs)
        for place, cost in zip(places, costs, strict=True):
            yield place
            done += cost
            self.on_progress(done, total)


def _with_spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    """Move spaces at the end of a context to the continuation, whose first token has them."""
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _joined(own: dict[int, Any]) -> dict[int, Any]:
    """Join what each rank knows."""
    return {index: value for part in ranks.gather(own) for index, value in part.items()}
