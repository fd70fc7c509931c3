"""What docs/serving.md says to ask, asked."""

import json
import shlex
import subprocess
import sys

import pytest
from documented_commands import documented, python_blocks

PAGE = "docs/serving.md"


def here(text, server):
    """The words of the page for the server of the tests, whose model takes two further steps."""
    for there, own in (
        ("http://127.0.0.1:8000", server),
        ("itt_x4_162m", "itt"),
        ("[0.9, 0.7, 0.0]", "[0.9, 0.0]"),
    ):
        assert there in text
        text = text.replace(there, own)
    return text


def test_the_curl_command_gets_a_completion(server):
    commands = [command for command in documented() if command.words[0] == "curl"]
    assert {command.page for command in commands} == {PAGE}
    for command in commands:
        words = shlex.split(here(shlex.join(command.words), server))
        result = subprocess.run([*words, "-sS"], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert answer["usage"]["thinking_steps"][1] == 0 < answer["usage"]["thinking_steps"][0]


@pytest.mark.parametrize("code", [code for page, code in python_blocks() if page == PAGE])
def test_the_openai_client_gets_a_whole_and_a_streamed_completion(code, server):
    result = subprocess.run(
        [sys.executable, "-c", here(code, server)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") >= 1
