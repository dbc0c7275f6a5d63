"""Cards of heads, coverage and search, over an atlas of made-up ranks and made-up evidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headatlas.atlas import Atlas, cards
from headatlas.atlas.cards import coverage_sentence, search, similar_heads, wanted_of, words_of
from headatlas.atlas.evidence import evidence_group
from headatlas.atlas.labels import BY_ATTENTION, BY_MAPPINGS, LABEL_COLUMNS, UNCLEAR, store_labels
from headatlas.errors import HeadatlasError
from tests.synthetic import make_atlas, make_behaviours

N_LAYERS, N_HEADS = 3, 4
LOOKS = (1, 2)
"""The head that looks at the previous token."""
LABELLED = (0, 1)


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    return make_atlas(tmp_path / "atlas.zarr", N_LAYERS, N_HEADS)


@pytest.fixture
def watched(atlas: Atlas) -> Atlas:
    """With attention of every head, of which one is called, and labels of three heads."""
    assert atlas.path is not None
    group = evidence_group(atlas.path)
    make_behaviours(group, N_LAYERS, N_HEADS, ["previous_token", "distance"], LOOKS)
    rows = [
        (*LABELLED, "copies names", "9 of 15", 0.8, 0.2, 0.1, "rules 1", BY_MAPPINGS),
        (0, 2, UNCLEAR, "", 0.2, 0.2, 0.1, "rules 1", BY_MAPPINGS),
        (*LOOKS, "looks at the previous token", "q 0", np.nan, np.nan, np.nan, "rules 1", BY_ATTENTION),
    ]
    store_labels(group, pd.DataFrame(rows, columns=list(LABEL_COLUMNS)), {"author": "rules 1"})
    return Atlas.open(atlas.path)


def test_a_card_holds_what_the_atlas_says_of_one_head(watched: Atlas) -> None:
    card = watched.head(*LOOKS)
    assert card.relations.equals(watched[LOOKS])
    assert card.behaviours is not None
    assert list(card.behaviours["behaviour"]) == ["previous_token", "distance"]
    assert "looks: previous_token 0.90, expected 0.20 (q < 0.001)" in card.statements
    called = watched.sel(layer=LOOKS[0], head=LOOKS[1], called=True)
    signs = int(called["implements"].sum() + called["suppresses"].sum())
    assert len(card.statements) == signs + 1
    described = watched.head(*LABELLED).statements[-1]
    assert described.startswith(
        "described: copies names (picks 0.80 of its mappings, chance 0.20; by rules 1)"
    )
    assert "copies names" in watched.head(*LABELLED)._repr_html_()


def test_a_card_at_the_prompt_is_short(watched: Atlas) -> None:
    said = repr(watched.head(*LOOKS)).splitlines()
    assert said[0].startswith(f"head {LOOKS[0]}.{LOOKS[1]}: ") and len(said) < 20
    assert any("previous_token" in line for line in said)
    assert said[-1].startswith("  most like it: ")


def test_what_was_not_measured_is_none(atlas: Atlas) -> None:
    card = atlas.head(0, 0)
    assert card.behaviours is card.salient is card.spectrum is card.explained is card.labels is None
    with pytest.raises(HeadatlasError, match="layers 0 to 2"):
        atlas.head(9, 0)


def test_group_mates_share_keys_and_values(atlas: Atlas) -> None:
    assert atlas.head(1, 2).group == ()
    model = atlas.provenance["model"] | {"dims": {"n_kv_heads": 2}}
    grouped = Atlas(atlas.dataset, atlas.provenance | {"model": model}, atlas.thresholds, atlas.path)
    assert grouped.head(1, 2).group == ((1, 3),)
    assert grouped.head(1, 1).group == ((1, 0),)


def test_coverage_counts_heads_with_a_tested_statement(watched: Atlas) -> None:
    frame = watched.coverage()
    assert len(frame) == N_LAYERS * N_HEADS
    by_relation = watched.categories()["relations"].map(len) > 0
    assert (frame["by_relation"] == by_relation).all()
    for kind, heads in (("behaviour", {LOOKS}), ("description", {LABELLED})):
        there = frame[frame[f"by_{kind}"]]
        assert set(zip(there["layer"], there["head"], strict=True)) == heads
    assert (frame["covered"] == frame[["by_relation", "by_behaviour", "by_description"]].any(axis=1)).all()
    assert frame.attrs["share"] == frame["covered"].mean()
    assert (frame["beyond_sink"] == frame["covered"]).all()
    assert "1 a behaviour, 1 a scored description" in coverage_sentence(watched)
    figure = watched.plot.categories()
    caption = " ".join(text.get_text() for text in figure.texts).replace("\u00a0", " ").replace("\n", " ")
    assert f"{int(frame['covered'].sum())} of {len(frame)} heads have a tested statement" in caption


def test_attention_to_the_first_position_alone_is_no_more(
    watched: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "SINK", "previous_token")
    frame = watched.coverage().set_index(["layer", "head"])
    assert frame.loc[LABELLED, "beyond_sink"]
    assert frame.loc[LOOKS, "beyond_sink"] == frame.loc[LOOKS, "by_relation"]


def test_coverage_says_what_was_not_measured(atlas: Atlas) -> None:
    assert atlas.coverage().attrs["not_measured"] == ("behaviour", "description")
    assert "not measured: behaviour, description; `headatlas behaviour DIR`" in coverage_sentence(atlas)


def test_similar_heads_have_like_scores_and_attention(watched: Atlas) -> None:
    scores = watched.scores.transpose("layer", "head", "sign", "relation").values.reshape(
        N_LAYERS, N_HEADS, -1
    )
    found = similar_heads(watched, 1, 0, n=N_LAYERS * N_HEADS)
    assert len(found) == N_LAYERS * N_HEADS - 1
    assert found["similarity"].is_monotonic_decreasing
    one = scores[1, 0]
    for row in found.to_dict("records"):
        other = scores[row["layer"], row["head"]]
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert row["writes"] == pytest.approx(cosine)
        looks = 0.3 if (row["layer"], row["head"]) == LOOKS else 1.0
        assert row["looks"] == pytest.approx(looks)
        assert row["similarity"] == pytest.approx((row["writes"] + row["looks"]) / 2)


def test_heads_that_are_not_mapped_are_like_none(watched: Atlas) -> None:
    everything = similar_heads(watched, 1, 0, n=N_LAYERS * N_HEADS)
    data = watched.dataset.assign(layer_done=watched.dataset["layer_done"].copy())
    data["layer_done"][2] = 0
    part = Atlas(data, watched.provenance, watched.thresholds, watched.path)
    found = similar_heads(part, 1, 0, n=N_LAYERS * N_HEADS)
    kept = everything[everything["layer"] != 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[["layer", "head"]], kept[["layer", "head"]])


def test_heads_are_compared_by_the_same_terms(watched: Atlas) -> None:
    """A layer without measured attention is left out, without a warning, not compared by what it writes."""
    frame = watched.behaviours()
    watched.__dict__["_behaviours"] = frame[frame["layer"] != 2]
    found = similar_heads(watched, 1, 0, n=N_LAYERS * N_HEADS)
    assert set(found["layer"]) == {0, 1} and found.notna().all(axis=None)
    # A head without any itself is compared by what it writes alone.
    alone = similar_heads(watched, 2, 0, n=N_LAYERS * N_HEADS)
    assert len(alone) == N_LAYERS * N_HEADS - 1 and alone["looks"].isna().all()


def test_coverage_holds_relations_to_q_whatever_the_criterion(atlas: Atlas) -> None:
    loose = atlas.at(criterion="tau", tau=0.001)
    rows = loose.without_evidence
    called = rows[rows["implements"] | rows["suppresses"]]
    sure = (called["implements"] & (called["q"] <= 0.01)) | (
        called["suppresses"] & (called["suppression_q"] <= 0.01)
    )
    expected = len(called[sure].drop_duplicates(["layer", "head"]))
    assert not sure.all()
    assert loose.coverage()["by_relation"].sum() == expected


def test_search_looks_through_all_that_is_said(watched: Atlas) -> None:
    found = search(watched, "PREVIOUS")
    assert set(zip(found["layer"], found["head"], found["where"], strict=True)) == {
        (*LOOKS, "behaviour"),
        (*LOOKS, "label"),
    }
    assert list(search(watched, "copies names")[["layer", "head"]].itertuples(index=False, name=None)) == [
        LABELLED
    ]
    assert search(watched, "no such thing").empty
    called = watched.sel(called=True)
    relation = str(called["relation"].iloc[0])
    heads = set(map(tuple, called[called["relation"] == relation][["layer", "head"]].to_numpy().tolist()))
    there = search(watched, relation)
    assert heads <= set(zip(there["layer"], there["head"], strict=True))


def test_whole_words_go_before_parts_of_words(watched: Atlas) -> None:
    word = str(watched.sel(called=True)["relation"].iloc[0]).split("_")[0]
    row = (0, 1, f"{word}ish things", "9 of 15", 0.8, 0.2, 0.1, "rules 2", BY_MAPPINGS)
    assert watched.path is not None
    group = evidence_group(watched.path)
    store_labels(group, pd.DataFrame([row], columns=list(LABEL_COLUMNS)), {"author": "rules 2"})
    atlas = Atlas.open(watched.path)
    assert "label" not in set(search(atlas, word)["where"]) and len(search(atlas, word))
    assert atlas.search(word).equals(search(atlas, word))
    assert search(atlas, f"{word}is")["what"].tolist() == [f"{word}ish things"]


def test_words_of_a_head_are_those_of_its_pairs(atlas: Atlas) -> None:
    rows = atlas.sel(called=True)
    for layer, head in set(zip(rows["layer"], rows["head"], strict=True)):
        found = words_of(atlas, layer, head)
        called = atlas.sel(layer=layer, head=head, called=True)
        assert list(dict.fromkeys(found["relation"])) == called["relation"].tolist()
        for row in called.to_dict("records"):
            for sign, verb, column in (
                ("promotion", "implements", "score"),
                ("suppression", "suppresses", "suppression"),
            ):
                mine = found[(found["relation"] == row["relation"]) & (found["sign"] == sign)]
                assert len(mine) == (40 if row[verb] else 0)
                if row[verb]:
                    assert mine.drop_duplicates("source")["source_hit"].mean() == row[column]
                    ranks = mine["rank"].astype("Float64").fillna(np.inf).tolist()
                    assert ranks == sorted(ranks)
                    state = mine["control_source_hit"]
                    assert state.isna().all() if sign == "suppression" else state.mean() == row["control"]
    quiet = (2, 0, "word_to_antonym")
    assert set(words_of(atlas, 2, 0, ["antonym"])["relation"]) == {quiet[2]}
    assert len(words_of(atlas, 2, 0, ["antonym"])) == len(atlas.pairs(*quiet)) == 40
    with pytest.raises(HeadatlasError, match="no relation"):
        words_of(atlas, 2, 0, ["nothing like it"])


def test_what_relations_want_of_a_word(atlas: Atlas) -> None:
    wanted = wanted_of(atlas, 1, 2, "s3")
    assert wanted["relation"].tolist() == atlas.included["relation"].tolist()
    assert set(wanted["target"]) == {"t3"}
    for at, name in enumerate(wanted["relation"]):
        pair = atlas.pairs(1, 2, name).query("source == 's3'").reset_index(drop=True)
        for column in ("rank", "suppression_rank"):
            pd.testing.assert_series_equal(wanted[column].iloc[[at]].reset_index(drop=True), pair[column])
    assert wanted_of(atlas, 1, 2, "S3").empty
