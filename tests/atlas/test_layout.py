"""The axes of an atlas: every pair once, blocks that tile the cell axis, stable calibration subsets."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headatlas.atlas.layout import MAX_CALIBRATION_SOURCES, build_layout, calibration_sources
from headatlas.relations.relation import TokenisedRelation
from tests.atlas.made import tokenised

_targets = st.lists(st.lists(st.integers(-3, 9), max_size=4, unique=True), min_size=1, max_size=12)
_relations = st.lists(st.tuples(_targets, st.booleans()), min_size=1, max_size=4)


def relations_of(drawn: list[tuple[list[list[int]], bool]]) -> list[TokenisedRelation]:
    return [
        tokenised(f"r{i}", targets, left_out="too few" if out else None)
        for i, (targets, out) in enumerate(drawn)
    ]


@settings(max_examples=80, deadline=None)
@given(_relations)
def test_every_pair_of_every_relation_is_on_the_axis_in_order(
    drawn: list[tuple[list[list[int]], bool]],
) -> None:
    layout = build_layout(relations_of(drawn))
    expected = []
    for i, (targets, out) in enumerate(drawn):
        usable = 0
        for j, each in enumerate(targets):
            good = [t for t in each if t >= 0]
            for t in each:
                ok = t >= 0 and not out
                expected.append((i, usable if ok else -1, t if ok else -1, f"r{i}{j}", f"t{t}"))
            if not each:
                expected.append((i, -1, -1, f"r{i}{j}", "?"))
            usable += bool(good)
    columns = (layout.pair_relation, layout.pair_source, layout.pair_target_id)
    words = [*zip(*layout.pair_words, strict=True)]
    assert [*zip(*(c.tolist() for c in columns), *words, strict=True)] == expected
    assert layout.n_pairs == len(expected)
    assert layout.included == tuple(i for i, (_, out) in enumerate(drawn) if not out)
    usable = layout.pair_source >= 0
    assert ((layout.pair_source_length == 1) == usable).all()


@settings(max_examples=80, deadline=None)
@given(_relations)
def test_rows_and_columns_are_those_of_the_pairs(drawn: list[tuple[list[list[int]], bool]]) -> None:
    """The engine sees each distinct source and target once; every usable pair and cell is found there."""
    layout = build_layout(relations_of(drawn))
    assert len(set(layout.sources)) == len(layout.sources)
    assert layout.own_pair.tolist() == np.flatnonzero(layout.pair_source >= 0).tolist()
    for pair, row, column in zip(layout.own_pair, layout.own_row, layout.own_column, strict=True):
        members = layout.source_ids[layout.pair_relation[pair]]
        assert layout.sources[row] == members[layout.pair_source[pair]]
        assert layout.targets[column] == layout.pair_target_id[pair]
    for block in layout.blocks:
        members = layout.source_ids[block.relation]
        assert [layout.sources[row] for row in block.rows] == [members[at] for at in block.sources]
        assert layout.targets[block.columns].tolist() == block.targets.tolist()
        assert set(layout.pair_relation[layout.own_pair[block.own]].tolist()) <= {block.relation}
        assert block.own_source.tolist() == layout.pair_source[layout.own_pair[block.own]].tolist()
        assert block.n_sources == len(members)
    assert sum(block.own.stop - block.own.start for block in layout.blocks) == len(layout.own_pair)


@settings(max_examples=80, deadline=None)
@given(_relations)
def test_blocks_tile_the_cell_axis(drawn: list[tuple[list[list[int]], bool]]) -> None:
    layout = build_layout(relations_of(drawn))
    assert [block.relation for block in layout.blocks] == list(layout.included)
    end = 0
    for block in layout.blocks:
        assert block.cells == slice(end, end + len(block.sources) * len(block.targets))
        end += block.size
        own = (layout.pair_relation == block.relation) & (layout.pair_source >= 0)
        assert block.targets.tolist() == sorted(set(layout.pair_target_id[own].tolist()))
        assert block.sources.tolist() == sorted(set(layout.pair_source[own].tolist()))
    assert layout.n_cells == end


def test_what_a_relation_says_about_itself() -> None:
    used = tokenised("a", [[1, 2], [], [2, -1]], category="C", copying=True)
    out = tokenised("b", [[1]], left_out="1 usable sources, at least 30 needed")
    first, second = build_layout([used, out]).relations
    assert (first.n_pairs, first.n_sources, first.n_targets, first.left_out) == (3, 2, 2, "")
    assert (first.category, first.copying, first.dropped) == (
        "C",
        True,
        '{"no target is a single token": ["a1"]}',
    )
    assert second.left_out == "1 usable sources, at least 30 needed"


@given(st.integers(1, 400), st.text(max_size=5))
def test_the_calibration_subset_is_seeded_sorted_and_never_larger_than_it_may_be(n: int, seed: str) -> None:
    chosen = calibration_sources(n, seed)
    assert len(chosen) == min(n, MAX_CALIBRATION_SOURCES)
    assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < n
    np.testing.assert_array_equal(chosen, calibration_sources(n, seed))


def test_subsets_differ_between_relations_and_stay_the_same_between_releases() -> None:
    assert calibration_sources(400, "a").tolist() != calibration_sources(400, "b").tolist()
    # An atlas made yesterday must be resumable today.
    assert calibration_sources(1000, "relation")[:6].tolist() == [0, 2, 3, 6, 8, 12]


def test_targets_of_a_large_relation_are_those_of_its_calibration_sources() -> None:
    layout = build_layout([tokenised("large", [[i] for i in range(400)])])
    (block,) = layout.blocks
    np.testing.assert_array_equal(block.targets, block.sources)
    assert layout.relations[0].n_sources == 400
