"""A real PostgreSQL server for the tests of this folder: its own data, a free loopback port, gone at the end."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback import free_port

DATABASE, USER = "dagster", "dagster"
PATIENCE = 300.0  # seconds the server gets to answer


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs: that of the PATH, or the newest that Debian's package has put."""
    found = shutil.which("postgres")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def as_unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root; then it is started as its own user, or as nobody."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = known.get("postgres") or known["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def postgres() -> Iterator[dict[str, str]]:
    """The variables that deploy/dagster-postgres.yaml reads, of a server that runs."""
    programs = binaries()
    if programs is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL's server is required here; .ci/run installs it")
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    import psycopg2

    password, port, account = secrets.token_hex(8), free_port(), as_unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        words = folder / "password"
        words.write_text(password, encoding="utf-8")
        if account:
            for path in (folder, words):
                os.chown(path, account["user"], account["group"])
        data = folder / "data"
        initdb = [programs / "initdb", "-D", data, "-U", USER, "-A", "scram-sha-256", "--pwfile", words, "-E", "UTF8"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **account)
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
        command = [programs / "postgres", "-D", data, *(f"--{name}={value}" for name, value in options.items())]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **account)
        try:
            place = {"host": "127.0.0.1", "port": port, "user": USER, "password": password}
            end = time.monotonic() + PATIENCE
            while True:
                try:
                    connection = psycopg2.connect(dbname="postgres", **place)
                    break
                except psycopg2.OperationalError:
                    assert server.poll() is None, (folder / "log").read_text()
                    assert time.monotonic() < end, (folder / "log").read_text()
                    time.sleep(0.1)
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {DATABASE}")
            connection.close()
            yield {
                "DAGSTER_PG_HOST": "127.0.0.1",
                "DAGSTER_PG_PORT": str(port),
                "DAGSTER_PG_DB": DATABASE,
                "DAGSTER_PG_USERNAME": USER,
                "DAGSTER_PG_PASSWORD": password,
            }
        finally:
            server.send_signal(signal.SIGINT)  # PostgreSQL's "fast": ends connections and itself
            server.wait(PATIENCE)
    finally:
        shutil.rmtree(folder)
