"""A network's share of a loss, by the chain rule: its many values act on a subject through few typical
parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import Model, Network
from medcm_cli.numerics.streams import Stream
from medcm_cli.training.layout import Layout

_TYPICAL = "typical."


@dataclass(frozen=True)
class Given(Network):
    """No network: typical parameters that are values themselves, each of its ``shapes`` but for the fit, in
    the place of those of ``network``."""

    network: Network
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def parameters(self) -> tuple[str, ...]:
        """See ``Network.parameters``."""
        return self.network.parameters

    @property
    def inputs(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def effects(self) -> tuple[tuple[str, str], ...]:
        """None."""
        return ()

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """None, since they are given."""
        del streams, dtype
        return {}

    def typical(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Network.typical``."""
        del covariates
        return {name: values[f"{_TYPICAL}{name}"].reshape(*shape, -1) for name, shape in self.shapes.items()}


@dataclass(frozen=True)
class Through:
    """Values (D, m) of m subjects, each a fit of its own, with typical parameters in the place of a
    network's: ``values`` (d, m), laid out by ``layout``, of the ``model`` to which these are given.

    ``rows`` (D,): which of the D are the network's; these, ``leaf`` (n, m), and the ``typical`` parameters
    (k, m) as functions of them. Where the network has no more values than there are typical parameters,
    nothing is replaced, and k and n are 0.
    """

    model: Model
    layout: Layout
    values: Tensor
    rows: Tensor
    leaf: Tensor
    typical: Tensor

    @classmethod
    def of(cls, model: Model, layout: Layout, flat: Tensor, population: Population) -> "Through":
        """From values ``flat`` (D, m), laid out by ``layout``."""
        names = tuple(
            name for name in model.network.init([Stream(0, 1, 1)], flat.dtype) if name in layout.names
        )
        rows = layout.rows(names)
        with torch.enable_grad():
            leaf = flat[rows].detach().requires_grad_()
            zeta = model.typical(layout.unpack(flat.detach().index_put((rows,), leaf)), population)
            typical = torch.cat([value.reshape(-1, flat.shape[1]) for value in zeta.values()])
        if len(typical) >= len(leaf):
            return cls(model, layout, flat, torch.zeros_like(rows), flat[:0], flat[:0])
        shapes = {name: tuple(value.shape[:-1]) for name, value in zeta.items()}
        inner = {
            f"{_TYPICAL}{name}": value.detach().reshape(-1, flat.shape[1]) for name, value in zeta.items()
        }
        inner |= {name: value for name, value in layout.unpack(flat).items() if name not in names}
        given = replace(model, network=Given(model.network, shapes))
        made = Layout.of(inner)
        return cls(given, made, made.pack(inner), rows, leaf, typical)

    def back(self, gradient: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (d, m) and Hessian (d, d, m) of a loss in ``values`` as those in the D values: (D, m) and
        (D, D, m)."""
        k, n = len(self.typical), len(self.leaf)
        if not k:
            return gradient, hessian
        places = torch.cat([self.rows.nonzero()[:, 0], (~self.rows).nonzero()[:, 0]]).argsort()
        slope = torch.stack([self._of(value.sum()) for value in self.typical])  # (k, n, m)
        outer = torch.einsum("kim,kjm->ijm", slope, torch.einsum("klm,ljm->kjm", hessian[:k, :k], slope))
        (bent,) = torch.autograd.grad((self.typical * gradient[:k]).sum(), self.leaf, create_graph=True)
        for i in range(n):
            outer[i] += self._of(bent[i].sum())
        cross = torch.einsum("kim,kjm->ijm", slope, hessian[:k, k:])
        whole = torch.cat(
            [
                torch.cat([outer, cross], 1),
                torch.cat([cross.transpose(0, 1), hessian[k:, k:]], 1),
            ]
        )
        first = torch.cat([torch.einsum("kim,km->im", slope, gradient[:k]), gradient[k:]])
        return first[places], whole[places][:, places]

    def _of(self, value: Tensor) -> Tensor:
        """The derivative in the network's values, (n, m)."""
        if not value.requires_grad:
            return torch.zeros_like(self.leaf)
        (slope,) = torch.autograd.grad(
            value, self.leaf, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        return slope
