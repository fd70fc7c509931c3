"""Answer OpenAI's API with a model: `itt serve MODEL`.

    curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" \\
        -d '{"model": "itt_x4_162m", "prompt": "The sea", "select_ratios": [0.9, 0.7, 0]}'

The model answers one request at a time. Ctrl-C ends the server.
"""

import socket
from typing import Annotated

import typer

from itt_composer.basics.errors import UserError, errors_as_sentences
from itt_composer.cli.options import ANY_MODEL
from itt_composer.runs.model_place import ModelPlace, find_model

LOOPBACK = ("127.0.0.1", "localhost")
WAITING = 64  # connections that wait for the server to take them

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[
        str,
        ANY_MODEL,
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. Whoever reaches it may ask: there are no keys."),
    ] = LOOPBACK[0],
) -> None:
    """Answer OpenAI's API with a model, over HTTP on this machine."""
    with errors_as_sentences(interrupted=""):
        place = find_model(model)
        with _listen(host, port) as listening:
            _serve(place, listening, host)


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded.

    Raises:
        UserError: it is in use, or the address is not of this machine.
    """
    try:
        return socket.create_server((host, port), backlog=WAITING)
    except OSError as error:
        raise UserError(
            f"cannot listen on --host {host} --port {port} ({error.strerror or error}): take "
            "another --port, or 0 for a free one"
        ) from None


def _serve(place: ModelPlace, listening: socket.socket, host: str) -> None:
    """Load the model and answer until Ctrl-C.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, or it has no thresholds.
    """
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from transformers import logging

    from itt_composer.runs.loading import load_named_model
    from itt_composer.serving.app import Api
    from itt_composer.serving.served_model import ServedModel

    logging.set_verbosity_error()
    served = ServedModel(load_named_model(place.named))
    api = Api(served, lambda: server.should_exit)
    app = api.app()
    if host in LOOPBACK:  # so that no page in a browser can ask under a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    port = listening.getsockname()[1]
    typer.echo(f"serving {served.name} on http://{host}:{port}/v1 (Ctrl-C ends)", err=True)
    server.run(sockets=[listening])
