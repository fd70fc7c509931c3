"""Files that are whole or not there, and JSON that every program reads."""

import json
import math

import pytest

from itt_composer.basics.errors import UserError
from itt_composer.basics.files import numbers_only, write_json


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_written_and_its_key_is_named(tmp_path, value):
    file = tmp_path / "results.json"
    content = {"tasks": [{"value": 1.0}, {"value": value}]}
    with pytest.raises(UserError) as caught:
        write_json(file, content)
    assert str(caught.value) == (
        f"{file} was not written: tasks.1.value is NaN or infinite, which JSON cannot hold"
    )
    assert list(tmp_path.iterdir()) == []
    write_json(file, numbers_only(content))
    assert json.loads(file.read_text()) == {"tasks": [{"value": 1.0}, {"value": None}]}
