"""One Hugging Face `config.json` under reading: its keys over the defaults of its family, checked as they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from moe_optuna.errors import InputError
from moe_optuna.parts import Attention, Interleaved

__all__ = ["Config"]

MOST_LAYERS = 100_000
_LEGACY_WORDS = {"attention": "full_attention", "mamba": "linear_attention"}
"""Words of `layer_types` in older files, as transformers renames them."""


class Config:
    """Look-ups that name the key whose value does not fit, or contradicts another.

    Args:
        data: The file's object; objects inside it are reached by dotted keys, ``ffn_config.moe_top_k``.
        defaults: What the family's own configuration class takes for a missing key.
        aliases: Other names of a key: a file may use either, not both with different values.
        where: The file, for messages.
    """

    def __init__(
        self, data: Mapping[str, Any], defaults: Mapping[str, Any], aliases: Mapping[str, str], where: object
    ) -> None:
        self.where = where
        given = {key: value for key, value in _flat(data) if key not in aliases}
        for alias, key in aliases.items():
            if alias in data and given.setdefault(key, data[alias]) != data[alias]:
                raise self.error(alias, f"{data[alias]!r} contradicts {key} = {given[key]!r}")
        self._values = {**defaults, **given}
        self._given = given.keys()

    def error(self, key: str, message: str) -> InputError:
        """What to raise for a key."""
        return InputError(f"{key}: {message}", where=self.where)

    def given(self, key: str) -> bool:
        """Whether the file itself has the key."""
        return key in self._given

    def get(self, key: str) -> Any:
        """The value as it stands, ``None`` where it is missing."""
        return self._values.get(key)

    def integer(self, key: str, least: int = 1) -> int:
        """An integer of at least `least`."""
        value = self.get(key)
        if type(value) is not int or value < least:
            found = "missing" if value is None and not self.given(key) else _shown(value)
            raise self.error(key, f"{found}, expected an integer of at least {least}")
        return value

    def uniform(self, key: str) -> int:
        """A positive integer, given once or for each layer alike."""
        value = self.get(key)
        if isinstance(value, list):
            if len(value) != self.layers:
                raise self.error(key, f"{len(value)} values contradict num_hidden_layers = {self.layers}")
            if len(set(map(repr, value))) > 1:
                raise self.error(key, f"{_shown(value)}, only layers that are alike are supported")
            self._values[key] = value[0]
        return self.integer(key)

    def optional(self, key: str) -> int | None:
        """A positive integer, or ``None`` where the key is missing or null."""
        return None if self.get(key) is None else self.integer(key)

    def window(self, key: str = "sliding_window") -> int | None:
        """A window in tokens; missing, null and 0 mean none."""
        return self.integer(key, least=0) or None if self.get(key) is not None else None

    def flag(self, key: str) -> bool:
        """True or false; null is false."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, f"{_shown(value)}, expected true or false")
        return bool(value)

    def only(self, key: str, expected: Any) -> None:
        """Refuse any other value of a key, whose effect on the counts is not known."""
        if key in self._values and self.get(key) != expected:
            raise self.error(key, f"{_shown(self.get(key))}, only {_shown(expected)} is supported here")

    def divides(self, key: str, whole: str) -> int:
        """An integer that divides another one."""
        value = self.integer(key)
        if self.integer(whole) % value:
            raise self.error(key, f"{value}, expected a divisor of {whole} = {self.integer(whole)}")
        return value

    def indices(self, key: str) -> set[int]:
        """Layer numbers from 0; missing and null mean none."""
        value = self.get(key) or []
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise self.error(key, f"{_shown(value)}, expected a list of layer numbers")
        return set(value)

    @property
    def layers(self) -> int:
        """The number of layers; bounded, since some are gone through one by one."""
        layers = self.integer("num_hidden_layers")
        if layers > MOST_LAYERS:
            raise self.error("num_hidden_layers", f"{layers}, expected at most {MOST_LAYERS}")
        return layers

    def per_layer(self, key: str, known: Collection[str], derive: Callable[[int], str] | None) -> Counter[str]:
        """How many layers have each of the known words; `derive` gives a layer's word where the key is missing."""
        words = self.get(key)
        if words is None and derive is not None:
            words = [derive(layer) for layer in range(self.layers)]
        if not isinstance(words, list):
            raise self.error(key, f"{'missing' if words is None else _shown(words)}, expected a list, one word a layer")
        words = [_LEGACY_WORDS.get(word, word) if isinstance(word, str) else word for word in words]
        for word in words:
            if not isinstance(word, str) or word not in known:
                raise self.error(key, f"unknown {_shown(word)}, expected {' or '.join(known)}")
        if len(words) != self.layers:
            raise self.error(key, f"{len(words)} words contradict num_hidden_layers = {self.layers}")
        return Counter(words)

    def attention(
        self, kinds: Mapping[str, Attention], derive: Callable[[int], str] | None, key: str = "layer_types"
    ) -> Attention:
        """The stack that `layer_types` describes, each word a kind of attention."""
        counts = self.per_layer(key, kinds, derive)
        layers: Counter[Attention] = Counter()
        for word, kind in kinds.items():
            layers[kind] += counts[word]
        parts = tuple((kind, count) for kind, count in layers.items() if count)
        return parts[0][0] if len(parts) == 1 else Interleaved(parts)


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in data.items():
        pairs.append((f"{prefix}{key}", value))  # a configuration in memory has tables by integers, such as id2label
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
    return pairs


def _shown(value: Any) -> str:
    """A value as JSON writes it, cut to a line."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
