"""The names of RBD images in a pool, as Ceph keeps them: each in an object `rbd_id.<name>`, and all in `rbd_directory`.

An image is found by the object of its name, which has the image's internal id. The directory has each name with its id,
and changes a name in one step: only if it belongs to that id, and only if the new name is free. By this step an object
becomes final (`rbd.py`), and by this step a cleaner takes the name of an upload that was given up: one of the two comes
first, and the other one fails. The step needs neither the image nor its lock, so a writer that died holds up nobody.

librbd renames in another order: it makes the object of the new name first. Then a writer that was given up could still
be read for a moment. Both orders keep the same objects, so `rbd` and Glance see names that are moved here as any other.
"""

from errno import ENOENT, ESTALE
from typing import Final

from calotype.stores.librbd import Pool, decoded, encoded

_DIRECTORY: Final = "rbd_directory"


def header(image_id: str) -> str:
    """The object that an image consists of, whatever its name is."""
    return f"rbd_header.{image_id}"


def id_of(pool: Pool, name: str) -> str | None:
    """The id of the image of this name; None if there is none."""
    data = pool.read(f"rbd_id.{name}")
    return decoded(data) if data else None


def name_of(pool: Pool, image_id: str) -> str | None:
    """The name of an image by the directory, which decides; None if it has none."""
    try:
        return decoded(pool.execute(_DIRECTORY, "dir_get_name", encoded(image_id)))
    except FileNotFoundError:
        return None


def listed_id(pool: Pool, name: str) -> str | None:
    """The id that the directory has for a name; it is also there if the object of the name is missing."""
    try:
        return decoded(pool.execute(_DIRECTORY, "dir_get_id", encoded(name)))
    except FileNotFoundError:
        return None


def move(pool: Pool, image_id: str, name: str, to: str) -> None:
    """Give an image another name. Raises `FileNotFoundError` if it has not this name, `FileExistsError`."""
    try:
        pool.execute(_DIRECTORY, "dir_rename_image", encoded(name, to, image_id))
    except OSError as exc:
        if exc.errno == ESTALE:  # the name belongs to another image
            raise FileNotFoundError(ENOENT, "the image has not this name") from exc
        raise
    try:
        settle(pool, image_id, to)
    except FileExistsError:
        pool.execute(_DIRECTORY, "dir_rename_image", encoded(to, name, image_id))
        raise
    pool.remove(f"rbd_id.{name}", encoded(image_id))


def settle(pool: Pool, image_id: str, name: str) -> None:
    """Make the object of a name that the directory has for this image. A process may have been killed before it did.

    Raises `FileExistsError` if it belongs to another image.
    """
    while True:
        try:
            return pool.make(f"rbd_id.{name}", encoded(image_id))
        except FileExistsError:
            other = id_of(pool, name)
            if other == image_id:
                return None
            if other is None or not clear(pool, other, name):
                raise


def clear(pool: Pool, image_id: str, name: str) -> bool:
    """Remove the object of a name if the image that it leads to does not exist. Ids are never used again."""
    return pool.changed(header(image_id)) is None and pool.remove(f"rbd_id.{name}", encoded(image_id))


def forget(pool: Pool, image_id: str, name: str) -> None:
    """Remove a name of an image whose creation or removal was interrupted, so that it consists of its name only."""
    pool.remove(f"rbd_object_map.{image_id}")
    pool.remove(f"rbd_id.{name}", encoded(image_id))
    try:
        pool.execute(_DIRECTORY, "dir_remove_image", encoded(name, image_id))
    except OSError as exc:
        if exc.errno not in (ENOENT, ESTALE):
            raise
