"""Opacus' ghost clipping against an ordinary gradient in PyTorch, on models of `per_example`.

    pip install torch opacus
    python -m benchmarks.opacus [ROUNDS]

It is no extra of ours: run it where both are installed. The two sides take turns, with all cores;
the figure is the median of the ratios.
"""

import importlib
import itertools
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.paired import seconds


def perceptron(torch: Any, *widths: int) -> Any:
    """Returns linear layers with ReLU in between."""
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def cnn(torch: Any) -> Any:
    """Returns two convolutions of 3x3, each with GroupNorm and a max pool, and two dense layers."""
    layers = []
    for inputs, outputs in ((1, 16), (16, 32)):
        layers += [
            torch.nn.Conv2d(inputs, outputs, 3, padding=1),
            torch.nn.GroupNorm(4, outputs),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        ]
    dense = [torch.nn.Linear(7 * 7 * 32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), *dense)


def clipping(torch: Any, model: Any, x: Any, y: Any) -> Callable[[], None]:
    """Returns Opacus' gradient of a batch with every example clipped to 1."""
    ghost = importlib.import_module("opacus.grad_sample").GradSampleModuleFastGradientClipping
    losses = importlib.import_module("opacus.utils.fast_gradient_clipping_utils")
    optimizers = importlib.import_module("opacus.optimizers.optimizer_fast_gradient_clipping")
    wrapped = ghost(model, batch_first=True, max_grad_norm=1.0, use_ghost_clipping=True)
    optimizer = optimizers.DPOptimizerFastGradientClipping(
        torch.optim.SGD(wrapped.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        expected_batch_size=len(x),
    )
    criterion = losses.DPLossFastGradientClipping(
        wrapped, optimizer, torch.nn.CrossEntropyLoss(), "mean"
    )

    def clipped() -> None:
        optimizer.zero_grad()
        criterion(wrapped(x), y).backward()

    return clipped


def main(rounds: int) -> None:
    """Prints the ratio for every model."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    for name, make, shape in (
        ("mlp-128, 256", lambda: perceptron(torch, 784, 128, 10), (256, 784)),
        ("mlp-128, 1024", lambda: perceptron(torch, 784, 128, 10), (1024, 784)),
        ("mlp-512-512, 1024", lambda: perceptron(torch, 784, 512, 512, 10), (1024, 784)),
        ("cnn, 256", lambda: cnn(torch), (256, 1, 28, 28)),
    ):
        x, y = torch.randn(shape), torch.arange(shape[0]) % 10
        bare = make()
        clipped = clipping(torch, make(), x, y)

        def ordinary(bare: Any = bare, x: Any = x, y: Any = y) -> None:
            bare.zero_grad()
            torch.nn.functional.cross_entropy(bare(x), y).backward()

        for side in (clipped, ordinary):
            side()
        ratios = [seconds(clipped) / seconds(ordinary) for _ in range(rounds)]
        print(f"{name:20} {statistics.median(ratios):.2f} times an ordinary gradient")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 21)
