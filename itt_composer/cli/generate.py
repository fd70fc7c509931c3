"""Continue a text, and show how much the model thought about each token.

    itt generate runs/itt_x4_162m/model --prompt "The sea" --color
    itt generate MODEL --prompt-file text.txt --select-ratios 0.9,0.7,0

Prints the prompt and its continuation, and on stderr what it took. Decoding is greedy unless a
temperature is given. With `--color` each token has a shade by its thinking steps, over all
thinking layers.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from itt_composer.basics.errors import UserError, errors_as_sentences
from itt_composer.models.tokenizer import document_ids, load_tokenizer
from itt_composer.recipe.layers import comma_separated
from itt_composer.recipe.llama_config import LLAMA_TYPES, THINKING_KEYS, llama_config, read_config
from itt_composer.recipe.thinking import ThinkingSettings, check_early_exit, check_select_ratios

if TYPE_CHECKING:
    from itt_composer.models.text_stream import StepCounter

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
# What a terminal would obey instead of showing it.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
MAX_SEED = 2**63 - 1
LOWEST_TEMPERATURE = 1e-3  # below it probabilities overflow
FEW_STEPS, MANY_STEPS = (255, 245, 180), (230, 85, 13)  # background, red green blue

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Options:
    """How to generate.

    Attributes:
        select_ratios: ρ_t, or None for the model's own.
        early_exit: ε, or None for the model's own.
        max_new_tokens: at least 1.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that tokens are sampled from.
        seed: of sampling.
    """

    select_ratios: list[float] | None = None
    early_exit: float | None = None
    max_new_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@app.command()
def main(
    folder: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A transformers folder: a run's model/.")
    ],
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="A file with the text, taken as it is.")
    ] = None,
    select_ratios: Annotated[
        str | None, typer.Option(help="Share of the tokens in each step, such as 0.7,0.5,0.")
    ] = None,
    early_exit: Annotated[
        float | None,
        typer.Option(help="A token that a step changes by less than this share stops thinking."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 100,
    temperature: Annotated[
        float, typer.Option(help="Sample at this temperature; 0 takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from this share of the probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Of sampling.")] = None,
    color: Annotated[bool, typer.Option(help="Shade each token by its thinking steps.")] = False,
) -> None:
    """Continue a text with a trained model."""
    with errors_as_sentences(interrupted=""):
        if temperature == 0 and (top_p is not None or seed is not None):
            raise UserError("--top-p and --seed are for sampling: give --temperature as well")
        options = Options(
            comma_separated(select_ratios, float, "--select-ratios"),
            early_exit,
            max_new_tokens,
            temperature,
            1.0 if top_p is None else top_p,
            0 if seed is None else seed,
        )
        check_options(folder, options)
        run(folder, _prompt(prompt, prompt_file), options, color)


def check_options(folder: Path, options: Options) -> None:
    """See, without torch, that there is a model with a tokenizer and that it takes the options.

    Raises:
        UserError: one sentence per mistake.
    """
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, not {options.max_new_tokens}")
    if options.temperature != 0 and not LOWEST_TEMPERATURE <= options.temperature < float("inf"):
        raise UserError(
            f"--temperature must be 0 or at least {LOWEST_TEMPERATURE}, not {options.temperature}"
        )
    if not 0 < options.top_p <= 1:
        raise UserError(f"--top-p must lie above 0 and not above 1, not {options.top_p}")
    settings = _thinking(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}): copy into it what "
            "the folder tokenizer/ of the shards holds"
        )
    ratios, epsilon = options.select_ratios, options.early_exit
    if settings.thinking == "dense" and (ratios is not None or epsilon is not None):
        raise UserError(
            f"{folder} holds a model that takes no thinking steps: leave out --select-ratios and "
            "--early-exit"
        )
    try:
        if ratios is not None:
            assert settings.thinking_steps is not None
            check_select_ratios(ratios, settings.thinking_steps, bool(settings.adaptive_routing))
        if epsilon is not None:
            check_early_exit(epsilon)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None


def run(folder: Path, prompt: str, options: Options, color: bool) -> None:
    """Load the model, print the prompt and its continuation, and on stderr what it took.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, the model has no thresholds or
            gives NaN or infinity, or the prompt does not fit.
    """
    import torch
    from transformers import logging

    from itt_composer.models.loading import load_model
    from itt_composer.models.overflow import OverflowInLogitsError, RefuseOverflow
    from itt_composer.models.text_stream import StepCounter, TextStream

    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = load_model(folder).to(torch.device(device))  # type: ignore[arg-type]
    prepare_thinking(model, folder, options)
    tokenizer = load_tokenizer(folder)
    ids = prompt_ids(model.config, tokenizer, prompt)
    room = model.config.max_position_embeddings - len(ids)
    num_steps, most = _most_steps(model.config)
    console = Console(highlight=False)
    is_shaded = color and most > 0 and console.color_system is not None
    if color and not most:
        _say("this model takes no thinking steps: there is nothing to shade")
    if is_shaded:
        console.print(legend(most))
    counter = StepCounter(num_steps)
    stream = TextStream(tokenizer, counter, _writer(console, most if is_shaded else 0), is_shaded)
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    try:
        output_BS = model.generate(
            torch.tensor([ids], device=device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
            streamer=stream,
            logits_processor=[RefuseOverflow()],
            # Whatever the folder's generation config says: text streams from one beam.
            use_cache=True,
            num_beams=1,
            cache_implementation=None,
            remove_invalid_values=False,
            max_new_tokens=min(options.max_new_tokens, room),
            **_sampling(options),
            **({"on_step": counter.on_step} if num_steps else {}),
        )
    except OverflowInLogitsError as error:
        console.print()
        dtype = str(model.dtype).removeprefix("torch.")
        raise UserError(
            f"{folder} gives NaN or infinity as logits after {error.tokens} tokens, although its "
            f"weights are finite: {dtype} is too narrow for what it computes"
        ) from None
    seconds = time.perf_counter() - started
    console.print()
    new_tokens = output_BS.shape[1] - len(ids)
    if new_tokens == room < options.max_new_tokens:
        _say(f"stopped: the model has {model.config.max_position_embeddings} positions")
    _say(summary(model.config, counter, len(ids), new_tokens, seconds))


def prepare_thinking(model: Any, folder: Path, options: Options) -> None:
    """Set the ratios and ε, and have routers decide token by token, as a cache needs it.

    Raises:
        UserError: the model has no thresholds for that.
    """
    try:
        if options.select_ratios is not None:
            model.set_select_ratios(options.select_ratios)
        if options.early_exit is not None:
            model.set_early_exit(options.early_exit)
        ratios = getattr(model.config, "select_ratios", [])
        if any(0 < ratio < 1 for ratio in ratios):
            model.set_router_selection("threshold")
    except ValueError:
        raise UserError(
            f"{folder} has no thresholds yet, which pick tokens without looking ahead: run "
            "itt calibrate on it"
        ) from None


def prompt_ids(config: Any, tokenizer: Any, prompt: str) -> list[int]:
    """The prompt's ids, as those of a document begin in training rows; see `documents_ids`.

    Raises:
        UserError: nothing to begin with, or more than the model has positions for.
    """
    ids = document_ids(tokenizer, prompt)
    if not ids and config.bos_token_id is not None:
        ids = [config.bos_token_id]
    if not ids:
        raise UserError("this model has no token that begins a document: give a --prompt")
    if len(ids) >= config.max_position_embeddings:
        raise UserError(
            f"the prompt has {len(ids)} tokens and leaves no room in the model's "
            f"{config.max_position_embeddings} positions: shorten it"
        )
    if max(ids) >= config.vocab_size:
        raise UserError(
            f"the tokenizer gives id {max(ids)}, but the model has {config.vocab_size} ids: it is "
            "another model's tokenizer"
        )
    return ids


def summary(
    config: Any, counter: "StepCounter", prompt_tokens: int, new_tokens: int, seconds: float
) -> str:
    """What a generation took, in one line."""
    parts = [f"{new_tokens} tokens after {prompt_tokens}, {new_tokens / seconds:,.1f} tokens/s"]
    if counter.taken:
        num_layers = len(config.thinking_layers)
        shares = [100 * taken / (counter.tokens * num_layers) for taken in counter.taken]
        mean = sum(counter.taken) / counter.tokens
        parts.append(f"{mean:.2f} of {num_layers * len(shares)} thinking steps per token")
        asked = "/".join(f"{100 * ratio:.0f}" for ratio in config.select_ratios)
        parts.append(f"steps at {'/'.join(f'{share:.0f}' for share in shares)} % ({asked} asked)")
    return "; ".join(parts)


def legend(most: int) -> Text:
    """A line that says what the shades mean; `most` is the largest number of steps."""
    shown = sorted({round(most * part / 3) for part in range(4)})
    line = Text("thinking steps per token: ")
    return line + Text(" … ").join(Text(f" {n} of {most} ", shade(n, most)) for n in shown)


def shade(steps: int | None, most: int) -> Style:
    """The style of a token that took so many steps; the terminal's own for none."""
    if not steps:
        return Style()
    share = steps / most
    ends = zip(FEW_STEPS, MANY_STEPS, strict=True)
    mixed = (round(few + share * (many - few)) for few, many in ends)
    return Style.parse(f"black on rgb({','.join(map(str, mixed))})")


def _writer(console: Console, most: int) -> Callable[[str, int | None], None]:
    """Prints pieces of text, shaded unless `most` is 0."""

    def write(text: str, steps: int | None) -> None:
        if console.is_terminal:
            text = CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text)
        if not most:
            console.file.write(text)
        # A shaded line break would shade the rest of the terminal's line.
        for line in text.splitlines(keepends=True) if most else ():
            shown = line.rstrip("\n")
            pieces = [Segment(shown, shade(steps, most)), Segment(line[len(shown) :])]
            console.print(Segments(pieces), end="", soft_wrap=True)
        console.file.flush()

    return write


def _sampling(options: Options) -> dict[str, Any]:
    if options.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    sampled = {"do_sample": True, "top_k": 0}
    return {**sampled, "temperature": options.temperature, "top_p": options.top_p}


def _most_steps(config: Any) -> tuple[int, int]:
    """T-1, and the steps that a token can take over all layers; 0 for a dense model."""
    num_steps = len(getattr(config, "select_ratios", []))
    return num_steps, num_steps * len(getattr(config, "thinking_layers", []))


def _thinking(folder: Path) -> ThinkingSettings:
    """The thinking settings of a transformers folder; a model of another kind is dense."""
    config = read_config(folder, str(folder))
    if config.get("model_type") not in LLAMA_TYPES:
        return ThinkingSettings("dense").resolve(1)
    config = llama_config(config, str(folder))
    if config["model_type"] == "llama":
        return ThinkingSettings("dense").resolve(1)
    try:
        settings = ThinkingSettings(**{key: config[key] for key in THINKING_KEYS & config.keys()})
        return settings.resolve(config["num_hidden_layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} is no model's configuration: {error}") from None


def _prompt(prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is not None:
        raise UserError("give either --prompt or --prompt-file")
    try:
        text = file.read_bytes().decode() if file is not None else prompt or ""
        text.encode()
    except UnicodeError as error:
        raise UserError(f"{file or '--prompt'} is not UTF-8 text: {error.reason}") from None  # type: ignore[attr-defined]
    return text


def _say(text: str) -> None:
    typer.echo(text, err=True)
