"""Optimizers as `init/update` pairs, as in optax.

`update(grads, state, params)` returns the updates, which are *added* to the parameters (`apply_updates`), and the new
state. A learning rate is a number, a tensor or a schedule of the update count; the other hyper-parameters are numbers
or tensors. Tensors can hold one value a seed, under `vmap`.

Equations and defaults are those of `torch.optim`, in the same order of rounding, so that float64 agrees to 1e-12.
`graves_rmsprop`, which PyTorch lacks, follows optax. As in PyTorch, the derivative of an update with respect to a
gradient of exactly 0 is NaN where a square root is involved.

`descent` has SGD, RMSprop and Adagrad, `moments` has Adam and its variants, and `transforms` changes gradients and
combines optimizers. The coupled `weight_decay` of PyTorch is `add_decayed_weights` in front of an optimizer; its
parameter groups are `grouped`. `traces` has `obgd`, a function of an eligibility trace in place of a gradient.
"""

from fdqn.optim.descent import adagrad, centered_rmsprop, graves_rmsprop, rmsprop, sgd
from fdqn.optim.moments import adam, adamax, adamw, nadam, radam
from fdqn.optim.traces import obgd
from fdqn.optim.transforms import (
    add_decayed_weights,
    apply_updates,
    chain,
    clip_by_global_norm,
    clip_by_value,
    frozen,
    grouped,
    masked,
)

__all__ = [
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "add_decayed_weights",
    "apply_updates",
    "centered_rmsprop",
    "chain",
    "clip_by_global_norm",
    "clip_by_value",
    "frozen",
    "graves_rmsprop",
    "grouped",
    "masked",
    "nadam",
    "obgd",
    "radam",
    "rmsprop",
    "sgd",
]
