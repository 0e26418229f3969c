"""What the backward pass holds in memory, measured."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

import torch
from torch import Tensor, nn

__all__ = ["SavedBytes"]


class SavedBytes:
    """Counts the bytes that autograd saves for the backward pass, while it is entered.

    A tensor that several operations save counts once; parameters, which are there anyway, do not count.
    The peak is what was held at the same time: it falls as graphs are freed.

    Args:
        model: whose parameters do not count.

    Attributes:
        peak: the most bytes that were held at once.

    Example:
        >>> with SavedBytes(model) as saved:  # doctest: +SKIP
        ...     loss(inputs, labels).backward()
        >>> saved.peak  # doctest: +SKIP
        56623104
    """

    def __init__(self, model: nn.Module) -> None:
        self.peak = 0
        self._held = 0
        self._storages: Counter[int] = Counter()
        self._parameters = {each.untyped_storage().data_ptr() for each in model.parameters()}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: Tensor) -> _Saved:
        return _Saved(self, tensor)

    @staticmethod
    def _unpack(saved: _Saved) -> Tensor:
        return saved.tensor

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a tensor that is saved."""
        address = storage.data_ptr()
        if address in self._parameters:
            return
        self._storages[address] += 1
        if self._storages[address] == 1:
            self._held += storage.nbytes()
            self.peak = max(self.peak, self._held)

    def remove(self, storage: torch.UntypedStorage) -> None:
        """Count a tensor that is let go."""
        address = storage.data_ptr()
        if address in self._parameters:
            return
        self._storages[address] -= 1
        if self._storages[address] == 0:
            self._held -= storage.nbytes()


class _Saved:
    """A saved tensor; autograd lets go of it when the graph is freed."""

    def __init__(self, counter: SavedBytes, tensor: Tensor) -> None:
        self.tensor = tensor
        self._counter = counter
        counter.add(tensor.untyped_storage())

    def __del__(self) -> None:
        self._counter.remove(self.tensor.untyped_storage())
