"""Make a LLaMA think: `itt from-llama MODEL OUT --thinking-steps 4`.

Nothing that lies in a model is run. OUT appears when it is complete.
"""

from typing import Annotated

import typer

from itt_composer.basics.errors import Mistakes, UserError, errors_as_sentences
from itt_composer.basics.files import check_new_folder, check_place
from itt_composer.cli.options import NewFolder, comma_separated
from itt_composer.recipe.llama_config import check_llama_folder
from itt_composer.recipe.thinking import ThinkingSettings
from itt_composer.runs.folder import RunFolder
from itt_composer.runs.model_place import find_model

MANY_LAYERS = 1000  # where the model is on the hub, its layers are counted later

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A LLaMA: a transformers folder, a dense run's folder, or a model on the hub.",
        ),
    ],
    out: NewFolder,
    thinking_steps: Annotated[
        int, typer.Option(min=2, help="Passes of a thinking layer, the first included.")
    ] = 4,
    select_ratios: Annotated[
        str | None,
        typer.Option(
            metavar="RATIOS",
            help="Share of tokens in each further step, like 0.5,0.5,0.5.",
            show_default="0.5 each",
        ),
    ] = None,
    thinking_layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS", help="Layers that think, like 1,3,5.", show_default="every other"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of the routers, the only random part.")
    ] = 17,
) -> None:
    """Turn a LLaMA into an ITT that computes the same until it is trained further."""
    with errors_as_sentences():
        mistakes = Mistakes()
        ratios = layers = llama = None
        with mistakes:
            check_new_folder(out)
            check_place(out, "OUT")
        with mistakes:
            if RunFolder(model).is_run():
                model = str(find_model(model).writable_folder("from-llama"))
            llama = check_llama_folder(model)
        with mistakes:
            ratios = comma_separated(select_ratios, float, "--select-ratios")
        with mistakes:
            layers = comma_separated(thinking_layers, int, "--thinking-layers")
        with mistakes:
            check_new_thinking(
                thinking_steps, ratios, layers, (llama or {}).get("num_hidden_layers")
            )
        mistakes.report()
        from itt_composer.models.upcycling import convert_llama

        convert_llama(model, out, thinking_steps, ratios, layers, seed)
        typer.echo(f"model in {out}")


def check_new_thinking(
    steps: int, ratios: list[float] | None, layers: list[int] | None, count: int | None
) -> None:
    """Refuse thinking settings that no ITT of `count` layers has.

    Raises:
        UserError: names the field.
    """
    settings = ThinkingSettings("itt", steps, layers, ratios)
    try:
        settings.resolve(MANY_LAYERS if count is None else count)
    except (ValueError, TypeError) as error:
        raise UserError(f"no such ITT: {error}") from None
