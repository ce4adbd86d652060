"""Ledgers as earlier versions made them."""

SQLITE_1 = """
    CREATE TABLE sends (
        key BLOB PRIMARY KEY, phase INTEGER NOT NULL, taint INTEGER NOT NULL, fence INTEGER NOT NULL,
        generation INTEGER NOT NULL, owner BLOB, token BLOB, lease REAL NOT NULL, first_seen REAL NOT NULL,
        first_armed REAL, last_armed REAL, attempts INTEGER NOT NULL, not_before REAL NOT NULL,
        fingerprint BLOB NOT NULL, result TEXT, label TEXT NOT NULL, provider TEXT NOT NULL, expires REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX sends_held ON sends (phase) WHERE phase = 5;
    CREATE INDEX sends_expiring ON sends (expires) WHERE phase IN (1, 3, 4);
    PRAGMA application_id = 0x52504C47;
    PRAGMA user_version = 1;
    PRAGMA journal_mode = WAL;
"""
