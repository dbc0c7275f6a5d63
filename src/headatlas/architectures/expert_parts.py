"""Which stored tensors make a tensor of the modules, where files and modules have other names.

transformers holds all experts of a layer in two tensors; most files have them one by one. A family file
has both forms. Everything else has the same name here and there.
"""

from __future__ import annotations

from collections.abc import Iterator

from headatlas.architectures.accounting import Inventory, of_expert
from headatlas.architectures.family import Experts, Linear

Pieces = tuple[tuple[str, ...], ...]
"""For every expert the tensors that are put below each other; of a single tensor one of one."""


def pieces_of(inventory: Inventory, layer: int) -> dict[str, Pieces]:
    """Names of a layer's tensors as modules have them → what files have instead."""
    stored, found = inventory.layers[layer].experts, dict[str, Pieces]()
    if stored is None:
        return found
    for form in inventory.section.experts:
        if form is not stored and form.layout == "stacked" and inventory.holds(form.when):
            found |= dict(_of_form(inventory, layer, form, stored))
    return found


def _of_form(
    inventory: Inventory, layer: int, form: Experts, stored: Experts
) -> Iterator[tuple[str, Pieces]]:
    def same(here: Linear | None, there: Linear | None) -> Iterator[tuple[str, Pieces]]:
        if here is not None and there is not None:
            for kind in ("weight", "bias"):
                yield inventory.name(here.stem, layer, kind), ((inventory.name(there.stem, layer, kind),),)

    yield from same(form.router, stored.router)
    yield from same(form.shared_gate, stored.shared_gate)
    if form.correction is not None and stored.correction is not None:
        yield inventory.name(form.correction, layer), ((inventory.name(stored.correction, layer),),)
    if form.shared is not None and stored.shared is not None:
        for here, there in zip(form.shared.linears, stored.shared.linears, strict=True):
            yield from same(here, there)
    if stored.layout != "separate":
        yield from same(form.gate_up, stored.gate_up)
        yield from same(form.down, stored.down)
        return
    together = {form.gate_up: (stored.gate, stored.up), form.up: (stored.up,), form.down: (stored.down,)}
    sizes = inventory.sizes.experts
    for whole, parts in together.items():
        if whole is not None and sizes is not None:
            yield (
                inventory.name(whole.stem, layer),
                tuple(
                    tuple(
                        inventory.name(of_expert(part, number).stem, layer)
                        for part in parts
                        if part is not None
                    )
                    for number in range(sizes.n_experts)
                ),
            )
