"""Train many seeds of a classifier of handwritten digits: the library without its reinforcement learning.

    pip install -e '.[test]'
    python benchmarks/digits.py [--seeds 32] [--updates 1000]

The data are 1,797 images of 8 x 8 from scikit-learn, a quarter of them held out. The network is 64-64-10 with ReLU,
trained with cross-entropy, Adam and a cosine schedule. Prints the interquartile mean over seeds of the held-out
accuracy with its 95% interval, or with the range of fewer than 5 seeds.
"""

import argparse
import time
from functools import partial

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.func import grad, vmap

from fdqn import compile, networks, optim, random, tree
from fdqn.ops import losses, schedules
from fdqn.report import statistics

BATCH = 128


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load images [N, 64] in [0, 1] and labels [N], for training and held out."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, random_state=0, stratify=labels)
    images, held_out, labels, held_out_labels = map(torch.from_numpy, parts)
    return images.float(), labels, held_out.float(), held_out_labels


def accuracies(seeds: int, updates: int) -> Tensor:
    """Train all seeds and return the held-out accuracy [S] of each."""
    images, labels, held_out, held_out_labels = digits()
    network = networks.mlp(64, (64,), 10)
    optimizer = optim.adam(partial(schedules.cosine, start=3e-3, end=0.0, steps=updates))

    def loss(params, rows):
        return losses.cross_entropy_of_labels(network.apply(params, images[rows]), labels[rows]).mean()

    def update(state, bits):
        params, opt_state = state
        changes, opt_state = optimizer.update(grad(loss)(params, random.index(bits, len(images))), opt_state, params)
        return optim.apply_updates(params, changes), opt_state

    keys = random.key(range(seeds))
    params = network.init(random.fold_in(keys, 0))
    bits = random.bits(random.fold_in(keys, 1), (updates, BATCH)).movedim(1, 0).contiguous()
    state = tree.clone((params, vmap(optimizer.init)(params)))  # separate memory, because donation overwrites it
    params, _ = compile.scan(vmap(update))(state, bits)
    logits = vmap(network.apply, (0, None))(params, held_out)
    return (logits.argmax(-1) == held_out_labels).double().mean(-1)


def main() -> None:
    """Train; print accuracy and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--updates", type=int, default=1000)
    arguments = parser.parse_args()
    compile.prepare_cpu()
    print(f"training {arguments.seeds} seeds; compiling takes about 10 s the first time", flush=True)
    start = time.perf_counter()
    result = statistics.interval(accuracies(arguments.seeds, arguments.updates).numpy())
    print(f"held-out accuracy, interquartile mean over {arguments.seeds} seeds: ", end="")
    kind = "range " if result.kind == "range" else ""
    print(f"{100 * result.iqm:.2f}% [{kind}{100 * result.low:.2f}, {100 * result.high:.2f}], ", end="")
    print(f"{time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
