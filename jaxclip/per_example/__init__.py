"""Clipped gradients of every example at the price of one gradient."""

from .api import clipped_grad as clipped_grad
from .api import norms as norms
from .api import value_and_clipped_grad as value_and_clipped_grad
from .decision import Info as Info
from .explain import Explanation as Explanation
from .explain import Row as Row
from .explain import explain as explain
from .guarantee import Clipped as Clipped
from .noise import NoiseScale as NoiseScale
from .noise import noise_scale as noise_scale
from .rules import RULES as RULES
from .rules.check import check_rule as check_rule
