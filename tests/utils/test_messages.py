"""Parts of messages fit on one line, whatever a library says and a file is called."""

import pytest

from uae.utils.messages import first_line, one_line, printable


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("héllo wörld.png", "héllo wörld.png"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("line\u2028separator", r"line\u2028separator"),
        ("latin\udce9.png", r"latin\udce9.png"),
    ],
)
def test_a_name_is_printable(name: str, expected: str):
    assert printable(name) == expected
    printable(name).encode()


def test_an_error_on_one_line():
    error = ValueError("cannot read\n\n  the file:  it is short")
    assert one_line(error) == "cannot read the file: it is short"
    assert first_line(error) == "cannot read"
    assert one_line(KeyError()) == first_line(KeyError()) == "KeyError"
    assert first_line(OSError("\n  late")) == "late"
