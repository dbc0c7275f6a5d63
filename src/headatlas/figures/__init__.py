"""Static figures (matplotlib) and the figure in words.

>>> figure = atlas.plot.categories(width_mm=170)                 # doctest: +SKIP
>>> headatlas.figures.save(figure, "categories.pdf")             # doctest: +SKIP
>>> atlas.plot.data("categories")                                # doctest: +SKIP

Importing this costs nothing; matplotlib is loaded when a figure is drawn, and pyplot never.
"""

from headatlas.figures.describe import alt_text, describe
from headatlas.figures.plots import FORMATS, KINDS, Plots, plot, plot_categories, save

__all__ = ["FORMATS", "KINDS", "Plots", "alt_text", "describe", "plot", "plot_categories", "save"]
