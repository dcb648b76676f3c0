"""Other tools' configurations: Hugging Face families (read and written), Megatron-LM and torchtitan (written)."""

from moe_optuna.interchange._export import EXPORTS, export
from moe_optuna.interchange._huggingface import from_hf, to_hf
from moe_optuna.interchange._megatron import to_megatron
from moe_optuna.interchange._read import read
from moe_optuna.interchange._summary import count_payload
from moe_optuna.interchange._torchtitan import to_torchtitan
from moe_optuna.interchange.families import FAMILIES

__all__ = [
    "EXPORTS",
    "FAMILIES",
    "count_payload",
    "export",
    "from_hf",
    "read",
    "to_hf",
    "to_megatron",
    "to_torchtitan",
]
