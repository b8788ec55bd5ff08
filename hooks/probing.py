"""A fixed batch, on which a model is looked at while it trains.

The probe runs after the optimizer's step: what it gives at step k is of the weights after k updates, of the
same samples at every record, at step 0 too. It runs in eval mode, without gradients, outside of autocast and
of `torch.compile`, and leaves no trace: modes, buffers, attributes of modules, random number generators,
`.grad`, `requires_grad` and hooks are what they were, also after an exception. The training's own hooks of
this package do not take note of it. The user's forward hooks fire, as they do in every forward pass.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hooks.activation_tap import first_tensor
from hooks.guards import default_of_training, preserved_attributes, preserved_rng, quiet, without_autocast
from hooks.layers import Layer
from zanalysis.analyzers.jacobian import jacobian_reading
from zanalysis.analyzers.metrics import NONE
from zanalysis.analyzers.modes import evaluating, find_modules, watching
from zanalysis.analyzers.statuses import CODES
from zanalysis.errors import InputError, did_you_mean
from zanalysis.runfile import Series, SpectrumKey

__all__ = ["JACOBIAN", "JacobianOptions", "Jacobians", "Probe", "unwrapped_model"]

JACOBIAN = "jacobian"
"""The tensor that a table calls a Jacobian by."""

_SAMPLES = 16
_OPTIONS = ("samples", "source", "target")

Take = Callable[[Layer, Tensor], None]


class JacobianOptions(TypedDict, total=False):
    """Which Jacobians are taken of a probe.

    Attributes:
        samples: of how many of its samples, the first; 16 unless given, or all if there are fewer.
        source: the layer with respect to whose output; the input unless given.
        target: the layer whose output; that of the model unless given.
    """

    samples: int
    source: str | None
    target: str | None


def unwrapped_model(model: nn.Module) -> nn.Module:
    """Return the model behind the wrappers that only say where and how it runs.

    Args:
        model: a model, possibly compiled or made parallel.

    Returns:
        The model itself. One process can run it without the others.
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


class Probe:
    """A batch that stays, and the model that it goes through.

    Attributes:
        model: the model itself, without wrappers.
        seen: the layers that the last run came by.
    """

    def __init__(self, model: nn.Module, batch: Any, layers: Sequence[Layer] = ()) -> None:
        """Copy the batch to the model's device, and see that the model takes it.

        Args:
            model: the model.
            batch: its inputs: a tensor, a tuple or list of its positional arguments, or a mapping of its
                keyword arguments; no targets.
            layers: whose outputs are asked for.

        Raises:
            InputError: if the batch is none of these, or the model does not take it.
        """
        self.model = unwrapped_model(model)
        self._layers = tuple(layers)
        self._device, self._dtype = _kind(self.model)
        if not isinstance(batch, Tensor | tuple | list | Mapping) or not list(_tensors(batch)):
            raise InputError(
                f"got probe = {_shown(batch)}, expected the inputs of the model: a tensor, a tuple of "
                "positional arguments or a mapping of keyword arguments that holds one."
            )
        self._batch = _copied(batch, self._device)
        self.seen: set[str] = set()
        # Whether the batch is of the dtype that the model computes in: then it goes with the model's.
        self._casts = any(tensor.dtype is self._dtype for tensor in _tensors(self._batch))
        try:
            self.run(lambda layer, z: None)
        except Exception as error:
            raise InputError(
                f"{type(self.model).__name__} does not take the probe ({error}); pass what its forward takes, "
                "as a tensor, a tuple of positional arguments or a mapping of keyword arguments."
            ) from error

    @property
    def described(self) -> dict[str, Any]:
        """What a run file says of it: the shapes and dtypes of its tensors, and a digest of their bytes."""
        tensors, digest = list(_tensors(self._batch)), sha256()
        for tensor in tensors:
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        kinds = [{"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for t in tensors]
        return {"inputs": kinds, "digest": digest.hexdigest()[:16]}

    @property
    def samples(self) -> Tensor | None:
        """The batch, where it is one tensor of samples, as Jacobians need it."""
        batch = self._batch
        while isinstance(batch, list | tuple) and len(batch) == 1:
            batch = batch[0]
        return batch if isinstance(batch, Tensor) and batch.ndim else None

    def run(self, take: Take) -> None:
        """Run the probe through the model as it is now.

        Args:
            take: called with each layer and each of its outputs, in the module's own layout, detached, within
                the forward pass: to be reduced or copied before it returns. A layer that is used several
                times comes several times; `seen` says which came.
        """
        self.follow()
        owners = {layer.name: layer.owner for layer in self._layers}
        by_name = {layer.name: layer for layer in self._layers}
        self.seen = set()

        def tell(name: str, output: object) -> None:
            self.seen.add(name)
            z = first_tensor(output)
            if z is not None:
                take(by_name[name], z.detach())

        with self.unnoticed(), evaluating(self.model), torch.no_grad(), watching(owners, tell):
            # A copy, as a first layer may work in place.
            batch = _copied(self._batch, self._device)
            if isinstance(batch, Mapping):
                self.model(**batch)
            elif isinstance(batch, list | tuple):
                self.model(*batch)
            else:
                self.model(batch)

    def follow(self, model: nn.Module | None = None) -> None:
        """Bring the batch to where the model is now, and to the dtype that it was cast to.

        Args:
            model: another model from now on; the same if None.
        """
        if model is not None:
            self.model = unwrapped_model(model)
        device, dtype = _kind(self.model)
        if device != self._device:
            self._batch = _copied(self._batch, device)
        if dtype is not self._dtype and self._casts and dtype is not None:
            self._batch = _cast(self._batch, self._dtype, dtype)
        self._device, self._dtype = device, dtype

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """Guard what eval mode does not: attributes, every generator, precision, and the training's hooks.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            stack.enter_context(quiet())
            stack.enter_context(preserved_rng(True))
            stack.enter_context(preserved_attributes(self.model))
            stack.enter_context(without_autocast())
            stack.enter_context(default_of_training())
            stack.enter_context(warnings.catch_warnings())
            # A checkpointed part says so where it has no gradients to save memory for.
            warnings.filterwarnings(
                "ignore", message="None of the inputs have requires_grad", category=UserWarning
            )
            # Compiled code would not see hooks that are added now, and would be compiled anew for eval mode. Who
            # has compiled nothing is spared the import.
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield


class Jacobians:
    """The singular values of the model's Jacobian at samples of a probe.

    Attributes:
        series: the columns: the largest singular value at each sample, as ``spectral_norm``. Its status is that of
            all that were asked for: where it is ``not_converged``, some of them are NaN.
        spectra: the rows of the spectra, in the same order.
        options: what is taken, spelled out.
    """

    def __init__(self, probe: Probe, options: Mapping[str, Any] | None = None, k: int = 16) -> None:
        """Choose the samples.

        Args:
            probe: the probe, one tensor of samples.
            options: see `JacobianOptions`.
            k: how many singular values, the largest, if there are as many.

        Raises:
            InputError: if the probe is no tensor of samples, or an option is not what was expected.
        """
        given = dict(options or {})
        for name in given:
            if name not in _OPTIONS:
                raise InputError(f"unknown option {name!r} of jacobian; {did_you_mean(str(name), _OPTIONS)}")
        count = given.get("samples", _SAMPLES)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"got jacobian samples = {count!r}, expected a whole number, 1 or more.")
        x, source = probe.samples, given.get("source")
        if x is None or not len(x):
            raise InputError(
                "jacobian_singular_values needs a probe that is one tensor [samples, ...], with a sample in it."
            )
        find_modules(probe.model, [n for n in (source, given.get("target")) if n is not None])
        if source is None and not x.is_floating_point():
            raise InputError(
                f"the probe is of dtype {x.dtype}, by which nothing can be differentiated; name the layer to start "
                "from, such as the embedding, with jacobian={'source': …}."
            )
        self._probe, self._count, self._k = probe, len(x[:count]), k
        self._source: str | None = source
        self._target: str | None = given.get("target")
        self.options = {"samples": self._count, "source": source, "target": self._target}
        names = [f"model[{i}]" for i in range(self._count)]
        self.series = tuple(Series(name, JACOBIAN, NONE, NONE, "spectral_norm") for name in names)
        self.spectra = tuple(SpectrumKey(name, JACOBIAN, NONE) for name in names)

    def measure(self) -> tuple[list[tuple[float, float, int]], npt.NDArray[np.float64]]:
        """Take the singular values of the model as it is now.

        Returns:
            Value, tolerance (NaN) and status code for each of `series`, and the values for each of `spectra`:
            `[samples, at most k]`, descending.
        """
        self._probe.follow()
        x = self._probe.samples
        assert x is not None
        with self._probe.unnoticed():
            reading = jacobian_reading(
                self._probe.model,
                x[: self._count].clone(),
                k=self._k,
                source=self._source,
                target=self._target,
                at_most=True,
            )
        values = reading.values.cpu().numpy()
        words = zip(values[:, 0].tolist(), reading.status, strict=True)
        return [(largest, float("nan"), CODES[word]) for largest, word in words], values


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        for item in batch:
            yield from _tensors(item)
    elif isinstance(batch, Tensor):
        yield batch


def _kind(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    # Where a model is, and the dtype of its first floating parameter.
    held = [*model.parameters(), *model.buffers()]
    floating = [tensor.dtype for tensor in held if tensor.is_floating_point()]
    return held[0].device if held else torch.device("cpu"), floating[0] if floating else None


def _cast(batch: Any, before: torch.dtype | None, now: torch.dtype) -> Any:
    return _mapped(batch, lambda tensor: tensor.to(now) if tensor.dtype is before else tensor)


def _copied(batch: Any, device: torch.device) -> Any:
    return _mapped(batch, lambda tensor: tensor.detach().to(device, copy=True))


def _mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: _mapped(item, change) for name, item in batch.items()}
    if isinstance(batch, list | tuple):
        items = [_mapped(item, change) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def _shown(batch: Any) -> str:
    return repr(batch) if isinstance(batch, str | int | float) else type(batch).__name__
