"""Who may know of which images, decided here, once (contract: images.md §4).

What a caller sees is a union of *branches*: images of one owner, of one visibility, or shared with the caller's
project. What is nobody's has no branch of its own: private or shared, it is seen by administrators and by members, to
whom one of these gave it. To fetch one image is to ask whether any branch has it; a list walks them (`pages.py`).
Statements name the projects by the parameters `project` and `owner`, so that they can be built once.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from calotype.context import Context
from calotype.db.compare import exactly, unindexed
from calotype.db.tables import image_members, images
from calotype.model import VISIBILITIES

_OPEN = ("public", "community")  # to everybody


@dataclass(frozen=True, slots=True)
class Branch:
    """One part of what a caller sees. `kind` says which, `of` names it:

    - *owner*: `of` is the parameter that holds the project;
    - *visibility*: `of` is the visibility;
    - *shared*: `of` is the member status that counts, or all; `project` is the member.

    `among` narrows the visibilities of an owner's images; `by_owner` narrows shared ones to the parameter `owner`.
    """

    kind: str
    of: str
    among: tuple[str, ...] = VISIBILITIES
    by_owner: bool = False

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """On `images`; all must hold. For a shared branch that is all but the membership."""
        if self.kind == "visibility":
            return [images.c.visibility == self.of]
        if self.kind == "shared":
            return [images.c.visibility == "shared", *([_owned_by("owner")] if self.by_owner else [])]
        if self.among == VISIBILITIES:
            return [_owned_by(self.of)]
        return [
            _owned_by(self.of),
            images.c.visibility.in_([sa.literal(one, images.c.visibility.type) for one in self.among]),
        ]

    def membership(self) -> list[sa.ColumnElement[bool]]:
        """On `image_members`; all must hold."""
        table = image_members.c
        project: sa.BindParameter[str] = sa.bindparam("project", type_=sa.String())
        found = [exactly(table.member, project), unindexed(table.deleted) == sa.false()]
        return found if self.of == "all" else [*found, table.status == self.of]

    def holds(self) -> sa.ColumnElement[bool]:
        """Whether an image is in this branch."""
        if self.kind != "shared":
            return sa.and_(*self.conditions())
        # As a value, not EXISTS: of that MariaDB would collect all that is shared with the project.
        member = sa.select(sa.literal(1)).where(image_members.c.image_id == images.c.id, *self.membership())
        return sa.and_(*self.conditions(), member.limit(1).correlate(images).scalar_subquery().is_not(None))


def _owned_by(parameter: str) -> Any:
    return exactly(images.c.owner, sa.bindparam(parameter, type_=sa.String()))


def branches(
    ctx: Context, *, visibility: str | None = "all", member_status: str = "all", owner: str | None = None
) -> tuple[Branch, ...]:
    """What the caller sees, or what a list with these filters shows of it.

    Without a visibility it shows community images of others to nobody; `member_status` counts for images that are
    seen through a share.
    """
    mine: tuple[str, ...] = VISIBILITIES if visibility in (None, "all") else (str(visibility),)
    others = tuple(each for each in mine if visibility is not None or each != "community")
    own = Branch("owner", "project", mine)
    if ctx.is_admin:
        if owner is not None:
            return (Branch("owner", "owner", mine if owner == ctx.project else others),)
        found = [Branch("visibility", each) for each in others]
        return (*found, own) if ctx.project is not None and mine != others else tuple(found)
    if owner is not None and owner == ctx.project:
        return (own,)
    everyone = tuple(each for each in _OPEN if each in others)
    found = []
    if owner is not None:
        found += [Branch("owner", "owner", everyone)] if everyone else []
    else:
        found += [Branch("visibility", each) for each in everyone]
        found += [own] if ctx.project is not None and set(mine) - set(everyone) else []
    if ctx.project is not None and "shared" in others:
        found.append(Branch("shared", member_status, by_owner=owner is not None))
    return tuple(found)


def holds(found: tuple[Branch, ...]) -> sa.ColumnElement[bool]:
    """Whether an image is in any of these branches."""
    return sa.or_(sa.false(), *(branch.holds() for branch in found))


def parameters(ctx: Context, owner: str | None = None) -> dict[str, Any]:
    """What statements with branches want to know."""
    return {"project": ctx.project, "owner": owner}
