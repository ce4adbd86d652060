"""django-mailer's lock file: it stays when its owner gets kill -9, and then nothing is ever sent again.

Whoever sends holds a lock of the operating system on that file, too: this one ends with its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref

import lockfile
from django.conf import settings
from mailer import engine

from retrypolicy.clock import SystemClock

GRACE = 60.0
"""Seconds between a sender's lock and its first message, at most."""


def lock_file() -> str:
    """Where it is: as `MAILER_LOCK_PATH` says, or in the working directory."""
    return str(lockfile.FileLock(engine.LOCK_PATH or "send_mail").lock_file)


def hold(owner: object) -> None:
    """Show that somebody is alive behind the lock file, as long as `owner` is."""
    try:
        descriptor = os.open(lock_file(), os.O_RDONLY)
    except OSError:
        return  # not called from within django-mailer's lock
    weakref.finalize(owner, os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return  # somebody just looks whether we are alive; the file's age says it for now


def break_stale() -> bool:
    """Remove the lock file if nobody is alive behind it; True if so.

    Safe with a ledger: even beside a living owner no message is sent twice.
    """
    if not getattr(settings, "MAILER_USE_FILE_LOCK", True):
        return False
    try:
        descriptor = os.open(lock_file(), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        found = os.fstat(descriptor)
        if SystemClock().now() < found.st_mtime + GRACE:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    # The lock is a second name of a file that is named after its owner: both go.
    for file in list(os.scandir(os.path.dirname(lock_file()))):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(file.stat(follow_symlinks=False), found):
                os.unlink(file)
    return True
