"""Continue a text, and show how much the model thought about each token.

    itt generate runs/itt_x4_162m --prompt "The sea" --color
    itt generate MODEL --prompt-file text.txt --select-ratios 0.9,0.7,0

Prints the prompt and its continuation, and on stderr what it took. Decoding is greedy unless a
temperature is given. With `--color` each token has a shade by its thinking steps, over all
thinking layers.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from itt_composer.basics.errors import FieldError, UserError, errors_as_sentences
from itt_composer.cli.options import ANY_MODEL, SelectRatios, comma_separated
from itt_composer.cli.shades import legend, shaded_writer
from itt_composer.models.generation_options import GenerationOptions
from itt_composer.recipe.thinking import check_early_exit
from itt_composer.runs.model_place import ModelPlace, find_model
from itt_composer.runs.model_settings import check_ratios_of, thinking_of

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
MAX_SEED = 2**63 - 1

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[str, ANY_MODEL],
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="A file with the text, taken as it is.")
    ] = None,
    select_ratios: SelectRatios = None,
    early_exit: Annotated[
        float | None,
        typer.Option(help="A token that a step changes by less than this share stops thinking."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens to generate.")] = 100,
    temperature: Annotated[
        float, typer.Option(help="Sample at this temperature; 0 takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from this share of the probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Seed of sampling.")] = None,
    color: Annotated[bool, typer.Option(help="Shade each token by its thinking steps.")] = False,
) -> None:
    """Continue a text with a trained model."""
    with errors_as_sentences(interrupted=""):
        if temperature == 0 and (top_p is not None or seed is not None):
            raise UserError("--top-p and --seed are for sampling: give --temperature as well")
        options = GenerationOptions(
            comma_separated(select_ratios, float, "--select-ratios"),
            early_exit,
            max_new_tokens,
            temperature,
            1.0 if top_p is None else top_p,
            0 if seed is None else seed,
        )
        options.check()
        place = find_model(model)
        check_thinking(place, options)
        write_continuation(place, _prompt(prompt, prompt_file), options, color)


def check_thinking(place: ModelPlace, options: GenerationOptions) -> None:
    """See, without torch, that a model has a tokenizer and takes the options.

    Of a model on the hub nothing is known yet.

    Raises:
        UserError: one sentence per mistake.
    """
    settings = thinking_of(place)
    folder = place.folder
    if folder is not None and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}): copy into it what "
            "the folder tokenizer/ of the shards holds"
        )
    if settings is None:
        return
    ratios, epsilon = options.select_ratios, options.early_exit
    if settings.thinking == "dense" and (ratios is not None or epsilon is not None):
        raise UserError(
            f"{place.named} holds a model that takes no thinking steps: leave out --select-ratios "
            "and --early-exit"
        )
    try:
        if ratios is not None:
            option = f"--select-ratios {','.join(f'{ratio:g}' for ratio in ratios)}"
            check_ratios_of(settings, ratios)
        if epsilon is not None:
            option = f"--early-exit {epsilon:g}"
            check_early_exit(epsilon)
    except FieldError as error:
        raise UserError(f"{option} cannot be used with {place.named}: {error}") from None


def write_continuation(
    place: ModelPlace, prompt: str, options: GenerationOptions, color: bool
) -> None:
    """Load the model, print the prompt and its continuation, and on stderr what it took.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, the model has no thresholds or
            gives NaN or infinity, or the prompt does not fit.
    """
    from transformers import logging

    from itt_composer.models.generation import generate, most_steps, prompt_ids
    from itt_composer.models.overflow import OverflowInLogitsError
    from itt_composer.runs.loading import decide_token_by_token, load_named_model, think_as

    logging.set_verbosity_error()
    loaded = load_named_model(place.named)
    model: Any = loaded.model
    think_as(model, {"select_ratios": options.select_ratios, "early_exit": options.early_exit})
    decide_token_by_token(model, place)
    tokenizer = loaded.tokenizer()
    ids = prompt_ids(model.config, tokenizer, prompt)
    most = most_steps(model.config)[1]
    console = Console(highlight=False)
    is_shaded = color and most > 0 and console.color_system is not None
    if color and not most:
        _say("this model takes no thinking steps: there is nothing to shade")
    if is_shaded:
        console.print(legend(most))
    write = shaded_writer(console, most if is_shaded else 0)
    try:
        generation = generate(model, tokenizer, ids, options, write, is_shaded)
    except OverflowInLogitsError as error:
        console.print()
        dtype = str(model.dtype).removeprefix("torch.")
        raise UserError(
            f"{place.named} gives NaN or infinity as logits after {error.tokens} tokens, although "
            f"its weights are finite: {dtype} is too narrow for what it computes"
        ) from None
    console.print()
    if generation.is_cut:
        _say(f"stopped: the model has {model.config.max_position_embeddings} positions")
    _say(generation.summary())


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
