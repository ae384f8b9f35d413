"""What families state of their blocks agrees with their parameters and with what they tell Megatron."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamconv.models import mechanisms as made_of
from streamconv.models.biases import BIAS_MECHANISMS, BY_ENTRY, QKV_BIAS
from streamconv.models.config.biases import AnyBias
from streamconv.models.config.settings import Fixed
from streamconv.models.family import ModelFamily
from streamconv.models.mechanisms import EXCLUSIVE, KNOWN, Mechanism, in_words
from streamconv.models.parameter import ParameterId, Section
from streamconv.models.registry import known_families

EVERY = pytest.mark.parametrize("family", known_families(), ids=lambda family: family.name)

# A mechanism that parameters show, and the key that shows it.
SHOWN: dict[Mechanism, tuple[Section, str]] = {
    made_of.LEARNED: (Section.EMBEDDING, "position_embeddings.weight"),
    made_of.EMBEDDING_NORM: (Section.EMBEDDING, "word_embeddings.norm.weight"),
    made_of.LAYERNORM: (Section.LAYER, "input_layernorm.bias"),
    made_of.HEAD_NORMS: (Section.LAYER, "self_attention.q_layernorm.weight"),
    made_of.BIASES: (Section.LAYER, "self_attention.dense.bias"),
}


@EVERY
def test_parameters_show_what_is_stated(family: ModelFamily) -> None:
    shown = {mechanism for mechanism, (section, key) in SHOWN.items() if key in family.keys(section)}
    assert shown == family.mechanisms & SHOWN.keys()
    biases = {"self_attention.query_key_value.bias", "mlp.dense_4h_to_h.bias"} & family.keys(Section.LAYER)
    expected = {made_of.BIASES: 2, made_of.QKV_BIASES: 1, made_of.NO_BIASES: 0}
    assert [expected[mechanism] for mechanism in family.mechanisms & expected.keys()] == [len(biases)]
    fused = family.parameter(ParameterId(Section.LAYER, 0, "mlp.dense_h_to_4h.weight"))
    assert fused.is_glu == family.gated == (made_of.PLAIN_MLP not in family.mechanisms)


@EVERY
def test_arguments_that_never_change_say_what_is_stated(family: ModelFamily) -> None:
    fixed = {s.arg: s.value for s in family.huggingface.settings if isinstance(s, Fixed)}
    # A family that may have biases has none unless its configuration says so.
    fixed |= {n: v for s in family.huggingface.settings if isinstance(s, AnyBias) for n, v in s.to_args({}).items()}
    has = family.mechanisms.__contains__
    said = {
        "normalization": "rmsnorm" if has(made_of.RMSNORM) else "layernorm",
        "swiglu": has(made_of.SWIGLU),
        "add_bias_linear": has(made_of.BIASES),
        "add_qkv_bias": has(made_of.QKV_BIASES),
        "qk_layernorm": has(made_of.HEAD_NORMS),
        "embed_layernorm": has(made_of.EMBEDDING_NORM),
        "apply_layernorm_1p": has(made_of.NORMS_LESS_ONE),
        "use_rotary_position_embeddings": has(made_of.ROTARY),
        "add_position_embedding": has(made_of.LEARNED),
    }
    assert {"normalization", "add_bias_linear"} <= fixed.keys()
    both = fixed.keys() & said.keys()
    assert {name: fixed[name] for name in both} == {name: said[name] for name in both}


@EVERY
@pytest.mark.parametrize(("what", "group"), EXCLUSIVE, ids=[what for what, _ in EXCLUSIVE])
def test_a_family_states_one_of_what_excludes_each_other(
    what: str, group: tuple[Mechanism, ...], family: ModelFamily
) -> None:
    (stated,) = family.mechanisms & set(group)
    other = next(mechanism for mechanism in group if mechanism is not stated)
    with pytest.raises(ValueError, match=f"{what}: none stated, and it is one of {group[0].name}, "):
        replace(family, mechanisms=family.mechanisms - {stated})
    with pytest.raises(ValueError, match=f"{what}: .* and .* stated"):
        replace(family, mechanisms=family.mechanisms | {other})


def test_every_mechanism_has_words_of_its_own() -> None:
    constants = {value for value in vars(made_of).values() if isinstance(value, Mechanism)}
    assert constants == set(KNOWN)
    assert len({mechanism.words for mechanism in KNOWN}) == len({mechanism.name for mechanism in KNOWN}) == len(KNOWN)


def test_words_of_one_and_of_two() -> None:
    assert in_words([made_of.ALIBI]) == "no ALiBi"
    assert in_words([made_of.EMBEDDING_NORM, made_of.ALIBI]) == "no ALiBi and no embedding norm"


def test_words_come_in_one_order_and_those_that_nobody_knows_last() -> None:
    invented = Mechanism("aaa", "invention")
    assert in_words({invented, made_of.EMBEDDING_NORM, made_of.ALIBI}) == (
        "no ALiBi, no embedding norm and no invention"
    )


def test_a_model_with_biases_needs_what_runs_them() -> None:
    llama = next(family for family in known_families() if family.name == "llama")
    whole = frozenset(key for pair in BY_ENTRY.values() for key in pair)
    for chosen, stated in ((frozenset(), made_of.NO_BIASES), ({QKV_BIAS}, made_of.QKV_BIASES), (whole, made_of.BIASES)):
        assert llama.having(chosen).mechanisms & set(BIAS_MECHANISMS) == {stated}
    for pair in BY_ENTRY.values():
        assert made_of.BIASES in llama.having(pair).mechanisms
