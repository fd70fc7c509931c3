"""lm-eval's view of a model: its own `HFLM`, with likelihoods that share what requests share.

Prompts and truncation are the harness's, tokens those of training documents. Every rank is given
all requests, computes its share of the batches and learns the results of the others, so that
few-shot examples, and with them the results, are the same on any number of ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from lm_eval.api.instance import Instance
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval import ranks
from eval.document_tokens import DocumentTokens
from eval.likelihoods import TOKENS_PER_BATCH, Likelihood, Scorer, plan, share_out
from itt_composer.tokenizer import documents_ids

# Work done and in all, in any unit.
OnProgress = Callable[[int, int], None]


class EvaluatedLM(DocumentTokens):
    """A model and its tokenizer, as lm-eval asks them.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: its own.
        on_progress: called after each batch.

    Attributes:
        requests_per_batch: None goes by the number of tokens and the memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        on_progress: OnProgress = lambda done, total: None,
    ):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1)  # type: ignore[arg-type]
        self.on_progress = on_progress
        self.requests_per_batch: int | None = None
        self._scorer = Scorer(model)
        self._can_share = all(ranks.gather(self._scorer.can_share()))  # plans are of all ranks
        self._tokens_per_batch = TOKENS_PER_BATCH.get(model.device.type, TOKENS_PER_BATCH["cpu"])

    @property
    def max_gen_toks(self) -> int:
        """The harness's, but half of what the model takes at most."""
        return min(super().max_gen_toks, self.max_length // 2)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[Likelihood]:
        """Likelihoods of (context, continuation) texts."""
        pairs = [_with_spaces_behind(*request.args) for request in requests]
        texts = {text for context, rest in pairs if context for text in (context, context + rest)}
        ids = self._encode_all(texts)
        tokenized: list[Any] = []
        for context, rest in pairs:
            if context:
                own = ids[context]
                tokenized.append((("", ""), own, ids[context + rest][len(own) :]))
            else:
                own = self.tok_encode(rest, add_special_tokens=False)
                start = [] if own[0] == self.prefix_token_id else [self.prefix_token_id]
                tokens = [*start, *own]
                tokenized.append((("", ""), tokens[:1], tokens[1:]))
        return self._loglikelihood_tokens(tokenized)

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
        )
        own = share_out([batch.cost for batch in batches], ranks.world_size())[ranks.rank()]
        likelihoods: dict[int, Likelihood] = {}
        for place in self._told(own, [batches[place].cost for place in own]):
            likelihoods.update(self._scorer.score(batches[place]))
        known = _joined(likelihoods)
        return [known[index] for index in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihoods of whole texts, window by window."""
        self.batch_size_per_gpu = self.requests_per_batch or len(requests)
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations of prompts (or as the task samples them)."""
        ids = self._encode_all({request.args[0] for request in requests})
        longest_prompt = self.max_length - self.max_gen_toks
        lengths = [min(len(ids[request.args[0]]), longest_prompt) for request in requests]
        batches = list(self._batches_to_generate(lengths))
        costs = [len(batch) * lengths[batch[0]] for batch in batches]
        own = share_out(costs, ranks.world_size())[ranks.rank()]
        texts: dict[int, str] = {}
        for place in self._told(own, [costs[place] for place in own]):
            texts.update(self._generate(batches[place], requests))
        known = _joined(texts)
        return [known[index] for index in range(len(requests))]

    def _batches_to_generate(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Requests by their places, the longest first."""
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
        """One batch; halved where it does not fit the memory."""
        self.batch_size_per_gpu = len(places)
        try:
            texts = super().generate_until([requests[place] for place in places], disable_tqdm=True)
            return dict(zip(places, texts, strict=True))
        except RuntimeError as error:
            if len(places) == 1 or not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)
        middle = len(places) // 2
        first, second = places[:middle], places[middle:]
        return {**self._generate(first, requests), **self._generate(second, requests)}

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        """As the harness's, but without a cache where the model looks ahead."""
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
        """The ids of each text, as `tok_encode` gives them; many at once take several cores."""
        texts = list(texts)
        if self.add_bos_token is not None:
            return {text: self.tok_encode(text) for text in texts}
        return dict(zip(texts, documents_ids(self.tokenizer, texts), strict=True))

    def _told(self, places: Sequence[int], costs: Sequence[int]) -> Iterator[int]:
        """Each place in turn, progress told after it."""
        done, total = 0, sum(costs)
        for place, cost in zip(places, costs, strict=True):
            yield place
            done += cost
            self.on_progress(done, total)


def _with_spaces_behind(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of a context belong to the continuation's first token."""
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _joined(own: dict[int, Any]) -> dict[int, Any]:
    """What all ranks know together."""
    return {index: value for part in ranks.gather(own) for index, value in part.items()}
