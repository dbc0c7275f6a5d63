"""One key, one kind of value: what every key of the JSON documents holds, wherever it stands.

A name that is new, or that is used for another kind of value, fails the test whose command printed it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

KEYS = {
    "number": (
        "accuracy accuracy_random accuracy_without added added_area added_area_high added_area_low area "
        "area_high area_low as_high asked attention auroc base best_a best_b between beyond_sink "
        "by_behaviour by_chance by_description by_relation bytes_to_read called_a called_b called_both "
        "ceiling cells chance context context_suppression control control_base control_rank copying "
        "count covered d_head d_model depth depth_p difference difference_high difference_low dispersion "
        "effective_rank epsilon2 excess excess_high excess_low expected expected_both explained "
        "first_position gain gained h head heads_a heads_b heads_both high inference_seconds_least "
        "inference_seconds_most k k_copy key layer least_heads lift looks loss loss_alone loss_alone_q "
        "lost low lower_quartile mean_difference median median_depth memory_bytes most_pairs most_tokens "
        "moves n n_between n_depth n_heads n_implementing n_kv_heads n_layers n_pairs n_relations n_rows "
        "n_score n_sources n_target_words n_targets n_templates n_within n_words norm_share only_a "
        "only_b order p parameters pearson pearson_high pearson_low q q_max query r random random_high "
        "random_low rank score score_a score_b score_p se seconds_least seconds_most share shots "
        "similarity singular_value source_id spearman spearman_high spearman_low stronger suppression "
        "suppression_chance suppression_high suppression_lift suppression_low suppression_p "
        "suppression_q suppression_rank tau total unsure upper_quartile value vocab weaker within "
        "without without_added without_context without_context_suppression without_control "
        "without_random without_random_high without_random_low without_rank without_relation writes"
    ),
    "bool": (
        "called can_be_target confirmed_by_ablation confirmed_with_context control_source_hit hit "
        "implements is_copying moved prefers source_hit streams suppresses"
    ),
    "text": (
        "a about accounting architecture atlas author b behaviour called_in caption category change "
        "closest code controls criterion dtype error family field first format headatlas hurts_more is "
        "kind label left_out lens measure method model name no_groups not_by_head on oracle_not_run part "
        "path problem proposal query_at relation second sha256 sign source subcategory support target "
        "target_policy text title tokenizer too_small transformers what where word"
    ),
    "object": (
        "comparison counts coverage depths depths_single dropped oracles per_head provenance "
        "relations_left_out sizes skipped thresholds"
    ),
    "[number]": (
        "expected_counts layers layers_done observed promoted_ids ranks reads_ids singular_values "
        "suppressed_ids suppression_ranks"
    ),
    "[text]": (
        "architectures gguf gguf_read notes own_targets problems promoted reads safetensors statements "
        "suppressed targets tokens unexplained"
    ),
    "[object]": (
        "against_measured agreement atlases behaviours by_layer categories changes control_heads "
        "directions ends evidence group groups heads labels oracle pairs relations rest rows salient "
        "similar spectrum tensors wanted weights words written"
    ),
    "[[number]]": "pattern shapes",
}
KIND_OF = {key: kind for kind, keys in KEYS.items() for key in keys.split()}
BY_NAME = frozenset({"provenance", "relations_left_out", "skipped", "dropped", "sizes"})
"""Objects whose keys are names of relations, categories and reasons, or what the store keeps of a run."""


def kind(value: Any) -> str:
    """The kind of a value; nothing where it is missing, ``[]`` for an empty list."""
    if isinstance(value, list):
        inner = {kind(each) for each in value} - {""}
        return f"[{'|'.join(sorted(inner))}]"
    names = {type(None): "", bool: "bool", int: "number", float: "number", str: "text", dict: "object"}
    return names[type(value)]


def keys(value: Any) -> Iterator[tuple[str, str]]:
    """Every key with its kind, at any depth."""
    for each in value if isinstance(value, list) else ():
        yield from keys(each)
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key, kind(inner)
        if key not in BY_NAME:
            yield from keys(inner)


def check_kinds(document: Any) -> None:
    """Fail where a key of a document is not known, or holds what it does not hold elsewhere."""
    for key, found in set(keys(document)):
        wanted = "number" if re.fullmatch(r"d\d+", key) else KIND_OF.get(key)  # AUROC at a distance
        assert wanted, f"{key} is new: {found}"
        assert found in ("", wanted) or (found == "[]" and wanted[0] == "["), f"{key}: {found}, not {wanted}"
