"""Whether a clip helps a variational autoencoder: its bound, its samples, its gradients."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from experiments.pages.report import Column, Table
from experiments.pages.series import Figure, Series
from experiments.studies import probes
from experiments.studies.arms import Arm
from experiments.studies.compression import STUDY as COMPRESSION
from experiments.studies.compression import mean
from experiments.studies.effects import by_setting
from experiments.studies.knobs import make_arm, unclipped_arm
from experiments.studies.pictures import SIDE, mosaic
from experiments.studies.search import Finding
from experiments.studies.settings import Setting
from experiments.studies.study import Study
from experiments.tasks import frechet
from experiments.tasks.vae import Vae
from experiments.training.config import Params
from experiments.training.train import History

METHODS = {
    "clip_by_global_norm": "global norm",
    "adaptive_grad_clip": "AGC",
    "autoclip": "AutoClip",
    "zclip": "ZClip",
}
LAYERS = ("encode", "code", "decode", "pixels")
PARTS = 10  # of a training, over each of which the norms are averaged
SAMPLES = 2000
SHOWN = 16
DISTANCES = ("distance", "noise floor")
SETTING = Setting(
    "vae",
    Vae(),
    norm=10.0,
    optimizer=optax.adam,
    learning_rate=1e-3,
    floor=-2.1,  # what the mean gray of every pixel reaches, about -206 nats
    scored="bound, nats",
)


@dataclasses.dataclass(frozen=True)
class Quality:
    """The Fréchet distance of samples from test images, that of further test images; pictures."""

    task: Vae

    def __call__(self, params: Params, test: Any) -> jax.Array:
        """Returns both distances, and the pixels of samples, images and reconstructions, f32[n]."""
        judge = frechet.judge()
        real = test.images[: 2 * SAMPLES, ..., 0].astype(jnp.float32) / 255
        pictures = self.task.samples(params, jax.random.key(0), SAMPLES)
        found, images = (frechet.features(judge, one) for one in (pictures, real))
        away = frechet.distance(found, images[:SAMPLES])
        floor = frechet.distance(images[SAMPLES:], images[:SAMPLES])
        again = self.task.reconstructions(params, test.images[:SHOWN])
        shown = jnp.concatenate([pictures[:SHOWN], real[:SHOWN], again])
        return jnp.concatenate([jnp.stack([away, floor]), shown.ravel()])


def layer_norms(gradient: Params) -> jax.Array:
    """Returns the norms f32[4] of the gradients of the layers."""
    return jnp.stack([jaxclip.global_norm(gradient[name]) for name in LAYERS])


def arms(full: bool) -> Sequence[Arm]:
    """Returns no clip and four clips."""
    task = Vae() if full else Vae(hidden=64, latent=8)
    setting = dataclasses.replace(SETTING, task=task, epochs=10 if full else 1)
    more = {"draw": task.draw, "watch": layer_norms, "probe": Quality(task)}
    methods = METHODS if full else dict(list(METHODS.items())[:1])
    return [
        unclipped_arm(setting, **more),
        *(make_arm(method, setting, name, **more) for method, name in methods.items()),
    ]


def norm_in_part(history: History, layer: int, part: int) -> float:
    """Returns the median norm of a layer's gradient over a part of the training.

    nan where there are fewer steps than parts.
    """
    watched = np.asarray(history.watched, np.float64)
    norms = watched.reshape(-1, watched.shape[-1])[:, layer]
    here = np.array_split(norms, PARTS)[part]
    return float(np.median(here)) if len(here) else math.nan


MEASURES = {
    **probes.measures(DISTANCES),
    **{
        f"{name} {part}": functools.partial(norm_in_part, layer=layer, part=part)
        for layer, name in enumerate(LAYERS)
        for part in range(PARTS)
    },
}


def tables(findings: Sequence[Finding]) -> Sequence[Table]:
    """Returns the bound and the distance of samples."""
    columns = [
        Column("arm"),
        Column("bound, nats", "{:.2f}"),
        Column("Fréchet distance of samples", "{:.4g}"),
        Column("of other test images", "{:.4g}"),
    ]
    rows = [
        [one.arm.name, 100 * one.chosen.mean, *(mean(one, name) for name in DISTANCES)]
        for one in findings
    ]
    return [Table("quality", f"Quality, with {SAMPLES} samples", columns, rows)]


def figures(findings: Sequence[Finding]) -> Sequence[Figure]:
    """Returns the norms of the layers over the training, a figure an arm."""
    share = 100 * (np.arange(PARTS) + 0.5) / PARTS
    return [
        Figure(
            f"layers-{one.arm.slug}",
            f"{one.arm.title}: the gradient of each layer, before the clip",
            "of the training, %",
            "norm",
            [
                Series(
                    name, share, np.array([mean(one, f"{name} {part}") for part in range(PARTS)])
                )
                for name in LAYERS
            ],
            log_y=True,
            caption="Medians over tenths of the training, mean of the seeds.",
        )
        for here in by_setting(findings).values()
        for one in here
    ]


def show(finding: Finding) -> Figure:
    """Returns samples, test images and their reconstructions."""
    pictures = finding.chosen.probed[2:].reshape(-1, SIDE, SIDE)
    title = f"{finding.arm.title}: samples, test images, and their reconstructions"
    return mosaic(finding.arm.slug, title, pictures, "Two rows of each; one seed.")


STUDY = Study(
    name="vae",
    question="Does a clip help a variational autoencoder?",
    arms=arms,
    measures=MEASURES,
    tables=tables,
    figures=figures,
    pictures=lambda findings: [show(one) for one in findings],
    full=dataclasses.replace(COMPRESSION.full, seeds=10),
    quick=COMPRESSION.quick,
)
