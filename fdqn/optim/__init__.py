"""Gradient descent as `init/update` pairs: state in, updates and state out.

`update(grads, state, params)` answers with what is to be *added* to the parameters (`apply_updates`). Learning rates
are numbers, tensors (one a lane, under `vmap`) or schedules of the update count, and so are other numbers tensors where
lanes differ in them. Equations and defaults are those of `torch.optim`; the order in which each rounds is kept, so that
float64 agrees to 1e-12; `graves_rmsprop`, which PyTorch has not, is optax's.

Where a root is taken, the derivative of an update with respect to gradients that are exactly 0 is NaN, as in PyTorch.

`descent` has what follows the gradient, `moments` what follows its mean and size (Adam and its kin), `transforms` what
changes gradients on their way and what combines several. PyTorch's coupled `weight_decay` is `add_decayed_weights` in
front, its parameter groups are `grouped`.
"""

from fdqn.optim.descent import adagrad, centered_rmsprop, graves_rmsprop, rmsprop, sgd
from fdqn.optim.moments import adam, adamax, adamw, nadam, radam
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
    "radam",
    "rmsprop",
    "sgd",
]
