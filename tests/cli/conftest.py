"""`run`: a command in the tests' own process, which costs milliseconds where another process costs seconds."""

import io
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from calotype import server
from calotype.cli.main import main


@dataclass(frozen=True)
class Said:
    """What a command wrote."""

    out: str
    err: str

    def __contains__(self, words: str) -> bool:
        return words in self.out + self.err


Run = Callable[..., Said]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a command as somebody whose umask hides nothing; its exit code must be `code`. It never begins to serve."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it would serve")

    def call(*arguments: object, code: int = 0, stdin: str = "", **environment: str) -> Said:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        os.umask(0)
        try:
            ended = main([str(one) for one in arguments])
        except SystemExit as exc:
            ended = exc.code
        said = Said(*capsys.readouterr())
        assert ended == code, said
        assert "Traceback" not in said.err
        return said

    real = server.listen

    def listen(host: str, port: int) -> socket.socket:
        """Not on the usual address: other tests may listen there at the same time."""
        return real(host, 0 if (host, port) == ("127.0.0.1", 9292) else port)

    monkeypatch.setattr(server, "listen", listen)
    monkeypatch.delenv("CALOTYPE_PASSWORD", raising=False)
    monkeypatch.setattr(server, "run", never)
    monkeypatch.setattr(server, "PATIENCE_FOR_ADDRESS", 0.1)
    handlers, mask = logging.getLogger().handlers[:], os.umask(0)
    yield call
    os.umask(mask)
    logging.getLogger().handlers[:] = handlers
