"""What a model family is: how its configurations are read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.interchange._config import Config
from moe_optuna.interchange._reading import Words
from moe_optuna.interchange._writing import COMMON, value

__all__ = ["Family"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family.

    Attributes:
        model: The class that transformers builds.
        read: From a configuration to the arguments of `MoEArchitecture`.
        defaults: What the family's configuration class takes for a missing key, of those that `read` asks for.
        aliases: Other names that a file may use for a key.
        write: Sources (see `_writing`) of the keys beside `COMMON`, or instead of them; ``None`` leaves a key out.
            Writing needs no checks: what does not survive being written and read back cannot be expressed.
    """

    model: str
    read: Callable[[Config], Words]
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str] = field(default_factory=dict)
    write: Mapping[str, Any] = field(default_factory=dict)

    def architecture(self, data: Mapping[str, Any], where: object) -> MoEArchitecture:
        """The architecture that a configuration of this family describes.

        Raises:
            InputError: Naming the key that is missing, does not fit or contradicts another.
        """
        words = self.read(Config(data, self.defaults, self.aliases, where))
        try:
            return MoEArchitecture(**words)
        except InputError as error:
            raise InputError(str(error), where=where) from None

    def config(self, architecture: MoEArchitecture) -> dict[str, Any]:
        """The keys of this family for an architecture.

        Raises:
            LookupError: Where the architecture has not the part whose property a key holds.
        """
        config: dict[str, Any] = {"architectures": [self.model]}
        for key, source in {**COMMON, **self.write}.items():
            if source is not None:
                *path, last = key.split(".")
                place = config
                for name in path:
                    place = place.setdefault(name, {})
                place[last] = value(architecture, source)
        return config
