"""Writing: what is written reads back, and frameworks build from it exactly the architecture's `full` parameters."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.interchange import EXPORTS, FAMILIES, export, from_hf, to_hf, to_megatron, to_torchtitan
from moe_optuna.parts import (
    GatedFeedForward,
    GroupedQueryAttention,
    Interleaved,
    LatentAttention,
    Norm,
    Router,
    ShortConvolution,
)

BASE = MoEArchitecture(
    d_model=64, n_dense_layers=1, n_moe_layers=2, n_heads=4, n_kv_heads=2, d_head=16, d_dense=192, d_expert=32,
    n_experts=8, top_k=2, n_shared_experts=1, context_length=128, vocab_size=256,
)  # fmt: skip
LATENT = replace(
    BASE, n_kv_heads=4, d_head=24, qk_norm=False,
    attention=LatentAttention(kv_rank=16, q_rank=None, d_nope=16, d_rope=8, d_value=16),
)  # fmt: skip
DENSE = replace(BASE, n_dense_layers=3, n_moe_layers=0, d_expert=0, n_experts=0, top_k=0, n_shared_experts=0)
WINDOWED = replace(
    BASE, attention=Interleaved(((GroupedQueryAttention(), 1), (GroupedQueryAttention(window=16), 2)))
)  # fmt: skip


@st.composite
def architectures(draw: st.DrawFn) -> MoEArchitecture:
    """Of the kind that the searches train: grouped-query attention, first layers dense, shared experts."""
    n_kv_heads, n_experts = draw(st.integers(1, 4)), draw(st.integers(1, 16))
    dense = draw(st.integers(0, 3))
    return MoEArchitecture(
        d_model=draw(st.integers(1, 12)) * 8,
        n_dense_layers=dense,
        n_moe_layers=draw(st.integers(1, 3)),
        n_heads=n_kv_heads * draw(st.integers(1, 3)),
        n_kv_heads=n_kv_heads,
        d_head=draw(st.integers(1, 8)) * 4,
        d_dense=draw(st.integers(1, 64)) if dense else 0,
        d_expert=draw(st.integers(1, 64)),
        n_experts=n_experts,
        top_k=draw(st.integers(1, n_experts)),
        n_shared_experts=draw(st.integers(0, 2)),
        context_length=draw(st.integers(1, 256)),
        vocab_size=draw(st.integers(1, 300)),
        tied_embeddings=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )


def built(config: dict[str, Any]) -> int:
    """Parameters of the module that transformers builds."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    keys = dict(config)
    made = transformers.AutoConfig.for_model(keys.pop("model_type"), **keys)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(made)
    return sum(parameter.numel() for parameter in module.parameters())


@given(architectures())
@settings(max_examples=100, deadline=None)
def test_hf_reads_back(architecture: MoEArchitecture) -> None:
    assert from_hf(json.loads(export(architecture, "hf"))) == architecture


@pytest.mark.filterwarnings("ignore:Initializing zero-element")  # a family's empty shared expert
@given(architectures())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_transformers_builds_it(architecture: MoEArchitecture) -> None:
    assert built(to_hf(architecture)) == architecture.full.total_params


@pytest.mark.parametrize("architecture", [BASE, LATENT, DENSE, WINDOWED], ids=["base", "latent", "dense", "windowed"])
def test_hf_of_each_kind(architecture: MoEArchitecture) -> None:
    config = to_hf(architecture)
    assert from_hf(config) == architecture
    assert built(config) == architecture.full.total_params


def test_a_width_of_layers_that_there_are_not_comes_back_as_0() -> None:
    architecture = replace(BASE, n_dense_layers=0, n_moe_layers=3)
    assert from_hf(to_hf(architecture)) == replace(architecture, d_dense=0)


def test_every_family_writes_what_it_reads() -> None:
    """A configuration of each family, read, written in the same family and read again, is the same architecture."""
    common = {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 300, "head_dim": 16, "max_position_embeddings": 64,
    }  # fmt: skip
    special: dict[str, dict[str, Any]] = {
        "dots1": common | {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
        "deepseek_v2": common | {"num_experts_per_tok": 6, "mlp_bias": True},
        "lfm2_moe": common | {"layer_types": ["conv", "full_attention"] * 2},
        "dbrx": {"n_layers": 4},
        "jetmoe": {"num_hidden_layers": 4},
        "glm4_moe_lite": {"num_hidden_layers": 4},
        "qwen2_moe": common | {"shared_expert_intermediate_size": 50, "decoder_sparse_step": 2},
    }
    for family in set(FAMILIES) - {"bailing_moe", "qwen3_vl_moe_text"}:
        architecture = from_hf({"model_type": family, **special.get(family, common)})
        config = to_hf(architecture, family)
        assert config["model_type"] == family
        assert from_hf(config).components == architecture.components
        if family not in ("dbrx", "hunyuan_v1_moe", "flex_olmo"):  # they need keys that shape nothing
            assert built(config) == architecture.full.total_params


@pytest.mark.parametrize(
    ("architecture", "family", "message"),
    [
        (BASE, "mixtral", "mixtral cannot express .*n_dense_layers = 1.*n_shared_experts = 1"),
        (BASE, "qwen3_vl_moe_text", "qwen3_vl_moe_text cannot express .*d_expert = 32"),
        (BASE, "mixtrall", "family: 'mixtrall', expected one of .*qwen3_moe.*; did you mean 'mixtral'"),
        (BASE, "deepseek_v3", "deepseek_v3 cannot express attention = GroupedQuery"),
        (replace(BASE, d_shared=50), None, "no family can express it; the nearest, glm4_moe, lacks d_shared = 50"),
        (replace(BASE, norm=Norm(per_layer=3)), None, "lacks norm.per_layer = 3"),
    ],
)
def test_what_hf_cannot_express_is_named(architecture: MoEArchitecture, family: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        to_hf(architecture, family)
    assert "\n" not in str(caught.value)


def test_megatron_flags() -> None:
    """The flags and values that Megatron-LM's own examples use for such models."""
    flags = to_megatron(replace(BASE, tied_embeddings=True))
    assert flags == {
        "--num-layers": 3, "--hidden-size": 64, "--ffn-hidden-size": 192, "--num-attention-heads": 4,
        "--group-query-attention": True, "--num-query-groups": 2, "--kv-channels": 16, "--qk-layernorm": True,
        "--seq-length": 128, "--max-position-embeddings": 128, "--position-embedding-type": "rope",
        "--vocab-size": 256, "--make-vocab-size-divisible-by": 1, "--normalization": "RMSNorm", "--swiglu": True,
        "--disable-bias-linear": True, "--moe-layer-freq": "([0]*1+[1]*2)", "--num-experts": 8,
        "--moe-ffn-hidden-size": 32, "--moe-router-topk": 2, "--moe-shared-expert-intermediate-size": 32,
        "--moe-router-score-function": "sigmoid", "--moe-router-enable-expert-bias": True,
    }  # fmt: skip
    assert to_megatron(BASE)["--untie-embeddings-and-output-weights"] is True
    latent = to_megatron(replace(LATENT, attention=replace(LATENT.attention, q_rank=24)))
    assert {latent[f"--{name}"] for name in ("kv-lora-rank", "qk-head-dim", "v-head-dim")} == {16}
    assert (latent["--q-lora-rank"], latent["--qk-pos-emb-head-dim"]) == (24, 8)
    assert not {
        "--num-experts",
        "--moe-layer-freq",
        "--moe-router-score-function",
        "--moe-router-enable-expert-bias",
    } & set(to_megatron(DENSE))
    windowed = to_megatron(WINDOWED)
    assert (windowed["--window-size"], windowed["--window-attn-skip-freq"]) == ("(15,0)", "[1,1,0]")


def test_megatron_script_is_a_bash_array() -> None:
    script = export(WINDOWED, "megatron") + "printf '%s\\n' \"${MODEL_ARGS[@]}\"\n"
    printed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split()
    flags = to_megatron(WINDOWED)
    expected = [word for flag, value in flags.items() for word in ([flag] if value is True else [flag, str(value)])]
    assert printed == expected


@pytest.mark.parametrize(
    ("architecture", "lost"),
    [
        (replace(BASE, attention=GroupedQueryAttention(norm_over="width")), "attention.norm_over = 'width'"),
        (replace(BASE, attention=ShortConvolution(kernel=3)), "attention = ShortConvolution"),
        (replace(BASE, feed_forward=GatedFeedForward(bias=True)), "feed_forward.bias = True"),
        (replace(BASE, head_bias=True), "head_bias = True"),
        (replace(BASE, norm=Norm(bias=True)), "norm.bias = True"),
        (replace(BASE, router=Router(bias=True)), "router.bias = True"),
    ],
)
@pytest.mark.parametrize("framework", ["megatron", "torchtitan"])
def test_what_a_framework_cannot_express_is_named(architecture: MoEArchitecture, lost: str, framework: str) -> None:
    with pytest.raises(InputError, match="cannot express") as caught:
        export(architecture, framework)
    assert lost in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_framework() -> None:
    with pytest.raises(
        InputError, match="to: unknown 'megatrom', expected hf, megatron, torchtitan; did you mean 'megatron'"
    ):
        export(BASE, "megatrom")
    assert set(EXPORTS) == {"hf", "megatron", "torchtitan"}


@pytest.mark.parametrize(
    "architecture",
    [BASE, LATENT, DENSE, replace(BASE, tied_embeddings=True), replace(BASE, d_shared=50), replace(BASE, qk_norm=False),
     replace(BASE, n_shared_experts=0), replace(BASE, n_dense_layers=0)],
)  # fmt: skip
def test_torchtitan_flavor(architecture: MoEArchitecture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that is written runs, and its configurations add up to the architecture's parameters."""
    for name, module in _torchtitan().items():
        monkeypatch.setitem(sys.modules, name, module)
    pytest.importorskip("torch")
    namespace: dict[str, Any] = {}
    exec(compile(to_torchtitan(architecture), "flavor.py", "exec"), namespace)
    assert namespace["flavor"]() == architecture.full.total_params


def _torchtitan() -> dict[str, ModuleType]:
    """torchtitan's configuration functions, each returning the parameters of what the real one configures."""

    def config(count: Any) -> Any:
        return type("Stand-in", (), {"Config": staticmethod(count)})

    def grouped(*, dim: int, n_heads: int, n_kv_heads: int, head_dim: int, qk_norm: int | None, **_: Any) -> int:
        return 2 * dim * (n_heads + n_kv_heads) * head_dim + 2 * (qk_norm or 0)

    def latent(
        *, dim: int, n_heads: int, q_lora_rank: int, kv_lora_rank: int, qk_nope_head_dim: int, qk_rope_head_dim: int,
        v_head_dim: int, **_: Any,
    ) -> int:  # fmt: skip
        query = n_heads * (qk_nope_head_dim + qk_rope_head_dim)
        queries = q_lora_rank * (dim + query + 1) if q_lora_rank else dim * query
        keys = dim * (kv_lora_rank + qk_rope_head_dim) + kv_lora_rank * (n_heads * (qk_nope_head_dim + v_head_dim) + 1)
        return queries + keys + n_heads * v_head_dim * dim

    def block(**parts: int | None) -> int:
        return sum(part or 0 for part in parts.values())

    def model(
        *, tok_embeddings: int, norm: int, lm_head: int, layers: list[int], enable_weight_tying: bool, **_: Any
    ) -> int:
        return tok_embeddings + norm + lm_head * (not enable_weight_tying) + sum(layers)

    functions: dict[str, dict[str, Any]] = {
        "common": {
            "ComplexRoPE": config(lambda **_: None),
            "CosSinRoPE": config(lambda **_: None),
            "Embedding": config(lambda num_embeddings, embedding_dim, **_: num_embeddings * embedding_dim),
            "Linear": config(lambda in_features, out_features, **_: in_features * out_features),
            "RMSNorm": config(lambda normalized_shape, **_: normalized_shape),
        },
        "common.config_utils": {
            "get_attention_config": lambda backend: None,
            "make_gqa_config": grouped,
            "make_ffn_config": lambda dim, hidden_dim, **_: 3 * dim * hidden_dim,
            "make_router_config": lambda dim, num_experts, **_: dim * num_experts,
            "make_routed_experts_config": lambda dim, hidden_dim, num_experts, **_: 3 * dim * hidden_dim * num_experts,
            "make_moe_config": lambda num_experts, **parts: block(**parts),
        },
        "common.param_init": {"skip_param_init": None},
        "deepseek_v3": {"make_mla_attention_config": latent},
        "deepseek_v3.model": {"DeepSeekV3Model": config(model), "DeepSeekV3TransformerBlock": config(block)},
        "qwen3": {},
        "qwen3.model": {"Qwen3Model": config(model), "Qwen3TransformerBlock": config(block)},
    }
    modules = {"torchtitan": ModuleType("torchtitan"), "torchtitan.models": ModuleType("models")}
    for name, members in functions.items():
        modules[f"torchtitan.models.{name}"] = module = ModuleType(name)
        vars(module).update(members)
    return modules
