"""Which images a caller may see. This is decided here alone (contract: images.md §4).

What a caller sees is a union of *branches*: the images of one owner, of one visibility, or shared with the caller's
project. Fetching one image asks whether any branch has it; a list reads one branch after the other (`pages.py`).
Statements have the projects as parameters, `project` and `owner`, so that each statement is built once.

Images without an owner need no branch: private or shared ones are seen by administrators, and by members that an
administrator has added.
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
    """One part of what a caller sees. `kind` says what kind of part, `of` which one:

    - *owner*: `of` is the parameter that holds the project;
    - *visibility*: `of` is the visibility;
    - *shared*: `of` is the member status that counts, or all; `project` is the member.

    `visibilities` narrows the images of an owner; `by_owner` narrows shared images to those of the parameter `owner`.
    """

    kind: str
    of: str
    visibilities: tuple[str, ...] = VISIBILITIES
    by_owner: bool = False

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """Conditions on `images`; all must hold. A shared branch also needs its `membership`."""
        if self.kind == "visibility":
            return [images.c.visibility == self.of]
        if self.kind == "shared":
            return [images.c.visibility == "shared", *([_owned_by("owner")] if self.by_owner else [])]
        if self.visibilities == VISIBILITIES:
            return [_owned_by(self.of)]
        return [
            _owned_by(self.of),
            images.c.visibility.in_([sa.literal(one, images.c.visibility.type) for one in self.visibilities]),
        ]

    def membership(self) -> list[sa.ColumnElement[bool]]:
        """Conditions on `image_members`; all must hold."""
        table = image_members.c
        project: sa.BindParameter[str] = sa.bindparam("project", type_=sa.String())
        found = [exactly(table.member, project), unindexed(table.deleted) == sa.false()]
        return found if self.of == "all" else [*found, table.status == self.of]

    def holds(self) -> sa.ColumnElement[bool]:
        """Whether an image is in this branch."""
        if self.kind != "shared":
            return sa.and_(*self.conditions())
        # A scalar subquery: for EXISTS MariaDB would collect all images that are shared with the project.
        member = sa.select(sa.literal(1)).where(image_members.c.image_id == images.c.id, *self.membership())
        return sa.and_(*self.conditions(), member.limit(1).correlate(images).scalar_subquery().is_not(None))


def _owned_by(parameter: str) -> Any:
    return exactly(images.c.owner, sa.bindparam(parameter, type_=sa.String()))


def branches(
    ctx: Context, *, visibility: str | None = "all", member_status: str = "all", owner: str | None = None
) -> tuple[Branch, ...]:
    """What the caller sees, narrowed by the filters of a list.

    With `visibility` None, community images of other projects are left out. `member_status` applies to images that the
    caller sees as a member.
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
    """The values of the parameters in statements with branches."""
    return {"project": ctx.project, "owner": owner}
