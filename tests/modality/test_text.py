"""Text of every kind and encoding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.modality import text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_encodings_are_found(encoding):
    words = "Grüße aus Köln: ein längerer Text, damit man raten kann. " * 5
    assert text.decode(words.encode(encoding))[0] == words


def test_repairs_are_told():
    assert text.decode(b"a\x00b\r\nc")[0] == "ab\nc"
    assert "NUL characters removed" in text.decode(b"a\x00b\r\nc")[1]
    broken = "Schöne Grüße, schöner Abend, größer".encode().decode("cp1252")
    assert text.decode(broken.encode())[0] == "Schöne Grüße, schöner Abend, größer"


@given(st.binary(max_size=300))
def test_any_bytes_become_text(data):
    found, notes = text.decode(data)
    found.encode("utf-8", "surrogatepass")
    assert "\x00" not in found and "\r" not in found
    text.from_html(found)
    text.from_mail(data)
    text.from_markdown(found)
    text.is_binary(data)


def test_pages_are_read_as_a_reader_would():
    page = "<html><head><title>t</title><style>x{}</style></head><body><nav>menu</nav><h1>Title</h1><p>One &amp; two</p><script>evil()</script></body></html>"
    assert text.from_html(page) == "Title\n\nOne & two"


def test_mails_give_subject_and_plain_body():
    mail = (
        b"From: a@b.c\r\nSubject: Hello\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=B\r\n\r\n"
        b"--B\r\nContent-Type: text/plain\r\n\r\nplain words\r\n--B\r\nContent-Type: text/html\r\n\r\n<p>html words</p>\r\n--B--\r\n"
    )
    assert text.from_mail(mail) == "Subject: Hello\n\nplain words"


def test_front_matter_goes():
    assert text.from_markdown("---\ntitle: x\n---\n# Head\n<!-- note -->\ntext") == "# Head\ntext"


@pytest.mark.parametrize(
    ("name", "first", "language"),
    [("a/b.py", "", "python"), ("run", "#!/usr/bin/env python3\n", "python"), ("Makefile", "", "make"), ("x.txt", "", ""), ("go", "#!/bin/bash", "shell")],
)
def test_languages_are_known(name, first, language):
    assert text.language_of(name, first) == language
