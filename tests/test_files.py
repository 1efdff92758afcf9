"""Files that are read: JSON of any content is a table or one sentence."""

import pytest

from limner import files

DAMAGED = {
    "not utf-8": b'{"a": "\xff"}',
    "a number": b"5",
    "null": b"null",
    "a list": b"[]",
    "nothing": b"",
    "cut": b'{"a": ',
    "deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "deep lists": b"[" * 10_000 + b"]" * 10_000,
    "deep enough for what follows": b'{"a":' * 900 + b"1" + b"}" * 900,
    "a number of 5,000 digits": b'{"a": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_json_table_is_damaged(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(files.Damaged, match=r"x.json is damaged"):
        files.read_json(tmp_path / "x.json")


def test_json_tables_are_read(tmp_path):
    (tmp_path / "x.json").write_bytes("\ufeff".encode() + '{"é": [[{"b": NaN}]]}'.encode())
    assert list(files.read_json(tmp_path / "x.json")) == ["é"]
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "none.json")
