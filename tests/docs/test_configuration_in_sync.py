"""`docs/configuration.md` has every key of the schema, and its example loads."""

import inspect
import re
from pathlib import Path

from openclawd.config import load_config
from openclawd.config.document import with_tables
from openclawd.config.reference import all_keys
from openclawd.observe.logs import log_request

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
TEXT = PAGE.read_text()


def test_the_tables_are_what_the_schema_says():
    assert with_tables(TEXT) == TEXT, f"run: python -m openclawd.config.document docs/{PAGE.name}"


def test_every_key_is_in_a_table():
    tables = re.findall(r"<!-- keys of (\S+) -->(.*?)<!-- end -->", TEXT, re.DOTALL)
    found = {
        f"{'' if section == '(top)' else section + '.'}{key}"
        for section, rows in tables
        for key in re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)
    }
    per_model = "models.NAME.inference_settings."  # the same keys as inference_settings
    assert found == {i.path for i in all_keys() if not i.path.startswith(per_model)}


def test_every_key_says_something():
    for info in all_keys():
        assert info.default, info.path
        assert info.allowed, info.path
        assert info.meaning.endswith("."), info.path


def test_the_examples_load(tmp_path):
    loaded = []
    for example in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL):
        (tmp_path / "openclawd.yaml").write_text(example)
        loaded.append(list(load_config(tmp_path / "openclawd.yaml").models))
    assert loaded == [
        ["smollm2", "big"],
        ["assistant"],
        [],  # security
        ["smollm2"],  # limits
        [],  # rate_limits
        ["smollm2", "big"],  # budgets
        ["chat", "nightly"],  # names
    ]


def test_the_fields_of_a_requests_line():
    sentence = TEXT[TEXT.index("Each finished request has one line") :]
    for name in inspect.signature(log_request).parameters:
        assert f"`{name}`" in sentence
