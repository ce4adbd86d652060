"""Messages from real files, and one clear line for files that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrypolicy.demo.mailbox_file import CORPUS, UnusableMailbox, read_letters

EML = b"From: Kim <kim@example.com>\nTo: sam@example.com\nSubject: %s\n\nHello\n"


def mbox(tmp_path: Path, *messages: bytes) -> Path:
    path = tmp_path / "box"
    path.write_bytes(
        b"".join(b"From x@example.com Mon Mar  2 06:51:09 2026\n" + message + b"\n" for message in messages)
    )
    return path


def test_the_corpus_is_varied() -> None:
    letters = read_letters(CORPUS, 1000)
    assert len(letters) == 40
    assert len({letter.subject for letter in letters}) == 40
    assert sum(letter.html is not None for letter in letters) >= 8
    assert sum(bool(letter.attachments) for letter in letters) >= 8
    assert sum(not (letter.subject + letter.text).isascii() for letter in letters) >= 8
    assert any(len(letter.text) > 5000 for letter in letters)
    assert any(letter.cc for letter in letters)
    assert any(len(letter.to) > 2 for letter in letters)
    assert all(address.rstrip(">").rpartition("@")[2].startswith(("example.", "ops.example.", "sms.example."))
               for letter in letters for address in (letter.sender, *letter.to, *letter.cc))  # fmt: skip


def test_text_is_decoded() -> None:
    by_subject = {letter.subject: letter for letter in read_letters(CORPUS, 1000)}
    assert "Frau Weiß" in by_subject["Grüße aus Köln: Ihre Tischreservierung am Freitag"].text
    assert "新しい倉庫" in by_subject["会議の議事録（3月2日）"].text  # noqa: RUF001 - as the Japanese write
    invoice = by_subject["Receipt for your payment of EUR 129.00"].attachments[0]
    assert (invoice.name, invoice.kind, invoice.content[:5]) == ("invoice-2026-0311.pdf", "application/pdf", b"%PDF-")
    assert "\nFrom what the plumber said" in by_subject["Re: Re: Fwd: the boiler again"].text  # escaped in the file


def test_an_mbox_is_read_to_the_limit(tmp_path: Path) -> None:
    path = mbox(tmp_path, *(EML % str(n).encode() for n in range(5)))
    before = path.read_bytes()
    assert [letter.subject for letter in read_letters(path, 3)] == ["0", "1", "2"]
    assert len(read_letters(path, 99)) == 5
    assert path.read_bytes() == before


def test_a_folder_of_eml_files_is_read_by_name(tmp_path: Path) -> None:
    for name in ("b.eml", "a.EML", "notes.txt"):
        (tmp_path / name).write_bytes(EML % name.encode())
    assert [letter.subject for letter in read_letters(tmp_path, 9)] == ["a.EML", "b.eml"]


def test_a_file_that_gives_nothing_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("Dear diary,\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "headless").write_text("From here to eternity\nis a long way\n")
    (tmp_path / "folder").mkdir()
    for name, reason in {
        "empty": "empty", "text": "not a mailbox", "binary": "not a mailbox", "headless": "no message",
        "folder": "no .eml file", "missing": "No such file",
    }.items():  # fmt: skip
        with pytest.raises(UnusableMailbox) as caught:
            read_letters(tmp_path / name, 40)
        assert reason in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    path = mbox(tmp_path, EML % b"secret")
    path.chmod(0)
    with pytest.raises(UnusableMailbox, match="Permission denied"):
        read_letters(path, 40)


def test_odd_messages_are_made_sendable(tmp_path: Path) -> None:
    path = mbox(
        tmp_path,
        b"Subject: no addresses at all\n\nx\n",
        b"From: <<>>;;\nTo: undisclosed-recipients:;\nSubject: =?utf-99?q?broken?=\n\nx\n",
        b"From: a@example.com\nTo: b@example.com\nSubject: odd\nContent-Type: text/plain; charset=x\n\n\xff\xfe\n",
        b"From: a@example.com\nTo: b@example.com\nSubject: over\n two\x1b[2J lines\n\nx\n",
    )
    letters = read_letters(path, 40)
    assert len(letters) == 4
    for letter in letters:
        assert "@" in letter.sender
        assert all("@" in address for address in letter.to)
        assert letter.to
        assert "\n" not in letter.subject
    assert letters[3].subject == "over two [2J lines"


@given(st.binary(max_size=400))
def test_no_file_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    path = tmp_path_factory.mktemp("garbage") / "box"
    path.write_bytes(b"From x\n" + garbage)
    try:
        letters = read_letters(path, 40)
    except UnusableMailbox:
        return
    for letter in letters:
        (letter.subject + letter.text + "".join(letter.to)).encode("utf-8")
