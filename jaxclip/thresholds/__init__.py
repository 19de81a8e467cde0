"""Thresholds: how large a block may be."""

from .averages import ema as ema
from .averages import previous as previous
from .averages import second_moment as second_moment
from .averages import zscore as zscore
from .base import Feed as Feed
from .base import LimitLike as LimitLike
from .base import Now as Now
from .base import Number as Number
from .base import Threshold as Threshold
from .base import as_threshold as as_threshold
from .base import check_choice as check_choice
from .base import check_number as check_number
from .base import constant as constant
from .base import relative as relative
from .base import scheduled as scheduled
from .combined import cascade as cascade
from .combined import lowest as lowest
from .combined import warmup_then as warmup_then
from .trackers import geometric_quantile as geometric_quantile
from .windows import history as history
from .windows import quantile as quantile
