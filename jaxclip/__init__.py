"""Gradient clipping for JAX as composable Optax gradient transformations."""

from . import measures as measures
from . import norms as norms
from . import per_example as per_example
from . import shrinks as shrinks
from . import thresholds as thresholds
from .advice import Advice as Advice
from .advice import advise as advise
from .clip_metrics import ClipMetrics as ClipMetrics
from .core import clip as clip
from .core import global_norm as global_norm
from .core import scale_to_norm as scale_to_norm
from .methods.average import adagc as adagc
from .methods.average import clip_by_norm_ratio as clip_by_norm_ratio
from .methods.average import drop_spikes as drop_spikes
from .methods.average import limit_norm_growth as limit_norm_growth
from .methods.average import spam_clip as spam_clip
from .methods.average import zclip as zclip
from .methods.feedback import u_clip as u_clip
from .methods.fixed import clip_by_block_rms as clip_by_block_rms
from .methods.fixed import clip_by_global_norm as clip_by_global_norm
from .methods.fixed import clip_by_group_norm as clip_by_group_norm
from .methods.fixed import clip_by_leaf_norm as clip_by_leaf_norm
from .methods.fixed import clip_by_unit_norm as clip_by_unit_norm
from .methods.fixed import normalize_by_global_norm as normalize_by_global_norm
from .methods.fixed import smooth_clip_by_global_norm as smooth_clip_by_global_norm
from .methods.named import named as named
from .methods.quantile import autoclip as autoclip
from .methods.quantile import clip_by_history as clip_by_history
from .methods.quantile import clip_by_quantile as clip_by_quantile
from .methods.relative import adaptive_grad_clip as adaptive_grad_clip
from .methods.relative import clippy as clippy
from .methods.spectral import clip_singular_values as clip_singular_values
from .methods.value import clip_by_value as clip_by_value
from .per_example import clipped_grad as clipped_grad
from .per_example import value_and_clipped_grad as value_and_clipped_grad
from .reports import log as log
from .reports import metrics as metrics
from .reports import names as names
from .weights import clip_weights as clip_weights
from .weights import clip_weights_by_fan_in as clip_weights_by_fan_in
from .wrappers import skip_nonfinite as skip_nonfinite
from .wrappers import skip_on_spike as skip_on_spike
from .wrappers import with_error_feedback as with_error_feedback

__version__ = "0.1.0"
