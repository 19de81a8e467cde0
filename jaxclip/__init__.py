"""Gradient clipping for JAX as composable Optax gradient transformations."""

from . import measures as measures
from . import norms as norms
from . import shrinks as shrinks
from . import thresholds as thresholds
from .core import clip as clip
from .core import global_norm as global_norm
from .core import scale_to_norm as scale_to_norm
from .methods.fixed import clip_by_block_rms as clip_by_block_rms
from .methods.fixed import clip_by_global_norm as clip_by_global_norm
from .methods.fixed import clip_by_group_norm as clip_by_group_norm
from .methods.fixed import clip_by_leaf_norm as clip_by_leaf_norm
from .methods.fixed import clip_by_unit_norm as clip_by_unit_norm
from .methods.fixed import normalize_by_global_norm as normalize_by_global_norm
from .methods.fixed import smooth_clip_by_global_norm as smooth_clip_by_global_norm
from .methods.named import named as named
from .methods.relative import adaptive_grad_clip as adaptive_grad_clip
from .methods.value import clip_by_value as clip_by_value
from .metrics import ClipMetrics as ClipMetrics
from .metrics import metrics as metrics
from .weights import clip_weights as clip_weights
from .weights import clip_weights_by_fan_in as clip_weights_by_fan_in
