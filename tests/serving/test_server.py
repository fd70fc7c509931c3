"""The server as OpenAI's client meets it: whole and streamed, elastic, with errors that say why."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import httpx
import openai
import pytest
from running_server import serving
from typer.testing import CliRunner

from itt_composer.cli.generate import app as generate_app

PROMPT = "def main(arguments):"
GREEDY = {"model": "itt", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
CHAT = {
    "model": "itt",
    "messages": [{"role": "user", "content": "Who are you?"}],
    "temperature": 0,
    "max_tokens": 8,
}


def thinking(answer):
    """Steps per token that went through the model: of step 1, of step 2."""
    usage = answer.usage
    tokens = usage.total_tokens - 1  # the last one has not
    return [steps / tokens for steps in usage.thinking_steps]


def streamed(chunks):
    """The text of a stream, and its chunks."""
    chunks = list(chunks)
    return "".join(each.choices[0].text for each in chunks if each.choices), chunks


def refused(call, **asked):
    with pytest.raises(openai.APIStatusError) as error:
        call(**asked)
    body = error.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert "\n" not in body["message"]
    return error.value.status_code, body["param"], body["message"]


def test_a_completion_is_what_generate_prints(client, folders):
    answer = client.completions.create(**GREEDY)
    printed = CliRunner().invoke(
        generate_app,
        [str(folders / "itt"), "--prompt", PROMPT, "--max-new-tokens", "12"],
    )
    assert printed.exit_code == 0
    assert PROMPT + answer.choices[0].text == printed.stdout.removesuffix("\n")
    assert answer.object == "text_completion"
    usage = answer.usage
    assert (usage.completion_tokens, answer.choices[0].finish_reason) in [(12, "length")]
    assert usage.total_tokens == usage.prompt_tokens + 12


def test_a_streamed_completion_is_the_whole_one(client):
    whole = client.completions.create(**GREEDY)
    text, chunks = streamed(
        client.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True})
    )
    assert text == whole.choices[0].text
    assert len(chunks) > 3
    assert chunks[-1].usage == whole.usage
    assert [each.choices[0].finish_reason for each in chunks[:-1]][-2:] == [None, "length"]
    _, chunks = streamed(client.completions.create(**GREEDY, stream=True))
    assert all(each.usage is None for each in chunks)


def test_ratios_and_early_exit_of_a_request_change_the_steps_of_that_request_alone(client):
    own = client.completions.create(**GREEDY)
    every, none, first = (
        client.completions.create(**GREEDY, extra_body={"select_ratios": ratios})
        for ratios in ([1, 1], [0, 0], [1, 0])
    )
    assert (thinking(every), thinking(none), thinking(first)) == ([1, 1], [0, 0], [1, 0])
    assert 0 < sum(thinking(own)) < 2
    out = client.completions.create(**GREEDY, extra_body={"early_exit": 1e6})
    assert sum(thinking(out)) < sum(thinking(own))
    again = client.completions.create(**GREEDY)
    assert (again.choices, again.usage) == (own.choices, own.usage)


def test_sampling_follows_its_seed(client):
    asked = GREEDY | {"temperature": 1.5, "top_p": 0.9}
    one, same, other = (
        client.completions.create(**asked, seed=seed).choices[0].text for seed in (-3, -3, 4)
    )
    assert one == same != other
    unseeded = {client.completions.create(**asked).choices[0].text for _ in range(4)}
    assert len(unseeded) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_the_text_before_it(client, stream):
    text = client.completions.create(**GREEDY | {"max_tokens": 30}).choices[0].text
    stop = text[9:14]
    answer = client.completions.create(
        **GREEDY | {"max_tokens": 30}, stop=[stop, "no such text"], stream=stream
    )
    if stream:
        found, chunks = streamed(answer)
        reason = chunks[-1].choices[0].finish_reason
    else:
        found, reason = answer.choices[0].text, answer.choices[0].finish_reason
        assert answer.usage.completion_tokens < 30
    assert (found, reason) == (text[: text.index(stop)], "stop")


def test_a_text_ends_where_the_positions_do(client):
    answer = client.completions.create(**GREEDY | {"max_tokens": 1000})
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.total_tokens <= 64
    assert client.completions.create(model="itt", prompt="x").usage.completion_tokens <= 16


def test_chat_goes_through_the_template(client):
    answer = client.chat.completions.create(**CHAT)
    parts = [{"type": "text", "text": "Who are "}, {"type": "text", "text": "you?"}]
    same = client.chat.completions.create(
        **CHAT | {"messages": [{"role": "user", "content": parts}]}
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == same.choices[0].message.content
    told = client.completions.create(**GREEDY | {"prompt": "user: Who are you?\nassistant:"})
    assert answer.usage.prompt_tokens in (told.usage.prompt_tokens, told.usage.prompt_tokens - 1)
    chunks = list(client.chat.completions.create(**CHAT, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content
    short = client.chat.completions.create(**CHAT | {"max_tokens": None}, max_completion_tokens=3)
    assert short.usage.completion_tokens == 3


def test_models_and_health(client, server):
    assert [model.id for model in client.models.list()] == ["itt"]
    assert client.models.retrieve("itt").id == "itt"
    assert httpx.get(f"{server}/health").json() == {"status": "ok", "model": "itt"}


BAD = [
    ({"n": 2}, "n", "not done by this server"),
    ({"logprobs": 0}, "logprobs", "not done"),
    ({"echo": True}, "echo", "not done"),
    ({"extra_body": {"top_k": 5}}, "top_k", "does not know that field"),
    ({"extra_body": {"select_ratio": [1, 1]}}, "select_ratio", "does not know that field"),
    ({"extra_body": {"select_ratios": [1]}}, "select_ratios", "select_ratios"),
    ({"extra_body": {"select_ratios": [1, 2]}}, "select_ratios", "select_ratios"),
    ({"extra_body": {"select_ratios": "1,1"}}, "select_ratios", "list"),
    ({"extra_body": {"early_exit": -1}}, "early_exit", "early_exit"),
    ({"temperature": 3}, "temperature", "less than or equal to 2"),
    ({"temperature": 1e-5}, "temperature", "0 or at least"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": "9"}, "max_tokens", "integer"),
    ({"stop": ["", "x"]}, "stop.0", "at least 1 character"),
    ({"stop": list("abcde")}, "stop", "at most 4"),
    ({"prompt": ["a", "b"]}, "prompt", "at most 1"),
    ({"prompt": "word " * 200}, "prompt", "shorten it"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
]


@pytest.mark.parametrize(("asked", "param", "words"), BAD)
def test_what_cannot_be_followed_is_refused_with_a_sentence(client, asked, param, words):
    status, key, sentence = refused(client.completions.create, **GREEDY | asked)
    assert (status, key) == (400, param)
    assert words in sentence


def test_wrong_models_routes_and_bodies_are_refused(client, server):
    assert refused(client.completions.create, **GREEDY | {"model": "gpt"})[:2] == (404, "model")
    assert refused(client.models.retrieve, model="gpt")[:2] == (404, "model")
    messages = [{"role": "cook", "content": "x"}]
    told = refused(client.chat.completions.create, **CHAT | {"messages": messages})
    assert told[:2] == (400, "messages")
    assert "no cooks" in told[2]
    post = f"{server}/v1/completions"
    for status, answer in [
        (404, httpx.get(f"{server}/v1/embeddings")),
        (405, httpx.get(post)),
        (415, httpx.post(post, content="{}", headers={"Content-Type": "text/plain"})),
        (400, httpx.post(post, content="{", headers={"Content-Type": "application/json"})),
        (400, httpx.post(post, json=[])),
        (400, httpx.post(post, content=b"\xff", headers={"Content-Type": "application/json"})),
        (413, httpx.post(post, json={"prompt": "x" * 9_000_000})),
    ]:
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
    assert httpx.get(f"{server}/health", headers={"Host": "example.com"}).status_code == 400


def test_requests_at_once_wait_for_their_turn(client):
    ratios = [[1, 1], [0, 0]] * 3
    answers = [None] * len(ratios)

    def ask(place):
        answers[place] = client.completions.create(
            **GREEDY, extra_body={"select_ratios": ratios[place]}
        )

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(ratios))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [thinking(answer)[0] for answer in answers] == [1, 0] * 3
    assert len({answer.choices[0].text for answer in answers[::2]}) == 1


def leave(address, asked):
    """Ask and, once the answer begins or has had a second to, hang up."""
    body = json.dumps(asked)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 1) as left:
        left.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        with suppress(TimeoutError):
            assert left.recv(12) == b"HTTP/1.1 200"


def test_who_leaves_or_ends_the_server_ends_the_answer(folders):
    with serving(folders / "dense") as (address, server):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)
        asked = GREEDY | {"model": "dense"}
        ratios = asked | {"extra_body": {"select_ratios": [0.5, 0.5]}}
        assert "takes no thinking steps" in refused(client.completions.create, **ratios)[2]
        for stream in (True, False, True):  # each takes many minutes to its end
            leave(address, asked | {"max_tokens": 40_000, "stream": stream})
        assert client.completions.create(**asked).usage.thinking_steps == []
        with pytest.raises(openai.APIError, match="the server ends") as ended:  # noqa: PT012
            for _ in client.completions.create(**asked | {"max_tokens": 40_000}, stream=True):
                server.send_signal(signal.SIGINT)
        assert ended.value.type == "server_error"
        assert server.wait(20) == 130
        assert server.stderr.read() == "ended by Ctrl-C\n"


def test_a_model_without_thresholds_and_template_says_so(folders):
    with serving(folders / "bare") as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        asked = GREEDY | {"model": "bare"}
        assert thinking(client.completions.create(**asked)) == [1, 0]
        half = asked | {"extra_body": {"select_ratios": [0.5, 0.5]}}
        assert "no thresholds" in refused(client.completions.create, **half)[2]
        told = refused(client.chat.completions.create, **CHAT | {"model": "bare"})
        assert (told[0], "no chat template" in told[2]) == (400, True)


def test_a_port_in_use_and_a_missing_model_cost_a_sentence_and_a_second(folders, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, words in (
            ([folders / "itt", "--port", taken.getsockname()[1]], "Address already in use"),
            ([tmp_path / "none"], "is not there"),
        ):
            started = time.monotonic()
            result = subprocess.run(
                [sys.executable, "-m", "itt_composer", "serve", *map(str, arguments)],
                capture_output=True,
                text=True,
            )
            (sentence,) = result.stderr.splitlines()
            assert (result.returncode, words in sentence) == (1, True)
            assert time.monotonic() - started < 20
