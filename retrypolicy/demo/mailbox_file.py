"""Real messages from a file: an mbox, or a folder of .eml files. Neither is ever written to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.headerregistry import Address
from email.message import EmailMessage, MIMEPart
from pathlib import Path

from attrs import frozen

CORPUS = Path(__file__).with_name("corpus.mbox")
_ESCAPED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)
_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+")


class UnusableMailbox(Exception):
    """The file gives no messages. The text is one clear line."""


@frozen(kw_only=True)
class Attachment:
    """A file in a message."""

    name: str
    content: bytes
    kind: str  # a media type


@frozen(kw_only=True)
class Letter:
    """A message as an application would hand it to Django: no transport headers, no MIME structure."""

    subject: str
    sender: str
    to: tuple[str, ...]
    cc: tuple[str, ...]
    bcc: tuple[str, ...]
    reply_to: tuple[str, ...]
    text: str
    html: str | None
    attachments: tuple[Attachment, ...]


def read_letters(path: Path, limit: int) -> list[Letter]:
    """The first `limit` messages of an mbox or of a folder of .eml files (by name).

    Raises `UnusableMailbox` where there are none, or the path can't be read.
    """
    try:
        sources = list(_folder(path, limit) if path.is_dir() else _mbox(path, limit))
    except OSError as error:
        raise UnusableMailbox(f"{path}: can't be read ({error.strerror or type(error).__name__})") from error
    letters = [_letter(message) for message in map(_parse, sources) if message.keys()]
    if not letters:
        raise UnusableMailbox(f"{path}: no message in it has a header; expected an mbox file or a folder of .eml files")
    return letters


def _folder(path: Path, limit: int) -> Iterator[bytes]:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".eml")
    if not files:
        raise UnusableMailbox(f"{path}: the folder has no .eml file")
    for file in files[:limit]:
        yield file.read_bytes()


def _mbox(path: Path, limit: int) -> Iterator[bytes]:
    """The messages of an mbox, one after the other, so that a huge one is never held in memory."""
    found = 0
    with path.open("rb") as file:
        first = file.readline()
        if not first:
            raise UnusableMailbox(f"{path}: the file is empty")
        if not first.startswith(b"From "):
            raise UnusableMailbox(f"{path}: not a mailbox (an mbox file begins with 'From ')")
        lines: list[bytes] = []
        for line in file:
            if line.startswith(b"From ") and lines and not lines[-1].strip():
                yield b"".join(lines)
                lines, found = [], found + 1
                if found == limit:
                    return
            else:
                lines.append(line)
        yield b"".join(lines)


def _parse(source: bytes) -> EmailMessage:
    return message_from_bytes(_ESCAPED_FROM.sub(rb"\1", source), policy=policy.default)


def _letter(message: EmailMessage) -> Letter:
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    return Letter(
        # It is shown on a terminal: nothing in it may move the cursor.
        subject=" ".join("".join(c if c.isprintable() else " " for c in _header(message, "subject")).split()),
        sender=next(iter(_addresses(message, "from")), "sender@example.com"),
        to=_addresses(message, "to") or ("undisclosed-recipients@example.com",),
        cc=_addresses(message, "cc"),
        bcc=_addresses(message, "bcc"),
        reply_to=_addresses(message, "reply-to"),
        text=_text(plain) if plain is not None else "",
        html=_text(html) if html is not None else None,
        attachments=tuple(_attachments(message)),
    )


def _header(message: EmailMessage, name: str) -> str:
    try:
        return _clean(str(message[name] or ""))
    except Exception:  # mail in the wild has headers that make the standard parser raise errors of many types
        return ""


def _addresses(message: EmailMessage, name: str) -> tuple[str, ...]:
    try:
        found: tuple[Address, ...] = message[name].addresses if message[name] is not None else ()
        return tuple(_clean(str(address)) for address in found if _ADDRESS.fullmatch(address.addr_spec))
    except Exception:  # as above
        return ()


def _text(part: MIMEPart) -> str:
    try:
        return _clean(str(part.get_content()))
    except (LookupError, ValueError):  # an unknown charset or transfer encoding
        return _content(part).decode("latin-1")


def _attachments(message: EmailMessage) -> Iterator[Attachment]:
    if not message.is_multipart():
        return
    for number, part in enumerate(message.iter_attachments(), 1):
        name = part.get_filename() or f"attachment-{number}"
        yield Attachment(name=_clean(name), content=_content(part), kind=part.get_content_type())


def _content(part: MIMEPart) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else part.as_bytes()


def _clean(text: str) -> str:
    """Without the surrogates that stand for undecodable bytes."""
    return text.encode("utf-8", "replace").decode("utf-8")
