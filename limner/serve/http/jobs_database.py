"""The folder of jobs: its lock, its database and what older ones lack."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from limner import files
from limner.settings import LimnerError

DATABASE = "jobs.sqlite"
FILES = {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "jobs", "lock"}
# Each brings a database of the version before it, by its place here, to the next; none is ever changed.
MIGRATIONS = (
    """
    CREATE TABLE about(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE jobs(
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, client TEXT NOT NULL, key TEXT, digest TEXT NOT NULL,
        route TEXT NOT NULL, model TEXT NOT NULL, images INTEGER NOT NULL, format TEXT NOT NULL,
        status TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL, result TEXT, error TEXT
    );
    CREATE UNIQUE INDEX keys ON jobs(owner, key) WHERE key IS NOT NULL;
    CREATE INDEX states ON jobs(status, finished);
    CREATE TABLE requests(job TEXT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE, data BLOB NOT NULL);
    CREATE TABLE events(
        job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, number INTEGER NOT NULL, name TEXT NOT NULL,
        data TEXT NOT NULL, PRIMARY KEY(job, number)
    ) WITHOUT ROWID;
    CREATE TABLE images(
        job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, place INTEGER NOT NULL, about TEXT NOT NULL,
        PRIMARY KEY(job, place)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE used(
        model TEXT NOT NULL, client TEXT NOT NULL, images INTEGER NOT NULL, evaluations INTEGER NOT NULL,
        seconds REAL NOT NULL, PRIMARY KEY(model, client)
    ) WITHOUT ROWID;
    INSERT INTO about VALUES ('used since', strftime('%s', 'now'));
    """,
)


def claim(folder: Path) -> int:
    """The lock of a folder of jobs, which is made where it is not there."""
    with files.writing(folder):
        files.check_writable(folder, folder=True)
        files.refuse_other_files(folder, "--state", FILES)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise LimnerError(
            f"Another server keeps its jobs in {folder}: end it, or name another folder with --state."
        ) from None
    return lock


def open_database(folder: Path) -> sqlite3.Connection:
    """The database there, brought up to date. Raises LimnerError."""
    path = folder / DATABASE
    try:
        database = sqlite3.connect(path, check_same_thread=False, isolation_level="IMMEDIATE")
        for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            database.execute(f"PRAGMA {setting}")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise LimnerError(f"{path} is of a newer Limner: update this one, or name another --state.")
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
    except sqlite3.Error as error:
        raise LimnerError(
            f"{path} cannot be opened ({error}): free space, or name another --state."
        ) from None
    return database
