"""The studies, by name, each with what it asks; one is imported when it is asked for."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import check_name

if TYPE_CHECKING:
    from experiments.studies.study import Study

ASKS = {
    "schedules": "does a falling limit help, beside a falling learning rate?",
    "methods": "which of the 23 methods is best on which task?",
    "sensitivity": "which method forgives a bad limit, or a bad learning rate?",
    "spikes": "what gets a training over spikes and nans?",
    "temporal_order": "up to which length is long memory learned?",
    "placement": "before the optimizer or after it?",
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
