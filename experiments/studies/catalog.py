"""The studies, by name, each with what it asks; one is imported when it is asked for."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import check_name

if TYPE_CHECKING:
    from experiments.studies.study import Study

ASKS = {
    "optimizers": "does a clip raise the optimum of an optimizer, or widen its range?",
    "language": "does a clip help a transformer, trained by AdamW as people do?",
    "limits": "is there a limit that needs no tuning?",
    "scopes": "clip the whole gradient, arrays, units, entries or singular values?",
    "schedules": "does a falling limit help, beside a falling learning rate?",
    "methods": "which of the 23 methods is best on which task?",
    "sensitivity": "which method forgives a bad limit, or a bad learning rate?",
    "spikes": "what gets a training over spikes and nans?",
    "remedies": "what helps against corrupted batches and overflows?",
    "temporal_order": "up to which length is long memory learned?",
    "placement": "before the optimizer or after it?",
    "accumulation": "clip every micro-batch, or the accumulated mean?",
    "batch_sizes": "does a clip matter more where batches are small?",
    "action": "how often does each method act, over the training?",
    "per_example": "clip each example, the batch, or nothing?",
    "compression": "does a clip make a model smaller, sparser, easier to quantize or prune?",
    "quantized_training": "do clipped weights keep the accuracy at fewer bits?",
    "distillation": "does a clip matter to a network that learns from a larger one?",
    "vae": "does a clip help a variational autoencoder?",
    "wgan": "does a clip help a Wasserstein GAN?",
    "depth": "what does a clip mend where gradients explode, or vanish?",
}
NAMES = tuple(ASKS)

# The record of a study, and where the repository keeps one of each.
CONFIG, TRAININGS, PAGE = "config.json", "trainings.csv", "page.json"
RESULTS = Path(__file__).parents[1] / "results"


def find(name: str) -> "Study":
    """Returns the study of a name."""
    check_name(name, NAMES, "study")
    return importlib.import_module(f"experiments.studies.{name}").STUDY
