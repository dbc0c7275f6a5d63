"""The structure of one atlas: groups, relations per head, depth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headatlas.arrangement.depth import Depth, depth_by_category
from headatlas.arrangement.groups import Likeness, group_likeness, why_no_groups
from headatlas.arrangement.per_head import RelationsPerHead, relations_per_head
from headatlas.arrangement.single_tokens import all_single, single_token_atlas

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


@dataclass(frozen=True)
class Structure:
    """How what the heads of a model do is arranged.

    Attributes:
        groups: Likeness within key/value groups, by both measures; empty where it cannot be tested.
        no_groups: Why it cannot, or None.
        per_head: Relations per head; None if nothing is mapped or scored.
        depth: Layers of each category's heads.
        depth_single: The same on sources of one token; None if all sources are.
    """

    groups: tuple[Likeness, ...]
    no_groups: str | None
    per_head: RelationsPerHead | None
    depth: Depth
    depth_single: Depth | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def structure(atlas: Atlas) -> Structure:
    """Everything about one atlas, with the thresholds that it is read with."""
    groups = group_likeness(atlas)
    why = why_no_groups(atlas)
    if not groups and why is None:
        why = "no layer has pairs of scoring heads both within a group and between groups"
    return Structure(
        groups=groups,
        no_groups=why,
        per_head=relations_per_head(atlas),
        depth=depth_by_category(atlas),
        depth_single=None if all_single(atlas) else depth_by_category(single_token_atlas(atlas)),
    )
