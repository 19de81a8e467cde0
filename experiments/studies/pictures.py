"""Pictures on the page of a study, as heat maps."""

import numpy as np

from experiments.pages.series import Figure, Heat

PICTURES = "pictures-"  # begins the name of their figures
SIDE = 28
ACROSS = 8


def mosaic(slug: str, title: str, pictures: np.ndarray, caption: str = "") -> Figure:
    """Returns the figure of pictures f32[n, 28, 28] side by side, their grays from 0 to 1."""
    rows = -(-len(pictures) // ACROSS)
    whole = np.zeros((rows * ACROSS, SIDE, SIDE))
    whole[: len(pictures)] = np.nan_to_num(pictures)
    grid = whole.reshape(rows, ACROSS, SIDE, SIDE).swapaxes(1, 2).reshape(rows * SIDE, -1)
    # The y axis goes up, and pictures begin at the top.
    y, x = -np.arange(len(grid)), np.arange(grid.shape[1])
    heat = Heat(x, y[::-1], list(np.round(grid[::-1], 2)))
    return Figure(f"{PICTURES}{slug}", title, "pixel", "pixel", [], caption=caption, heat=heat)
