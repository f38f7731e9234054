"""HTTP basic authentication from one file of users: an image service without Keystone.

The file is JSON, readable by its owner alone, and written by `calotype user …`. Each user has one project and some
roles. A password is verified against its bcrypt hash once. After that a keyed digest of it, kept in memory only, is
compared instead. The digest covers the user's whole entry, and each request checks whether the file has changed. So a
user who was changed or removed is refused by the next request.
"""

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bcrypt

from calotype import errors
from calotype.context import Context
from calotype.durable import make_directory, open_private, replace_file

LOG = logging.getLogger(__name__)

#: Each role includes those after it.
ROLES = ("admin", "manager", "member", "reader")
#: bcrypt reads no more bytes than this; a longer password is refused instead of being cut.
MAX_PASSWORD = 72
_COST = 10
_WAIT_SECONDS = 10.0
_SERVICE_ROLE = "service"


@dataclass(frozen=True, slots=True)
class User:
    """One entry of the users file. `roles` as given, without what they include."""

    name: str
    project: str
    roles: tuple[str, ...]
    password: str  #: bcrypt hash

    @property
    def implied_roles(self) -> frozenset[str]:
        """The roles with everything they include."""
        found = set(self.roles)
        for place, role in enumerate(ROLES):
            if role in found:
                found.update(ROLES[place:])
        return frozenset(found)


class BasicAuth:
    """Verifies `Authorization: Basic` headers. Shared by threads."""

    challenge = 'Basic realm="calotype", charset="UTF-8"'

    def __init__(self, path: Path, *, parallel: int = 2) -> None:
        self._path = path
        self._gate = threading.BoundedSemaphore(parallel)
        self._queue = threading.BoundedSemaphore(16 * parallel)
        self._key = secrets.token_bytes(32)
        self._stamp: tuple[int, ...] | None = None
        self._users: Mapping[str, User] = {}
        self._known: dict[str, bytes] = {}
        # Verified against when there is no such user, so that the time does not tell whether there is.
        self._nobody = User("", "", (), hash_password(secrets.token_hex(8)))

    def delegation(self, environ: Mapping[str, Any]) -> None:  # a password is good for nobody else
        return None

    def caller(self, environ: Mapping[str, Any]) -> Context:
        """The caller behind a request; raises as `identify` does."""
        return self.identify(environ.get("HTTP_AUTHORIZATION"))

    def identify(self, header: str | None) -> Context:
        """The caller of a header. Raises `Unauthenticated`; `Busy` when too many passwords wait to be verified."""
        name, password = _parse(header)
        users = self._load()
        user = users.get(name)
        if user is not None and self._is_known(user, password):
            return _context(user)
        if not self._verify(user or self._nobody, password) or user is None:
            raise errors.Unauthenticated("The user name or the password is wrong.")
        return _context(user)

    def _is_known(self, user: User, password: str) -> bool:
        """Whether this password of the user, as the entry is now, has been verified."""
        known = self._known.get(user.name)
        return known is not None and hmac.compare_digest(known, self._digest(user, password))

    def _verify(self, user: User, password: str) -> bool:
        """bcrypt costs some 50 ms of CPU by design. A few run at a time, so that guessing passwords blocks nobody.

        When many clients of one user come at once, those that had to wait find the password verified.
        """
        busy = errors.Busy("Too many passwords are being verified; try again later.")
        if not self._queue.acquire(blocking=False):
            raise busy  # Waiting here would take threads from other requests.
        try:
            if not self._gate.acquire(timeout=_WAIT_SECONDS):
                raise busy
            try:
                if not self._is_known(user, password):
                    if not matches(user, password):
                        return False
                    self._known[user.name] = self._digest(user, password)
                return True
            finally:
                self._gate.release()
        finally:
            self._queue.release()

    def _digest(self, user: User, password: str) -> bytes:
        entry = f"{user.name}\0{user.project}\0{','.join(user.roles)}\0{user.password}\0{password}"
        return hashlib.blake2b(entry.encode(), key=self._key, digest_size=32).digest()

    def _load(self) -> Mapping[str, User]:
        try:
            found = os.stat(self._path)
        except OSError:
            self._stamp, self._users, self._known = None, {}, {}
            return self._users
        stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
        if stamp != self._stamp:
            try:
                users = read_users(self._path)
            except errors.ConfigError as exc:
                LOG.error("the users of the last good file stay in force: %s", exc)
                if not isinstance(exc.__cause__, OSError):  # else the file may be sound: look again next time
                    self._stamp = stamp
                return self._users
            self._known = {
                name: digest for name, digest in self._known.items() if users.get(name) == self._users.get(name)
            }
            self._users, self._stamp = users, stamp
        return self._users


def matches(user: User, password: str) -> bool:
    """Whether this is the user's password. It takes some 50 ms, by design."""
    encoded = password.encode()
    try:
        return len(encoded) <= MAX_PASSWORD and bcrypt.checkpw(encoded, user.password.encode())
    except ValueError:
        return False  # A hash that is none, or a NUL in the password.


def _parse(header: str | None) -> tuple[str, str]:
    if not header:
        raise errors.Unauthenticated("This service wants a user name and a password (HTTP basic authentication).")
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic" or len(encoded) > 1024:
        raise errors.Unauthenticated("This service wants a user name and a password (HTTP basic authentication).")
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError as exc:  # not ASCII, not base64, not UTF-8
        raise errors.Unauthenticated("The Authorization header is malformed.") from exc
    if not colon:
        raise errors.Unauthenticated("The Authorization header is malformed.")
    return name, password


def _context(user: User) -> Context:
    return Context(user=user.name, project=user.project, roles=user.implied_roles)


# --- the file --------------------------------------------------------------------------------------------


def hash_password(password: str) -> str:
    """A bcrypt hash. Raises `Invalid` for a password that bcrypt would cut."""
    encoded = password.encode()
    if not encoded or len(encoded) > MAX_PASSWORD or b"\0" in encoded:
        raise errors.Invalid(f"A password has 1 to {MAX_PASSWORD} bytes and no NUL.")
    return bcrypt.hashpw(encoded, bcrypt.gensalt(_COST)).decode()


def read_users(path: Path) -> dict[str, User]:
    """All users by name. Raises `ConfigError` for a file that is malformed or that others can read."""
    try:
        if path.is_dir():
            raise errors.ConfigError(f"{path} is no users file: it is a directory.")
        if path.stat().st_mode & 0o077:
            raise errors.ConfigError(f"{path} can be read by others; run: chmod 600 {path}")
        entries = json.loads(path.read_text())["users"]
        users = [User(e["name"], e["project"], tuple(e["roles"]), e["password"]) for e in entries]
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise errors.ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise errors.ConfigError(f"{path} is no users file: {exc}") from exc
    return {user.name: user for user in users}


@contextlib.contextmanager
def changing_users(path: Path) -> Iterator[dict[str, User]]:
    """The users, to be changed in place and written back; two commands at once lose nothing of each other."""
    make_directory(path.parent)
    lock = open_private(path.with_name(f".{path.name}.lock"), os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        users = read_users(path)
        yield users
        write_users(path, users)
    finally:
        os.close(lock)


def write_users(path: Path, users: Mapping[str, User]) -> None:
    """Replace the file in one step, readable by its owner alone."""
    make_directory(path.parent)
    text = json.dumps({"users": [asdict(user) for user in users.values()]}, indent=1) + "\n"
    replace_file(path, text)


def make_user(name: str, project: str, roles: tuple[str, ...], password: str) -> User:
    """A user with a hashed password. Raises `Invalid` for names or roles that would not work."""
    if not name or ":" in name or not name.isprintable() or len(name) > 255:
        raise errors.Invalid("A user name is 1 to 255 printable characters without a colon.")
    if not project or not project.isprintable() or len(project) > 255:
        raise errors.Invalid("A project is 1 to 255 printable characters.")
    known = (*ROLES, _SERVICE_ROLE)
    if unknown := [role for role in roles if role not in known]:
        raise errors.Invalid(f"There is no role {unknown[0]!r}; roles are {', '.join(known)}.")
    if not roles:
        raise errors.Invalid("A user needs at least one role.")
    return User(name, project, roles, hash_password(password))
