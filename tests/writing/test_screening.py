"""What a screening pass leaves out is not followed; what it proposes is shown as an exact run has it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.atlas.salience import stored_salience
from headatlas.lenses import neutral
from headatlas.writing import screening


@pytest.fixture
def out(written_neutral: Path, tmp_path: Path) -> Path:
    """An atlas whose salience is to be computed again."""
    out = Path(shutil.copytree(written_neutral, tmp_path / "out"))
    shutil.rmtree(out / "atlas.zarr" / "evidence" / "salience")
    return out


def screened(out: Path, price: float = 1.0, reach: int = 2, unlike: float = 1.0) -> Atlas:
    with (
        patch.object(screening, "TOKENS_A_HEAD", 0),
        patch.object(screening, "UNLIKE", unlike),
        patch.object(screening, "PRICE", price),
        patch.object(screening, "REACH", reach),
    ):
        ha.salience(Atlas.open(out), tokens="all")
    return Atlas.open(out)


def test_where_all_are_proposed_nothing_is_lost(out: Path, written_neutral: Path) -> None:
    whole, found = Atlas.open(written_neutral), screened(out, price=0.0, reach=1000)
    assert found.salience().drop(columns="gain").equals(whole.salience().drop(columns="gain"))
    np.testing.assert_allclose(found.salience()["gain"], whole.salience()["gain"], rtol=1e-5)
    np.testing.assert_allclose(found.spectrum()["copying"], whole.spectrum()["copying"], rtol=1e-4)
    assert "followed" not in found.salience().attrs["caption"]


def test_what_is_followed_has_its_own_numbers(out: Path, written_neutral: Path) -> None:
    """Gains and targets of those left are those of the whole, and fewer rows go through the later blocks."""
    sent: list[tuple[int, int]] = []
    collect = neutral.Collector.take_x

    def noted(self: neutral.Collector, layer: int, state: object) -> None:
        sent.append((layer, len(self._ends)))
        collect(self, layer, state)  # type: ignore[arg-type]

    with patch.object(neutral.Collector, "take_x", noted):
        found = screened(out)
    whole = Atlas.open(written_neutral)
    keys = ["layer", "head", "source_id"]
    both = found.salience().merge(whole.salience(), on=keys, suffixes=("", "_whole"))
    assert len(both) > 0.5 * len(whole.salience())
    np.testing.assert_allclose(both["gain"], both["gain_whole"], rtol=1e-5)
    assert both["promoted_ids"].tolist() == both["promoted_ids_whole"].tolist()
    first, spectra = found.salience(), found.spectrum().merge(whole.spectrum(), on=keys[:2])
    assert (first.groupby(keys[:2])["gain"].diff().dropna() <= 0).all()
    # Tokens that are not followed count for copying with their rough states.
    assert (spectra["copying_x"] - spectra["copying_y"]).abs().max() < 0.1
    stored = stored_salience(found.path)
    assert stored is not None
    said = stored.provenance["tokens"]
    rows = [sum(n for at, n in sent if at == layer) for layer in range(found.n_layers)]
    assert said["followed"] < said["n"] and rows[-1] < rows[0]
    assert f"{said['followed']:,} followed" in stored.caption()


def test_exact_is_computed_where_only_the_screened_is_stored(out: Path, written_neutral: Path) -> None:
    few = screened(out).salience()
    assert ha.salience(Atlas.open(out)).equals(few)
    whole = ha.salience(Atlas.open(out), tokens="all", exact=True)
    assert whole.equals(Atlas.open(written_neutral).salience()) and not whole.equals(few)
    with patch.object(screening.Screening, "of", side_effect=AssertionError("screened")):
        assert ha.salience(Atlas.open(out), exact=True).equals(whole)


def test_a_stopped_choice_goes_on(out: Path) -> None:
    """What was sent through after all prefixes at once is not sent again, but for the few tokens tried."""
    sent: list[int] = []
    broken = True

    def counted(model: Any, modules: Any, tokens: list[int], *args: Any, **kwargs: Any) -> Any:
        sent.append(len(tokens))
        if broken and len(sent) == 4:
            raise KeyboardInterrupt
        return rough(model, modules, tokens, *args, **kwargs)

    rough = screening.after_all_prefixes
    with patch.object(screening, "after_all_prefixes", counted), patch.object(neutral, "PART", 90):
        with pytest.raises(KeyboardInterrupt):
            screened(out)
        broken = False
        screened(out)
    tried = sent[0]
    assert sent == [tried, 90, 90, 90, tried, 90, 26]


@pytest.mark.parametrize("why", ["unlike", "refused"])
def test_all_are_followed_where_the_rough_states_are_of_no_use(
    why: str, out: Path, written_neutral: Path
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise TypeError("an unexpected keyword")

    with patch.object(
        screening, "after_all_prefixes", refuses if why == "refused" else screening.after_all_prefixes
    ):
        found = screened(out, unlike=0.0 if why == "unlike" else 1.0)
    assert found.salience().equals(Atlas.open(written_neutral).salience())


def test_a_device_that_is_full_is_not_taken_for_modules_that_refuse(out: Path) -> None:
    with (
        patch.object(screening, "after_all_prefixes", side_effect=torch.OutOfMemoryError("full")),
        pytest.raises(torch.OutOfMemoryError, match="full"),
    ):
        screened(out)
