"""Which methods are tried together, and which refuse each other by the same check as a run."""

from __future__ import annotations

import pytest

from cl_runner.built_in import METHODS
from cl_runner.combinations import COMPANIONS, combinations, plainest, refusal
from cl_runner.compose import compose
from cl_runner.groups import nodes_of


def test_every_method_is_tried_with_every_companion_that_it_is_not() -> None:
    chosen = plainest()
    assert list(chosen) == list(METHODS)
    assert [list(nodes_of(option)) for option in chosen.values()] == [[node] for node in METHODS]
    assert chosen["piece"] == "piece_f" and chosen["pe"] == "pe_select" and chosen["parts"] == "bitfit"
    pairs = combinations()
    assert ("opr", "piece_s") in pairs and ("piece_f", "piece_s") not in pairs
    assert len(pairs) == len(METHODS) * len(COMPANIONS) - len(COMPANIONS)


@pytest.mark.parametrize("chain", [("frozen", "ewc"), ("bitfit", "piece_s"), ("icl", "ewc")])
def test_refusals_are_those_of_a_run(chain: tuple[str, str]) -> None:
    said = refusal(chain)
    family = "causal" if "icl" in chain else "classifier"
    with pytest.raises(ValueError) as caught:
        compose([f"method=[{','.join(chain)}]", f"backbone=tiny_{'llama' if family == 'causal' else 'bert'}"])
    assert said == str(caught.value)


def test_what_composes_is_not_refused() -> None:
    assert refusal(("replay", "ewc", "piece_s")) is None and refusal(("icl",)) is None
