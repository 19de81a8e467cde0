"""Whether a clip helps a Wasserstein GAN, whichever way its critic is kept Lipschitz."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from experiments.pages.report import Column, Table
from experiments.pages.series import Figure, Series
from experiments.studies import probes
from experiments.studies.arms import NO_CLIP, Arm, Range
from experiments.studies.compression import STUDY as COMPRESSION
from experiments.studies.compression import mean
from experiments.studies.effects import by_setting
from experiments.studies.knobs import KNOBS, Named, rates
from experiments.studies.pictures import SIDE, mosaic
from experiments.studies.search import Finding
from experiments.studies.settings import Setting
from experiments.studies.study import Study
from experiments.studies.vae import METHODS, PARTS, SHOWN, norm_in_part
from experiments.tasks import frechet, wgan
from experiments.tasks.wgan import CRITIC, GENERATOR, Wgan, each_player, in_turn, limit_spectrum
from experiments.training.config import Params

LAYERS = tuple(
    (player, layer) for player in (CRITIC, GENERATOR) for layer in ("first", "second", "output")
)
OWN = "optimizer.own"  # the limit of the weights, or of their singular values
PENALTY = "task.penalty"
FLOOR = "noise floor"
ADAM = functools.partial(optax.adam, b1=0.0, b2=0.9)
Project = Callable[[Any], optax.GradientTransformation]


def limit_weights(limit: Any) -> optax.GradientTransformation:
    """Returns the clip of the critic's weights."""
    return jaxclip.clip_weights(limit, name="weights")


@dataclasses.dataclass(frozen=True)
class EachPlayer(Named):
    """A named method of its number, for each player by itself."""

    def __call__(self, limit: Any, **further: Any) -> optax.GradientTransformation:
        """Returns the method with its number."""
        return each_player(functools.partial(super().__call__, limit, **further))


@dataclasses.dataclass(frozen=True)
class Players:
    """The optimizers of both players; that of the critic may end in a projection of its weights."""

    project: Project | None

    def __call__(self, rate: Any, own: Any = math.inf) -> optax.GradientTransformation:
        """Returns them, of a learning rate and the limit of the projection."""
        projection = [] if self.project is None else [self.project(own)]
        return in_turn(optax.chain(ADAM(rate), *projection), ADAM(rate))


# What keeps the critic Lipschitz, and the number that it has.
LIPSCHITZ: dict[str, tuple[Project | None, str, Range]] = {
    "weight clip": (limit_weights, OWN, Range(0.003, 0.3)),
    "gradient penalty": (None, PENALTY, Range(1.0, 100.0)),
    "spectral limit": (limit_spectrum, OWN, Range(0.3, 3.0)),
}


def arms(full: bool) -> Sequence[Arm]:
    """Returns, by what keeps the critic Lipschitz, no clip and four clips of the gradient."""
    methods = METHODS if full else dict(list(METHODS.items())[:1])
    kinds = LIPSCHITZ if full else {"weight clip": LIPSCHITZ["weight clip"]}
    return [arm for kind in kinds for arm in of_kind(kind, methods, full)]


def of_kind(kind: str, methods: dict[str, str], full: bool) -> list[Arm]:
    """Returns the arms of one way to keep the critic Lipschitz."""
    project, number, range = LIPSCHITZ[kind]
    task = Wgan(hidden=128 if full else 32, penalized=number == PENALTY)
    setting = Setting(
        kind,
        task,
        norm=1.0,
        learning_rate=3e-4,
        optimizer=Players(project),
        epochs=5 if full else 1,
        floor=-100.0,  # the samples of any finite training count
        scored="negative Fréchet distance, 1/100",
    )

    def arm(method: str, name: str, clip: dict[str, Range], **changes: Any) -> Arm:
        more = {"draw": task.draw, "watch": layer_norms, "probe": Samples(task)}
        config = setting.config(EachPlayer(method), **more)
        box = {"learning_rate": rates(setting), number: range, **clip}
        return Arm(name, setting, config, box, labels={number: kind}, **changes)

    return [
        arm("clip_by_global_norm", NO_CLIP, {}, fixed={"limit": math.inf}, against=""),
        *(arm(method, name, {"limit": KNOBS[method].range}) for method, name in methods.items()),
    ]


@dataclasses.dataclass(frozen=True)
class Samples:
    """The Fréchet distance of two halves of test images, and samples to look at."""

    task: Wgan

    def __call__(self, params: Params, test: Any) -> jax.Array:
        """Returns the distance, and the pixels of the samples, f32[n]."""
        real = test.images[: 2 * wgan.JUDGED, ..., 0].astype(jnp.float32) / 255
        shown = self.task.samples(params, jax.random.key(0), SHOWN)
        return jnp.concatenate([frechet.noise_floor(real)[None], shown.ravel()])


def layer_norms(gradient: Params) -> jax.Array:
    """Returns the norms f32[6] of the gradients of the layers."""
    return jnp.stack([jaxclip.global_norm(gradient[player][name]) for player, name in LAYERS])


def tables(findings: Sequence[Finding]) -> Sequence[Table]:
    """Returns the distances, and how many seeds diverged."""
    columns = [
        Column("critic"),
        Column("arm"),
        Column("Fréchet distance", "{:.4g}"),
        Column("of two halves of the test images", "{:.4g}"),
        Column("diverged", "{:d}"),
        Column("seeds", "{:d}"),
    ]
    rows = [
        [
            one.arm.setting.name,
            one.arm.name,
            -one.chosen.mean,
            mean(one, FLOOR),
            one.chosen.failed,
            len(one.chosen.trainings),
        ]
        for one in findings
    ]
    return [Table("quality", "Quality", columns, rows)]


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
                    f"{player}, {name}",
                    share,
                    np.array([mean(one, f"{player} {name} {part}") for part in range(PARTS)]),
                )
                for player, name in LAYERS
            ],
            log_y=True,
            caption="Medians over tenths of the training, mean of the seeds.",
        )
        for here in by_setting(findings).values()
        for one in here
    ]


def show(finding: Finding) -> Figure:
    """Returns samples of the first seed."""
    pictures = finding.chosen.probed[1:].reshape(-1, SIDE, SIDE)
    return mosaic(finding.arm.slug, f"{finding.arm.title}: samples", pictures)


STUDY = Study(
    name="wgan",
    question="Does a clip of the gradient help a Wasserstein GAN, with weights that are clipped, a "
    "gradient penalty, or limits of the singular values?",
    arms=arms,
    measures={
        **probes.measures([FLOOR]),
        **{
            f"{player} {name} {part}": functools.partial(norm_in_part, layer=layer, part=part)
            for layer, (player, name) in enumerate(LAYERS)
            for part in range(PARTS)
        },
    },
    tables=tables,
    figures=figures,
    pictures=lambda findings: [show(one) for one in findings],
    full=dataclasses.replace(COMPRESSION.full, seeds=10),
    quick=COMPRESSION.quick,
)
